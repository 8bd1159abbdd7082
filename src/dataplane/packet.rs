//! Views of received packets: lengths are checked once, here; nothing behind it can fail.
//!
//! A [`Datagram`] is plain data (offsets and fields), not a borrow, so that the buffer it was read
//! from can be rewritten in place afterwards. Addresses are 16 bytes for both families, IPv4 as
//! IPv4-mapped (RFC 4291 §2.5.5.2).

mod quote;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use adit_tunnel::checksum;

pub use quote::Quote;

/// Length of an Ethernet header without tags.
pub const ETHERNET_HEADER: usize = 14;
/// Ethertype of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// Ethertype of ARP (RFC 826).
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// Ethertype of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

/// IP protocol numbers (IANA).
pub mod protocol {
    /// Hop-by-hop options (IPv6).
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// Routing header (IPv6).
    pub const ROUTING: u8 = 43;
    /// Fragment header (IPv6).
    pub const FRAGMENT: u8 = 44;
    /// Authentication header (RFC 4302); one of the extension headers of IPv6.
    pub const AUTHENTICATION: u8 = 51;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// Destination options (IPv6).
    pub const DESTINATION_OPTIONS: u8 = 60;
}

/// TCP flag bits (RFC 9293 §3.1).
pub mod tcp_flag {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// The acknowledgement field is valid.
    pub const ACK: u8 = 0x10;
}

/// IPv6 extension headers that are walked before a packet is refused. Real chains have at most
/// four (RFC 8200 §4.1 lists each once, destination options twice).
const EXTENSION_HEADER_BOUND: usize = 8;

/// Identification of an IPv4 packet that was parsed; 0 for IPv6.
pub fn ipv4_identification(packet: &[u8]) -> u16 {
    match packet {
        [first, _, _, _, high, low, ..] if first >> 4 == 4 => u16::from_be_bytes([*high, *low]),
        _ => 0,
    }
}

/// An address of either family: IPv4 as IPv4-mapped IPv6.
pub type Address = [u8; 16];

/// The 16-byte form of an address.
pub fn address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The address behind its 16-byte form. A mapped address is IPv4.
pub fn ip_addr(address: &Address) -> IpAddr {
    Ipv6Addr::from(*address).to_canonical()
}

fn mapped_v4(octets: &[u8]) -> Address {
    let mut address = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0];
    address[12..].copy_from_slice(octets);
    address
}

/// The four octets of an IPv4-mapped address.
pub fn v4_octets(address: &Address) -> [u8; 4] {
    [address[12], address[13], address[14], address[15]]
}

/// The IPv4 address behind an IPv4-mapped one.
pub fn ipv4(address: &Address) -> Ipv4Addr {
    Ipv4Addr::from(v4_octets(address))
}

/// Big-endian 16 bits at `at`; the caller has checked the length.
pub fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Big-endian 32 bits at `at`; the caller has checked the length.
pub fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Address family of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// The family of a 16-byte address.
    pub fn of(address: &Address) -> Self {
        if address[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff] {
            Self::V4
        } else {
            Self::V6
        }
    }
}

/// Why bytes are not a packet that can be balanced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum PacketError {
    /// The bytes end before a header does.
    #[error("{layer} needs {needed} bytes, got {actual}")]
    Truncated {
        /// Header that is cut.
        layer: &'static str,
        /// Bytes it needs.
        needed: usize,
        /// Bytes there are.
        actual: usize,
    },
    /// The version nibble is neither 4 nor 6, or not that of the ethertype.
    #[error("IP version {0}")]
    Version(u8),
    /// A length field contradicts the packet (header length, total length, data offset).
    #[error("{layer} length field says {claimed}")]
    Length {
        /// Header with the field.
        layer: &'static str,
        /// What the field says, in bytes.
        claimed: usize,
    },
    /// The IPv4 header's checksum is wrong (RFC 1812 §5.2.2 asks to drop silently).
    #[error("IPv4 header checksum")]
    Checksum,
    /// More IPv6 extension headers than any real chain has.
    #[error("IPv6 extension header chain too long")]
    ExtensionHeaders,
    /// An IPv6 packet with an IPv4-mapped address. They have no place on the wire (RFC 4942
    /// §2.2), and here they would pass for IPv4.
    #[error("IPv4-mapped address in an IPv6 header")]
    MappedAddress,
}

const fn truncated(layer: &'static str, needed: usize, actual: usize) -> PacketError {
    PacketError::Truncated { layer, needed, actual }
}

/// Place of a fragment in its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Identification (16 bits in IPv4, 32 in IPv6).
    pub identification: u32,
    /// Offset of its payload, in bytes.
    pub offset: u16,
    /// Whether more fragments follow.
    pub more: bool,
}

/// An IP packet whose lengths have been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Address family.
    pub family: Family,
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Upper-layer protocol, behind any extension headers.
    pub protocol: u8,
    /// Offset of the upper layer from the start of the IP header.
    pub header_len: usize,
    /// Length of the packet from its IP header on (link padding excluded).
    pub total_len: usize,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// IPv4 DF; always true for IPv6, where routers never fragment (RFC 8200 §5).
    pub dont_fragment: bool,
    /// Present when the packet is a fragment (an IPv6 atomic fragment, RFC 6946, is none).
    pub fragment: Option<Fragment>,
}

impl Datagram {
    /// Reads the IP packet at the start of `bytes`; what follows its total length is link padding.
    ///
    /// # Errors
    /// A header is cut, contradicts itself, or an IPv4 checksum is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, PacketError> {
        match bytes.first().map(|byte| byte >> 4) {
            Some(4) => Self::parse_v4(bytes),
            Some(6) => Self::parse_v6(bytes),
            Some(version) => Err(PacketError::Version(version)),
            None => Err(truncated("IP", 1, 0)),
        }
    }

    fn parse_v4(bytes: &[u8]) -> Result<Self, PacketError> {
        let header_len = ipv4_header_len("IPv4", bytes)?;
        let total_len = usize::from(be16(bytes, 2));
        if total_len < header_len {
            return Err(PacketError::Length { layer: "IPv4", claimed: total_len });
        }
        if bytes.len() < total_len {
            return Err(truncated("IPv4", total_len, bytes.len()));
        }
        if !checksum::is_valid(checksum::ones_complement_sum(&bytes[..header_len])) {
            return Err(PacketError::Checksum);
        }
        let flags = be16(bytes, 6);
        let (offset, more) = ((flags & 0x1fff) * 8, flags & 0x2000 != 0);
        let fragment = (more || offset != 0).then(|| Fragment {
            identification: u32::from(be16(bytes, 4)),
            offset,
            more,
        });
        Ok(Self {
            family: Family::V4,
            source: mapped_v4(&bytes[12..16]),
            destination: mapped_v4(&bytes[16..20]),
            protocol: bytes[9],
            header_len,
            total_len,
            hop_limit: bytes[8],
            dont_fragment: flags & 0x4000 != 0,
            fragment,
        })
    }

    fn parse_v6(bytes: &[u8]) -> Result<Self, PacketError> {
        let total_len = match bytes.len() {
            0..40 => return Err(truncated("IPv6", 40, bytes.len())),
            _ => 40 + usize::from(be16(bytes, 4)),
        };
        if bytes.len() < total_len {
            return Err(truncated("IPv6", total_len, bytes.len()));
        }
        let chain = walk_extension_headers(&bytes[..total_len])?;
        let (source, destination) = addresses_v6(bytes)?;
        Ok(Self {
            family: Family::V6,
            source,
            destination,
            protocol: chain.protocol,
            header_len: chain.offset,
            total_len,
            hop_limit: bytes[7],
            dont_fragment: true,
            fragment: chain.fragment,
        })
    }

    /// Whether the upper layer's header is in here (not a later fragment).
    pub fn has_upper_layer(&self) -> bool {
        self.fragment.is_none_or(|fragment| fragment.offset == 0)
    }

    /// Length of the upper layer in this packet, header included.
    pub const fn payload_len(&self) -> usize {
        self.total_len - self.header_len
    }
}

/// Length of an IPv4 header that is all there.
fn ipv4_header_len(layer: &'static str, bytes: &[u8]) -> Result<usize, PacketError> {
    if bytes.len() < 20 {
        return Err(truncated(layer, 20, bytes.len()));
    }
    let header_len = usize::from(bytes[0] & 0x0f) * 4;
    if header_len < 20 {
        return Err(PacketError::Length { layer, claimed: header_len });
    }
    if bytes.len() < header_len {
        return Err(truncated(layer, header_len, bytes.len()));
    }
    Ok(header_len)
}

/// Source and destination of an IPv6 header that is there.
fn addresses_v6(header: &[u8]) -> Result<(Address, Address), PacketError> {
    let mut source = [0; 16];
    let mut destination = [0; 16];
    source.copy_from_slice(&header[8..24]);
    destination.copy_from_slice(&header[24..40]);
    if [&source, &destination].into_iter().any(|address| Family::of(address) == Family::V4) {
        return Err(PacketError::MappedAddress);
    }
    Ok((source, destination))
}

struct ExtensionChain {
    protocol: u8,
    offset: usize,
    fragment: Option<Fragment>,
}

/// Walks the IPv6 extension headers (RFC 8200 §4) of a whole packet, up to the upper layer or, in
/// a later fragment, up to the fragment's payload.
fn walk_extension_headers(packet: &[u8]) -> Result<ExtensionChain, PacketError> {
    let mut chain = ExtensionChain { protocol: packet[6], offset: 40, fragment: None };
    for _ in 0..EXTENSION_HEADER_BOUND {
        let header = &packet[chain.offset..];
        match chain.protocol {
            protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::AUTHENTICATION
            | protocol::DESTINATION_OPTIONS => {
                if header.len() < 8 {
                    return Err(truncated("IPv6 extension header", 8, header.len()));
                }
                let length = match chain.protocol {
                    // In units of 4 bytes, less two (RFC 4302 §2.2).
                    protocol::AUTHENTICATION => (usize::from(header[1]) + 2) * 4,
                    _ => (usize::from(header[1]) + 1) * 8,
                };
                if header.len() < length {
                    return Err(truncated("IPv6 extension header", length, header.len()));
                }
                chain.protocol = header[0];
                chain.offset += length;
            }
            protocol::FRAGMENT => {
                if header.len() < 8 {
                    return Err(truncated("IPv6 fragment header", 8, header.len()));
                }
                let field = be16(header, 2);
                let (offset, more) = (field & 0xfff8, field & 1 != 0);
                chain.protocol = header[0];
                chain.offset += 8;
                if more || offset != 0 {
                    let identification = be32(header, 4);
                    chain.fragment = Some(Fragment { identification, offset, more });
                }
                if offset != 0 {
                    return Ok(chain);
                }
            }
            _ => return Ok(chain),
        }
    }
    Err(PacketError::ExtensionHeaders)
}

/// What the director looks at in a TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpSegment {
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number; meaningful with [`tcp_flag::ACK`].
    pub acknowledgement: u32,
    /// Flag bits, see [`tcp_flag`].
    pub flags: u8,
    /// Bytes of payload (of a first fragment: those in it).
    pub payload_len: usize,
}

impl TcpSegment {
    /// Reads the segment of a datagram that has its upper layer; `packet` starts at the IP header.
    ///
    /// # Errors
    /// The TCP header is cut or its data offset contradicts the packet.
    pub fn parse(datagram: &Datagram, packet: &[u8]) -> Result<Self, PacketError> {
        let bytes = &packet[datagram.header_len..datagram.total_len];
        if bytes.len() < 20 {
            return Err(truncated("TCP", 20, bytes.len()));
        }
        let header_len = usize::from(bytes[12] >> 4) * 4;
        if header_len < 20 {
            return Err(PacketError::Length { layer: "TCP", claimed: header_len });
        }
        if bytes.len() < header_len {
            return Err(truncated("TCP", header_len, bytes.len()));
        }
        Ok(Self {
            source_port: be16(bytes, 0),
            destination_port: be16(bytes, 2),
            sequence: be32(bytes, 4),
            acknowledgement: be32(bytes, 8),
            flags: bytes[13],
            payload_len: bytes.len() - header_len,
        })
    }

    /// Whether it opens a connection: SYN without ACK, RST or FIN.
    pub const fn opens(&self) -> bool {
        self.flags & (tcp_flag::SYN | tcp_flag::ACK | tcp_flag::RST | tcp_flag::FIN)
            == tcp_flag::SYN
    }

    /// Sequence number behind this segment: SYN and FIN take one each (RFC 9293 §3.4).
    pub const fn sequence_end(&self) -> u32 {
        let control =
            ((self.flags & tcp_flag::SYN != 0) as u32) + ((self.flags & tcp_flag::FIN != 0) as u32);
        #[allow(clippy::cast_possible_truncation, reason = "a payload is below 65536 bytes")]
        self.sequence.wrapping_add(self.payload_len as u32).wrapping_add(control)
    }
}

/// Source and destination port of a UDP datagram that has its upper layer.
///
/// # Errors
/// The UDP header is cut.
pub fn udp_ports(datagram: &Datagram, packet: &[u8]) -> Result<(u16, u16), PacketError> {
    let bytes = &packet[datagram.header_len..datagram.total_len];
    if bytes.len() < 8 {
        return Err(truncated("UDP", 8, bytes.len()));
    }
    Ok((be16(bytes, 0), be16(bytes, 2)))
}

#[cfg(test)]
mod tests;
