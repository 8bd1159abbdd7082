//! Headers with every field open, checksums made last. Unlike a library's builders these also write
//! what is wrong.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{TcpHeader, UdpHeader};

/// Flags of a TCP header (RFC 9293 §3.1).
pub(super) mod flag {
    pub(in super::super) const FIN: u8 = 0x01;
    pub(in super::super) const SYN: u8 = 0x02;
    pub(in super::super) const RST: u8 = 0x04;
    pub(in super::super) const PSH: u8 = 0x08;
    pub(in super::super) const ACK: u8 = 0x10;
    pub(in super::super) const URG: u8 = 0x20;
    pub(in super::super) const ECE: u8 = 0x40;
    pub(in super::super) const CWR: u8 = 0x80;
}

/// An IPv4 header.
#[derive(Clone, Debug)]
pub(super) struct Ipv4 {
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub protocol: u8,
    /// DSCP and ECN.
    pub class: u8,
    pub identification: u16,
    pub dont_fragment: bool,
    pub more_fragments: bool,
    /// In bytes, a multiple of 8.
    pub offset: u16,
    pub ttl: u8,
    /// A multiple of 4 bytes.
    pub options: Vec<u8>,
    /// What the length field says more than is true.
    pub claimed: i16,
    /// XORed to the right checksum.
    pub spoil: u16,
}

impl Ipv4 {
    pub(super) fn new(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8) -> Self {
        Self {
            source,
            destination,
            protocol,
            class: 0,
            identification: 0x1234,
            dont_fragment: false,
            more_fragments: false,
            offset: 0,
            ttl: 64,
            options: Vec::new(),
            claimed: 0,
            spoil: 0,
        }
    }

    pub(super) fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let header_length = 20 + self.options.len();
        let mut packet = vec![0; 20];
        packet[0] = 0x40 | u8::try_from(header_length / 4).expect("at most 60 bytes");
        packet[1] = self.class;
        let length = u16::try_from(header_length + payload.len()).expect("a packet");
        packet[2..4].copy_from_slice(&length.wrapping_add_signed(self.claimed).to_be_bytes());
        packet[4..6].copy_from_slice(&self.identification.to_be_bytes());
        let flags = u16::from(self.dont_fragment) << 14 | u16::from(self.more_fragments) << 13;
        packet[6..8].copy_from_slice(&(flags | (self.offset / 8)).to_be_bytes());
        packet[8] = self.ttl;
        packet[9] = self.protocol;
        packet[12..16].copy_from_slice(&self.source.octets());
        packet[16..20].copy_from_slice(&self.destination.octets());
        packet.extend_from_slice(&self.options);
        let sum = internet_checksum(&packet) ^ self.spoil;
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend_from_slice(payload);
        packet
    }

    /// The pieces of a datagram, each with at most `step` bytes, a multiple of 8.
    pub(super) fn fragments(&self, payload: &[u8], step: usize) -> Vec<Vec<u8>> {
        let count = payload.len().div_ceil(step);
        let piece = |(index, part): (usize, &[u8])| {
            let offset = u16::try_from(index * step).expect("inside a datagram");
            Self { offset, more_fragments: index + 1 < count, ..self.clone() }.packet(part)
        };
        payload.chunks(step).enumerate().map(piece).collect()
    }
}

/// An IPv6 header.
#[derive(Clone, Debug)]
pub(super) struct Ipv6 {
    pub source: Ipv6Addr,
    pub destination: Ipv6Addr,
    pub next_header: u8,
    /// DSCP and ECN.
    pub class: u8,
    pub flow_label: u32,
    pub hop_limit: u8,
    /// What the length field says more than is true.
    pub claimed: i16,
}

impl Ipv6 {
    pub(super) fn new(source: Ipv6Addr, destination: Ipv6Addr, next_header: u8) -> Self {
        Self {
            source,
            destination,
            next_header,
            class: 0,
            flow_label: 0,
            hop_limit: 64,
            claimed: 0,
        }
    }

    pub(super) fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let first = 6 << 28 | u32::from(self.class) << 20 | self.flow_label;
        let length = u16::try_from(payload.len()).expect("a packet");
        let mut packet = first.to_be_bytes().to_vec();
        packet.extend(length.wrapping_add_signed(self.claimed).to_be_bytes());
        packet.extend([self.next_header, self.hop_limit]);
        packet.extend(self.source.octets());
        packet.extend(self.destination.octets());
        packet.extend_from_slice(payload);
        packet
    }

    /// The pieces of a datagram behind this header, each with at most `step` bytes, a multiple of 8.
    pub(super) fn fragments(&self, payload: &[u8], step: usize, id: u32) -> Vec<Vec<u8>> {
        let count = payload.len().div_ceil(step);
        let piece = |(index, part): (usize, &[u8])| {
            let offset = u16::try_from(index * step).expect("inside a datagram");
            let field = offset | u16::from(index + 1 < count);
            self.behind_fragment_header(field, id, part)
        };
        payload.chunks(step).enumerate().map(piece).collect()
    }

    /// The packet with a fragment header (RFC 8200 §4.5) whose offset and flag are `field`.
    pub(super) fn behind_fragment_header(&self, field: u16, id: u32, part: &[u8]) -> Vec<u8> {
        let mut rest = vec![self.next_header, 0];
        rest.extend(field.to_be_bytes());
        rest.extend(id.to_be_bytes());
        rest.extend_from_slice(part);
        Self { next_header: 44, ..self.clone() }.packet(&rest)
    }
}

/// A TCP segment without options.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub flags: u8,
    pub sequence: u32,
    pub acknowledgement: u32,
    /// Behind the header; a multiple of 4 bytes.
    pub options: Vec<u8>,
    /// XORed to the right checksum.
    pub spoil: u16,
}

impl Segment {
    pub(super) fn new(source: SocketAddr, destination: SocketAddr, flags: u8) -> Self {
        Self {
            source,
            destination,
            flags,
            sequence: 1000,
            acknowledgement: if flags & flag::ACK == 0 { 0 } else { 7000 },
            options: Vec::new(),
            spoil: 0,
        }
    }

    pub(super) fn bytes(&self, payload: &[u8]) -> Vec<u8> {
        let mut header =
            TcpHeader::new(self.source.port(), self.destination.port(), self.sequence, 64_000);
        header.acknowledgment_number = self.acknowledgement;
        header.set_options_raw(&self.options).expect("at most 40 bytes");
        let has = |flag| self.flags & flag != 0;
        (header.fin, header.syn, header.rst) = (has(flag::FIN), has(flag::SYN), has(flag::RST));
        (header.psh, header.ack, header.urg) = (has(flag::PSH), has(flag::ACK), has(flag::URG));
        (header.ece, header.cwr) = (has(flag::ECE), has(flag::CWR));
        let sum = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                header.calc_checksum_ipv4_raw(from.octets(), to.octets(), payload)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                header.calc_checksum_ipv6_raw(from.octets(), to.octets(), payload)
            }
            _ => panic!("a segment from {} to {}", self.source, self.destination),
        };
        header.checksum = sum.expect("a segment") ^ self.spoil;
        let mut bytes = Vec::new();
        header.write(&mut bytes).expect("memory");
        bytes.extend_from_slice(payload);
        bytes
    }
}

/// A UDP datagram with a right checksum.
pub(super) fn datagram(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let (from, to) = (source.port(), destination.port());
    let header = match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let length = u16::try_from(8 + payload.len()).expect("a packet");
            let bare = UdpHeader { source_port: from, destination_port: to, length, checksum: 0 };
            let sum = bare.calc_checksum_ipv4_raw(source.octets(), destination.octets(), payload);
            UdpHeader { checksum: sum.expect("a datagram"), ..bare }
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let length = u16::try_from(8 + payload.len()).expect("a packet");
            let bare = UdpHeader { source_port: from, destination_port: to, length, checksum: 0 };
            let sum = bare.calc_checksum_ipv6_raw(source.octets(), destination.octets(), payload);
            UdpHeader { checksum: sum.expect("a datagram"), ..bare }
        }
        _ => panic!("a datagram from {source} to {destination}"),
    };
    let mut bytes = header.to_bytes().to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

/// Bytes that tell where they were: a payload of which no part looks like another.
pub(super) fn payload(length: usize) -> Vec<u8> {
    (0..length)
        .map(|place| u8::try_from((place * 7 + place / 251) % 251).expect("below 251"))
        .collect()
}

/// The checksum of RFC 1071 of bytes whose own field is zero.
pub(super) fn internet_checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("folded twice")
}

/// An ICMP message of type, code and the 4 bytes behind the checksum; the checksum of ICMPv6 needs
/// the addresses, which are given there.
pub(super) fn icmp_message(
    (kind, code): (u8, u8),
    rest: u32,
    body: &[u8],
    v6: Option<(Ipv6Addr, Ipv6Addr)>,
) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0];
    message.extend(rest.to_be_bytes());
    message.extend_from_slice(body);
    let mut summed = message.clone();
    if let Some((source, destination)) = v6 {
        summed.resize(summed.len().next_multiple_of(2), 0);
        summed.extend(source.octets());
        summed.extend(destination.octets());
        summed.extend(u32::try_from(message.len()).expect("a packet").to_be_bytes());
        summed.extend([0, 0, 0, 58]);
    }
    message[2..4].copy_from_slice(&internet_checksum(&summed).to_be_bytes());
    message
}
