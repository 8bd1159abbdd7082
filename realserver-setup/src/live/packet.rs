//! Headers of packets that pass by: views into captured bytes, which may be cut off behind the headers.
//! Nothing here trusts a length that a packet states further than its bytes go.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IP in IP (RFC 2003).
const IPV4_IN: u8 = 4;
/// IPv6 in IP (RFC 2473, RFC 4213).
const IPV6_IN: u8 = 41;
const GRE: u8 = 47;
const UDP: u8 = 17;
/// ICMP.
pub const ICMP: u8 = 1;
/// ICMPv6.
pub const ICMPV6: u8 = 58;
/// TCP.
pub const TCP: u8 = 6;

/// Flags of a TCP header.
pub mod flag {
    /// FIN
    pub const FIN: u8 = 1;
    /// SYN
    pub const SYN: u8 = 2;
    /// RST
    pub const RST: u8 = 4;
    /// ACK
    pub const ACK: u8 = 16;
}

/// An IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip<'a> {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Hop limit or TTL.
    pub hop_limit: u8,
    /// Protocol of what follows the header and its extensions.
    pub protocol: u8,
    /// What follows, as far as it was captured; empty in a fragment that is not the first.
    pub payload: &'a [u8],
    /// Length in bytes of what follows, as the header states it.
    pub length: usize,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Reads a packet that begins with its IP header.
#[must_use]
pub fn ip(bytes: &[u8]) -> Option<Ip<'_>> {
    match bytes.first()? >> 4 {
        4 => ipv4(bytes),
        6 => ipv6(bytes),
        _ => None,
    }
}

fn ipv4(bytes: &[u8]) -> Option<Ip<'_>> {
    let header = usize::from(bytes[0] & 15) * 4;
    if header < 20 || bytes.len() < header {
        return None;
    }
    let address = |at: usize| {
        let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
        Some(IpAddr::V4(Ipv4Addr::from(octets)))
    };
    let later_fragment = u16_at(bytes, 6)? & 0x1fff != 0;
    Some(Ip {
        source: address(12)?,
        destination: address(16)?,
        hop_limit: bytes[8],
        protocol: bytes[9],
        payload: if later_fragment { &[] } else { &bytes[header..] },
        length: usize::from(u16_at(bytes, 2)?).saturating_sub(header),
    })
}

fn ipv6(bytes: &[u8]) -> Option<Ip<'_>> {
    /// Extension headers that are looked past: more in a row are nobody's probe.
    const EXTENSIONS: usize = 4;
    let address = |at: usize| {
        let octets: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
        Some(IpAddr::V6(Ipv6Addr::from(octets)))
    };
    let (source, destination) = (address(8)?, address(24)?);
    let (mut protocol, mut at, mut later_fragment) = (bytes[6], 40, false);
    for _ in 0..EXTENSIONS {
        let length = match protocol {
            // Hop-by-hop options, routing, destination options (RFC 8200 §4).
            0 | 43 | 60 => (usize::from(*bytes.get(at + 1)?) + 1) * 8,
            // Fragment.
            44 => {
                later_fragment = u16_at(bytes, at + 2)? & 0xfff8 != 0;
                8
            }
            _ => break,
        };
        protocol = *bytes.get(at)?;
        at += length;
    }
    Some(Ip {
        source,
        destination,
        hop_limit: bytes[7],
        protocol,
        payload: if later_fragment { &[] } else { bytes.get(at..)? },
        length: (usize::from(u16_at(bytes, 4)?) + 40).saturating_sub(at),
    })
}

impl<'a> Ip<'a> {
    /// The packet inside, where this is a tunnel's: IP in IP, GRE (RFC 2784, 2890), or GUE on this UDP
    /// port, as Linux's `fou` takes it off.
    #[must_use]
    pub fn inner(&self, gue_port: u16) -> Option<Ip<'a>> {
        let bytes = self.payload;
        match self.protocol {
            IPV4_IN | IPV6_IN => ip(bytes),
            GRE => {
                let flags = u16_at(bytes, 0)?;
                // Checksum, key and sequence number have four bytes each.
                let options = [0x8000, 0x2000, 0x1000].iter().filter(|&bit| flags & bit != 0);
                matches!(u16_at(bytes, 2)?, 0x0800 | 0x86dd).then_some(())?;
                ip(bytes.get(4 + 4 * options.count()..)?)
            }
            UDP if u16_at(bytes, 2)? == gue_port => {
                let bytes = bytes.get(8..)?;
                let first = *bytes.first()?;
                match first >> 6 {
                    // With a header of its own, or a bare IP packet.
                    0 => ip(bytes.get(4 + 4 * usize::from(first & 31)..)?),
                    1 => ip(bytes),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// The packet that an ICMP error quotes which says that nobody here takes it: unknown protocol, or
    /// unreachable port.
    #[must_use]
    pub fn refused(&self) -> Option<Ip<'a>> {
        let is_refusal = matches!(
            (self.protocol, self.payload.first()?, self.payload.get(1)?),
            (ICMP, 3, 2 | 3) | (ICMPV6, 1, 4) | (ICMPV6, 4, 1)
        );
        if is_refusal { ip(self.payload.get(8..)?) } else { None }
    }

    /// Its TCP segment.
    #[must_use]
    pub fn segment(&self) -> Option<Segment> {
        if self.protocol != TCP {
            return None;
        }
        let bytes = self.payload;
        let header = usize::from(bytes.get(12)? >> 4) * 4;
        if header < 20 {
            return None;
        }
        Some(Segment {
            source_port: u16_at(bytes, 0)?,
            destination_port: u16_at(bytes, 2)?,
            sequence: u32_at(bytes, 4)?,
            flags: *bytes.get(13)?,
            payload: self.length.saturating_sub(header),
            largest: bytes.get(20..header.min(bytes.len())).and_then(segment_size),
        })
    }
}

/// A TCP header, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// Sequence number of its first byte.
    pub sequence: u32,
    /// Its flags, see [`flag`].
    pub flags: u8,
    /// Bytes of payload.
    pub payload: usize,
    /// Largest segment that its sender takes, where it says so.
    pub largest: Option<u16>,
}

impl Segment {
    /// Whether of these flags exactly `set` are set.
    #[must_use]
    pub const fn has(&self, set: u8, of: u8) -> bool {
        self.flags & of == set
    }
}

/// The option of kind 2 (RFC 9293 §3.2).
fn segment_size(options: &[u8]) -> Option<u16> {
    let mut at = 0;
    while let Some(kind) = options.get(at) {
        match kind {
            0 => return None,
            1 => at += 1,
            2 => return u16_at(options, at + 2),
            _ => at += usize::from(*options.get(at + 1)?).max(2),
        }
    }
    None
}

/// Who an ARP reply says has which IPv4 address: what `bytes` begin with is an ARP packet.
#[must_use]
pub fn arp_reply(bytes: &[u8]) -> Option<IpAddr> {
    // Of Ethernet and IPv4, operation 2 (RFC 826).
    let is_reply = bytes.get(..8)? == [0, 1, 8, 0, 6, 4, 0, 2];
    let sender: [u8; 4] = bytes.get(14..18)?.try_into().ok()?;
    is_reply.then(|| Ipv4Addr::from(sender).into())
}

#[cfg(test)]
pub(crate) mod build {
    //! Packets for tests, written field by field.

    use std::net::IpAddr;

    /// An IP packet around `payload`.
    pub(crate) fn ip(from: &str, to: &str, hop_limit: u8, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let mut packet = match from {
            IpAddr::V4(_) => {
                let length = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
                vec![0x45, 0, length[0], length[1], 0, 0, 0x40, 0, hop_limit, protocol, 0, 0]
            }
            IpAddr::V6(_) => {
                let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
                vec![0x60, 0, 0, 0, length[0], length[1], protocol, hop_limit]
            }
        };
        for address in [from, to] {
            match address {
                IpAddr::V4(address) => packet.extend(address.octets()),
                IpAddr::V6(address) => packet.extend(address.octets()),
            }
        }
        packet.extend(payload);
        packet
    }

    /// A TCP header with a segment size, behind which `payload` bytes follow.
    pub(crate) fn tcp(ports: (u16, u16), flags: u8, sequence: u32, payload: usize) -> Vec<u8> {
        let mut bytes = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
        bytes.extend(sequence.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend([7 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        // No-operation twice, the segment size, end.
        bytes.extend([1, 1, 2, 4, 5, 0xa0, 0, 0]);
        bytes.extend(vec![7; payload]);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const V4: (&str, &str) = ("10.0.0.5", "198.51.100.10");
    const V6: (&str, &str) = ("2001:db8::5", "2001:db8:100::10");

    fn syn((from, to): (&str, &str)) -> Vec<u8> {
        build::ip(from, to, 254, TCP, &build::tcp((61_000, 5432), flag::SYN, 9, 0))
    }

    #[test]
    fn each_tunnel_is_looked_into() {
        for inner in [syn(V4), syn(V6)] {
            let number = if inner[0] >> 4 == 4 { IPV4_IN } else { IPV6_IN };
            let kind = if number == IPV4_IN { [8, 0] } else { [0x86, 0xdd] };
            let gre = [&[0, 0], &kind[..], &inner].concat();
            let checked = [&[0x80, 0], &kind[..], &[1, 2, 0, 0], &inner].concat();
            let udp = |gue: &[u8]| [&[0xc0, 0, 0x17, 0xc0, 0, 0, 0, 0], gue, &inner].concat();
            for (outer, payload) in [
                (number, inner.clone()),
                (GRE, gre),
                (GRE, checked),
                (UDP, udp(&[0, number, 0, 0])),
                // With the remote checksum's option of four bytes.
                (UDP, udp(&[1, number, 0, 0, 0, 0, 0, 0])),
            ] {
                for (from, to) in [("10.0.0.5", "10.20.0.11"), ("2001:db8::5", "2001:db8::11")] {
                    let packet = build::ip(from, to, 64, outer, &payload);
                    let found = ip(&packet).unwrap().inner(6080).unwrap();
                    assert_eq!(found, ip(&inner).unwrap(), "{outer}");
                    let segment = found.segment().unwrap();
                    assert_eq!((segment.destination_port, segment.largest), (5432, Some(1440)));
                    assert!(segment.has(flag::SYN, flag::SYN | flag::ACK));
                }
            }
        }
        // Another port is somebody else's.
        let packet = build::ip("10.0.0.5", "10.20.0.11", 64, UDP, &[0, 1, 0, 53, 0, 0, 0, 0, 0x45]);
        assert_eq!(ip(&packet).unwrap().inner(6080), None);
    }

    #[test]
    fn refusals_and_answers_to_arp_are_known() {
        let outer = build::ip("10.0.0.5", "10.20.0.11", 64, 4, &syn(V4));
        for (kind, code, is) in [(3, 2, true), (3, 3, true), (3, 4, false), (11, 0, false)] {
            let message = [&[kind, code, 0, 0, 0, 0, 0, 0], &outer[..]].concat();
            let packet = build::ip("10.20.0.11", "10.0.0.5", 64, ICMP, &message);
            let refused =
                ip(&packet).unwrap().refused().map(|quoted| quoted.destination.to_string());
            assert_eq!(refused.as_deref(), is.then_some("10.20.0.11"), "{kind} {code}");
        }
        let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 2, 2, 0, 0, 0, 0, 1, 198, 51, 100, 10];
        arp.extend([0; 10]);
        assert_eq!(arp_reply(&arp), Some("198.51.100.10".parse().unwrap()));
        arp[7] = 1;
        assert_eq!(arp_reply(&arp), None, "a request");
    }

    #[test]
    fn lengths_are_those_of_the_packet_and_not_of_what_was_captured() {
        let segment = build::tcp((7706, 61_000), flag::ACK, 9, 1400);
        let packet = build::ip(V4.1, V4.0, 64, TCP, &segment);
        assert_eq!(ip(&packet[..128]).unwrap().segment().unwrap().payload, 1400);
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_odd_to_look_at(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
            version in prop_oneof![Just(0x45u8), Just(0x60), any::<u8>()],
            protocol in prop_oneof![Just(4u8), Just(41), Just(47), Just(17), Just(1), Just(58), Just(6), any::<u8>()],
        ) {
            for (at, value) in [(0, version), (9, protocol), (6, protocol)] {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            let _ = arp_reply(&bytes);
            if let Some(ip) = ip(&bytes) {
                let _ = (ip.segment(), ip.refused());
                let _ = ip.inner(6080).map(|inner| inner.segment());
            }
        }
    }
}
