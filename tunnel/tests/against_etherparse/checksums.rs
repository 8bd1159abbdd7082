//! Sums and checksums of the two are the same numbers.

use std::net::{Ipv4Addr, Ipv6Addr};

use adit_tunnel::checksum::{
    self, Sum, is_valid, ones_complement_sum, pseudo_header_v4, pseudo_header_v6, transport,
};
use etherparse::{
    Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpNumber, Ipv4Header, TcpHeader, UdpHeader,
    checksum as oracle,
};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::packets::ipv4_packet;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// A segment's sum over its pseudo-header, its own checksum in place.
fn whole(pseudo_header: Sum, header: &[u8], payload: &[u8]) -> Sum {
    pseudo_header.add_bytes(&[header, payload].concat())
}

proptest! {
    #[test]
    fn sums_are_those_of_etherparse(data in vec(any::<u8>(), 0..3000)) {
        let ours = ones_complement_sum(&data).finish();
        let theirs = oracle::Sum16BitWords::new().add_slice(&data).ones_complement();
        prop_assert_eq!(ours, u16::from_be(theirs));
    }

    #[test]
    fn an_ipv4_header_checksum_is_that_of_etherparse(mut packet in ipv4_packet(0), junk in any::<u16>()) {
        let (header, _) = Ipv4Header::from_slice(&packet).unwrap();
        packet[10..12].copy_from_slice(&junk.to_be_bytes());
        prop_assert_eq!(checksum::ipv4_header_checksum(&packet), header.calc_header_checksum());
    }

    #[test]
    fn tcp_over_both(
        ports in any::<(u16, u16)>(),
        sequence in any::<u32>(),
        window in any::<u16>(),
        payload in vec(any::<u8>(), 0..1500),
        (v4, v6) in any::<((Ipv4Addr, Ipv4Addr), (Ipv6Addr, Ipv6Addr))>(),
    ) {
        let mut header = TcpHeader::new(ports.0, ports.1, sequence, window);
        let length = u16::try_from(header.header_len() + payload.len()).unwrap();
        let zeroed = [&header.to_bytes(), &payload[..]].concat();
        for (pseudo, theirs) in [
            (
                pseudo_header_v4(v4.0, v4.1, TCP, length),
                header.calc_checksum_ipv4_raw(v4.0.octets(), v4.1.octets(), &payload).unwrap(),
            ),
            (
                pseudo_header_v6(v6.0, v6.1, TCP, length.into()),
                header.calc_checksum_ipv6_raw(v6.0.octets(), v6.1.octets(), &payload).unwrap(),
            ),
        ] {
            prop_assert_eq!(transport(pseudo, &zeroed), theirs);
            header.checksum = theirs;
            prop_assert!(is_valid(whole(pseudo, &header.to_bytes(), &payload)));
            header.checksum = 0;
        }
    }

    #[test]
    fn udp_over_both(
        ports in any::<(u16, u16)>(),
        payload in vec(any::<u8>(), 0..1500),
        (v4, v6) in any::<((Ipv4Addr, Ipv4Addr), (Ipv6Addr, Ipv6Addr))>(),
    ) {
        let length = u16::try_from(8 + payload.len()).unwrap();
        let header =
            UdpHeader { source_port: ports.0, destination_port: ports.1, length, checksum: 0 };
        let zeroed = [&header.to_bytes()[..], &payload].concat();
        let over_v4 = pseudo_header_v4(v4.0, v4.1, UDP, length);
        prop_assert_eq!(
            checksum::udp(transport(over_v4, &zeroed)),
            header.calc_checksum_ipv4_raw(v4.0.octets(), v4.1.octets(), &payload).unwrap()
        );
        let over_v6 = pseudo_header_v6(v6.0, v6.1, UDP, length.into());
        prop_assert_eq!(
            checksum::udp(transport(over_v6, &zeroed)),
            header.calc_checksum_ipv6_raw(v6.0.octets(), v6.1.octets(), &payload).unwrap()
        );
    }

    #[test]
    fn icmp_of_both(
        (kind, code, rest) in any::<(u8, u8, [u8; 4])>(),
        payload in vec(any::<u8>(), 0..1300),
        (source, destination) in any::<(Ipv6Addr, Ipv6Addr)>(),
    ) {
        let type_u8 = kind;
        let zeroed = [&[kind, code, 0, 0], &rest[..], &payload].concat();
        let v4 = Icmpv4Header::with_checksum(
            Icmpv4Type::Unknown { type_u8, code_u8: code, bytes5to8: rest },
            &payload,
        );
        prop_assert_eq!(transport(Sum::ZERO, &zeroed), v4.checksum);
        let v6 = Icmpv6Header::with_checksum(
            Icmpv6Type::Unknown { type_u8, code_u8: code, bytes5to8: rest },
            source.octets(),
            destination.octets(),
            &payload,
        ).unwrap();
        let length = u32::try_from(zeroed.len()).unwrap();
        let pseudo = pseudo_header_v6(source, destination, ICMPV6, length);
        prop_assert_eq!(IpNumber::IPV6_ICMP.0, ICMPV6);
        prop_assert_eq!(transport(pseudo, &zeroed), v6.checksum);
    }
}
