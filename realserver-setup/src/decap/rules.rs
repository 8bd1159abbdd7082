//! What becomes of one tunnelled packet: pure.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use adit_io::OffloadHeader;
use adit_tunnel::ecn::{self, Alarm};
use adit_tunnel::{DecapError, checksum, decapsulate};

/// Why a packet was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its outer source is no director's address.
    Stranger,
    /// Its headers do not fit each other or what is there.
    Malformed,
    /// It is for an address that is no VIP.
    NotAVip,
    /// A router marked congestion, and its flow does not know of such marks (RFC 6040 §4.2): it learns
    /// by the loss.
    Congestion,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Stranger, Self::Malformed, Self::NotAVip, Self::Congestion];

    /// As counters are named.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stranger => "not_from_a_director",
            Self::Malformed => "malformed",
            Self::NotAVip => "not_for_a_vip",
            Self::Congestion => "congestion",
        }
    }
}

/// What to do with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The inner packet is this host's.
    Deliver {
        /// Where it is.
        inner: Range<usize>,
        /// What the TUN is to be told of it.
        offload: OffloadHeader,
        /// Whether the marks of congestion fit together.
        alarm: Alarm,
    },
    /// It is dropped.
    Drop(Reason),
}

/// Whose packets are taken, and for what.
#[derive(Clone, Debug)]
pub struct Rules {
    /// In order, for the search.
    directors: Box<[IpAddr]>,
    vips: Box<[IpAddr]>,
}

impl Rules {
    /// Takes packets of these directors for these VIPs.
    #[must_use]
    pub fn new(directors: &BTreeSet<IpAddr>, vips: &BTreeSet<IpAddr>) -> Self {
        let in_order = |of: &BTreeSet<IpAddr>| of.iter().copied().collect();
        Self { directors: in_order(directors), vips: in_order(vips) }
    }

    /// Judges an outer packet, from its IP header on. One that is delivered has its mark of congestion
    /// set by RFC 6040; nothing else of it is changed.
    #[must_use]
    pub fn judge(&self, packet: &mut [u8]) -> Verdict {
        let Some((source, _)) = ends(packet) else { return Verdict::Drop(Reason::Malformed) };
        if self.directors.binary_search(&source).is_err() {
            return Verdict::Drop(Reason::Stranger);
        }
        let (range, mark, alarm) = match decapsulate(packet) {
            Ok(unwrapped) => (unwrapped.inner_range(), unwrapped.ecn, unwrapped.ecn_alarm),
            Err(DecapError::CongestionWithoutEct) => return Verdict::Drop(Reason::Congestion),
            Err(
                DecapError::Header(_)
                | DecapError::Checksum { .. }
                | DecapError::Fragment
                | DecapError::Protocol { .. }
                | DecapError::PayloadChecksum
                | DecapError::Fields { .. }
                | DecapError::ExtensionHeaders,
            ) => return Verdict::Drop(Reason::Malformed),
        };
        let inner = &mut packet[range.clone()];
        let vip = ends(inner).filter(|(_, to)| self.vips.binary_search(to).is_ok());
        if vip.is_none() {
            return Verdict::Drop(Reason::NotAVip);
        }
        if ecn::set(inner, mark).is_err() {
            return Verdict::Drop(Reason::Malformed);
        }
        Verdict::Deliver { offload: offload(inner), inner: range, alarm }
    }
}

/// Source and destination of an IP packet.
fn ends(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match packet.first()? >> 4 {
        4 => {
            let [source, destination] =
                [12, 16].map(|at| packet.get(at..).and_then(|rest| rest.first_chunk::<4>()));
            Some((Ipv4Addr::from(*source?).into(), Ipv4Addr::from(*destination?).into()))
        }
        6 => {
            let [source, destination] =
                [8, 24].map(|at| packet.get(at..).and_then(|rest| rest.first_chunk::<16>()));
            Some((Ipv6Addr::from(*source?).into(), Ipv6Addr::from(*destination?).into()))
        }
        _ => None,
    }
}

/// TCP and UDP.
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Where the kernel has put segments of one flow together on their way in (generic receive offload),
/// or has carried them over from another namespace of this host, their checksum is that of the pseudo
/// header alone, and a raw socket does not tell. The TUN is told then, lest the whole be taken for
/// damaged. (One packet in 65,536 has this value for its true checksum; it is not verified.)
fn offload(inner: &[u8]) -> OffloadHeader {
    partial_checksum(inner).map_or(OffloadHeader::Whole, |(transport, field)| {
        OffloadHeader::PartialChecksum { transport, field }
    })
}

/// Start of the transport's header and place of its checksum in it, where that is partial.
fn partial_checksum(inner: &[u8]) -> Option<(u16, u16)> {
    let (start, protocol) = match inner.first()? >> 4 {
        4 => {
            // A fragment's checksum is the whole packet's.
            let fragment = u16::from_be_bytes([*inner.get(6)?, *inner.get(7)?]) & 0x3fff;
            (usize::from(inner[0] & 0x0f) * 4, *inner.get(9).filter(|_| fragment == 0)?)
        }
        _ => (40, *inner.get(6)?),
    };
    let field: u16 = match protocol {
        TCP => 16,
        UDP => 6,
        _ => return None,
    };
    let transport = inner.get(start..)?;
    let found = transport.get(usize::from(field)..)?.first_chunk()?;
    let length = u16::try_from(transport.len()).ok()?;
    let pseudo_header = match ends(inner)? {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            checksum::pseudo_header_v4(source, destination, protocol, length)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            checksum::pseudo_header_v6(source, destination, protocol, u32::from(length))
        }
        _ => return None,
    };
    let partial = u16::from_be_bytes(*found) == pseudo_header.fold();
    partial.then_some((u16::try_from(start).ok()?, field))
}

#[cfg(test)]
mod tests {
    use adit_tunnel::ecn::Ecn;
    use proptest::prelude::*;

    use super::*;

    const DIRECTOR: &str = "10.0.0.5";
    const DIRECTOR6: &str = "2001:db8::5";
    const VIP: &str = "198.51.100.10";
    const VIP6: &str = "2001:db8:100::10";
    const CLIENT: &str = "192.0.2.1";
    const CLIENT6: &str = "2001:db8:1::1";

    fn rules() -> Rules {
        let parsed = |texts: [&str; 2]| texts.map(|text| text.parse().unwrap()).into();
        Rules::new(&parsed([DIRECTOR, DIRECTOR6]), &parsed([VIP, VIP6]))
    }

    /// An IP packet of this protocol, DSCP 0.
    fn packet(from: &str, to: &str, protocol: u8, mark: Ecn, payload: &[u8]) -> Vec<u8> {
        let total = |header: usize| u16::try_from(header + payload.len()).unwrap().to_be_bytes();
        let mut packet = match (from.parse().unwrap(), to.parse().unwrap()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut header = vec![0x45, mark.bits(), 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
                header.extend([from.octets(), to.octets()].concat());
                header[2..4].copy_from_slice(&total(20));
                let sum = checksum::ipv4_header_checksum(&header);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                header
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let mut header = vec![0x60, mark.bits() << 4, 0, 0, 0, 0, protocol, 64];
                header.extend([from.octets(), to.octets()].concat());
                header[4..6].copy_from_slice(&total(0));
                header
            }
            ends => panic!("{ends:?}"),
        };
        packet.extend(payload);
        packet
    }

    fn drop_of(packet: &[u8]) -> Option<Reason> {
        match rules().judge(&mut packet.to_vec()) {
            Verdict::Drop(reason) => Some(reason),
            Verdict::Deliver { .. } => None,
        }
    }

    /// Inner packets for the VIPs, with their protocol number.
    fn inners(mark: Ecn) -> [(u8, Vec<u8>); 2] {
        let udp = [&[0x9c, 0x40, 0x1b, 0x58, 0, 12, 0, 0][..], b"data"].concat();
        [(4, packet(CLIENT, VIP, UDP, mark, &udp)), (41, packet(CLIENT6, VIP6, UDP, mark, &udp))]
    }

    const OUTERS: [(&str, &str); 2] = [(DIRECTOR, "10.20.0.11"), (DIRECTOR6, "2001:db8:20::11")];

    #[test]
    fn packets_of_directors_for_vips_are_delivered_as_they_are() {
        for (from, to) in OUTERS {
            for (protocol, inner) in inners(Ecn::NotEct) {
                let mut outer = packet(from, to, protocol, Ecn::NotEct, &inner);
                let start = outer.len() - inner.len();
                // What Ethernet pads with is no part of it.
                outer.extend([0; 5]);
                let verdict = rules().judge(&mut outer);
                let inner_range = start..start + inner.len();
                assert_eq!(
                    verdict,
                    Verdict::Deliver {
                        inner: inner_range.clone(),
                        offload: OffloadHeader::Whole,
                        alarm: Alarm::None
                    }
                );
                assert_eq!(outer[inner_range], inner);
            }
        }
    }

    #[test]
    fn others_packets_are_dropped_whatever_they_are() {
        for (protocol, inner) in inners(Ecn::NotEct) {
            for (from, to) in [("10.0.0.6", "10.20.0.11"), ("2001:db8::6", "2001:db8:20::11")] {
                let outer = packet(from, to, protocol, Ecn::NotEct, &inner);
                assert_eq!(drop_of(&outer), Some(Reason::Stranger));
                // Also where the rest is nonsense.
                assert_eq!(drop_of(&outer[..outer.len() - 20]), Some(Reason::Stranger));
            }
        }
    }

    #[test]
    fn packets_for_others_are_dropped() {
        for (protocol, inner) in [
            (4, packet(CLIENT, "198.51.100.11", UDP, Ecn::NotEct, &[0; 8])),
            (4, packet(CLIENT, "10.20.0.11", UDP, Ecn::NotEct, &[0; 8])),
            (41, packet(CLIENT6, "2001:db8:20::11", UDP, Ecn::NotEct, &[0; 8])),
        ] {
            let outer = packet(DIRECTOR, "10.20.0.11", protocol, Ecn::NotEct, &inner);
            assert_eq!(drop_of(&outer), Some(Reason::NotAVip));
        }
    }

    #[test]
    fn whatever_is_cut_off_is_malformed() {
        for (from, to) in OUTERS {
            for (protocol, inner) in inners(Ecn::NotEct) {
                let outer = packet(from, to, protocol, Ecn::NotEct, &inner);
                for length in 0..outer.len() {
                    assert_eq!(drop_of(&outer[..length]), Some(Reason::Malformed), "{length}");
                }
            }
        }
        // An outer packet that says one thing and carries another.
        let [(_, inner), _] = inners(Ecn::NotEct);
        let outer = packet(DIRECTOR, "10.20.0.11", 41, Ecn::NotEct, &inner);
        assert_eq!(drop_of(&outer), Some(Reason::Malformed));
    }

    #[test]
    fn marks_of_congestion_come_through() {
        for (from, to) in OUTERS {
            for (protocol, inner) in inners(Ecn::Ect0) {
                let mut outer = packet(from, to, protocol, Ecn::Ce, &inner);
                let Verdict::Deliver { inner: range, .. } = rules().judge(&mut outer) else {
                    panic!("dropped")
                };
                let (_, marked) =
                    inners(Ecn::Ce).into_iter().find(|(other, _)| *other == protocol).unwrap();
                // The IPv4 header's checksum is right again.
                assert_eq!(outer[range], marked);
            }
            for (protocol, inner) in inners(Ecn::NotEct) {
                let outer = packet(from, to, protocol, Ecn::Ce, &inner);
                assert_eq!(drop_of(&outer), Some(Reason::Congestion));
            }
        }
    }

    /// A segment or datagram with this checksum field.
    fn transport(protocol: u8, field: u16, payload: &[u8]) -> Vec<u8> {
        let (length, place) = if protocol == TCP { (20, 16) } else { (8, 6) };
        let mut bytes = [&vec![0x12; length][..], payload].concat();
        bytes[place..place + 2].copy_from_slice(&field.to_be_bytes());
        bytes
    }

    #[test]
    fn a_checksum_of_the_pseudo_header_alone_is_told() {
        for protocol in [TCP, UDP] {
            let field = if protocol == TCP { 16 } else { 6 };
            for (from, to, kind, start) in [(CLIENT, VIP, 4, 20), (CLIENT6, VIP6, 41, 40)] {
                let length = transport(protocol, 0, &[7; 99]).len();
                let pseudo = match (from.parse().unwrap(), to.parse().unwrap()) {
                    (IpAddr::V4(from), IpAddr::V4(to)) => checksum::pseudo_header_v4(
                        from,
                        to,
                        protocol,
                        u16::try_from(length).unwrap(),
                    ),
                    (IpAddr::V6(from), IpAddr::V6(to)) => checksum::pseudo_header_v6(
                        from,
                        to,
                        protocol,
                        u32::try_from(length).unwrap(),
                    ),
                    ends => panic!("{ends:?}"),
                };
                let right = checksum::transport(pseudo, &transport(protocol, 0, &[7; 99]));
                let partial = OffloadHeader::PartialChecksum { transport: start, field };
                for (value, expected) in [
                    (right, OffloadHeader::Whole),
                    (right ^ 1, OffloadHeader::Whole),
                    (pseudo.fold(), partial),
                ] {
                    let segment = transport(protocol, value, &[7; 99]);
                    let inner = packet(from, to, protocol, Ecn::NotEct, &segment);
                    let mut outer = packet(DIRECTOR, "10.20.0.11", kind, Ecn::NotEct, &inner);
                    let Verdict::Deliver { offload, .. } = rules().judge(&mut outer) else {
                        panic!("dropped")
                    };
                    assert_eq!(offload, expected, "protocol {protocol}, {value:#06x}");
                }
                if kind == 4 {
                    let segment = transport(protocol, pseudo.fold(), &[7; 99]);
                    let mut inner = packet(from, to, protocol, Ecn::NotEct, &segment);
                    inner[6] = 0x20; // more fragments
                    assert_eq!(partial_checksum(&inner), None);
                }
            }
        }
    }

    proptest! {
        /// Whatever comes: what is delivered is a director's, for a VIP, and lies behind room for the
        /// device's header.
        #[test]
        fn whatever_comes_is_judged(
            pair in 0..4usize,
            changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..6),
            length in any::<proptest::sample::Index>(),
            cut in any::<bool>(),
        ) {
            let ((from, to), mark) = (OUTERS[pair % 2], Ecn::Ect0);
            let (protocol, inner) = inners(mark).into_iter().nth(pair / 2).expect("two");
            let mut outer = packet(from, to, protocol, mark, &inner);
            if cut {
                outer.truncate(length.index(outer.len()));
            }
            for (place, value) in changes {
                if !outer.is_empty() {
                    let place = place.index(outer.len());
                    outer[place] = value;
                }
            }
            if let Verdict::Deliver { inner, .. } = rules().judge(&mut outer) {
                prop_assert!(inner.start >= 2 * OffloadHeader::LENGTH && inner.end <= outer.len());
                let (source, _) = ends(&outer).expect("an outer header");
                let (_, vip) = ends(&outer[inner]).expect("an inner header");
                prop_assert!([DIRECTOR, DIRECTOR6].contains(&source.to_string().as_str()));
                prop_assert!([VIP, VIP6].contains(&vip.to_string().as_str()));
            }
        }
    }
}
