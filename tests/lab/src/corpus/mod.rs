//! Packets that a director may meet, as data: what two data paths make of each of them can be
//! compared field by field.
//!
//! A case is a few packets of one client, which has a source port of its own, so that no case
//! depends on another. All are IP packets with what an Ethernet frame carries behind them; whoever
//! sends them writes the link header.

mod build;
mod icmp;
mod ipv4;
mod ipv6;
mod transport;

use std::net::{Ipv4Addr, Ipv6Addr};

/// MTU of the outer packets to [`Ends::vip4`]'s and [`Ends::vip6`]'s real server.
pub const PATH_MTU: usize = 1500;

/// MTU of the outer packets to the real server of the narrow VIPs: less than what IPv6 asks of the
/// inner packets' path (1280 and 40).
pub const NARROW_MTU: usize = 1300;

/// The first source port of a case; the following cases have the following ones.
const FIRST_PORT: u16 = 20_000;

/// Between whom the packets go.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// The client's addresses.
    pub client4: Ipv4Addr,
    /// See [`Self::client4`].
    pub client6: Ipv6Addr,
    /// VIPs whose real server is behind a path of [`PATH_MTU`].
    pub vip4: Ipv4Addr,
    /// See [`Self::vip4`].
    pub vip6: Ipv6Addr,
    /// VIPs whose real server is behind a path of [`NARROW_MTU`].
    pub narrow4: Ipv4Addr,
    /// See [`Self::narrow4`].
    pub narrow6: Ipv6Addr,
    /// Port of a TCP and a UDP service on each VIP; there is no other.
    pub port: u16,
}

/// A packet as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// From the IP header on.
    pub packet: Vec<u8>,
    /// Bytes of the frame behind the packet, which are not part of it: the padding of short
    /// frames, or more.
    pub trailer: usize,
}

impl From<Vec<u8>> for Sent {
    fn from(packet: Vec<u8>) -> Self {
        Self { packet, trailer: 0 }
    }
}

/// What a trailer is full of: not zeros, so that it is seen where it is forwarded.
pub const TRAILER: u8 = 0xee;

/// A few packets to be sent in this order.
#[derive(Clone, Debug)]
pub struct Case {
    /// Unique; its words name IP version, protocol, and what is special.
    pub name: String,
    /// Is the frames' Ethernet type that of IPv6? Else that of IPv4, whatever the packets say.
    pub ipv6: bool,
    /// The packets.
    pub packets: Vec<Sent>,
}

/// All cases.
#[must_use]
pub fn cases(ends: &Ends) -> Vec<Case> {
    let mut list = List { ends: *ends, cases: Vec::new() };
    transport::add(&mut list);
    ipv4::add(&mut list);
    ipv6::add(&mut list);
    icmp::add(&mut list);
    list.cases
}

/// The cases so far.
struct List {
    ends: Ends,
    cases: Vec<Case>,
}

impl List {
    /// Source port of the next case.
    fn client_port(&self) -> u16 {
        FIRST_PORT + u16::try_from(self.cases.len()).expect("fewer cases than ports")
    }

    /// Adds a case of packets without a trailer.
    fn add(&mut self, name: &str, packets: Vec<Vec<u8>>) {
        self.add_sent(name, packets.into_iter().map(Sent::from).collect());
    }

    fn add_sent(&mut self, name: &str, packets: Vec<Sent>) {
        self.cases.push(Case { name: name.to_owned(), ipv6: name.starts_with("ipv6"), packets });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn ends() -> Ends {
        Ends {
            client4: Ipv4Addr::new(10, 1, 0, 10),
            client6: "fd00:1::10".parse().expect("an address"),
            vip4: Ipv4Addr::new(198, 51, 100, 10),
            vip6: "2001:db8:100::10".parse().expect("an address"),
            narrow4: Ipv4Addr::new(198, 51, 100, 11),
            narrow6: "2001:db8:100::11".parse().expect("an address"),
            port: 7000,
        }
    }

    #[test]
    fn names_are_unique_and_every_packet_fits_an_ethernet_frame() {
        let cases = cases(&ends());
        let names: BTreeSet<_> = cases.iter().map(|case| &case.name).collect();
        assert_eq!(names.len(), cases.len());
        for case in &cases {
            for sent in &case.packets {
                assert!(sent.packet.len() + sent.trailer <= 1500, "{}", case.name);
            }
        }
    }

    #[test]
    fn what_is_not_said_to_be_broken_is_read_by_etherparse() {
        for case in cases(&ends()).iter().filter(|case| !case.name.contains("broken")) {
            for sent in &case.packets {
                let read = etherparse::IpSlice::from_slice(&sent.packet);
                read.unwrap_or_else(|error| panic!("{}: {error}", case.name));
                let right = crate::packet::IpPacket::from_ip(&sent.packet).expect("it was read");
                assert!(right.checksum_ok, "{}", case.name);
            }
        }
    }
}
