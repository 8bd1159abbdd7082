//! What is wrapped reads as it should, and comes out as it went in.

use std::net::IpAddr;

use adit_tunnel::ecn::{self, Alarm, Ecn};
use adit_tunnel::{
    DecapError, Encapsulation, Family, HopLimitError, OuterFields, OuterTemplate, decapsulate_with,
    decrement_hop_limit,
};
use etherparse::{Ipv4Header, Ipv6Header, UdpHeader};
use proptest::prelude::*;

use crate::packets::{BEFORE, BEHIND, fields, gue_port, packet, template, wrap};

/// Traffic class of a packet, by etherparse.
fn traffic_class(packet: &[u8]) -> u8 {
    match Family::of(packet).unwrap() {
        Family::V4 => {
            let (header, _) = Ipv4Header::from_slice(packet).unwrap();
            header.dscp.value() << 2 | header.ecn.value()
        }
        Family::V6 => Ipv6Header::from_slice(packet).unwrap().0.traffic_class,
    }
}

/// Every field of the outer header, read by etherparse, is what template, caller and inner packet
/// say.
fn check_outer(outer: &[u8], inner: &[u8], template: &OuterTemplate, fields: OuterFields) {
    let family = Family::of(inner).unwrap();
    let protocol = match template.encapsulation() {
        Encapsulation::Ipip => family.protocol(),
        Encapsulation::Gre { .. } => 47,
        Encapsulation::Gue { .. } => 17,
    };
    let between = template.encapsulation().len();
    let payload = if template.is_ipv4() {
        let (header, payload) = Ipv4Header::from_slice(outer).unwrap();
        assert_eq!(header.header_checksum, header.calc_header_checksum());
        assert_eq!(IpAddr::from(header.source), template.source());
        assert_eq!(IpAddr::from(header.destination), template.destination());
        assert_eq!(header.time_to_live, template.hop_limit());
        assert_eq!(header.protocol.0, protocol);
        assert_eq!(usize::from(header.total_len), 20 + between + inner.len());
        assert_eq!(header.identification, fields.identification);
        assert_eq!(header.dont_fragment, fields.dont_fragment);
        assert!(!header.is_fragmenting_payload());
        assert!(header.options.is_empty());
        payload
    } else {
        let (header, payload) = Ipv6Header::from_slice(outer).unwrap();
        assert_eq!(IpAddr::from(header.source), template.source());
        assert_eq!(IpAddr::from(header.destination), template.destination());
        assert_eq!(header.hop_limit, template.hop_limit());
        assert_eq!(header.next_header.0, protocol);
        assert_eq!(usize::from(header.payload_length), between + inner.len());
        assert_eq!(header.flow_label.value(), fields.flow_label & 0xf_ffff);
        payload
    };
    assert_eq!(traffic_class(outer), traffic_class(inner));
    assert_eq!(&payload[between..], inner);
    check_between(payload, inner, template, fields);
}

/// What stands between the outer IP header and the inner packet, read from the specifications, and
/// its checksum by etherparse where that knows it.
fn check_between(payload: &[u8], inner: &[u8], template: &OuterTemplate, fields: OuterFields) {
    let family = Family::of(inner).unwrap();
    match template.encapsulation() {
        Encapsulation::Ipip => {}
        Encapsulation::Gre { checksum } => {
            let ethertype = if family == Family::V4 { [0x08, 0x00] } else { [0x86, 0xdd] };
            assert_eq!(payload[..2], [if checksum { 0x80 } else { 0 }, 0]);
            assert_eq!(payload[2..4], ethertype);
            if checksum {
                assert_eq!(payload[6..8], [0, 0]);
                let mut without = payload.to_vec();
                without[4..6].fill(0);
                let sum = without.chunks(2).map(|pair| {
                    u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]))
                });
                let mut sum: u32 = sum.sum();
                while sum > 0xffff {
                    sum = (sum & 0xffff) + (sum >> 16);
                }
                let written = u32::from(u16::from_be_bytes([payload[4], payload[5]]));
                assert_eq!(written, !sum & 0xffff);
            }
        }
        Encapsulation::Gue { port, checksum } => {
            let (udp, gue) = UdpHeader::from_slice(payload).unwrap();
            assert_eq!(udp.destination_port, port);
            assert_eq!(udp.source_port, 0xc000 | fields.entropy & 0x3fff);
            assert_eq!(usize::from(udp.length), payload.len());
            let computed = match (template.source(), template.destination()) {
                (IpAddr::V4(a), IpAddr::V4(b)) => {
                    udp.calc_checksum_ipv4_raw(a.octets(), b.octets(), gue)
                }
                (IpAddr::V6(a), IpAddr::V6(b)) => {
                    udp.calc_checksum_ipv6_raw(a.octets(), b.octets(), gue)
                }
                _ => panic!("two families"),
            };
            assert_eq!(udp.checksum, if checksum { computed.unwrap() } else { 0 });
            assert_eq!(gue[..4], [0, family.protocol(), 0, 0]);
        }
    }
}

proptest! {
    #[test]
    fn wrapping_writes_the_outer_header_and_nothing_else(
        inner in packet(1600),
        template in template(),
        fields in fields(),
        filler in any::<u8>(),
    ) {
        let mut buffer = [&[filler; BEFORE][..], &inner, &[filler; BEHIND]].concat();
        let end = BEFORE + inner.len();
        let start = template.encapsulate(&mut buffer, BEFORE..end, fields).unwrap();

        prop_assert_eq!(start, BEFORE - template.overhead());
        check_outer(&buffer[start..end], &inner, &template, fields);
        prop_assert!(buffer[..start].iter().chain(&buffer[end..]).all(|byte| *byte == filler));
    }

    #[test]
    fn unwrapping_gives_back_what_was_wrapped(
        inner in packet(1600),
        template in template(),
        fields in fields(),
        padding in 0..50_usize,
    ) {
        let mut outer = wrap(&template, &inner, fields);
        outer.resize(outer.len() + padding, 0xa5);
        let out = decapsulate_with(&outer, gue_port(&template)).unwrap();

        prop_assert_eq!(out.inner, &inner[..]);
        prop_assert_eq!(&outer[out.inner_range()], &inner[..]);
        prop_assert_eq!(Some(out.family), Family::of(&inner));
        prop_assert_eq!(out.outer.source, template.source());
        prop_assert_eq!(out.outer.destination, template.destination());
        prop_assert_eq!(out.outer.hop_limit, template.hop_limit());
        prop_assert_eq!(out.outer.traffic_class, traffic_class(&inner));
        prop_assert_eq!(out.outer.length, template.overhead());
        // What the entry copies never alarms the exit.
        prop_assert_eq!(out.ecn, Ecn::of(traffic_class(&inner)));
        prop_assert_eq!(out.ecn_alarm, Alarm::None);
        if template.is_ipv4() {
            prop_assert_eq!(out.outer.dont_fragment, fields.dont_fragment);
            prop_assert_eq!(out.outer.identification, fields.identification);
        } else {
            prop_assert_eq!(out.outer.flow_label, fields.flow_label & 0xf_ffff);
        }
    }

    /// A bit that flips on the way is noticed where there is a checksum: it never comes out as
    /// another inner packet.
    #[test]
    fn a_flipped_bit_behind_the_outer_header_is_noticed_by_checksums(
        inner in packet(100),
        template in template(),
        fields in fields(),
        bit in any::<prop::sample::Index>(),
    ) {
        let mut outer = wrap(&template, &inner, fields);
        let header = template.overhead() - template.encapsulation().len();
        let bit = bit.index((outer.len() - header) * 8);
        outer[header + bit / 8] ^= 0x80 >> (bit % 8);
        let sums = match template.encapsulation() {
            Encapsulation::Ipip => false,
            // The flag itself may have flipped, or the kind of packet.
            Encapsulation::Gre { checksum } => checksum && bit / 8 >= 4,
            Encapsulation::Gue { checksum, .. } => checksum && bit / 8 >= 8,
        };
        let result = decapsulate_with(&outer, gue_port(&template));
        if sums {
            prop_assert_eq!(result, Err(DecapError::PayloadChecksum));
        } else if let Ok(out) = result {
            prop_assert!(out.inner.len() <= inner.len() + 1);
        }
    }

    #[test]
    fn a_decremented_packet_is_what_etherparse_builds(mut packet in packet(64)) {
        let before = packet.clone();
        let result = decrement_hop_limit(&mut packet);
        if let Ok((mut header, payload)) = Ipv4Header::from_slice(&before) {
            if header.time_to_live <= 1 {
                prop_assert_eq!(result, Err(HopLimitError::Expired));
                prop_assert_eq!(packet, before);
            } else {
                header.time_to_live -= 1;
                header.header_checksum = header.calc_header_checksum();
                prop_assert_eq!(result, Ok(header.time_to_live));
                prop_assert_eq!(packet, [header.to_bytes().as_slice(), payload].concat());
            }
        } else {
            let (mut header, payload) = Ipv6Header::from_slice(&before).unwrap();
            if header.hop_limit <= 1 {
                prop_assert_eq!(result, Err(HopLimitError::Expired));
                prop_assert_eq!(packet, before);
            } else {
                header.hop_limit -= 1;
                prop_assert_eq!(result, Ok(header.hop_limit));
                prop_assert_eq!(packet, [&header.to_bytes()[..], payload].concat());
            }
        }
    }

    #[test]
    fn a_written_codepoint_is_what_etherparse_reads(mut packet in packet(64), bits in 0..4_u8) {
        let before = packet.clone();
        ecn::set(&mut packet, Ecn::of(bits)).unwrap();
        prop_assert_eq!(traffic_class(&packet), traffic_class(&before) & !3 | bits);
        if let Ok((header, _)) = Ipv4Header::from_slice(&packet) {
            prop_assert_eq!(header.header_checksum, header.calc_header_checksum());
        }
        // And it can be put back, so nothing else has changed.
        ecn::set(&mut packet, Ecn::of(traffic_class(&before))).unwrap();
        prop_assert_eq!(packet, before);
    }
}
