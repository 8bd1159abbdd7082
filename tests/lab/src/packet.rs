//! Packets as tests look at them and make them; etherparse does the work, so that the lab does
//! not share a line of header code with what it tests.

use std::net::{IpAddr, SocketAddr};

use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::icmpv6::DestUnreachableCode;
use etherparse::{
    Ethernet2Header, Icmpv4Type, Icmpv6Type, IpFragOffset, IpHeaders, IpNumber, Ipv4Header,
    Ipv6FragmentHeader, Ipv6Header, LaxSlicedPacket, PacketBuilder, TcpHeader, UdpHeader,
};

/// Protocol number of IPv4 in IP (RFC 2003).
pub const IPIP: u8 = 4;
/// Protocol number of IPv6 in IP (RFC 2473).
pub const IPV6_IN_IP: u8 = 41;
/// Protocol number of the encapsulating security payload (RFC 4303).
pub const ESP: u8 = 50;
/// Protocol numbers of the layers above IP.
pub const ICMP: u8 = 1;
/// See [`ICMP`].
pub const TCP: u8 = 6;
/// See [`ICMP`].
pub const UDP: u8 = 17;
/// See [`ICMP`].
pub const ICMPV6: u8 = 58;

/// An IP packet's header, read, and what is behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpPacket {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Protocol behind the header and its extensions.
    pub protocol: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Identification; of the fragment header in IPv6, else 0.
    pub identification: u32,
    /// IPv4's DF bit; always set for IPv6.
    pub dont_fragment: bool,
    /// Offset of a fragment in bytes, and whether more follow.
    pub fragment: (u16, bool),
    /// Is IPv4's header checksum right? Always, for IPv6.
    pub checksum_ok: bool,
    /// What is behind the header.
    pub payload: Vec<u8>,
    /// The whole packet.
    pub bytes: Vec<u8>,
}

impl IpPacket {
    /// Reads an Ethernet frame; `None` when it carries something else than IP.
    #[must_use]
    pub fn from_ethernet(frame: &[u8]) -> Option<Self> {
        let (header, rest) = Ethernet2Header::from_slice(frame).ok()?;
        matches!(header.ether_type.0, 0x0800 | 0x86dd).then(|| Self::from_ip(rest))?
    }

    /// Reads an IP packet.
    #[must_use]
    pub fn from_ip(bytes: &[u8]) -> Option<Self> {
        let packet = LaxSlicedPacket::from_ip(bytes).ok()?;
        let payload = packet.net.as_ref()?.ip_payload_ref()?;
        let (headers, _) = IpHeaders::from_slice_lax(bytes).ok().map(|(h, p, _)| (h, p))?;
        let payload_bytes = payload.payload.to_vec();
        let start = payload.payload.as_ptr().addr() - bytes.as_ptr().addr();
        let bytes = bytes[..start + payload_bytes.len()].to_vec();
        let protocol = payload.ip_number.0;
        Some(match headers {
            IpHeaders::Ipv4(header, _) => Self {
                source: IpAddr::from(header.source),
                destination: IpAddr::from(header.destination),
                protocol,
                ttl: header.time_to_live,
                traffic_class: header.dscp.value() << 2 | header.ecn.value(),
                identification: header.identification.into(),
                dont_fragment: header.dont_fragment,
                fragment: (header.fragment_offset.byte_offset(), header.more_fragments),
                checksum_ok: header.calc_header_checksum() == header.header_checksum,
                payload: payload_bytes,
                bytes,
            },
            IpHeaders::Ipv6(header, extensions) => Self {
                source: IpAddr::from(header.source),
                destination: IpAddr::from(header.destination),
                protocol,
                ttl: header.hop_limit,
                traffic_class: header.traffic_class,
                identification: extensions.fragment.as_ref().map_or(0, |f| f.identification),
                dont_fragment: true,
                fragment: extensions
                    .fragment
                    .as_ref()
                    .map_or((0, false), |f| (f.fragment_offset.byte_offset(), f.more_fragments)),
                checksum_ok: true,
                payload: payload_bytes,
                bytes,
            },
        })
    }

    /// The packet inside, when this one is a tunnel's.
    #[must_use]
    pub fn inner(&self) -> Option<Self> {
        matches!(self.protocol, IPIP | IPV6_IN_IP).then(|| Self::from_ip(&self.payload))?
    }

    /// The TCP header, of packets and first fragments.
    #[must_use]
    pub fn tcp(&self) -> Option<TcpHeader> {
        let here = self.protocol == TCP && self.fragment.0 == 0;
        here.then(|| TcpHeader::from_slice(&self.payload).ok().map(|(header, _)| header))?
    }

    /// The UDP header, of packets and first fragments.
    #[must_use]
    pub fn udp(&self) -> Option<UdpHeader> {
        let here = self.protocol == UDP && self.fragment.0 == 0;
        here.then(|| UdpHeader::from_slice(&self.payload).ok().map(|(header, _)| header))?
    }

    /// ICMP type and code, of either version.
    #[must_use]
    pub fn icmp(&self) -> Option<(u8, u8)> {
        matches!(self.protocol, ICMP | ICMPV6)
            .then(|| Some((*self.payload.first()?, *self.payload.get(1)?)))?
    }

    /// MTU in bytes that a fragmentation-needed (RFC 1191) or packet-too-big (RFC 4443) names.
    #[must_use]
    pub fn announced_mtu(&self) -> Option<u32> {
        let word = u32::from_be_bytes(self.payload.get(4..8)?.try_into().ok()?);
        match (self.protocol, self.icmp()?) {
            (ICMP, (3, 4)) => Some(word & 0xffff),
            (ICMPV6, (2, 0)) => Some(word),
            _ => None,
        }
    }

    /// Source and destination with ports, of TCP and UDP.
    #[must_use]
    pub fn flow(&self) -> Option<(SocketAddr, SocketAddr)> {
        let ports = match (self.tcp(), self.udp()) {
            (Some(tcp), _) => (tcp.source_port, tcp.destination_port),
            (_, Some(udp)) => (udp.source_port, udp.destination_port),
            _ => return None,
        };
        Some((SocketAddr::new(self.source, ports.0), SocketAddr::new(self.destination, ports.1)))
    }
}

/// Wraps a packet as a director does, with an outer header made here.
///
/// # Panics
/// When the addresses are of different versions, or the packet is too long for a length field.
#[must_use]
pub fn encapsulate(source: IpAddr, destination: IpAddr, inner: &[u8]) -> Vec<u8> {
    let protocol = IpNumber(if inner[0] >> 4 == 4 { IPIP } else { IPV6_IN_IP });
    let length = u16::try_from(inner.len()).expect("a packet");
    let mut packet = Vec::with_capacity(inner.len() + 40);
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header =
                Ipv4Header::new(length, 64, protocol, source.octets(), destination.octets())
                    .expect("room for the header");
            header.dont_fragment = true;
            header.header_checksum = header.calc_header_checksum();
            header.write(&mut packet).expect("memory");
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => Ipv6Header {
            payload_length: length,
            next_header: protocol,
            hop_limit: 64,
            source: source.octets(),
            destination: destination.octets(),
            ..Ipv6Header::default()
        }
        .write(&mut packet)
        .expect("memory"),
        _ => panic!("an outer header from {source} to {destination}"),
    }
    packet.extend_from_slice(inner);
    packet
}

/// An ICMP echo request of either version.
///
/// # Panics
/// When the addresses are of different versions.
#[must_use]
pub fn echo_request(source: IpAddr, destination: IpAddr, id: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            PacketBuilder::ipv4(source.octets(), destination.octets(), 64)
                .icmpv4_echo_request(id, 1)
                .write(&mut packet, payload)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            PacketBuilder::ipv6(source.octets(), destination.octets(), 64)
                .icmpv6_echo_request(id, 1)
                .write(&mut packet, payload)
        }
        _ => panic!("an echo request from {source} to {destination}"),
    }
    .expect("memory");
    packet
}

/// A TCP SYN of either version.
///
/// # Panics
/// When the addresses are of different versions.
#[must_use]
pub fn syn(source: SocketAddr, destination: SocketAddr, sequence: u32) -> Vec<u8> {
    let mut packet = Vec::new();
    ip_builder(source.ip(), destination.ip())
        .tcp(source.port(), destination.port(), sequence, 64_000)
        .syn()
        .write(&mut packet, &[])
        .expect("memory");
    packet
}

/// A later TCP segment of either version: ACK, with payload or without.
///
/// # Panics
/// When the addresses are of different versions.
#[must_use]
pub fn segment(
    source: SocketAddr,
    destination: SocketAddr,
    sequence: u32,
    acknowledgement: u32,
    payload: &[u8],
) -> Vec<u8> {
    let mut packet = Vec::new();
    ip_builder(source.ip(), destination.ip())
        .tcp(source.port(), destination.port(), sequence, 64_000)
        .ack(acknowledgement)
        .write(&mut packet, payload)
        .expect("memory");
    packet
}

/// A UDP datagram of either version, not fragmented whatever its length.
///
/// # Panics
/// When the addresses are of different versions, or the payload is longer than a packet.
#[must_use]
pub fn datagram(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    ip_builder(source.ip(), destination.ip())
        .udp(source.port(), destination.port())
        .write(&mut packet, payload)
        .expect("memory");
    packet
}

fn ip_builder(source: IpAddr, destination: IpAddr) -> etherparse::PacketBuilderStep<IpHeaders> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => PacketBuilder::ip(IpHeaders::Ipv4(
            Ipv4Header {
                source: source.octets(),
                destination: destination.octets(),
                time_to_live: 64,
                ..Ipv4Header::default()
            },
            etherparse::Ipv4Extensions::default(),
        )),
        (IpAddr::V6(source), IpAddr::V6(destination)) => PacketBuilder::ip(IpHeaders::Ipv6(
            Ipv6Header {
                source: source.octets(),
                destination: destination.octets(),
                hop_limit: 64,
                ..Ipv6Header::default()
            },
            etherparse::Ipv6Extensions::default(),
        )),
        _ => panic!("a packet from {source} to {destination}"),
    }
}

/// What an ICMP error says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Fragmentation needed (RFC 1191), packet too big (RFC 4443): the MTU in bytes.
    TooBig(u16),
    /// The last router does not reach the host.
    HostUnreachable,
}

/// An ICMP error of either version about a packet, of which `quote` is the beginning.
///
/// # Panics
/// When the addresses are of different versions.
#[must_use]
pub fn icmp_error(source: IpAddr, destination: IpAddr, trouble: Trouble, quote: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            PacketBuilder::ipv4(source.octets(), destination.octets(), 64)
                .icmpv4(Icmpv4Type::DestinationUnreachable(match trouble {
                    Trouble::TooBig(next_hop_mtu) => {
                        DestUnreachableHeader::FragmentationNeeded { next_hop_mtu }
                    }
                    Trouble::HostUnreachable => DestUnreachableHeader::Host,
                }))
                .write(&mut packet, quote)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            PacketBuilder::ipv6(source.octets(), destination.octets(), 64)
                .icmpv6(match trouble {
                    Trouble::TooBig(mtu) => Icmpv6Type::PacketTooBig { mtu: mtu.into() },
                    Trouble::HostUnreachable => {
                        Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Address)
                    }
                })
                .write(&mut packet, quote)
        }
        _ => panic!("an ICMP error from {source} to {destination}"),
    }
    .expect("memory");
    packet
}

/// Cuts a packet into fragments of at most `mtu` bytes (RFC 791 §3.2, RFC 8200 §4.5).
///
/// # Panics
/// When the packet has IPv6 extension headers, or the MTU leaves no room.
#[must_use]
pub fn fragments(packet: &[u8], mtu: usize, identification: u16) -> Vec<Vec<u8>> {
    if packet[0] >> 4 == 4 {
        ipv4_fragments(packet, mtu, identification)
    } else {
        ipv6_fragments(packet, mtu, identification.into())
    }
}

fn ipv6_fragments(packet: &[u8], mtu: usize, identification: u32) -> Vec<Vec<u8>> {
    let (mut header, payload) = Ipv6Header::from_slice(packet).expect("an IPv6 packet");
    let step = (mtu - Ipv6Header::LEN - Ipv6FragmentHeader::LEN) / 8 * 8;
    let count = payload.len().div_ceil(step);
    let next_header = header.next_header;
    header.next_header = IpNumber::IPV6_FRAGMENTATION_HEADER;
    payload
        .chunks(step)
        .enumerate()
        .map(|(index, part)| {
            let offset = u16::try_from(index * step / 8).expect("inside a packet");
            let offset = IpFragOffset::try_new(offset).expect("inside a packet");
            let extension =
                Ipv6FragmentHeader::new(next_header, offset, index + 1 < count, identification);
            header
                .set_payload_length(Ipv6FragmentHeader::LEN + part.len())
                .expect("inside a packet");
            let mut fragment = Vec::new();
            header.write(&mut fragment).expect("memory");
            extension.write(&mut fragment).expect("memory");
            fragment.extend_from_slice(part);
            fragment
        })
        .collect()
}

fn ipv4_fragments(packet: &[u8], mtu: usize, identification: u16) -> Vec<Vec<u8>> {
    let (mut header, payload) = Ipv4Header::from_slice(packet).expect("an IPv4 packet");
    let step = (mtu - header.header_len()) / 8 * 8;
    header.identification = identification;
    header.dont_fragment = false;
    let count = payload.len().div_ceil(step);
    payload
        .chunks(step)
        .enumerate()
        .map(|(index, part)| {
            let offset = u16::try_from(index * step / 8).expect("inside a packet");
            header.fragment_offset = IpFragOffset::try_new(offset).expect("inside a packet");
            header.more_fragments = index + 1 < count;
            header.set_payload_len(part.len()).expect("inside a packet");
            header.header_checksum = header.calc_header_checksum();
            let mut fragment = Vec::new();
            header.write(&mut fragment).expect("memory");
            fragment.extend_from_slice(part);
            fragment
        })
        .collect()
}
