//! Frames that clients and hosts send, built with etherparse.

use etherparse::{Icmpv4Type, PacketBuilder, PacketBuilderStep, icmpv4::DestUnreachableHeader};
use std::net::{IpAddr, SocketAddr};

use super::{HOST_MAC, TAP_MAC};

/// A TCP segment of a client.
#[derive(Clone, Debug)]
pub struct Tcp<'a> {
    pub client: &'a str,
    pub vip: &'a str,
    pub sequence: u32,
    /// With it, the ACK flag is set.
    pub acknowledgement: Option<u32>,
    pub syn: bool,
    pub fin: bool,
    pub rst: bool,
    pub payload: &'a [u8],
    pub dont_fragment: bool,
    pub hop_limit: u8,
}

impl<'a> Tcp<'a> {
    pub fn syn(client: &'a str, vip: &'a str) -> Self {
        let (sequence, acknowledgement) = (1000, None);
        let (syn, fin, rst, payload) = (true, false, false, &[][..]);
        let (dont_fragment, hop_limit) = (true, 64);
        Self {
            client,
            vip,
            sequence,
            acknowledgement,
            syn,
            fin,
            rst,
            payload,
            dont_fragment,
            hop_limit,
        }
    }

    /// A later segment with payload, `offset` bytes behind the SYN.
    pub fn data(client: &'a str, vip: &'a str, offset: u32, payload: &'a [u8]) -> Self {
        let sequence = 1001 + offset;
        Self {
            syn: false,
            sequence,
            acknowledgement: Some(5000),
            payload,
            ..Self::syn(client, vip)
        }
    }

    pub fn frame(&self) -> Vec<u8> {
        let (client, vip) = ends(self.client, self.vip);
        let mut step = ip(client.ip(), vip.ip(), self.hop_limit, self.dont_fragment).tcp(
            client.port(),
            vip.port(),
            self.sequence,
            64_000,
        );
        if let Some(acknowledgement) = self.acknowledgement {
            step = step.ack(acknowledgement);
        }
        if self.syn {
            step = step.syn();
        }
        if self.fin {
            step = step.fin();
        }
        if self.rst {
            step = step.rst();
        }
        let mut frame = Vec::new();
        step.write(&mut frame, self.payload).unwrap();
        frame
    }
}

/// A UDP datagram of a client.
pub fn udp(client: &str, vip: &str, payload: &[u8]) -> Vec<u8> {
    let (client, vip) = ends(client, vip);
    let mut frame = Vec::new();
    ip(client.ip(), vip.ip(), 64, false)
        .udp(client.port(), vip.port())
        .write(&mut frame, payload)
        .unwrap();
    frame
}

/// An echo request to a VIP.
pub fn echo_request(client: &str, vip: &str) -> Vec<u8> {
    let (client, vip): (IpAddr, IpAddr) = (client.parse().unwrap(), vip.parse().unwrap());
    let step = ip(client, vip, 64, false);
    let mut frame = Vec::new();
    if vip.is_ipv4() {
        step.icmpv4_echo_request(7, 1).write(&mut frame, b"ping").unwrap();
    } else {
        step.icmpv6_echo_request(7, 1).write(&mut frame, b"ping").unwrap();
    }
    frame
}

/// The two ends of a flow.
pub fn ends(client: &str, vip: &str) -> (SocketAddr, SocketAddr) {
    (client.parse().unwrap(), vip.parse().unwrap())
}

/// Link and IP header from a client to a VIP, as the host's kernel puts them on the TAP.
pub fn ip(
    source: IpAddr,
    destination: IpAddr,
    hop_limit: u8,
    dont_fragment: bool,
) -> PacketBuilderStep<etherparse::IpHeaders> {
    let link: PacketBuilderStep<etherparse::Ethernet2Header> =
        PacketBuilder::ethernet2(HOST_MAC, TAP_MAC);
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = etherparse::Ipv4Header::new(
                0,
                hop_limit,
                etherparse::IpNumber::TCP,
                source.octets(),
                destination.octets(),
            )
            .unwrap();
            header.dont_fragment = dont_fragment;
            header.identification = 77;
            link.ip(etherparse::IpHeaders::Ipv4(header, etherparse::Ipv4Extensions::default()))
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            link.ipv6(source.octets(), destination.octets(), hop_limit)
        }
        _ => panic!("client and VIP are of one family"),
    }
}

/// An ICMP host unreachable from a router to a VIP.
pub fn destination_unreachable(router: &str, vip: &str, quoted: &[u8]) -> Vec<u8> {
    let (router, vip): (IpAddr, IpAddr) = (router.parse().unwrap(), vip.parse().unwrap());
    let mut frame = Vec::new();
    ip(router, vip, 64, false).icmpv4_raw(3, 1, [0; 4]).write(&mut frame, quoted).unwrap();
    frame
}

/// A router's fragmentation-needed about the outer packet `outer`, quoting `quoted` bytes of it: an
/// IP packet without link header.
pub fn fragmentation_needed(outer: &[u8], quoted: usize, mtu: u16) -> Vec<u8> {
    let source = outer[12..16].try_into().unwrap();
    let too_big = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu };
    let mut packet = Vec::new();
    PacketBuilder::ipv4([192, 0, 2, 1], source, 60)
        .icmpv4(Icmpv4Type::DestinationUnreachable(too_big))
        .write(&mut packet, &outer[..quoted])
        .unwrap();
    packet
}

/// Cuts a whole frame into IP fragments of at most `mtu` bytes (IPv4 by RFC 791, IPv6 with a
/// fragment header by RFC 8200).
pub fn fragments(frame: &[u8], mtu: usize, identification: u16) -> Vec<Vec<u8>> {
    let (link, packet) = frame.split_at(14);
    let v4 = packet[0] >> 4 == 4;
    let header_len = if v4 { 20 } else { 40 };
    let (header, payload) = packet.split_at(header_len);
    let extra = if v4 { 0 } else { 8 };
    let step = (mtu - header_len - extra) / 8 * 8;
    let count = payload.len().div_ceil(step);
    let cut = |(number, part): (usize, &[u8])| {
        let more = number + 1 < count;
        let offset = u16::try_from(number * step).unwrap();
        let mut piece = [link, header].concat();
        if v4 {
            let total = u16::try_from(header_len + part.len()).unwrap();
            piece[16..18].copy_from_slice(&total.to_be_bytes());
            piece[18..20].copy_from_slice(&identification.to_be_bytes());
            let flags = (offset / 8) | if more { 0x2000 } else { 0 };
            piece[20..22].copy_from_slice(&flags.to_be_bytes());
            piece[24..26].fill(0);
            let sum = adit_tunnel::checksum::ipv4_header_checksum(&piece[14..34]);
            piece[24..26].copy_from_slice(&sum.to_be_bytes());
        } else {
            let length = u16::try_from(part.len() + 8).unwrap();
            piece[18..20].copy_from_slice(&length.to_be_bytes());
            let next = std::mem::replace(&mut piece[20], 44);
            piece.extend_from_slice(&[next, 0]);
            piece.extend_from_slice(&(offset | u16::from(more)).to_be_bytes());
            piece.extend_from_slice(&u32::from(identification).to_be_bytes());
        }
        piece.extend_from_slice(part);
        piece
    };
    payload.chunks(step).enumerate().map(cut).collect()
}

/// A broadcast ARP request.
pub fn arp_request(sender: &str, target: &str) -> Vec<u8> {
    let v4 = |address: &str| address.parse::<std::net::Ipv4Addr>().unwrap().octets();
    let mut frame = [&[0xff; 6][..], &HOST_MAC, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
    frame.extend_from_slice(&HOST_MAC);
    frame.extend_from_slice(&v4(sender));
    frame.extend_from_slice(&[0; 6]);
    frame.extend_from_slice(&v4(target));
    frame
}
