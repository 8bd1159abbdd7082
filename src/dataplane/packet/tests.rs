use std::net::IpAddr;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::*;
use crate::dataplane::sample_packets::{icmp, tcp, udp};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn segment(v4: bool, payload: &[u8]) -> Vec<u8> {
    let (client, vip) =
        if v4 { ("203.0.113.7", "198.51.100.10") } else { ("2001:db8:9::7", "2001:db8::10") };
    tcp((ip(client), 40000).into(), (ip(vip), 5432).into(), 7, 8, payload)
}

/// Sets a byte of an IPv4 header and mends its checksum.
fn with_byte(mut packet: Vec<u8>, at: usize, value: u8) -> Vec<u8> {
    packet[at] = value;
    let header_len = usize::from(packet[0] & 0x0f) * 4;
    if header_len <= packet.len() && header_len >= 20 {
        let sum = checksum::ipv4_header_checksum(&packet[..header_len]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// Puts `chain` (whose last header names `protocol`) between IPv6 header and transport.
fn with_chain(packet: &[u8], first: u8, chain: &[u8]) -> Vec<u8> {
    let mut out = packet[..40].to_vec();
    out.extend(chain);
    out.extend(&packet[40..]);
    out[6] = first;
    let length = u16::try_from(out.len() - 40).unwrap();
    out[4..6].copy_from_slice(&length.to_be_bytes());
    out
}

#[test]
fn fields_are_those_that_were_written() {
    for v4 in [true, false] {
        let mut packet = segment(v4, b"select 1");
        let total_len = packet.len();
        packet.extend([0; 6]); // link padding
        let datagram = Datagram::parse(&packet).unwrap();
        let expected = if v4 { "198.51.100.10" } else { "2001:db8::10" };
        assert_eq!(ip_addr(&datagram.destination), ip(expected));
        assert_eq!(Family::of(&datagram.source), datagram.family);
        assert_eq!((datagram.total_len, datagram.hop_limit), (total_len, 64));
        assert_eq!((datagram.protocol, datagram.fragment), (protocol::TCP, None));
        assert!(datagram.dont_fragment && datagram.has_upper_layer());
        let tcp = TcpSegment::parse(&datagram, &packet).unwrap();
        assert_eq!((tcp.source_port, tcp.destination_port), (40000, 5432));
        assert_eq!((tcp.sequence, tcp.acknowledgement), (7, 8));
        assert_eq!((tcp.payload_len, tcp.sequence_end()), (8, 15));
        assert!(!tcp.opens());
    }
    let packet = udp((ip("192.0.2.1"), 53).into(), (ip("192.0.2.2"), 54).into(), &[]);
    assert_eq!(udp_ports(&Datagram::parse(&packet).unwrap(), &packet), Ok((53, 54)));
}

#[test]
fn every_cut_is_named() {
    for v4 in [true, false] {
        let packet = segment(v4, b"select 1");
        for length in 0..packet.len() {
            let cut = Datagram::parse(&packet[..length]);
            assert!(matches!(cut, Err(PacketError::Truncated { actual, .. }) if actual == length));
        }
    }
}

#[test]
fn contradictions_are_refused() {
    let packet = || segment(true, b"select 1");
    let length = |layer, claimed| Err(PacketError::Length { layer, claimed });
    let table = [
        ("version", with_byte(packet(), 0, 0x75), Err(PacketError::Version(7))),
        ("header of 16 bytes", with_byte(packet(), 0, 0x44), length("IPv4", 16)),
        ("shorter than its header", with_byte(packet(), 3, 19), length("IPv4", 19)),
    ];
    for (what, packet, expected) in table {
        assert_eq!(Datagram::parse(&packet).map(|_| ()), expected, "{what}");
    }
    let mut flipped = packet();
    flipped[8] ^= 1;
    assert_eq!(Datagram::parse(&flipped), Err(PacketError::Checksum));
    let mut short = segment(true, b"");
    short[32] = 4 << 4;
    let datagram = Datagram::parse(&short).unwrap();
    assert_eq!(TcpSegment::parse(&datagram, &short).map(|_| ()), length("TCP", 16));
}

#[test]
fn mapped_addresses_do_not_pass_for_ipv4() {
    for (from, to) in [("::ffff:10.0.0.1", "2001:db8::1"), ("2001:db8::1", "::ffff:10.0.0.1")] {
        let packet = udp((ip(from), 1).into(), (ip(to), 2).into(), &[0; 8]);
        assert_eq!(Datagram::parse(&packet), Err(PacketError::MappedAddress));
        assert_eq!(Quote::parse(&packet), Err(PacketError::MappedAddress));
    }
}

#[test]
fn fragments_know_their_place() {
    // flags and offset → (offset, more)
    let table =
        [(0x40, 0x00, None), (0x20, 0x00, Some((0, true))), (0x00, 0x02, Some((16, false)))];
    for (high, low, expected) in table {
        let packet = with_byte(with_byte(segment(true, &[0; 64]), 6, high), 7, low);
        let datagram = Datagram::parse(&packet).unwrap();
        let fragment = datagram.fragment.map(|fragment| {
            assert_eq!(fragment.identification, 0x1234);
            (fragment.offset, fragment.more)
        });
        assert_eq!(fragment, expected);
        assert_eq!(datagram.dont_fragment, high == 0x40);
        assert_eq!(Quote::parse(&packet).is_ok(), low == 0, "a later fragment has no ports");
    }
    // IPv6: first, later, and atomic, which is whole (RFC 6946).
    let table = [(0x0001, Some((0, true))), (0x0010, Some((16, false))), (0, None)];
    for (field, expected) in table {
        let [high, low] = u16::to_be_bytes(field);
        let header = [protocol::TCP, 0, high, low, 1, 2, 3, 4];
        let packet = with_chain(&segment(false, &[0; 64]), protocol::FRAGMENT, &header);
        let datagram = Datagram::parse(&packet).unwrap();
        let fragment = datagram.fragment.map(|fragment| {
            assert_eq!(fragment.identification, 0x0102_0304);
            (fragment.offset, fragment.more)
        });
        assert_eq!(fragment, expected);
        assert_eq!((datagram.protocol, datagram.header_len), (protocol::TCP, 48));
    }
}

#[test]
fn extension_headers_are_walked_and_bounded() {
    use protocol::{DESTINATION_OPTIONS, HOP_BY_HOP, ROUTING, TCP};
    let options = |next| [next, 0, 1, 4, 0, 0, 0, 0];
    let long = |next| [&[next, 1, 1, 12][..], &[0; 12]].concat();
    let segment = segment(false, b"abc");
    let chain = [&options(ROUTING)[..], &long(DESTINATION_OPTIONS), &options(TCP)].concat();
    let packet = with_chain(&segment, HOP_BY_HOP, &chain);
    let datagram = Datagram::parse(&packet).unwrap();
    assert_eq!((datagram.protocol, datagram.header_len), (TCP, 40 + 32));
    assert_eq!(TcpSegment::parse(&datagram, &packet).unwrap().payload_len, 3);
    for (headers, expected) in [(7, Ok(TCP)), (8, Err(PacketError::ExtensionHeaders))] {
        let mut chain = options(DESTINATION_OPTIONS).repeat(headers - 1);
        chain.extend(options(TCP));
        let packet = with_chain(&segment, DESTINATION_OPTIONS, &chain);
        assert_eq!(Datagram::parse(&packet).map(|datagram| datagram.protocol), expected);
    }
    let beyond = with_chain(&segment, DESTINATION_OPTIONS, &[TCP, 200, 0, 0, 0, 0, 0, 0]);
    assert!(matches!(Datagram::parse(&beyond), Err(PacketError::Truncated { needed: 1608, .. })));
}

#[test]
fn an_authentication_header_is_walked_in_its_own_units() {
    use protocol::{AUTHENTICATION, DESTINATION_OPTIONS, TCP};
    // Payload length 4: 24 bytes, as with a check value of 96 bits.
    let authentication = |next| [&[next, 4][..], &[0; 22]].concat();
    let options = [TCP, 0, 1, 4, 0, 0, 0, 0];
    let segment = segment(false, b"abc");
    let chain = [&authentication(DESTINATION_OPTIONS)[..], &options].concat();
    let packet = with_chain(&segment, AUTHENTICATION, &chain);
    let datagram = Datagram::parse(&packet).unwrap();
    assert_eq!((datagram.protocol, datagram.header_len), (TCP, 40 + 32));
    assert_eq!(TcpSegment::parse(&datagram, &packet).unwrap().payload_len, 3);
    let beyond = with_chain(&segment, AUTHENTICATION, &[TCP, 200, 0, 0, 0, 0, 0, 0]);
    assert!(matches!(Datagram::parse(&beyond), Err(PacketError::Truncated { needed: 808, .. })));
}

#[test]
fn quotes_may_end_after_eight_bytes_of_transport() {
    for (v4, header) in [(true, 20), (false, 40)] {
        let packet = segment(v4, &[0; 1000]);
        for length in 0..packet.len() {
            let quote = Quote::parse(&packet[..length]);
            assert_eq!(quote.is_ok(), length >= header + 8, "{length}");
        }
        let quote = Quote::parse(&packet[..header + 8]).unwrap();
        assert_eq!((quote.header_len, quote.total_len), (header, packet.len()));
        assert_eq!(quote.identification, if v4 { 0x1234 } else { 0 });
        assert_eq!(quote.ports(&packet), Some((40000, 5432)));
        assert_eq!(quote.sequence(&packet), Some(7));
    }
    let packet = icmp(ip("192.0.2.1"), ip("192.0.2.2"), (8, 0), [0; 4], &[]);
    let quote = Quote::parse(&packet).unwrap();
    assert_eq!((quote.ports(&packet), quote.sequence(&packet)), (None, None));
}

/// What etherparse makes of the same bytes: header length, total length, protocol, fragment.
fn oracle(bytes: &[u8]) -> Option<(usize, usize, bool)> {
    let sliced = SlicedPacket::from_ip(bytes).ok()?;
    let (payload, total_len) = match sliced.net? {
        NetSlice::Ipv4(ip) => (ip.payload().clone(), usize::from(ip.header().total_len())),
        NetSlice::Ipv6(ip) => {
            (ip.payload().clone(), 40 + usize::from(ip.header().payload_length()))
        }
        NetSlice::Arp(_) => return None,
    };
    let tcp = matches!(sliced.transport, Some(TransportSlice::Tcp(_)));
    Some((total_len - payload.payload.len(), total_len, tcp))
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(datagram) = Datagram::parse(&bytes) {
            let _ = TcpSegment::parse(&datagram, &bytes);
            let _ = udp_ports(&datagram, &bytes);
        }
        if let Ok(quote) = Quote::parse(&bytes) {
            quote.ports(&bytes);
            quote.sequence(&bytes);
        }
    }

    /// Damaged packets: what both readers take, both understand alike. etherparse is stricter
    /// about transports, and does not check the IPv4 header's checksum.
    #[test]
    fn etherparse_reads_the_same(
        v4 in any::<bool>(),
        payload in proptest::collection::vec(any::<u8>(), 0..64),
        chain in proptest::collection::vec(0usize..4, 0..4),
        at in 0usize..80,
        flip in any::<u8>(),
    ) {
        let mut packet = segment(v4, &payload);
        if !v4 {
            let kinds = [protocol::DESTINATION_OPTIONS, protocol::ROUTING, protocol::FRAGMENT, protocol::DESTINATION_OPTIONS];
            for kind in chain {
                let next = packet[6];
                packet = with_chain(&packet, kinds[kind], &[next, 0, 0, 0, 0, 0, 0, 0]);
            }
        }
        if at < packet.len() {
            if v4 && at != 10 && at != 11 {
                let value = packet[at] ^ flip;
                packet = with_byte(packet, at, value);
            } else {
                packet[at] ^= flip;
            }
        }
        if let (Ok(datagram), Some((header_len, total_len, tcp))) =
            (Datagram::parse(&packet), oracle(&packet))
        {
            prop_assert_eq!(datagram.total_len, total_len);
            if tcp {
                prop_assert_eq!(datagram.header_len, header_len);
                prop_assert_eq!(datagram.protocol, protocol::TCP);
                prop_assert!(TcpSegment::parse(&datagram, &packet).is_ok());
            }
        }
    }
}
