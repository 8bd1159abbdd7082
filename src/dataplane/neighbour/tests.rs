use std::net::IpAddr;

use etherparse::{ArpPacketSlice, Ethernet2Slice, Icmpv6Slice};
use proptest::prelude::*;

use super::*;
use crate::dataplane::{
    packet::ip_addr,
    sample_packets::{Emitted, icmp_from},
};

const OUR_MAC: Mac = [2, 0, 0, 0, 0, 0xaa];
const HOST_MAC: Mac = [2, 0, 0, 0, 0, 0x11];
const OPTION_MAC: Mac = [2, 0, 0, 0, 0, 0x22];
const VIP_V4: [u8; 4] = [198, 51, 100, 10];
const HOST_V4: [u8; 4] = [198, 51, 100, 1];
const VIP_V6: &str = "2001:db8::10";
const HOST_V6: &str = "2001:db8::1";
const GROUP_V6: &str = "ff02::1:ff00:10";

fn is_vip(address: &Address) -> bool {
    [IpAddr::from(VIP_V4), VIP_V6.parse().unwrap()].contains(&ip_addr(address))
}

/// The answer to a frame, and the slot afterwards. 128 bytes of headroom, `tail` behind.
fn answered(frame: &[u8], tail: usize) -> (Answer, Vec<u8>) {
    let mut slot = vec![0xa5; 128];
    slot.extend(frame);
    slot.resize(slot.len() + tail, 0xa5);
    let answer = answer(&mut slot, 128..128 + frame.len(), OUR_MAC, is_vip);
    (answer, slot)
}

fn arp(operation: u16, sender_mac: Mac, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut frame = Vec::from([0xff; 6]);
    frame.extend(HOST_MAC);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4]);
    frame.extend(operation.to_be_bytes());
    frame.extend(sender_mac);
    frame.extend(sender);
    frame.extend([0; 6]);
    frame.extend(target);
    frame
}

/// A neighbour message from `HOST_MAC`.
fn nd(
    source: &str,
    destination: &str,
    kind: u8,
    hop_limit: u8,
    target: &str,
    options: &[u8],
) -> Vec<u8> {
    let IpAddr::V6(target) = target.parse().unwrap() else { panic!() };
    let mut body = target.octets().to_vec();
    body.extend(options);
    let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
    let mut frame = vec![0x33, 0x33, 0xff, 0, 0, 0x10];
    frame.extend(HOST_MAC);
    frame.extend([0x86, 0xdd]);
    frame.extend(icmp_from(hop_limit, source, destination, (kind, 0), [0; 4], &body));
    frame
}

fn source_option() -> Vec<u8> {
    let mut option = vec![1, 1];
    option.extend(OPTION_MAC);
    option
}

fn solicitation(target: &str, options: &[u8]) -> Vec<u8> {
    nd(HOST_V6, GROUP_V6, 135, 255, target, options)
}

/// Destination MAC and ARP packet of a frame, as etherparse reads them.
fn read_arp(frame: &[u8]) -> ([u8; 6], etherparse::ArpPacket) {
    let ethernet = Ethernet2Slice::from_slice_without_fcs(frame).unwrap();
    assert_eq!(ethernet.source(), OUR_MAC);
    let arp = ArpPacketSlice::from_slice(ethernet.payload().payload).unwrap();
    assert_eq!(arp.slice().len(), 28);
    (ethernet.destination(), arp.to_packet())
}

#[test]
fn arp_requests_for_a_vip_are_answered() {
    // An ordinary request, one from a host that has no address yet (RFC 5227 probe), padded.
    for sender in [HOST_V4, [0; 4]] {
        for padding in [0, 18] {
            let mut request = arp(1, HOST_MAC, sender, VIP_V4);
            request.resize(request.len() + padding, 0);
            let (answer, slot) = answered(&request, 0);
            let Answer::Reply(range) = answer else { panic!("{answer:?}") };
            assert_eq!(range, 128..128 + 42);
            let (destination, reply) = read_arp(&slot[range]);
            assert_eq!(destination, HOST_MAC);
            assert_eq!(reply.operation.0, 2);
            assert_eq!(
                (reply.sender_hw_addr(), reply.sender_protocol_addr()),
                (&OUR_MAC[..], &VIP_V4[..])
            );
            assert_eq!(
                (reply.target_hw_addr(), reply.target_protocol_addr()),
                (&HOST_MAC[..], &sender[..])
            );
        }
    }
}

#[test]
fn other_arp_is_not_ours_or_a_conflict() {
    let vip = address(IpAddr::from(VIP_V4));
    let mut other_hardware = arp(1, HOST_MAC, HOST_V4, VIP_V4);
    other_hardware[15] = 6;
    let table = [
        ("another target", arp(1, HOST_MAC, HOST_V4, [198, 51, 100, 11]), Answer::NotOurs),
        ("a reply", arp(2, HOST_MAC, HOST_V4, VIP_V4), Answer::NotOurs),
        ("reverse ARP", arp(3, HOST_MAC, HOST_V4, VIP_V4), Answer::NotOurs),
        ("token ring", other_hardware, Answer::NotOurs),
        ("our own announcement", arp(1, OUR_MAC, VIP_V4, VIP_V4), Answer::NotOurs),
        (
            "gratuitous request",
            arp(1, HOST_MAC, VIP_V4, VIP_V4),
            Answer::Conflict { vip, mac: HOST_MAC },
        ),
        (
            "gratuitous reply",
            arp(2, HOST_MAC, VIP_V4, VIP_V4),
            Answer::Conflict { vip, mac: HOST_MAC },
        ),
        (
            "asks as the VIP",
            arp(1, HOST_MAC, VIP_V4, HOST_V4),
            Answer::Conflict { vip, mac: HOST_MAC },
        ),
        (
            "group sender",
            arp(1, BROADCAST, HOST_V4, VIP_V4),
            Answer::Malformed(DropReason::Malformed),
        ),
    ];
    for (what, frame, expected) in table {
        assert_eq!(answered(&frame, 0).0, expected, "{what}");
    }
    let whole = arp(1, HOST_MAC, HOST_V4, VIP_V4);
    for length in 0..whole.len() {
        let (answer, _) = answered(&whole[..length], 0);
        assert_eq!(answer, Answer::Malformed(DropReason::Truncated), "{length}");
    }
}

#[test]
fn solicitations_for_a_vip_are_answered() {
    // (source, options, tail room) → (destination address, destination MAC, flags)
    let table = [
        (HOST_V6, source_option(), 64, HOST_V6, OPTION_MAC, 0x60),
        (HOST_V6, vec![], 64, HOST_V6, HOST_MAC, 0x60),
        // Without tail room the longer advertisement begins in the headroom.
        (HOST_V6, vec![], 0, HOST_V6, HOST_MAC, 0x60),
        ("::", vec![], 64, "ff02::1", [0x33, 0x33, 0, 0, 0, 1], 0x20),
        // Unknown options are skipped: nonce (RFC 3971).
        ("::", vec![14, 1, 1, 2, 3, 4, 5, 6], 0, "ff02::1", [0x33, 0x33, 0, 0, 0, 1], 0x20),
    ];
    for (source, options, tail, destination, mac, flags) in table {
        let frame = nd(source, GROUP_V6, 135, 255, VIP_V6, &options);
        let (answer, slot) = answered(&frame, tail);
        let Answer::Reply(range) = answer else { panic!("{answer:?}") };
        assert_advertisement(&slot[range], destination, mac, flags);
    }
    // Asked directly: neighbour unreachability detection.
    let frame = nd(HOST_V6, VIP_V6, 135, 255, VIP_V6, &source_option());
    assert!(matches!(answered(&frame, 0).0, Answer::Reply(_)));
}

fn assert_advertisement(frame: &[u8], destination: &str, mac: Mac, flags: u8) {
    let ethernet = Ethernet2Slice::from_slice_without_fcs(frame).unwrap();
    assert_eq!((ethernet.source(), ethernet.destination()), (OUR_MAC, mac));
    let emitted = Emitted::read(ethernet.payload().payload);
    assert_eq!(emitted.source, VIP_V6.parse::<IpAddr>().unwrap());
    assert_eq!(emitted.destination, destination.parse::<IpAddr>().unwrap());
    assert_eq!(emitted.hop_limit, 255);
    let message = Icmpv6Slice::from_slice(emitted.transport).unwrap();
    assert_eq!((message.type_u8(), message.code_u8()), (136, 0));
    assert_eq!(message.bytes5to8(), [flags, 0, 0, 0]);
    let IpAddr::V6(vip) = VIP_V6.parse().unwrap() else { panic!() };
    assert_eq!(message.payload()[..16], vip.octets());
    assert_eq!(message.payload()[16..18], [2, 1]);
    assert_eq!(message.payload()[18..], OUR_MAC);
}

#[test]
fn other_neighbour_messages_are_not_answered() {
    use Answer::{Malformed, NotOurs};
    let IpAddr::V6(vip) = VIP_V6.parse().unwrap() else { panic!() };
    let vip = vip.octets();
    let malformed = Malformed(DropReason::Malformed);
    let target_option = [2, 1, 2, 0, 0, 0, 0, 0x22];
    let mut flipped = solicitation(VIP_V6, &[]);
    flipped[14 + 40 + 5] ^= 1;
    let mut ours = solicitation(VIP_V6, &[]);
    ours[6..12].copy_from_slice(&OUR_MAC);
    let table = [
        ("another target", solicitation("2001:db8::11", &[]), NotOurs),
        ("a mapped VIP", solicitation("::ffff:198.51.100.10", &[]), NotOurs),
        ("echo request", nd(HOST_V6, VIP_V6, 128, 255, VIP_V6, &[]), NotOurs),
        ("router solicitation", nd(HOST_V6, VIP_V6, 133, 255, VIP_V6, &[]), NotOurs),
        ("our own", ours, NotOurs),
        ("from behind a router", nd(HOST_V6, GROUP_V6, 135, 254, VIP_V6, &[]), malformed.clone()),
        ("empty option", solicitation(VIP_V6, &[1, 0, 0, 0, 0, 0, 0, 0]), malformed.clone()),
        ("long option", solicitation(VIP_V6, &[1, 2, 0, 0, 0, 0, 0, 0]), malformed.clone()),
        ("half an option", solicitation(VIP_V6, &[1, 1, 0, 0]), malformed.clone()),
        ("one byte of option", solicitation(VIP_V6, &[1]), malformed.clone()),
        ("group as MAC", solicitation(VIP_V6, &[1, 1, 0x33, 0, 0, 0, 0, 0]), malformed.clone()),
        (
            "probe with MAC",
            nd("::", GROUP_V6, 135, 255, VIP_V6, &source_option()),
            malformed.clone(),
        ),
        ("probe to unicast", nd("::", VIP_V6, 135, 255, VIP_V6, &[]), malformed),
        ("flipped bit", flipped, Malformed(DropReason::BadChecksum)),
        (
            "someone has our VIP",
            nd(VIP_V6, "ff02::1", 136, 255, VIP_V6, &target_option),
            Answer::Conflict { vip, mac: OPTION_MAC },
        ),
        (
            "someone has it and hides",
            nd(VIP_V6, "ff02::1", 136, 255, VIP_V6, &[]),
            Answer::Conflict { vip, mac: HOST_MAC },
        ),
        ("another's", nd(HOST_V6, "ff02::1", 136, 255, HOST_V6, &target_option), NotOurs),
    ];
    for (what, frame, expected) in table {
        assert_eq!(answered(&frame, 64).0, expected, "{what}");
    }
    let whole = solicitation(VIP_V6, &source_option());
    for length in 0..whole.len() {
        let (answer, _) = answered(&whole[..length], 64);
        assert_eq!(answer, Malformed(DropReason::Truncated), "{length}");
    }
}

#[test]
fn vlan_tags_and_other_frames_are_not_ours() {
    for ethertype in [[0x81, 0], [8, 0], [0, 38]] {
        let mut frame = arp(1, HOST_MAC, HOST_V4, VIP_V4);
        frame[12..14].copy_from_slice(&ethertype);
        assert_eq!(answered(&frame, 0).0, Answer::NotOurs);
    }
}

#[test]
fn announcements_reach_everybody() {
    let frame = gratuitous_arp(OUR_MAC, VIP_V4.into());
    let (destination, announcement) = read_arp(&frame);
    assert_eq!(destination, [0xff; 6]);
    assert_eq!(announcement.operation.0, 1);
    assert_eq!(announcement.sender_hw_addr(), OUR_MAC);
    assert_eq!(announcement.sender_protocol_addr(), VIP_V4);
    assert_eq!(announcement.target_protocol_addr(), VIP_V4);
    let IpAddr::V6(vip) = VIP_V6.parse().unwrap() else { panic!() };
    let frame = unsolicited_advertisement(OUR_MAC, vip);
    assert_advertisement(&frame, "ff02::1", [0x33, 0x33, 0, 0, 0, 1], 0x20);
}

proptest! {
    #[test]
    fn arbitrary_frames_never_panic(
        mut frame in proptest::collection::vec(any::<u8>(), 0..150),
        ethertype in prop_oneof![Just([8u8, 6]), Just([0x86, 0xdd]), any::<[u8; 2]>()],
        headroom in 0usize..40,
        tail in 0usize..40,
        all_vips in any::<bool>(),
    ) {
        if frame.len() >= 14 {
            frame[12..14].copy_from_slice(&ethertype);
        }
        let mut slot = vec![0; headroom];
        slot.extend(&frame);
        slot.resize(slot.len() + tail, 0);
        let length = slot.len();
        let range = headroom..headroom + frame.len();
        if let Answer::Reply(range) = answer(&mut slot, range, OUR_MAC, |_| all_vips) {
            prop_assert!(range.end <= length);
        }
    }

    /// Solicitations with arbitrary options under valid checksums: refused or answered well.
    #[test]
    fn arbitrary_options_are_refused_or_answered(
        options in proptest::collection::vec(any::<u8>(), 0..64),
        units in 0u8..4,
        tail in 0usize..40,
    ) {
        let mut options = options;
        if let Some(byte) = options.get_mut(1) {
            *byte = units;
        }
        let (answer, slot) = answered(&solicitation(VIP_V6, &options), tail);
        match answer {
            Answer::Reply(range) => {
                Emitted::read(&slot[range][14..]);
            }
            Answer::Malformed(_) => {}
            Answer::NotOurs | Answer::Conflict { .. } => prop_assert!(false, "{answer:?}"),
        }
    }
}
