//! The data plane's views against etherparse: what a frame is, and the answers to who has a VIP.

use std::net::{IpAddr, Ipv6Addr};

use adit::dataplane::neighbour::{Answer, answer};
use adit::dataplane::packet::{
    Datagram, ETHERNET_HEADER, ETHERTYPE_ARP, Family, Quote, TcpSegment, address, be16, ip_addr,
    protocol, udp_ports,
};
use etherparse::{
    ArpOperation, ArpPacketSlice, IpNumber, Ipv4Header, Ipv6FragmentHeaderSlice, Ipv6Header,
    NetSlice, SlicedPacket, TcpHeaderSlice, TransportSlice, UdpHeader,
};

use crate::checksums;

const MAC: [u8; 6] = [2, 0xad, 1, 0, 0, 1];
/// VIPs that are asked for: 198.51.100.10 and 2001:db8:2::10.
const VIP_V4: [u8; 4] = [198, 51, 100, 10];
const VIP_V6: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10];
/// As a received frame lies in its slot.
const HEADROOM: usize = 128;

/// Reads one Ethernet frame in every way that the data plane does.
///
/// The first byte chooses: with bit 0 set, checksums are made right first, which the fuzzer cannot
/// guess. The rest is the frame.
pub fn parse(data: &[u8]) {
    let Some((choice, frame)) = data.split_first() else { return };
    let mut frame = frame.to_vec();
    if choice & 1 != 0
        && let Some(packet) = frame.get_mut(ETHERNET_HEADER..)
    {
        checksums::repair(packet);
    }
    neighbour(&frame);
    if let Some(packet) = frame.get(ETHERNET_HEADER..) {
        datagram(packet);
        quote(packet);
    }
}

/// A view is there exactly when etherparse finds the packet whole, and both read the same.
fn datagram(packet: &[u8]) {
    let view = Datagram::parse(packet);
    if let Ok(view) = &view {
        assert!(view.header_len <= view.total_len && view.total_len <= packet.len());
        upper_layer(view, packet);
    }
    match packet.first().map(|first| first >> 4) {
        Some(4) => match Ipv4Header::from_slice(packet) {
            Ok((header, _)) => {
                let total = usize::from(header.total_len);
                let whole = (header.header_len()..=packet.len()).contains(&total);
                let intact = checksums::ipv4_is_intact(packet);
                assert_eq!(view.is_ok(), whole && intact, "{view:?}");
                let Ok(view) = view else { return };
                assert_eq!(view.family, Family::V4);
                assert_eq!((view.header_len, view.total_len), (header.header_len(), total));
                assert_eq!(ip_addr(&view.source), IpAddr::from(header.source));
                assert_eq!(ip_addr(&view.destination), IpAddr::from(header.destination));
                assert_eq!(view.protocol, header.protocol.0);
                assert_eq!(view.hop_limit, header.time_to_live);
                assert_eq!(view.dont_fragment, header.dont_fragment);
                assert_eq!(view.fragment.is_some(), header.is_fragmenting_payload());
                if let Some(fragment) = view.fragment {
                    assert_eq!(fragment.offset, header.fragment_offset.byte_offset());
                    assert_eq!(fragment.more, header.more_fragments);
                    assert_eq!(fragment.identification, u32::from(header.identification));
                }
            }
            Err(_) => assert!(view.is_err(), "{view:?}"),
        },
        Some(6) => match Ipv6Header::from_slice(packet) {
            Ok((header, rest)) => ipv6(view.ok(), &header, rest),
            Err(_) => assert!(view.is_err(), "{view:?}"),
        },
        Some(_) | None => assert!(view.is_err(), "{view:?}"),
    }
}

fn ipv6(view: Option<Datagram>, header: &Ipv6Header, rest: &[u8]) {
    let Some(payload) = rest.get(..usize::from(header.payload_length)) else {
        assert!(view.is_none(), "longer than it is: {view:?}");
        return;
    };
    let first = header.next_header;
    let mapped = [header.source_addr(), header.destination_addr()]
        .iter()
        .any(|a| a.to_ipv4_mapped().is_some());
    let Some(view) = view else {
        // Without extension headers there is nothing left to be wrong.
        let walked = Ipv6Header::is_skippable_header_extension(first);
        assert!(mapped || walked, "refused a plain packet");
        return;
    };
    assert!(!mapped, "an IPv4 address in an IPv6 header");
    assert_eq!(view.family, Family::V6);
    assert_eq!(view.total_len, 40 + payload.len());
    assert_eq!(Ipv6Addr::from(view.source), header.source_addr());
    assert_eq!(Ipv6Addr::from(view.destination), header.destination_addr());
    assert_eq!(view.hop_limit, header.hop_limit);
    // Walk the same chain with etherparse, up to where the view says the upper layer is.
    let (mut next, mut at) = (first, payload);
    let mut fragment = None;
    while 40 + payload.len() - at.len() < view.header_len {
        if next == IpNumber::IPV6_FRAGMENTATION_HEADER {
            let slice = Ipv6FragmentHeaderSlice::from_slice(at).expect("a walked header");
            fragment = slice.is_fragmenting_payload().then(|| slice.to_header()).or(fragment);
        }
        (next, at) = Ipv6Header::skip_header_extension_in_slice(at, next).expect("a walked header");
    }
    assert_eq!(40 + payload.len() - at.len(), view.header_len);
    assert_eq!(next.0, view.protocol);
    assert_eq!(view.fragment.is_some(), fragment.is_some());
    if let (Some(ours), Some(theirs)) = (view.fragment, fragment) {
        assert_eq!(ours.offset, theirs.fragment_offset.byte_offset());
        assert_eq!(ours.more, theirs.more_fragments);
        assert_eq!(ours.identification, theirs.identification);
    }
}

/// TCP and UDP of a packet that has its upper layer.
fn upper_layer(view: &Datagram, packet: &[u8]) {
    if !view.has_upper_layer() {
        return;
    }
    let bytes = &packet[view.header_len..view.total_len];
    let ours = TcpSegment::parse(view, packet);
    match (TcpHeaderSlice::from_slice(bytes), ours) {
        (Ok(theirs), Ok(ours)) => {
            assert_eq!(ours.source_port, theirs.source_port());
            assert_eq!(ours.destination_port, theirs.destination_port());
            assert_eq!(ours.sequence, theirs.sequence_number());
            assert_eq!(ours.acknowledgement, theirs.acknowledgment_number());
            assert_eq!(ours.payload_len, bytes.len() - theirs.slice().len());
            let lone_syn = theirs.syn() && !theirs.ack() && !theirs.rst() && !theirs.fin();
            assert_eq!(ours.opens(), lone_syn);
            let length = u32::try_from(ours.payload_len).expect("a packet is below 4 GiB")
                + u32::from(theirs.syn())
                + u32::from(theirs.fin());
            assert_eq!(ours.sequence_end().wrapping_sub(ours.sequence), length);
        }
        (Err(_), Err(_)) => {}
        (theirs, ours) => panic!("etherparse {theirs:?}, we {ours:?}"),
    }
    match (UdpHeader::from_slice(bytes), udp_ports(view, packet)) {
        (Ok((theirs, _)), Ok(ours)) => {
            assert_eq!(ours, (theirs.source_port, theirs.destination_port));
        }
        (Err(_), Err(_)) => {}
        (theirs, ours) => panic!("etherparse {theirs:?}, we {ours:?}"),
    }
}

/// A quote may be cut; what can be read of it is what the whole packet says.
fn quote(packet: &[u8]) {
    let Ok(quote) = Quote::parse(packet) else { return };
    assert!(quote.header_len + 8 <= packet.len());
    let ports = quote.ports(packet);
    let has_ports = matches!(quote.protocol, protocol::TCP | protocol::UDP);
    assert_eq!(ports.is_some(), has_ports);
    assert_eq!(quote.sequence(packet).is_some(), quote.protocol == protocol::TCP);
    let Ok(whole) = Datagram::parse(packet) else { return };
    assert!(whole.has_upper_layer());
    assert_eq!((quote.family, quote.protocol), (whole.family, whole.protocol));
    assert_eq!((quote.source, quote.destination), (whole.source, whole.destination));
    assert_eq!((quote.header_len, quote.total_len), (whole.header_len, whole.total_len));
    assert_eq!(quote.dont_fragment, whole.dont_fragment);
    if let (Some(ports), Ok(segment)) = (ports, TcpSegment::parse(&whole, packet)) {
        assert_eq!(ports, (segment.source_port, segment.destination_port));
    }
}

/// A frame that asks for a VIP is answered as etherparse would read it; any other is untouched.
fn neighbour(frame: &[u8]) {
    let mut slot = [&[0x5a; HEADROOM][..], frame, &[0xa5; 64]].concat();
    let before = slot.clone();
    let is_vip = |asked: &[u8; 16]| *asked == address(VIP_V4.into()) || *asked == VIP_V6;
    let range = HEADROOM..HEADROOM + frame.len();
    match answer(&mut slot, range, MAC, is_vip) {
        Answer::Reply(range) => {
            let reply = &slot[range];
            assert_eq!(reply[6..12], MAC, "from the interface's own address");
            assert_eq!(reply[0] & 1, u8::from(reply[..6] == [0x33, 0x33, 0, 0, 0, 1]));
            if be16(reply, 12) == ETHERTYPE_ARP {
                arp_reply(reply, frame);
            } else {
                advertisement(reply);
            }
        }
        Answer::Conflict { vip, mac } => {
            assert!(is_vip(&vip));
            assert_ne!(mac, MAC);
            assert_eq!(slot, before);
        }
        Answer::NotOurs | Answer::Malformed(_) => assert_eq!(slot, before),
    }
}

fn arp_reply(reply: &[u8], request: &[u8]) {
    let asked = ArpPacketSlice::from_slice(&request[ETHERNET_HEADER..]).expect("a request");
    let answer = ArpPacketSlice::from_slice(&reply[ETHERNET_HEADER..]).expect("a reply");
    assert_eq!(asked.operation(), ArpOperation::REQUEST);
    assert_eq!(answer.operation(), ArpOperation::REPLY);
    assert_eq!(reply[..6], *asked.sender_hw_addr());
    assert_eq!(answer.sender_hw_addr(), MAC);
    assert_eq!(answer.sender_protocol_addr(), VIP_V4);
    assert_eq!(answer.target_hw_addr(), asked.sender_hw_addr());
    assert_eq!(answer.target_protocol_addr(), asked.sender_protocol_addr());
    assert_eq!(asked.target_protocol_addr(), VIP_V4);
}

fn advertisement(reply: &[u8]) {
    let sliced = SlicedPacket::from_ethernet(reply).expect("an advertisement");
    let Some(NetSlice::Ipv6(ip)) = &sliced.net else { panic!("not IPv6") };
    let Some(TransportSlice::Icmpv6(message)) = &sliced.transport else { panic!("not ICMPv6") };
    let (source, destination) = (ip.header().source(), ip.header().destination());
    assert_eq!((source, ip.header().hop_limit()), (VIP_V6, 255));
    assert!(message.is_checksum_valid(source, destination));
    assert_eq!((message.type_u8(), message.code_u8()), (136, 0));
    assert_eq!(message.slice()[8..24], VIP_V6, "its target");
    assert_eq!(message.slice()[24..], [&[2, 1][..], &MAC].concat(), "its option");
}
