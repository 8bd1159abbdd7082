//! What clients, neighbours and routers send, built by etherparse.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{
    ArpEthIpv4Packet, ArpOperation, EtherType, Ethernet2Header, Icmpv4Header, Icmpv4Type,
    Icmpv6Header, Icmpv6Type, IpFragOffset, IpNumber, Ipv4Header, Ipv6FragmentHeader, Ipv6Header,
    TcpHeader, UdpHeader,
};

use super::world::TAP_MAC;

/// The host whose kernel routes packets into the TAP, and any neighbour.
pub(super) const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// Fields of an IP header that sequences vary.
#[derive(Clone, Copy)]
pub(super) struct Ip {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) hop_limit: u8,
    pub(super) dont_fragment: bool,
}

/// Place of a fragment: identification, offset in bytes, more to come.
pub(super) type Place = (u16, u16, bool);

/// An Ethernet frame with this IP packet.
pub(super) fn ethernet(packet: &[u8]) -> Vec<u8> {
    let ether_type = if packet[0] >> 4 == 4 { EtherType::IPV4 } else { EtherType::IPV6 };
    ethernet_of(ether_type, packet)
}

fn ethernet_of(ether_type: EtherType, packet: &[u8]) -> Vec<u8> {
    let header = Ethernet2Header { destination: TAP_MAC, source: HOST_MAC, ether_type };
    [&header.to_bytes()[..], packet].concat()
}

/// An Ethernet frame with an IP packet of this payload.
pub(super) fn ip_frame(
    ip: Ip,
    protocol: IpNumber,
    place: Option<Place>,
    payload: &[u8],
) -> Vec<u8> {
    ethernet(&ip_packet(ip, protocol, place, payload))
}

/// An IP packet of this payload.
pub(super) fn ip_packet(
    ip: Ip,
    protocol: IpNumber,
    place: Option<Place>,
    payload: &[u8],
) -> Vec<u8> {
    let offset = |bytes: u16| IpFragOffset::try_new(bytes / 8).expect("13 bits");
    match (ip.source, ip.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let (source, destination) = (source.octets(), destination.octets());
            let length = u16::try_from(payload.len()).expect("sequences send small packets");
            let mut header = Ipv4Header::new(length, ip.hop_limit, protocol, source, destination)
                .expect("sequences send small packets");
            header.dont_fragment = ip.dont_fragment;
            header.identification = 77;
            if let Some((identification, start, more)) = place {
                header.identification = identification;
                header.fragment_offset = offset(start);
                header.more_fragments = more;
            }
            header.header_checksum = header.calc_header_checksum();
            [&header.to_bytes()[..], payload].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let fragment = place.map(|(identification, start, more)| Ipv6FragmentHeader {
                next_header: protocol,
                fragment_offset: offset(start),
                more_fragments: more,
                identification: identification.into(),
            });
            let extension = fragment.as_ref().map(Ipv6FragmentHeader::to_bytes);
            let extension = extension.as_ref().map_or(&[][..], |bytes| &bytes[..]);
            let header = Ipv6Header {
                traffic_class: 0,
                flow_label: 0.try_into().expect("20 bits"),
                payload_length: u16::try_from(extension.len() + payload.len())
                    .expect("sequences send small packets"),
                next_header: if fragment.is_some() {
                    IpNumber::IPV6_FRAGMENTATION_HEADER
                } else {
                    protocol
                },
                hop_limit: ip.hop_limit,
                source: source.octets(),
                destination: destination.octets(),
            };
            [&header.to_bytes()[..], extension, payload].concat()
        }
        (source, destination) => unreachable!("{source} and {destination} are of one family"),
    }
}

/// A TCP segment. The checksum is the real server's to verify, and left out.
pub(super) fn segment(header: &TcpHeader, payload: &[u8]) -> Vec<u8> {
    [&header.to_bytes()[..], payload].concat()
}

/// A UDP datagram without checksum.
pub(super) fn datagram(source_port: u16, destination_port: u16, payload: usize) -> Vec<u8> {
    let length = u16::try_from(8 + payload).expect("sequences send small packets");
    let header = UdpHeader { source_port, destination_port, length, checksum: 0 };
    [&header.to_bytes()[..], &vec![0x42; payload]].concat()
}

/// An ICMP message of either family, its checksum right.
pub(super) fn icmp(
    ip: Ip,
    kind: u8,
    code: u8,
    rest: [u8; 4],
    payload: &[u8],
) -> (IpNumber, Vec<u8>) {
    match (ip.source, ip.destination) {
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let header = Icmpv6Header::with_checksum(
                Icmpv6Type::Unknown { type_u8: kind, code_u8: code, bytes5to8: rest },
                source.octets(),
                destination.octets(),
                payload,
            )
            .expect("sequences send small packets");
            (IpNumber::IPV6_ICMP, [&header.to_bytes()[..], payload].concat())
        }
        _ => {
            let kind = Icmpv4Type::Unknown { type_u8: kind, code_u8: code, bytes5to8: rest };
            let header = Icmpv4Header::with_checksum(kind, payload);
            (IpNumber::ICMP, [&header.to_bytes()[..], payload].concat())
        }
    }
}

/// Who has `target`? Asked by `sender`, who is at `mac`.
pub(super) fn arp_request(mac: [u8; 6], sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let packet = ArpEthIpv4Packet {
        operation: ArpOperation::REQUEST,
        sender_mac: mac,
        sender_ipv4: sender.octets(),
        target_mac: [0; 6],
        target_ipv4: target.octets(),
    };
    ethernet_of(EtherType::ARP, &packet.to_bytes())
}

/// A neighbour solicitation (135) or advertisement (136) about `target`.
pub(super) fn neighbour(kind: u8, sender: Ipv6Addr, to: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let ip =
        Ip { source: sender.into(), destination: to.into(), hop_limit: 255, dont_fragment: true };
    let option = if kind == 135 { 1 } else { 2 };
    let payload = [&target.octets()[..], &[option, 1], &HOST_MAC].concat();
    let (protocol, message) = icmp(ip, kind, 0, [0; 4], &payload);
    ip_frame(ip, protocol, None, &message)
}
