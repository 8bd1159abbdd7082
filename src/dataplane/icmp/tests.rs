use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::dataplane::{
    packet::{ETHERNET_HEADER, address},
    sample_packets::{icmp, tcp},
};

const PATH_V4: &str = "192.0.2.1";
const VIP_V4: &str = "198.51.100.10";
const PATH_V6: &str = "2001:db8:1::1";
const VIP_V6: &str = "2001:db8::10";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn classified(packet: &[u8]) -> Result<Message, DropReason> {
    classify(&Datagram::parse(packet).unwrap(), packet)
}

/// A segment from the VIP to a client, as errors about the client's path quote it.
fn segment(vip: &str) -> Vec<u8> {
    let client = if ip(vip).is_ipv4() { "203.0.113.7" } else { "2001:db8:9::7" };
    tcp((ip(vip), 5432).into(), (ip(client), 40000).into(), 7, 8, &[0x55; 1000])
}

fn kind(from: &str, vip: &str, type_and_code: (u8, u8), rest: [u8; 4]) -> Option<ErrorKind> {
    match classified(&icmp(ip(from), ip(vip), type_and_code, rest, &segment(vip))).unwrap() {
        Message::Error(error) => Some(error.kind),
        Message::EchoRequest | Message::Unsupported => None,
    }
}

#[test]
fn types_and_codes_mean_what_the_rfcs_say() {
    use ErrorKind::{ParameterProblem, TimeExceeded, TooBig, Unreachable as Not};
    use Unreachable::{Host, Network, Other, Port, Prohibited, Protocol};
    let mtu = [0, 0, 0x05, 0x14];
    let table = [
        ((3, 0), mtu, Some(Not(Network))),
        ((3, 1), mtu, Some(Not(Host))),
        ((3, 2), mtu, Some(Not(Protocol))),
        ((3, 3), mtu, Some(Not(Port))),
        ((3, 4), mtu, Some(TooBig { mtu: 1300 })),
        ((3, 4), [0xff, 0, 0, 0], Some(TooBig { mtu: 0 })),
        ((3, 5), mtu, Some(Not(Other))),
        ((3, 13), mtu, Some(Not(Prohibited))),
        ((11, 0), [0; 4], Some(TimeExceeded)),
        ((12, 0), [0; 4], Some(ParameterProblem)),
        ((4, 0), [0; 4], None),
        ((5, 0), [0; 4], None),
        ((0, 0), [0; 4], None),
        ((8, 1), [0; 4], None),
    ];
    for (type_and_code, rest, expected) in table {
        assert_eq!(kind(PATH_V4, VIP_V4, type_and_code, rest), expected, "v4 {type_and_code:?}");
    }
    let table = [
        ((1, 0), mtu, Some(Not(Network))),
        ((1, 1), mtu, Some(Not(Prohibited))),
        ((1, 3), mtu, Some(Not(Host))),
        ((1, 4), mtu, Some(Not(Port))),
        ((1, 2), mtu, Some(Not(Other))),
        ((2, 0), [0, 1, 0x05, 0x14], Some(TooBig { mtu: 0x1_0514 })),
        ((3, 0), mtu, Some(TimeExceeded)),
        ((4, 0), mtu, Some(ParameterProblem)),
        ((4, 1), mtu, Some(Not(Protocol))),
        ((0, 0), mtu, None),
        ((129, 0), mtu, None),
        ((135, 0), mtu, None),
    ];
    for (type_and_code, rest, expected) in table {
        assert_eq!(kind(PATH_V6, VIP_V6, type_and_code, rest), expected, "v6 {type_and_code:?}");
    }
}

#[test]
fn echo_requests_are_told_apart() {
    for (from, vip, kind) in [(PATH_V4, VIP_V4, 8), (PATH_V6, VIP_V6, 128)] {
        let packet = icmp(ip(from), ip(vip), (kind, 0), [0, 1, 0, 2], b"abc");
        assert_eq!(classified(&packet), Ok(Message::EchoRequest));
    }
}

#[test]
fn the_quote_is_found_with_eight_bytes_of_transport_or_more() {
    for (from, vip, kind, header) in [(PATH_V4, VIP_V4, 3, 20), (PATH_V6, VIP_V6, 1, 40)] {
        let segment = segment(vip);
        for quoted in [header + 8, header + 20, segment.len()] {
            let packet = icmp(ip(from), ip(vip), (kind, 0), [0; 4], &segment[..quoted]);
            let Ok(Message::Error(error)) = classified(&packet) else { panic!("{quoted}") };
            assert_eq!(error.quote_range(), header + 8..header + 8 + quoted);
            assert_eq!(error.quote.source, address(ip(vip)));
            let quote = &packet[error.quote_range()];
            assert_eq!(error.quote.ports(quote), Some((5432, 40000)));
            assert_eq!(error.quote.sequence(quote), Some(7));
        }
        for quoted in 0..header + 8 {
            let packet = icmp(ip(from), ip(vip), (kind, 0), [0; 4], &segment[..quoted]);
            assert_eq!(classified(&packet), Err(DropReason::Truncated), "{quoted}");
        }
    }
}

#[test]
fn extensions_do_not_count_as_quote() {
    // RFC 4884: 128 bytes of quote in words of 4 (v4) or 8 (v6), then the extension.
    for (from, vip, kind, rest) in
        [(PATH_V4, VIP_V4, 11, [0, 32, 0, 0]), (PATH_V6, VIP_V6, 3, [16, 0, 0, 0])]
    {
        let mut body = segment(vip)[..128].to_vec();
        body.extend([0x20, 0, 0, 0, 0, 8, 1, 1, 0, 0, 0, 0]);
        let packet = icmp(ip(from), ip(vip), (kind, 0), rest, &body);
        let Ok(Message::Error(error)) = classified(&packet) else { panic!() };
        assert_eq!(error.quote_range().len(), 128);
        // Rubbish in the field: longer than the message, or shorter than the rule allows.
        for units in [255, 4] {
            let rest = rest.map(|byte| if byte == 0 { 0 } else { units });
            let packet = icmp(ip(from), ip(vip), (kind, 0), rest, &body);
            let Ok(Message::Error(error)) = classified(&packet) else { panic!() };
            assert_eq!(error.quote_range().len(), body.len());
        }
    }
}

#[test]
fn a_flipped_bit_is_a_bad_checksum() {
    for (from, vip, kind, header) in [(PATH_V4, VIP_V4, 8, 20), (PATH_V6, VIP_V6, 128, 40)] {
        let packet = icmp(ip(from), ip(vip), (kind, 0), [0, 1, 0, 2], &[3; 41]);
        for byte in header..packet.len() {
            let mut packet = packet.clone();
            packet[byte] ^= 0x10;
            assert_eq!(classified(&packet), Err(DropReason::BadChecksum), "byte {byte}");
        }
    }
}

#[test]
fn pieces_and_the_other_familys_protocol_are_unsupported() {
    let mut packet = icmp(ip(PATH_V4), ip(VIP_V4), (8, 0), [0; 4], &[0; 64]);
    packet[6] = 0x20; // more fragments
    let sum = checksum::ipv4_header_checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(classified(&packet), Ok(Message::Unsupported));
    let mut packet = icmp(ip(PATH_V6), ip(VIP_V6), (128, 0), [0; 4], &[0; 64]);
    packet[6] = protocol::ICMP;
    assert_eq!(classified(&packet), Ok(Message::Unsupported));
}

#[test]
fn a_quote_of_the_other_family_is_malformed() {
    let packet = icmp(ip(PATH_V4), ip(VIP_V4), (3, 1), [0; 4], &segment(VIP_V6));
    assert_eq!(classified(&packet), Err(DropReason::Malformed));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(datagram) = Datagram::parse(&bytes) {
            let _ = classify(&datagram, &bytes);
        }
    }

    /// Arbitrary bodies under valid headers and checksums: whatever is called an error has its
    /// quote inside the packet.
    #[test]
    fn quotes_lie_inside(
        v4 in any::<bool>(),
        type_and_code in (0u8..20, 0u8..16),
        rest in any::<[u8; 4]>(),
        nibble in prop_oneof![Just(0x45u8), Just(0x60), any::<u8>()],
        body in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let (from, vip) = if v4 { (PATH_V4, VIP_V4) } else { (PATH_V6, VIP_V6) };
        let mut body = body;
        if let Some(first) = body.first_mut() {
            *first = nibble;
        }
        let packet = icmp(ip(from), ip(vip), type_and_code, rest, &body);
        let datagram = Datagram::parse(&packet).unwrap();
        if let Ok(Message::Error(error)) = classify(&datagram, &packet) {
            prop_assert!(error.quote_end <= datagram.total_len);
            prop_assert!(error.quote.header_len + 8 <= error.quote_range().len());
            prop_assert!(error.quote_offset > ETHERNET_HEADER);
        }
    }
}
