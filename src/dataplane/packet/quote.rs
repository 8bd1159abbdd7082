//! Packets as ICMP errors quote them.

use super::{
    Address, Family, PacketError, addresses_v6, be16, be32, ipv4_header_len, mapped_v4, protocol,
    truncated, walk_extension_headers,
};

/// The start of a packet as an ICMP error quotes it: possibly cut after 8 bytes of upper layer
/// (RFC 792), so that its total length and checksum are not held against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote {
    /// Address family.
    pub family: Family,
    /// Source address of the quoted packet.
    pub source: Address,
    /// Destination address of the quoted packet.
    pub destination: Address,
    /// Upper-layer protocol.
    pub protocol: u8,
    /// Offset of the upper layer in the quote.
    pub header_len: usize,
    /// Total length the quoted packet had, by its own header.
    pub total_len: usize,
    /// IPv4 identification; 0 for IPv6.
    pub identification: u16,
    /// IPv4 DF; true for IPv6.
    pub dont_fragment: bool,
}

impl Quote {
    /// Reads a quoted packet with at least 8 bytes of its upper layer.
    ///
    /// # Errors
    /// The quote is shorter than that, or is a later fragment (which carries no ports).
    pub fn parse(bytes: &[u8]) -> Result<Self, PacketError> {
        match bytes.first().map(|byte| byte >> 4) {
            Some(4) => Self::parse_v4(bytes),
            Some(6) => Self::parse_v6(bytes),
            Some(version) => Err(PacketError::Version(version)),
            None => Err(truncated("quoted IP", 1, 0)),
        }
    }

    fn parse_v4(bytes: &[u8]) -> Result<Self, PacketError> {
        let header_len = ipv4_header_len("quoted IPv4", bytes)?;
        if bytes.len() < header_len + 8 {
            return Err(truncated("quoted IPv4", header_len + 8, bytes.len()));
        }
        let flags = be16(bytes, 6);
        if flags & 0x1fff != 0 {
            let claimed = usize::from(flags & 0x1fff) * 8;
            return Err(PacketError::Length { layer: "quoted IPv4 fragment", claimed });
        }
        Ok(Self {
            family: Family::V4,
            source: mapped_v4(&bytes[12..16]),
            destination: mapped_v4(&bytes[16..20]),
            protocol: bytes[9],
            header_len,
            total_len: usize::from(be16(bytes, 2)),
            identification: be16(bytes, 4),
            dont_fragment: flags & 0x4000 != 0,
        })
    }

    fn parse_v6(bytes: &[u8]) -> Result<Self, PacketError> {
        if bytes.len() < 40 {
            return Err(truncated("quoted IPv6", 40, bytes.len()));
        }
        let chain = walk_extension_headers(bytes)?;
        if let Some(fragment) = chain.fragment.filter(|fragment| fragment.offset != 0) {
            let claimed = usize::from(fragment.offset);
            return Err(PacketError::Length { layer: "quoted IPv6 fragment", claimed });
        }
        if bytes.len() < chain.offset + 8 {
            return Err(truncated("quoted IPv6", chain.offset + 8, bytes.len()));
        }
        let (source, destination) = addresses_v6(bytes)?;
        Ok(Self {
            family: Family::V6,
            source,
            destination,
            protocol: chain.protocol,
            header_len: chain.offset,
            total_len: 40 + usize::from(be16(bytes, 4)),
            identification: 0,
            dont_fragment: true,
        })
    }

    /// Source and destination port of a quoted TCP or UDP packet.
    pub fn ports(&self, quote: &[u8]) -> Option<(u16, u16)> {
        matches!(self.protocol, protocol::TCP | protocol::UDP)
            .then(|| (be16(quote, self.header_len), be16(quote, self.header_len + 2)))
    }

    /// Sequence number of a quoted TCP segment.
    pub fn sequence(&self, quote: &[u8]) -> Option<u32> {
        (self.protocol == protocol::TCP).then(|| be32(quote, self.header_len + 4))
    }
}
