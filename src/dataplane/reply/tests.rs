use std::net::IpAddr;

use etherparse::{Icmpv4Slice, Icmpv6Slice, TcpSlice};
use proptest::prelude::*;

use super::*;
use crate::dataplane::{
    icmp::Message,
    packet::address,
    sample_packets::{CLASS, Emitted, icmp, in_slot, tcp, udp},
};

const CLIENT_V4: &str = "203.0.113.7";
const VIP_V4: &str = "198.51.100.10";
const CLIENT_V6: &str = "2001:db8:9::7";
const VIP_V6: &str = "2001:db8::10";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn ends(v4: bool) -> (IpAddr, IpAddr) {
    if v4 { (ip(CLIENT_V4), ip(VIP_V4)) } else { (ip(CLIENT_V6), ip(VIP_V6)) }
}

fn segment_of(v4: bool, payload: &[u8]) -> Vec<u8> {
    let (client, vip) = ends(v4);
    tcp((client, 40000).into(), (vip, 5432).into(), 1_000_000, 2_000_000, payload)
}

fn error(packet: &[u8], kind: ErrorReply) -> Option<Vec<u8>> {
    let (mut slot, range) = in_slot(packet);
    let datagram = Datagram::parse(packet).unwrap();
    error_reply(&mut slot, &datagram, range, kind).map(|reply| slot[reply].to_vec())
}

/// The reset for a packet, with its flags as given.
fn reset_for(packet: &[u8], flags: u8) -> Option<Vec<u8>> {
    let mut packet = packet.to_vec();
    let datagram = Datagram::parse(&packet).unwrap();
    packet[datagram.header_len + 13] = flags;
    let segment = TcpSegment::parse(&datagram, &packet).unwrap();
    let (mut slot, range) = in_slot(&packet);
    reset(&mut slot, &datagram, &segment, range).map(|reply| slot[reply].to_vec())
}

/// What every reply has in common.
fn assert_from_vip(emitted: &Emitted<'_>, v4: bool) {
    let (client, vip) = ends(v4);
    assert_eq!((emitted.source, emitted.destination), (vip, client));
    assert_eq!(emitted.hop_limit, 64);
    assert_eq!(emitted.dont_fragment, v4.then_some((true, 0)));
}

/// Puts IPv4 options (a timestamp option, as `ping -T` sends) behind the header of `packet`.
fn with_options(packet: &[u8]) -> Vec<u8> {
    let mut out = packet[..20].to_vec();
    out.extend([68, 8, 5, 0, 0, 0, 0, 0]);
    out.extend(&packet[20..]);
    out[0] = 0x47;
    let length = u16::try_from(out.len()).unwrap();
    out[2..4].copy_from_slice(&length.to_be_bytes());
    let sum = checksum::ipv4_header_checksum(&out[..28]);
    out[10..12].copy_from_slice(&sum.to_be_bytes());
    out
}

/// Puts an IPv6 destination options header (padding only) behind the header of `packet`.
fn with_extension(packet: &[u8]) -> Vec<u8> {
    let mut out = packet[..40].to_vec();
    out.extend([packet[6], 0, 1, 4, 0, 0, 0, 0]);
    out.extend(&packet[40..]);
    out[6] = protocol::DESTINATION_OPTIONS;
    let length = u16::try_from(out.len() - 40).unwrap();
    out[4..6].copy_from_slice(&length.to_be_bytes());
    out
}

/// Makes a first or later fragment of an IPv4 packet.
fn as_fragment_v4(mut packet: Vec<u8>, field: u16) -> Vec<u8> {
    packet[6..8].copy_from_slice(&field.to_be_bytes());
    let sum = checksum::ipv4_header_checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// Puts a fragment header in front of an IPv6 packet's transport.
fn as_fragment_v6(packet: &[u8], field: u16) -> Vec<u8> {
    let mut out = with_extension(packet);
    out[6] = protocol::FRAGMENT;
    out[41] = 0;
    out[42..44].copy_from_slice(&field.to_be_bytes());
    out
}

#[test]
fn an_echo_request_comes_back_from_the_vip() {
    for v4 in [true, false] {
        let (client, vip) = ends(v4);
        let body: Vec<u8> = (0..200).map(|byte: u8| byte.wrapping_mul(7)).collect();
        let kind = if v4 { 8 } else { 128 };
        let plain = icmp(client, vip, (kind, 0), [0, 7, 0, 9], &body);
        let extended = if v4 { with_options(&plain) } else { with_extension(&plain) };
        for packet in [plain, extended] {
            let (mut slot, range) = in_slot(&packet);
            let datagram = Datagram::parse(&packet).unwrap();
            assert_eq!(icmp::classify(&datagram, &packet), Ok(Message::EchoRequest));
            let reply = echo_reply(&mut slot, &datagram, range);
            let emitted = Emitted::read(&slot[reply]);
            assert_from_vip(&emitted, v4);
            assert_eq!(emitted.class, CLASS & DSCP_MASK);
            assert_eq!(emitted.transport[..2], [if v4 { 0 } else { 129 }, 0]);
            assert_eq!(emitted.transport[4..8], [0, 7, 0, 9]);
            assert_eq!(emitted.transport[8..], body);
        }
    }
}

#[test]
fn an_echo_reply_of_zeros_has_the_checksum_that_receivers_compute() {
    // Patching would write 0 here, which sums to an invalid message.
    let packet = icmp(ip(CLIENT_V4), ip(VIP_V4), (8, 0), [0; 4], &[0; 16]);
    let (mut slot, range) = in_slot(&packet);
    let reply = echo_reply(&mut slot, &Datagram::parse(&packet).unwrap(), range);
    assert_eq!(Emitted::read(&slot[reply]).transport[..4], [0, 0, 0xff, 0xff]);
}

#[test]
fn errors_say_what_was_wrong_and_quote_the_packet() {
    use ErrorReply::{TimeExceeded, TooBig};
    let table = [
        (true, TooBig { mtu: 1380 }, [3, 4], [0, 0, 5, 100]),
        (true, TimeExceeded, [11, 0], [0; 4]),
        (false, TooBig { mtu: 1380 }, [2, 0], [0, 0, 5, 100]),
        (false, TimeExceeded, [3, 0], [0; 4]),
    ];
    for (v4, kind, type_and_code, rest) in table {
        for size in [0, 1, 100, 548 - 40, 549 - 40, 1232 - 60, 1233 - 60, 1400] {
            let packet = segment_of(v4, &vec![0x5a; size]);
            let reply = error(&packet, kind).unwrap();
            let emitted = Emitted::read(&reply);
            assert_from_vip(&emitted, v4);
            assert_eq!(emitted.class, 0xc0);
            assert_eq!(emitted.transport[..2], type_and_code);
            assert_eq!(emitted.transport[4..8], rest);
            let quote = packet.len().min(if v4 { 576 - 28 } else { 1280 - 48 });
            assert_eq!(emitted.transport[8..], packet[..quote], "{size}");
        }
    }
    // And as the oracle names them.
    let reply = error(&segment_of(true, &[0; 1400]), TooBig { mtu: 1380 }).unwrap();
    let icmp = Icmpv4Slice::from_slice(&reply[20..]).unwrap();
    assert!(format!("{:?}", icmp.icmp_type()).contains("next_hop_mtu: 1380"));
    let reply = error(&segment_of(false, &[0; 1400]), TooBig { mtu: 1380 }).unwrap();
    let icmp = Icmpv6Slice::from_slice(&reply[40..]).unwrap();
    assert!(format!("{:?}", icmp.icmp_type()).contains("PacketTooBig { mtu: 1380 }"));
}

#[test]
fn errors_are_not_sent_about_errors_groups_or_later_fragments() {
    let too_big = ErrorReply::TooBig { mtu: 1280 };
    let (client, vip) = ends(true);
    let message = |kind| icmp(client, vip, (kind, 0), [0; 4], &[0; 64]);
    for (kind, answered) in [
        (0, true),
        (3, false),
        (4, false),
        (5, false),
        (8, true),
        (11, false),
        (12, false),
        (40, false),
    ] {
        assert_eq!(error(&message(kind), too_big).is_some(), answered, "ICMPv4 type {kind}");
    }
    let (client, vip) = ends(false);
    let message = |kind| icmp(client, vip, (kind, 0), [0; 4], &[0; 64]);
    for (kind, answered) in
        [(1, false), (2, false), (127, false), (128, true), (129, true), (135, true), (137, false)]
    {
        assert_eq!(error(&message(kind), too_big).is_some(), answered, "ICMPv6 type {kind}");
    }
    let sources = [
        ("0.0.0.0", VIP_V4),
        ("0.1.2.3", VIP_V4),
        ("127.0.0.1", VIP_V4),
        ("224.0.0.1", VIP_V4),
        ("255.255.255.255", VIP_V4),
        ("240.0.0.1", VIP_V4),
        (CLIENT_V4, "239.1.1.1"),
        ("::", VIP_V6),
        ("::1", VIP_V6),
        ("ff02::1", VIP_V6),
        (CLIENT_V6, "ff0e::1"),
    ];
    for (source, destination) in sources {
        let packet = udp((ip(source), 1).into(), (ip(destination), 53).into(), &[1; 50]);
        assert_eq!(error(&packet, too_big), None, "{source} → {destination}");
        let packet = tcp((ip(source), 1).into(), (ip(destination), 53).into(), 1, 2, &[1; 50]);
        if ip(destination) == ip(VIP_V4) || ip(destination) == ip(VIP_V6) {
            assert_eq!(reset_for(&packet, tcp_flag::ACK), None, "reset to {source}");
        }
    }
    let first = as_fragment_v4(segment_of(true, &[0; 64]), 0x2000);
    assert!(error(&first, too_big).is_some());
    let later = as_fragment_v4(segment_of(true, &[0; 64]), 0x0010);
    assert_eq!(error(&later, too_big), None);
    // RFC 4443 has no such rule, but the type of a later fragment of ICMPv6 cannot be known.
    let later = as_fragment_v6(&segment_of(false, &[0; 64]), 0x0010);
    assert!(error(&later, too_big).is_some());
    let later = as_fragment_v6(&icmp(client, vip, (128, 0), [0; 4], &[0; 64]), 0x0010);
    assert_eq!(error(&later, too_big), None);
}

#[test]
fn an_error_without_room_in_front_is_not_sent() {
    for (v4, needed) in [(true, 28), (false, 48)] {
        let packet = segment_of(v4, &[0; 100]);
        let datagram = Datagram::parse(&packet).unwrap();
        for headroom in [0, needed - 1, needed] {
            let mut slot = vec![0; headroom];
            slot.extend(&packet);
            let range = headroom..slot.len();
            let reply = error_reply(&mut slot, &datagram, range, ErrorReply::TimeExceeded);
            assert_eq!(reply.is_some(), headroom >= needed, "{headroom}");
        }
    }
}

#[test]
fn resets_are_those_of_rfc_9293() {
    use tcp_flag::{ACK, FIN, RST, SYN};
    let (sequence, acknowledgement) = (1_000_000, 2_000_000);
    let table = [
        (ACK, Some((acknowledgement, 0, RST))),
        (ACK | SYN, Some((acknowledgement, 0, RST))),
        (ACK | FIN, Some((acknowledgement, 0, RST))),
        (0, Some((0, sequence + 10, RST | ACK))),
        (SYN, Some((0, sequence + 11, RST | ACK))),
        (SYN | FIN, Some((0, sequence + 12, RST | ACK))),
        (RST, None),
        (RST | ACK, None),
    ];
    for v4 in [true, false] {
        for (flags, expected) in table {
            let reply = reset_for(&segment_of(v4, &[9; 10]), flags);
            let Some((sequence, acknowledgement, flags)) = expected else {
                assert_eq!(reply, None, "{flags:#x}");
                continue;
            };
            let reply = reply.unwrap();
            let emitted = Emitted::read(&reply);
            assert_from_vip(&emitted, v4);
            assert_eq!(emitted.class, CLASS & DSCP_MASK);
            let tcp = TcpSlice::from_slice(emitted.transport).unwrap();
            assert_eq!((tcp.source_port(), tcp.destination_port()), (5432, 40000));
            assert_eq!(tcp.sequence_number(), sequence);
            assert_eq!(tcp.acknowledgment_number(), acknowledgement);
            assert_eq!(emitted.transport[13], flags);
            assert_eq!((tcp.window_size(), tcp.urgent_pointer(), tcp.slice().len()), (0, 0, 20));
        }
    }
}

#[test]
fn a_fragment_is_reset_only_by_its_acknowledgement() {
    let first = as_fragment_v4(segment_of(true, &[0; 64]), 0x2000);
    assert!(reset_for(&first, tcp_flag::ACK).is_some());
    assert_eq!(reset_for(&first, tcp_flag::SYN), None);
}

proptest! {
    #[test]
    fn arbitrary_packets_never_panic_and_replies_are_right(
        mut bytes in proptest::collection::vec(any::<u8>(), 20..1500),
        v4 in any::<bool>(),
        transport in prop_oneof![Just(protocol::TCP), Just(protocol::ICMP), Just(protocol::ICMPV6), any::<u8>()],
        headroom in 0usize..128,
        flags in any::<u8>(),
        too_big in any::<bool>(),
    ) {
        // Enough truth to get past the parser; the rest is arbitrary.
        let length = bytes.len();
        if v4 {
            bytes[0] = 0x45;
            bytes[2..4].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
            bytes[6] &= 0x40;
            bytes[7] = 0;
            bytes[9] = transport;
            let sum = checksum::ipv4_header_checksum(&bytes[..20]);
            bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        } else if length >= 40 {
            bytes[0] = 0x60 | bytes[0] & 0xf;
            bytes[4..6].copy_from_slice(&u16::try_from(length - 40).unwrap().to_be_bytes());
            bytes[6] = transport;
        }
        let Ok(datagram) = Datagram::parse(&bytes) else { return Ok(()) };
        let at = datagram.header_len;
        if transport == protocol::TCP && datagram.payload_len() >= 20 {
            bytes[at + 12] = 5 << 4;
            bytes[at + 13] = flags;
        }
        let mut slot = vec![0xee; headroom];
        slot.extend(&bytes);
        let range = headroom..slot.len();
        if let Ok(Message::EchoRequest) = icmp::classify(&datagram, &bytes) {
            let mut slot = slot.clone();
            let reply = echo_reply(&mut slot, &datagram, range.clone());
            Emitted::read(&slot[reply]);
        }
        if datagram.protocol == protocol::TCP
            && datagram.has_upper_layer()
            && let Ok(segment) = TcpSegment::parse(&datagram, &bytes)
        {
            let mut slot = slot.clone();
            if let Some(reply) = reset(&mut slot, &datagram, &segment, range.clone()) {
                prop_assert!(flags & tcp_flag::RST == 0);
                Emitted::read(&slot[reply]);
            }
        }
        let kind = if too_big { ErrorReply::TooBig { mtu: 1300 } } else { ErrorReply::TimeExceeded };
        if let Some(reply) = error_reply(&mut slot, &datagram, range, kind) {
            let emitted = Emitted::read(&slot[reply.clone()]);
            prop_assert_eq!(address(emitted.source), datagram.destination);
            let limit = if v4 { 576 } else { 1280 };
            prop_assert!(reply.len() <= limit);
        }
    }
}
