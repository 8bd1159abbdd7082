//! Where the fields of IPv4 (RFC 791) and IPv6 (RFC 8200) headers are, and the one check of an
//! IP packet that encapsulation and decapsulation share.

use crate::error::{HeaderError, Layer, LenError};

/// Length of an IPv4 header without options, in bytes.
pub const IPV4_HEADER_LEN: usize = 20;
/// Length of an IPv6 header without extension headers, in bytes.
pub const IPV6_HEADER_LEN: usize = 40;
/// Length of an IPv6 fragment header, in bytes (RFC 8200 §4.5).
pub const IPV6_FRAGMENT_HEADER_LEN: usize = 8;
/// IP protocol number of an IPv4 packet inside another packet (RFC 2003).
pub const PROTOCOL_IPV4: u8 = 4;
/// IP protocol number of an IPv6 packet inside another packet (RFC 2473, RFC 4213).
pub const PROTOCOL_IPV6: u8 = 41;

/// IP protocol number of UDP, which carries GUE.
pub const PROTOCOL_UDP: u8 = 17;
/// IP protocol number of GRE (RFC 2784).
pub const PROTOCOL_GRE: u8 = 47;

/// Byte offsets in an IPv4 header.
pub(crate) mod ipv4 {
    pub(crate) const TRAFFIC_CLASS: usize = 1;
    pub(crate) const TOTAL_LENGTH: usize = 2;
    pub(crate) const IDENTIFICATION: usize = 4;
    pub(crate) const FLAGS: usize = 6;
    pub(crate) const TTL: usize = 8;
    pub(crate) const PROTOCOL: usize = 9;
    pub(crate) const CHECKSUM: usize = 10;
    pub(crate) const SOURCE: usize = 12;
    pub(crate) const DESTINATION: usize = 16;

    /// Bits in the 16-bit word at [`FLAGS`].
    pub(crate) const DONT_FRAGMENT: u16 = 0x4000;
    pub(crate) const MORE_FRAGMENTS: u16 = 0x2000;
    /// Fragment offset, in units of 8 bytes.
    pub(crate) const OFFSET_MASK: u16 = 0x1fff;
}

/// Byte offsets in an IPv6 header.
pub(crate) mod ipv6 {
    pub(crate) const PAYLOAD_LENGTH: usize = 4;
    pub(crate) const NEXT_HEADER: usize = 6;
    pub(crate) const HOP_LIMIT: usize = 7;
    pub(crate) const SOURCE: usize = 8;
    pub(crate) const DESTINATION: usize = 24;

    pub(crate) const NEXT_HOP_BY_HOP: u8 = 0;
    pub(crate) const NEXT_ROUTING: u8 = 43;
    pub(crate) const NEXT_FRAGMENT: u8 = 44;
    pub(crate) const NEXT_DESTINATION_OPTIONS: u8 = 60;
}

/// The family of an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family that the version nibble of `packet` names; `None` when it is empty or the
    /// version is neither 4 nor 6.
    #[inline]
    #[must_use]
    pub fn of(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Some(Self::V4),
            6 => Some(Self::V6),
            _ => None,
        }
    }

    /// The protocol number that announces a packet of this family inside another one.
    #[inline]
    #[must_use]
    pub const fn protocol(self) -> u8 {
        match self {
            Self::V4 => PROTOCOL_IPV4,
            Self::V6 => PROTOCOL_IPV6,
        }
    }
}

/// Reads the 16-bit field at byte `at` of a fixed-size header.
#[inline]
pub(crate) const fn read_u16<const N: usize>(header: &[u8; N], at: usize) -> u16 {
    u16::from_be_bytes([header[at], header[at + 1]])
}

/// Writes the 16-bit field at byte `at` of a fixed-size header.
#[inline]
pub(crate) const fn write_u16<const N: usize>(header: &mut [u8; N], at: usize, value: u16) {
    let [high, low] = value.to_be_bytes();
    header[at] = high;
    header[at + 1] = low;
}

/// Copies `M` bytes at byte `at` out of a fixed-size header.
#[inline]
pub(crate) fn read_bytes<const N: usize, const M: usize>(header: &[u8; N], at: usize) -> [u8; M] {
    let mut bytes = [0; M];
    bytes.copy_from_slice(&header[at..at + M]);
    bytes
}

/// Traffic class of an IPv6 header: DSCP and ECN, at the same bits as in IPv4's second byte.
#[inline]
pub(crate) const fn ipv6_traffic_class(header: &[u8; IPV6_HEADER_LEN]) -> u8 {
    header[0] << 4 | header[1] >> 4
}

/// The fixed part of the header at the start of `packet`, of which `version` is expected.
#[inline]
fn fixed_header<const N: usize>(
    packet: &[u8],
    version: u8,
    layer: Layer,
) -> Result<&[u8; N], HeaderError> {
    let Some(header) = packet.first_chunk::<N>() else {
        return Err(LenError { layer, needed: N, actual: packet.len() }.into());
    };
    let found = header[0] >> 4;
    if found != version {
        return Err(HeaderError::Version { layer, found });
    }
    Ok(header)
}

/// Which of the two packets of a tunnel is being checked; gives errors their layer.
#[derive(Clone, Copy)]
pub(crate) enum Side {
    Outer,
    Inner,
}

impl Side {
    const fn unknown(self) -> Layer {
        match self {
            Self::Outer => Layer::Outer,
            Self::Inner => Layer::Inner,
        }
    }

    pub(crate) const fn ipv4(self) -> Layer {
        match self {
            Self::Outer => Layer::OuterIpv4,
            Self::Inner => Layer::InnerIpv4,
        }
    }

    pub(crate) const fn ipv6(self) -> Layer {
        match self {
            Self::Outer => Layer::OuterIpv6,
            Self::Inner => Layer::InnerIpv6,
        }
    }
}

/// An IP packet whose header form and declared length have been checked.
#[derive(Clone, Copy)]
pub(crate) enum IpView<'a> {
    V4 {
        header: &'a [u8; IPV4_HEADER_LEN],
        /// Header with options, 20 to 60 bytes, at most `length`.
        header_len: usize,
        /// Length the packet declares for itself, at most the slice's.
        length: usize,
    },
    V6 {
        header: &'a [u8; IPV6_HEADER_LEN],
        /// Length the packet declares for itself, at most the slice's.
        length: usize,
    },
}

impl<'a> IpView<'a> {
    /// Checks version, header length and declared length of the packet at the start of `bytes`.
    /// Bytes behind the declared length are allowed here (Ethernet padding).
    #[inline]
    pub(crate) fn new(bytes: &'a [u8], side: Side) -> Result<Self, HeaderError> {
        let Some(first) = bytes.first() else {
            let layer = side.unknown();
            return Err(LenError { layer, needed: 1, actual: 0 }.into());
        };
        match first >> 4 {
            4 => Self::ipv4(bytes, side.ipv4()),
            6 => Self::ipv6(bytes, side.ipv6()),
            found => Err(HeaderError::Version { layer: side.unknown(), found }),
        }
    }

    /// As [`new`](Self::new), where only IPv4 will do.
    #[inline]
    pub(crate) fn ipv4(bytes: &'a [u8], layer: Layer) -> Result<Self, HeaderError> {
        let header = fixed_header::<IPV4_HEADER_LEN>(bytes, 4, layer)?;
        let header_len = usize::from(header[0] & 0x0f) * 4;
        if header_len < IPV4_HEADER_LEN {
            return Err(HeaderError::HeaderLength { layer, found: header_len });
        }
        let length = usize::from(read_u16(header, ipv4::TOTAL_LENGTH));
        if length < header_len {
            return Err(LenError { layer, needed: header_len, actual: length }.into());
        }
        if length > bytes.len() {
            return Err(LenError { layer, needed: length, actual: bytes.len() }.into());
        }
        Ok(Self::V4 { header, header_len, length })
    }

    /// As [`new`](Self::new), where only IPv6 will do.
    #[inline]
    pub(crate) fn ipv6(bytes: &'a [u8], layer: Layer) -> Result<Self, HeaderError> {
        let header = fixed_header::<IPV6_HEADER_LEN>(bytes, 6, layer)?;
        let length = IPV6_HEADER_LEN + usize::from(read_u16(header, ipv6::PAYLOAD_LENGTH));
        if length > bytes.len() {
            return Err(LenError { layer, needed: length, actual: bytes.len() }.into());
        }
        Ok(Self::V6 { header, length })
    }

    #[inline]
    pub(crate) const fn family(&self) -> Family {
        match self {
            Self::V4 { .. } => Family::V4,
            Self::V6 { .. } => Family::V6,
        }
    }

    #[inline]
    pub(crate) const fn length(&self) -> usize {
        match self {
            Self::V4 { length, .. } | Self::V6 { length, .. } => *length,
        }
    }

    /// DSCP and ECN.
    #[inline]
    pub(crate) const fn traffic_class(&self) -> u8 {
        match self {
            Self::V4 { header, .. } => header[ipv4::TRAFFIC_CLASS],
            Self::V6 { header, .. } => ipv6_traffic_class(header),
        }
    }
}
