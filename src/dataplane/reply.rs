//! Answers of Adit's own, built in place from the packet they answer: echo replies, ICMP errors
//! and resets.
//!
//! Each comes from the VIP: it is the address the client asked, and a private address of the
//! director's would be filtered on the way. What limits their rate is the caller's business.

use std::{net::Ipv6Addr, ops::Range};

use adit_tunnel::checksum::{self, Sum};

use super::{
    icmp::{self, ICMP_HEADER, v4, v6},
    packet::{Address, Datagram, Family, TcpSegment, ipv4, protocol, tcp_flag, v4_octets},
};

/// Length of an IPv4 header without options.
const IPV4_HEADER: usize = 20;
/// Length of an IPv6 header without extension headers.
const IPV6_HEADER: usize = 40;
/// Length of a TCP header without options.
const TCP_HEADER: usize = 20;
/// TTL and hop limit of what Adit sends (the default of RFC 1700, and of Linux).
const HOP_LIMIT: u8 = 64;
/// The longest ICMPv4 error (RFC 1812 §4.3.2.3): what every IPv4 host must be able to take.
const ERROR_LIMIT_V4: usize = 576;
/// The longest ICMPv6 error (RFC 4443 §2.4 c): what every IPv6 link must be able to carry.
const ERROR_LIMIT_V6: usize = 1280;
/// Traffic class of ICMP errors: internetwork control (RFC 1812 §4.3.2.5), DSCP CS6.
const ERROR_CLASS: u8 = 0xc0;
/// What a reply takes over from the traffic class of its request: DSCP, not ECN (RFC 1122
/// §3.2.2.6 for echo; RFC 3168 §6.1.1 keeps pure control segments not-ECT).
const DSCP_MASK: u8 = 0xfc;
/// IPv4 flags with DF set. With it, identification 0 is right (RFC 6864 §4.1).
const DONT_FRAGMENT: u16 = 0x4000;

/// An ICMP error about a received packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorReply {
    /// Fragmentation needed (RFC 1191), packet too big (RFC 4443 §3.2).
    TooBig {
        /// Length of the longest packet that would have gone through, in bytes.
        mtu: u16,
    },
    /// The TTL or hop limit ran out here.
    TimeExceeded,
}

/// Turns the echo request at `slot[ip]` into its reply. `datagram` was parsed from there, and
/// [`super::icmp::classify`] called it an echo request.
///
/// IPv4 options and IPv6 extension headers do not come back: nothing a client needs is in them,
/// and reflected routing headers are a way to send packets under a false name (RFC 5095).
pub fn echo_reply(slot: &mut [u8], datagram: &Datagram, ip: Range<usize>) -> Range<usize> {
    let (header_len, kind) = match datagram.family {
        Family::V4 => (IPV4_HEADER, v4::ECHO_REPLY),
        Family::V6 => (IPV6_HEADER, v6::ECHO_REPLY),
    };
    let class = traffic_class(datagram, &slot[ip.clone()]) & DSCP_MASK;
    // Headers only shrink, so the reply begins where the request does, or behind.
    let start = ip.start + datagram.header_len - header_len;
    let end = ip.start + datagram.total_len;
    let reply = &mut slot[start..end];
    reply[header_len] = kind;
    finish_icmp(reply, datagram, class);
    start..end
}

/// Builds the ICMP error about the packet at `slot[ip]` in front of it, quoting as much of it as
/// may be.
///
/// `None` where no error may be sent (RFC 1122 §3.2.2, RFC 1812 §4.3.2.7, RFC 4443 §2.4 e), or
/// where the slot has no room for it in front of the packet.
pub fn error_reply(
    slot: &mut [u8],
    datagram: &Datagram,
    ip: Range<usize>,
    kind: ErrorReply,
) -> Option<Range<usize>> {
    let packet = slot.get(ip.clone())?.get(..datagram.total_len)?;
    if !may_be_answered_by_error(datagram, packet) {
        return None;
    }
    let (header_len, limit) = match datagram.family {
        Family::V4 => (IPV4_HEADER, ERROR_LIMIT_V4),
        Family::V6 => (IPV6_HEADER, ERROR_LIMIT_V6),
    };
    let start = ip.start.checked_sub(header_len + ICMP_HEADER)?;
    let end = (ip.start + datagram.total_len).min(start + limit);
    let reply = &mut slot[start..end];
    let (kind, code, rest) = match (datagram.family, kind) {
        (Family::V4, ErrorReply::TooBig { mtu }) => {
            (v4::UNREACHABLE, v4::FRAGMENTATION_NEEDED, u32::from(mtu))
        }
        (Family::V6, ErrorReply::TooBig { mtu }) => (v6::PACKET_TOO_BIG, 0, u32::from(mtu)),
        (Family::V4, ErrorReply::TimeExceeded) => (v4::TIME_EXCEEDED, 0, 0),
        (Family::V6, ErrorReply::TimeExceeded) => (v6::TIME_EXCEEDED, 0, 0),
    };
    reply[header_len] = kind;
    reply[header_len + 1] = code;
    reply[header_len + 4..header_len + 8].copy_from_slice(&rest.to_be_bytes());
    finish_icmp(reply, datagram, ERROR_CLASS);
    Some(start..end)
}

/// Turns the TCP segment at `slot[ip]` into the reset that answers it (RFC 9293 §3.10.7.1).
///
/// `None` for a reset, for a sender that is no single host, and for a first fragment without ACK,
/// whose whole length (which the acknowledgement needs) is not known.
pub fn reset(
    slot: &mut [u8],
    datagram: &Datagram,
    segment: &TcpSegment,
    ip: Range<usize>,
) -> Option<Range<usize>> {
    if !may_be_reset(datagram, segment) {
        return None;
    }
    let acknowledges = segment.flags & tcp_flag::ACK != 0;
    let class = traffic_class(datagram, slot.get(ip.clone())?.get(..datagram.total_len)?);
    let header_len = match datagram.family {
        Family::V4 => IPV4_HEADER,
        Family::V6 => IPV6_HEADER,
    };
    let range = ip.start..ip.start + header_len + TCP_HEADER;
    let reply = slot.get_mut(range.clone())?;
    let (sequence, acknowledgement, flags) = if acknowledges {
        (segment.acknowledgement, 0, tcp_flag::RST)
    } else {
        (0, segment.sequence_end(), tcp_flag::RST | tcp_flag::ACK)
    };
    let (header, tcp) = reply.split_at_mut(header_len);
    tcp[0..2].copy_from_slice(&segment.destination_port.to_be_bytes());
    tcp[2..4].copy_from_slice(&segment.source_port.to_be_bytes());
    tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
    tcp[8..12].copy_from_slice(&acknowledgement.to_be_bytes());
    tcp[12] = 5 << 4; // data offset: 20 bytes
    tcp[13] = flags;
    tcp[14..20].fill(0); // window, checksum, urgent pointer
    let sum = checksum::transport(tcp_pseudo_header(datagram, length_field(TCP_HEADER)), tcp);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    write_ip_header(header, datagram, protocol::TCP, class & DSCP_MASK, TCP_HEADER);
    Some(range)
}

/// Whether a reset may answer this segment.
pub fn may_be_reset(datagram: &Datagram, segment: &TcpSegment) -> bool {
    let acknowledges = segment.flags & tcp_flag::ACK != 0;
    segment.flags & tcp_flag::RST == 0
        && is_single_host(&datagram.source)
        && (datagram.fragment.is_none() || acknowledges)
}

/// Whether an ICMP error may answer this packet, whose bytes are all there.
pub fn may_be_answered_by_error(datagram: &Datagram, packet: &[u8]) -> bool {
    if !is_single_host(&datagram.source) || !is_single_host(&datagram.destination) {
        return false;
    }
    let later_fragment = !datagram.has_upper_layer();
    match (datagram.family, datagram.protocol) {
        (Family::V4, _) if later_fragment => false,
        (Family::V4, protocol::ICMP) => {
            packet.get(datagram.header_len).is_some_and(|kind| is_query_v4(*kind))
        }
        (Family::V4, _) => true,
        // IPv6 does not forbid it for later fragments, only what kind of message it is must be known.
        (Family::V6, protocol::ICMPV6) => {
            !later_fragment
                && packet
                    .get(datagram.header_len)
                    .is_some_and(|kind| *kind >= v6::ECHO_REQUEST && *kind != v6::REDIRECT)
        }
        (Family::V6, _) => true,
    }
}

/// ICMPv4 types that are questions or their answers; what is not known to be one counts as error.
const fn is_query_v4(kind: u8) -> bool {
    matches!(kind, v4::ECHO_REPLY | v4::ECHO_REQUEST | 9..=10 | 13..=18)
}

/// Whether the address can be that of one host: not unspecified ("this network"), loopback,
/// multicast, broadcast or reserved (RFC 1122 §3.2.1.3, RFC 4291 §2.4).
fn is_single_host(address: &Address) -> bool {
    match Family::of(address) {
        Family::V4 => !matches!(v4_octets(address)[0], 0 | 127 | 224..),
        Family::V6 => {
            let ip = Ipv6Addr::from(*address);
            !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast())
        }
    }
}

/// DSCP and ECN of the received packet.
fn traffic_class(datagram: &Datagram, packet: &[u8]) -> u8 {
    match datagram.family {
        Family::V4 => packet[1],
        Family::V6 => packet[0] << 4 | packet[1] >> 4,
    }
}

/// Writes checksum and IP header of an ICMP reply whose type, code and body are in place.
fn finish_icmp(reply: &mut [u8], datagram: &Datagram, class: u8) {
    let (header_len, protocol) = match datagram.family {
        Family::V4 => (IPV4_HEADER, protocol::ICMP),
        Family::V6 => (IPV6_HEADER, protocol::ICMPV6),
    };
    let (header, message) = reply.split_at_mut(header_len);
    message[2..4].fill(0);
    // Summed anew: patching would give 0 for a message of zeros, whose checksum is 0xffff.
    let sum = checksum::transport(icmp::pseudo_header(datagram, message.len()), message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    write_ip_header(header, datagram, protocol, class, message.len());
}

/// Sum of the pseudo-header of a TCP segment between the ends of `datagram`; its direction does
/// not matter to a sum.
fn tcp_pseudo_header(datagram: &Datagram, length: u16) -> Sum {
    match datagram.family {
        Family::V4 => checksum::pseudo_header_v4(
            ipv4(&datagram.destination),
            ipv4(&datagram.source),
            protocol::TCP,
            length,
        ),
        Family::V6 => checksum::pseudo_header_v6(
            Ipv6Addr::from(datagram.destination),
            Ipv6Addr::from(datagram.source),
            protocol::TCP,
            u32::from(length),
        ),
    }
}

/// Writes the IP header of a reply to `datagram`: from its destination to its source.
fn write_ip_header(header: &mut [u8], datagram: &Datagram, protocol: u8, class: u8, length: usize) {
    match datagram.family {
        Family::V4 => {
            header[0] = 0x45;
            header[1] = class;
            header[2..4].copy_from_slice(&length_field(IPV4_HEADER + length).to_be_bytes());
            header[4..6].fill(0);
            header[6..8].copy_from_slice(&DONT_FRAGMENT.to_be_bytes());
            header[8] = HOP_LIMIT;
            header[9] = protocol;
            header[12..16].copy_from_slice(&v4_octets(&datagram.destination));
            header[16..20].copy_from_slice(&v4_octets(&datagram.source));
            let sum = checksum::ipv4_header_checksum(header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        Family::V6 => {
            let first = 6 << 28 | u32::from(class) << 20;
            header[0..4].copy_from_slice(&first.to_be_bytes());
            header[4..6].copy_from_slice(&length_field(length).to_be_bytes());
            header[6] = protocol;
            header[7] = HOP_LIMIT;
            header[8..24].copy_from_slice(&datagram.destination);
            header[24..40].copy_from_slice(&datagram.source);
        }
    }
}

/// A length as a 16-bit field. No reply is longer than the packet it was made from or 1280 bytes,
/// so none is cut here.
fn length_field(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests;
