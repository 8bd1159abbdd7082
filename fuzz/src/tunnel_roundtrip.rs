//! `adit-tunnel` against etherparse: bytes as an outer packet, and bytes as an inner one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use adit_tunnel::fragment::{fragment_into, plan};
use adit_tunnel::{
    EncapError, Encapsulation, Family, GUE_PORT, HopLimitError, OuterFields, OuterTemplate,
    PROTOCOL_GRE, decapsulate, decapsulate_with, decrement_hop_limit,
};
use etherparse::defrag::IpDefragPool;
use etherparse::{Ipv4Header, Ipv6Header, SlicedPacket};

use crate::checksums;

/// Wraps, unwraps, cuts and reassembles what the bytes say.
///
/// The first byte chooses: even, the rest is a packet from the network, its checksum made right if
/// bit 1 is set (the fuzzer cannot guess one); odd, a [`Tunnel`] follows, then the inner packet.
pub fn tunnel_roundtrip(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else { return };
    if choice & 3 == 2 {
        let mut packet = rest.to_vec();
        checksums::repair(&mut packet);
        received(&packet);
    } else if choice & 1 == 0 {
        received(rest);
    } else if let Some((tunnel, inner)) = Tunnel::read(rest) {
        tunnel.wrap(inner);
    }
}

/// Any packet from the network: nothing panics, and what is accepted reads the same to etherparse.
fn received(packet: &[u8]) {
    hop(packet);
    cut(packet, 1280);
    let Ok(out) = decapsulate(packet) else { return };
    assert_eq!(&packet[out.inner_range()], out.inner);
    assert_eq!(declared_length(out.inner), Some(out.inner.len()));

    let (protocol, length) = if packet[0] >> 4 == 4 {
        let (header, _) = Ipv4Header::from_slice(packet).expect("an accepted outer header");
        assert!(checksums::ipv4_is_intact(packet));
        assert!(!header.is_fragmenting_payload());
        assert_eq!(out.outer.source, IpAddr::from(header.source));
        assert_eq!(out.outer.destination, IpAddr::from(header.destination));
        assert_eq!(out.outer.identification, header.identification);
        assert_eq!(out.outer.dont_fragment, header.dont_fragment);
        (header.protocol, header.header_len())
    } else {
        let (header, rest) = Ipv6Header::from_slice(packet).expect("an accepted outer header");
        let (protocol, inner) =
            Ipv6Header::skip_all_header_extensions_in_slice(rest, header.next_header)
                .expect("accepted extension headers");
        assert_eq!(out.outer.source, IpAddr::from(header.source));
        assert_eq!(out.outer.destination, IpAddr::from(header.destination));
        assert_eq!(out.outer.flow_label, header.flow_label.value());
        (protocol, packet.len() - inner.len())
    };
    match out.outer.length - length {
        0 => assert_eq!(protocol.0, protocol_of(out.inner)),
        // GRE, without and with a checksum.
        4 | 8 => assert_eq!(protocol.0, PROTOCOL_GRE),
        between => panic!("{between} bytes in front of the inner packet"),
    }
}

/// One off the hop limit: the only change, and the checksum stays as right or wrong as it was.
fn hop(packet: &[u8]) {
    let mut after = packet.to_vec();
    match decrement_hop_limit(&mut after) {
        Ok(left) => {
            let (at, checksum) = if packet[0] >> 4 == 4 { (8, 10..12) } else { (7, 0..0) };
            assert_eq!((after[at], packet[at]), (left, left + 1));
            if Ipv4Header::from_slice(packet).is_ok() {
                let intact = checksums::ipv4_is_intact;
                assert_eq!(intact(packet), intact(&after));
            }
            after[at] = packet[at];
            after[checksum.clone()].copy_from_slice(&packet[checksum]);
            assert_eq!(after, packet);
        }
        Err(HopLimitError::Expired | HopLimitError::Header(_)) => assert_eq!(after, packet),
    }
}

/// A tunnel and the caller's choices, read from the fuzzer's bytes at fixed places, so that a seed
/// can be written by hand.
struct Tunnel {
    template: OuterTemplate,
    fields: OuterFields,
    /// Bytes in front of the inner packet, 0 to 255.
    headroom: usize,
    /// MTU of the path.
    mtu: usize,
    /// Make the inner packet declare the length that it has.
    repair: bool,
}

impl Tunnel {
    /// 42 bytes: switches, hop limit, headroom, identification, flow label, MTU, both addresses.
    fn read(data: &[u8]) -> Option<(Self, &[u8])> {
        let (head, inner) = data.split_first_chunk::<42>()?;
        let [switches, hop_limit, headroom, i0, i1, l0, l1, l2, m0, m1, ends @ ..] = *head;
        let (source, destination) = ends.split_at(16);
        let address = |bytes: &[u8]| {
            let mut all = [0; 16];
            all.copy_from_slice(bytes);
            match all {
                [a, b, c, d, ..] if switches & 1 == 0 => IpAddr::from(Ipv4Addr::new(a, b, c, d)),
                _ => IpAddr::from(Ipv6Addr::from(all)),
            }
        };
        let kind = match switches >> 3 & 7 {
            1 => Encapsulation::Gre { checksum: false },
            2 => Encapsulation::Gre { checksum: true },
            3 => Encapsulation::Gue { port: GUE_PORT, checksum: false },
            4 => Encapsulation::Gue { port: GUE_PORT, checksum: true },
            _ => Encapsulation::Ipip,
        };
        let (source, destination) = (address(source), address(destination));
        let template = OuterTemplate::with(kind, source, destination, hop_limit.max(1)).ok()?;
        let fields = OuterFields {
            dont_fragment: switches & 2 != 0,
            identification: u16::from_be_bytes([i0, i1]),
            flow_label: u32::from_be_bytes([0, l0, l1, l2]),
            entropy: u16::from_be_bytes([l1, l2]),
        };
        let tunnel = Self {
            template,
            fields,
            headroom: usize::from(headroom),
            mtu: usize::from(u16::from_be_bytes([m0, m1])),
            repair: switches & 4 != 0,
        };
        Some((tunnel, inner))
    }

    fn wrap(&self, inner: &[u8]) {
        let mut inner = inner.to_vec();
        if self.repair {
            repair(&mut inner);
        }
        let mut buffer = [&vec![0x5a; self.headroom][..], &inner, &[0xa5; 7]].concat();
        let before = buffer.clone();
        let end = self.headroom + inner.len();
        match self.template.encapsulate(&mut buffer, self.headroom..end, self.fields) {
            Ok(start) => {
                assert_eq!(start + self.template.overhead(), self.headroom);
                assert_eq!(buffer[..start], before[..start], "wrote before the outer header");
                assert_eq!(buffer[self.headroom..], before[self.headroom..], "touched the packet");
                self.check_wrapped(&buffer[start..end], &inner);
            }
            Err(error) => {
                assert_eq!(buffer, before, "a refused packet was touched");
                self.check_refused(error, &inner);
            }
        }
    }

    fn check_wrapped(&self, outer: &[u8], inner: &[u8]) {
        assert_eq!(declared_length(inner), Some(inner.len()));
        assert_eq!(declared_length(outer), Some(outer.len()));
        let out = decapsulate_with(outer, Some(GUE_PORT)).expect("what was wrapped is unwrapped");
        assert_eq!(out.inner, inner);
        assert_eq!(out.outer.source, self.template.source());
        assert_eq!(out.outer.destination, self.template.destination());
        assert_eq!(out.outer.hop_limit, self.template.hop_limit());
        // And etherparse sees the same as we do.
        received(outer);

        let Some(pieces) = cut(outer, self.mtu) else { return };
        assert!(pieces.iter().all(|piece| piece.len() <= self.mtu));
        if pieces.len() > 1 {
            let kind = self.template.encapsulation();
            let family = Family::of(inner).expect("it was wrapped");
            let payload = outer[self.template.overhead() - kind.len()..].to_vec();
            assert_eq!(reassemble(&pieces), Some((kind.protocol(family), payload)));
        } else {
            assert_eq!(pieces[0], outer);
        }
    }

    /// A refusal must be one that etherparse's view of the packet explains.
    fn check_refused(&self, error: EncapError, inner: &[u8]) {
        let declared = declared_length(inner);
        match error {
            EncapError::Inner(_) => assert!(declared.is_none_or(|length| length > inner.len())),
            EncapError::TrailingBytes { .. } => {
                assert!(declared.is_some_and(|length| length < inner.len()));
            }
            EncapError::Headroom { .. } => assert!(self.headroom < self.template.overhead()),
            EncapError::TooLong { .. } => assert!(self.template.overhead() + inner.len() > 65_535),
            EncapError::FromTunnelExit => assert_eq!(source(inner), self.template.destination()),
            EncapError::OutOfBuffer { .. } => panic!("the range is one of the buffer"),
        }
    }
}

/// The pieces of a packet on a path of this MTU; `None` when it is not to be cut.
fn cut(outer: &[u8], mtu: usize) -> Option<Vec<Vec<u8>>> {
    let pieces = plan(outer, mtu).ok()?;
    let count = pieces.len();
    let packets: Vec<_> = pieces
        .map(|piece| {
            let mut out = vec![0; outer.len() + 8];
            let length = fragment_into(outer, piece, &mut out, 0x1234_5678)
                .expect("a planned piece can be written");
            out.truncate(length);
            out
        })
        .collect();
    assert_eq!(packets.len(), count);
    Some(packets)
}

/// Protocol and payload of a fragmented packet, by etherparse.
fn reassemble(packets: &[Vec<u8>]) -> Option<(u8, Vec<u8>)> {
    let mut pool = IpDefragPool::<(), ()>::new();
    let mut whole = None;
    // The last comes first, so that the order is not the easy one.
    let turned = packets.iter().rev();
    for packet in turned {
        let sliced = SlicedPacket::from_ip(packet).expect("a piece is a packet");
        if let Some(done) = pool.process_sliced_packet(&sliced, (), ()).expect("pieces fit") {
            assert!(whole.is_none(), "complete before the last piece");
            whole = Some((done.ip_number.0, done.payload));
        }
    }
    whole
}

/// The length that a packet declares for itself, by etherparse; `None` when it has no header.
fn declared_length(packet: &[u8]) -> Option<usize> {
    match packet.first()? >> 4 {
        4 => {
            let (header, _) = Ipv4Header::from_slice(packet).ok()?;
            let length = usize::from(header.total_len);
            (length >= header.header_len()).then_some(length)
        }
        6 => {
            let (header, _) = Ipv6Header::from_slice(packet).ok()?;
            Some(40 + usize::from(header.payload_length))
        }
        _ => None,
    }
}

fn source(packet: &[u8]) -> IpAddr {
    match Ipv4Header::from_slice(packet) {
        Ok((header, _)) => header.source.into(),
        Err(_) => Ipv6Header::from_slice(packet).expect("IPv4 or IPv6").0.source.into(),
    }
}

fn protocol_of(packet: &[u8]) -> u8 {
    if packet[0] >> 4 == 4 { 4 } else { 41 }
}

/// Makes a packet's length field tell the truth, where its other fields allow that.
fn repair(packet: &mut [u8]) {
    let length = packet.len();
    match packet.first().map(|first| first >> 4) {
        Some(4) if length >= 20 => {
            let field = u16::try_from(length).unwrap_or(u16::MAX);
            packet[2..4].copy_from_slice(&field.to_be_bytes());
        }
        Some(6) if length >= 40 => {
            let field = u16::try_from(length - 40).unwrap_or(u16::MAX);
            packet[4..6].copy_from_slice(&field.to_be_bytes());
        }
        Some(_) | None => {}
    }
}
