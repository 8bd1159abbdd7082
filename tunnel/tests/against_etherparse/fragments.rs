//! Pieces are put together by etherparse's reassembly.

use adit_tunnel::fragment::{FragmentError, Piece, fragment_into, plan};
use adit_tunnel::{Family, OuterFields};
use etherparse::SlicedPacket;
use etherparse::defrag::IpDefragPool;
use proptest::prelude::*;

use crate::packets::{packet, template, wrap};

const IDENTIFICATION: u32 = 0x8765_4321;

/// The pieces of `outer`, each a packet of its own.
fn cut(outer: &[u8], mtu: usize) -> Vec<(Piece, Vec<u8>)> {
    plan(outer, mtu)
        .unwrap()
        .map(|piece| {
            let mut out = vec![0xee; outer.len() + 8];
            let length = fragment_into(outer, piece, &mut out, IDENTIFICATION).unwrap();
            assert!(out[length..].iter().all(|byte| *byte == 0xee), "wrote behind the piece");
            out.truncate(length);
            (piece, out)
        })
        .collect()
}

/// Puts packets together again, by etherparse: protocol and payload of the whole.
fn reassemble(packets: &[Vec<u8>]) -> Option<(u8, Vec<u8>)> {
    let mut pool = IpDefragPool::<(), ()>::new();
    let mut whole = None;
    for packet in packets {
        let sliced = SlicedPacket::from_ip(packet).unwrap();
        if let Some(done) = pool.process_sliced_packet(&sliced, (), ()).unwrap() {
            assert!(whole.is_none(), "complete before the last piece");
            whole = Some((done.ip_number.0, done.payload));
        }
    }
    whole
}

proptest! {
    #[test]
    fn pieces_fit_and_reassemble(
        inner in packet(4000),
        template in template(),
        mtu in 68..1600_usize,
        order in any::<prop::sample::Index>(),
    ) {
        let outer = wrap(&template, &inner, OuterFields::default());
        prop_assume!(outer.len() > mtu);
        let pieces = cut(&outer, mtu);
        prop_assert!(pieces.len() >= 2);
        prop_assert_eq!(plan(&outer, mtu).unwrap().len(), pieces.len());
        let last = pieces.len() - 1;
        let mut next = 0;
        for (index, (piece, packet)) in pieces.iter().enumerate() {
            prop_assert!(packet.len() <= mtu);
            prop_assert_eq!(piece.offset, next);
            prop_assert_eq!(piece.more, index != last);
            prop_assert!(!piece.more || piece.length.is_multiple_of(8));
            // No piece but the last two could have held eight bytes more.
            prop_assert!(index + 1 >= last || packet.len() + 8 > mtu);
            next += piece.length;
        }
        let header = template.overhead() - template.encapsulation().len();
        prop_assert_eq!(next, outer.len() - header);

        let mut packets: Vec<_> = pieces.into_iter().map(|(_, packet)| packet).collect();
        let turn = order.index(packets.len());
        packets.rotate_left(turn);
        let (protocol, payload) = reassemble(&packets).expect("all pieces are there");
        let family = Family::of(&inner).expect("it was wrapped");
        prop_assert_eq!(protocol, template.encapsulation().protocol(family));
        prop_assert_eq!(&payload, &outer[header..]);
        prop_assert!(payload.ends_with(&inner));
    }

    #[test]
    fn pieces_keep_the_outer_header(inner in packet(2000), template in template()) {
        let fields = OuterFields { identification: 7, flow_label: 0x12345, ..OuterFields::default() };
        let outer = wrap(&template, &inner, fields);
        prop_assume!(outer.len() > 200);
        for (_, packet) in cut(&outer, 200) {
            if template.is_ipv4() {
                let (before, _) = etherparse::Ipv4Header::from_slice(&outer).unwrap();
                let (after, _) = etherparse::Ipv4Header::from_slice(&packet).unwrap();
                prop_assert_eq!(after.header_checksum, after.calc_header_checksum());
                prop_assert_eq!(after.identification, 0x4321);
                prop_assert_eq!(usize::from(after.total_len), packet.len());
                prop_assert_eq!(
                    (after.dscp, after.ecn, after.time_to_live, after.protocol),
                    (before.dscp, before.ecn, before.time_to_live, before.protocol)
                );
                prop_assert_eq!((after.source, after.destination), (before.source, before.destination));
            } else {
                let (before, _) = etherparse::Ipv6Header::from_slice(&outer).unwrap();
                let (mut after, rest) = etherparse::Ipv6Header::from_slice(&packet).unwrap();
                let (fragment, _) = etherparse::Ipv6FragmentHeader::from_slice(rest).unwrap();
                prop_assert_eq!(fragment.identification, IDENTIFICATION);
                prop_assert_eq!(fragment.next_header, before.next_header);
                prop_assert_eq!(after.next_header.0, 44);
                prop_assert_eq!(usize::from(after.payload_length), packet.len() - 40);
                after.next_header = before.next_header;
                after.payload_length = before.payload_length;
                prop_assert_eq!(after, before);
            }
        }
    }

    #[test]
    fn what_fits_is_left_as_it_is(inner in packet(600), template in template(), more in 0..9_usize) {
        let outer = wrap(&template, &inner, OuterFields { dont_fragment: true, ..OuterFields::default() });
        let pieces = cut(&outer, outer.len() + more);
        prop_assert_eq!(pieces.len(), 1);
        prop_assert!(pieces[0].0.is_whole());
        prop_assert_eq!(&pieces[0].1, &outer);
    }

    #[test]
    fn a_path_too_narrow_for_any_piece_is_an_error(
        inner in packet(600),
        template in template(),
        mtu in 0..56_usize,
    ) {
        let outer = wrap(&template, &inner, OuterFields::default());
        let needed = if template.is_ipv4() { 28 } else { 56 };
        prop_assume!(mtu < needed && outer.len() > mtu);
        prop_assert_eq!(
            plan(&outer, mtu).unwrap_err(),
            FragmentError::MtuTooSmall { needed, actual: mtu }
        );
    }
}
