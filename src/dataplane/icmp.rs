//! ICMP messages (RFC 792, RFC 4443) that reach a VIP or the director: what they are and what
//! they quote.

use std::{net::Ipv6Addr, ops::Range};

use adit_tunnel::checksum::{self, Sum};

use super::{
    packet::{Datagram, Family, Quote, be16, be32, protocol},
    verdict::DropReason,
};

/// Length of an ICMP header of either family.
pub const ICMP_HEADER: usize = 8;
/// The least length of a quote that is followed by extensions (RFC 4884 §5.3). A length field that
/// says less was not written by this rule.
const EXTENDED_QUOTE_MIN: usize = 128;

/// ICMPv4 types (RFC 792).
pub(super) mod v4 {
    pub(in super::super) const ECHO_REPLY: u8 = 0;
    pub(in super::super) const UNREACHABLE: u8 = 3;
    pub(in super::super) const ECHO_REQUEST: u8 = 8;
    pub(in super::super) const TIME_EXCEEDED: u8 = 11;
    pub(in super::super) const PARAMETER_PROBLEM: u8 = 12;
    /// Code of [`UNREACHABLE`]: fragmentation needed and DF set (RFC 1191).
    pub(in super::super) const FRAGMENTATION_NEEDED: u8 = 4;
}

/// ICMPv6 types (RFC 4443, RFC 4861).
pub(super) mod v6 {
    pub(in super::super) const UNREACHABLE: u8 = 1;
    pub(in super::super) const PACKET_TOO_BIG: u8 = 2;
    pub(in super::super) const TIME_EXCEEDED: u8 = 3;
    pub(in super::super) const PARAMETER_PROBLEM: u8 = 4;
    pub(in super::super) const ECHO_REQUEST: u8 = 128;
    pub(in super::super) const ECHO_REPLY: u8 = 129;
    pub(in super::super) const NEIGHBOUR_SOLICITATION: u8 = 135;
    pub(in super::super) const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    pub(in super::super) const REDIRECT: u8 = 137;
}

/// What an ICMP message is, as far as a director cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Somebody asks whether the address is there.
    EchoRequest,
    /// An error about a packet that came from the message's destination.
    Error(ErrorMessage),
    /// Anything else, and pieces of messages.
    Unsupported,
}

/// What an ICMP error says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Fragmentation needed (RFC 1191) or packet too big (RFC 4443 §3.2).
    TooBig {
        /// MTU of the next hop in bytes, as the message says; 0 from routers older than RFC 1191.
        mtu: u32,
    },
    /// The quoted packet did not arrive.
    Unreachable(Unreachable),
    /// Its TTL or hop limit ran out, or its reassembly took too long.
    TimeExceeded,
    /// One of its header fields was not understood.
    ParameterProblem,
}

/// Why a destination is unreachable, with the codes of both families mapped onto each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unreachable {
    /// No route (v4 codes 0, 6, 8, 11; v6 code 0).
    Network,
    /// The last router does not reach the host (v4 codes 1, 7, 12; v6 code 3).
    Host,
    /// The host does not know the protocol (v4 code 2; ICMPv6 parameter problem code 1).
    Protocol,
    /// No one listens (v4 code 3; v6 code 4).
    Port,
    /// Filtered (v4 codes 9, 10, 13; v6 codes 1, 5, 6).
    Prohibited,
    /// Any other code.
    Other,
}

/// An ICMP error whose checksum and quote have been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorMessage {
    /// What it says.
    pub kind: ErrorKind,
    /// The quoted packet.
    pub quote: Quote,
    /// Offset of the quoted IP header from the message's IP header.
    pub quote_offset: usize,
    /// Offset behind the quote's last byte: extensions (RFC 4884) follow, or nothing.
    pub quote_end: usize,
}

impl ErrorMessage {
    /// Where the quoted packet is in the message's packet.
    pub const fn quote_range(&self) -> Range<usize> {
        self.quote_offset..self.quote_end
    }
}

/// Says what the ICMP message in `packet` is; `packet` starts at the IP header `datagram` was
/// parsed from.
///
/// # Errors
/// The message or its quote is cut, its checksum is wrong, or it quotes a packet of the other
/// family. Whether its destination sent what it quotes is the caller's question.
pub fn classify(datagram: &Datagram, packet: &[u8]) -> Result<Message, DropReason> {
    let ours = match datagram.family {
        Family::V4 => protocol::ICMP,
        Family::V6 => protocol::ICMPV6,
    };
    // A piece of a message cannot be checked; nobody has a reason to send one to a balancer.
    if datagram.protocol != ours || datagram.fragment.is_some() {
        return Ok(Message::Unsupported);
    }
    let message = &packet[datagram.header_len..datagram.total_len];
    if message.len() < ICMP_HEADER {
        return Err(DropReason::Truncated);
    }
    if !checksum::is_valid(pseudo_header(datagram, message.len()).add_bytes(message)) {
        return Err(DropReason::BadChecksum);
    }
    let kind = match (datagram.family, message[0], message[1]) {
        (Family::V4, v4::ECHO_REQUEST, 0) | (Family::V6, v6::ECHO_REQUEST, 0) => {
            return Ok(Message::EchoRequest);
        }
        (Family::V4, ..) => error_kind_v4(message),
        (Family::V6, ..) => error_kind_v6(message),
    };
    match kind {
        None => Ok(Message::Unsupported),
        Some(kind) => error_message(datagram, message, kind).map(Message::Error),
    }
}

fn error_message(
    datagram: &Datagram,
    message: &[u8],
    kind: ErrorKind,
) -> Result<ErrorMessage, DropReason> {
    let quote_len = quote_len(datagram.family, message);
    let quote = Quote::parse(&message[ICMP_HEADER..ICMP_HEADER + quote_len])?;
    if quote.family != datagram.family {
        return Err(DropReason::Malformed);
    }
    let quote_offset = datagram.header_len + ICMP_HEADER;
    Ok(ErrorMessage { kind, quote, quote_offset, quote_end: quote_offset + quote_len })
}

fn error_kind_v4(message: &[u8]) -> Option<ErrorKind> {
    let kind = match (message[0], message[1]) {
        (v4::UNREACHABLE, v4::FRAGMENTATION_NEEDED) => {
            ErrorKind::TooBig { mtu: u32::from(be16(message, 6)) }
        }
        (v4::UNREACHABLE, code) => ErrorKind::Unreachable(match code {
            0 | 6 | 8 | 11 => Unreachable::Network,
            1 | 7 | 12 => Unreachable::Host,
            2 => Unreachable::Protocol,
            3 => Unreachable::Port,
            9 | 10 | 13 => Unreachable::Prohibited,
            _ => Unreachable::Other,
        }),
        (v4::TIME_EXCEEDED, _) => ErrorKind::TimeExceeded,
        (v4::PARAMETER_PROBLEM, _) => ErrorKind::ParameterProblem,
        // Source quench is to be ignored (RFC 6633), redirects are for hosts.
        _ => return None,
    };
    Some(kind)
}

fn error_kind_v6(message: &[u8]) -> Option<ErrorKind> {
    let kind = match (message[0], message[1]) {
        (v6::PACKET_TOO_BIG, _) => ErrorKind::TooBig { mtu: be32(message, 4) },
        (v6::UNREACHABLE, code) => ErrorKind::Unreachable(match code {
            0 => Unreachable::Network,
            1 | 5 | 6 => Unreachable::Prohibited,
            3 => Unreachable::Host,
            4 => Unreachable::Port,
            _ => Unreachable::Other,
        }),
        (v6::TIME_EXCEEDED, _) => ErrorKind::TimeExceeded,
        // ICMPv6 has no "protocol unreachable"; this takes its place (RFC 4443 §3.4).
        (v6::PARAMETER_PROBLEM, 1) => ErrorKind::Unreachable(Unreachable::Protocol),
        (v6::PARAMETER_PROBLEM, _) => ErrorKind::ParameterProblem,
        _ => return None,
    };
    Some(kind)
}

/// Length of the quote in an error: all of the body, unless a plausible length field (RFC 4884 §4)
/// says that extensions follow. Old senders leave rubbish in that field, so one that contradicts
/// the message is taken for unset.
fn quote_len(family: Family, message: &[u8]) -> usize {
    let body = message.len() - ICMP_HEADER;
    let claimed = match (family, message[0]) {
        (Family::V4, v4::UNREACHABLE | v4::TIME_EXCEEDED | v4::PARAMETER_PROBLEM) => {
            usize::from(message[5]) * 4
        }
        (Family::V6, v6::UNREACHABLE | v6::TIME_EXCEEDED) => usize::from(message[4]) * 8,
        _ => 0,
    };
    if (EXTENDED_QUOTE_MIN..=body).contains(&claimed) { claimed } else { body }
}

/// Sum of what precedes an ICMP message in its checksum: nothing in IPv4, a pseudo-header in IPv6
/// (RFC 4443 §2.3). `length` is that of the message.
pub(super) fn pseudo_header(datagram: &Datagram, length: usize) -> Sum {
    match datagram.family {
        Family::V4 => Sum::ZERO,
        Family::V6 => checksum::pseudo_header_v6(
            Ipv6Addr::from(datagram.source),
            Ipv6Addr::from(datagram.destination),
            protocol::ICMPV6,
            u32::try_from(length).unwrap_or(u32::MAX),
        ),
    }
}

#[cfg(test)]
mod tests;
