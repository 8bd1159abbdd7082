//! What a rule says: its options with their values, and the service it names.

use super::super::address::address_and_port;
use super::super::ledger::Word;
use super::options::Meaning;
use std::net::IpAddr;

/// An option of a line: its word, its values, and the text of the first value.
pub(super) struct Given<'w, 't> {
    pub(super) option: Meaning,
    pub(super) words: Vec<&'w Word<'t>>,
    pub(super) value: Option<&'w str>,
}

/// What a rule names a service by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Address(&'static str, IpAddr, u16),
    Mark(String),
}

/// What a rule names its service by, and whether it names one at all.
pub(super) fn key(given: &[Given<'_, '_>]) -> (Option<Key>, bool) {
    for given in given {
        let value = given.value.unwrap_or_default();
        let protocol = match given.option {
            Meaning::Tcp => "tcp",
            Meaning::Udp => "udp",
            Meaning::Sctp => "sctp",
            Meaning::Mark => return (Some(Key::Mark(value.to_owned())), true),
            Meaning::AddService
            | Meaning::AddServer
            | Meaning::SetTimeouts
            | Meaning::OtherCommand(_)
            | Meaning::Ipv6
            | Meaning::Scheduler
            | Meaning::Persistent
            | Meaning::Netmask
            | Meaning::Engine
            | Meaning::Flags
            | Meaning::OnePacket
            | Meaning::RealServer
            | Meaning::Direct
            | Meaning::Tunnel
            | Meaning::Masquerade
            | Meaning::Weight
            | Meaning::Upper
            | Meaning::Lower
            | Meaning::TunnelType
            | Meaning::TunnelPort
            | Meaning::TunnelChecksum(_)
            | Meaning::Daemon
            | Meaning::Format => continue,
        };
        let address = address_and_port(value);
        return (address.map(|(vip, port)| Key::Address(protocol, vip, port)), true);
    }
    (None, false)
}
