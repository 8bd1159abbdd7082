//! The outer header: a template per tunnel, written into the headroom before each packet.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::ops::Range;

use crate::checksum::{Sum, ones_complement_sum};
use crate::ecn;
use crate::error::HeaderError;
use crate::header::{
    IPV4_HEADER_LEN, IPV6_HEADER_LEN, IpView, Side, ipv4, ipv6, read_bytes, write_u16,
};

/// The most bytes any outer header takes: what a buffer keeps free in front of a packet.
pub const MAX_OVERHEAD: usize = IPV6_HEADER_LEN;

/// The largest value of IPv4's total length and IPv6's payload length, in bytes.
const MAX_LENGTH_FIELD: usize = u16::MAX as usize;

/// Why a tunnel cannot be described by the arguments given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TemplateError {
    /// One end is IPv4, the other IPv6.
    FamilyMismatch {
        /// The entry's address.
        source: IpAddr,
        /// The exit's address.
        destination: IpAddr,
    },
    /// A hop limit of 0 lets nothing leave the host.
    ZeroHopLimit,
}

impl fmt::Display for TemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FamilyMismatch { source, destination } => {
                write!(f, "a tunnel cannot go from {source} to {destination}: families differ")
            }
            Self::ZeroHopLimit => f.write_str("a tunnel's hop limit cannot be 0"),
        }
    }
}

impl core::error::Error for TemplateError {}

/// Why a packet was not wrapped. The buffer is unchanged then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EncapError {
    /// The range of the inner packet is not a range of the buffer.
    OutOfBuffer {
        /// Start of the range.
        start: usize,
        /// End of the range, exclusive.
        end: usize,
        /// Length of the buffer.
        buffer: usize,
    },
    /// Too little room in front of the inner packet.
    Headroom {
        /// Bytes the outer header takes.
        needed: usize,
        /// Bytes there are.
        actual: usize,
    },
    /// The inner packet's header is not one.
    Inner(HeaderError),
    /// The inner packet is shorter than the range: padding must not travel as part of it.
    TrailingBytes {
        /// Length the packet declares.
        declared: usize,
        /// Length of the range.
        actual: usize,
    },
    /// The outer packet would be longer than its length field can say.
    TooLong {
        /// Value the length field would need.
        needed: usize,
        /// Largest value it can hold.
        limit: usize,
    },
    /// The inner packet comes from the tunnel's exit: it is going in a circle (RFC 2003 §4).
    FromTunnelExit,
}

impl fmt::Display for EncapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfBuffer { start, end, buffer } => {
                write!(f, "inner packet {start}..{end} is outside the buffer of {buffer} bytes")
            }
            Self::Headroom { needed, actual } => {
                write!(f, "outer header needs {needed} bytes of headroom, has {actual}")
            }
            Self::Inner(error) => error.fmt(f),
            Self::TrailingBytes { declared, actual } => {
                write!(f, "inner packet declares {declared} bytes, was given {actual}")
            }
            Self::TooLong { needed, limit } => {
                write!(f, "outer length field would be {needed}, its limit is {limit}")
            }
            Self::FromTunnelExit => f.write_str("inner packet comes from the tunnel's own exit"),
        }
    }
}

impl core::error::Error for EncapError {}

/// The fields of an outer header that differ from packet to packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OuterFields {
    /// The DF bit of an IPv4 outer header. IPv6 has none, it always behaves as if set.
    pub dont_fragment: bool,
    /// Identification of an IPv4 outer header. Must be unique for the lifetime of a datagram when
    /// `dont_fragment` is false (RFC 6864 §4.3), and is the caller's to use otherwise.
    pub identification: u16,
    /// IPv6 flow label, see [`flow_label`]; bits above the twentieth are ignored.
    pub flow_label: u32,
}

/// Flow label for entropy that is stable over a flow, a hash of its tuple for instance, so that
/// routers spread flows and never reorder one (RFC 6437, RFC 6438). Never 0, which means "none".
#[inline]
#[must_use]
pub const fn flow_label(entropy: u32) -> u32 {
    let folded = (entropy ^ entropy >> 20) & FLOW_LABEL_MASK;
    if folded == 0 { 1 } else { folded }
}

/// The 20 bits of a flow label.
const FLOW_LABEL_MASK: u32 = 0x000f_ffff;

/// The outer header of one tunnel, with all fields filled in that do not depend on the packet.
///
/// The hop limit is the tunnel's own, not the inner packet's (RFC 2003 §3.1, RFC 2473 §6.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OuterTemplate {
    header: Template,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Template {
    V4 {
        header: [u8; IPV4_HEADER_LEN],
        /// Sum of `header`, in which all fields that vary are zero.
        sum: Sum,
    },
    V6 {
        header: [u8; IPV6_HEADER_LEN],
    },
}

impl OuterTemplate {
    /// A tunnel from `source` to `destination` whose outer packets start with `hop_limit`.
    ///
    /// # Errors
    /// The addresses are of different families, or the hop limit is 0.
    pub fn new(source: IpAddr, destination: IpAddr, hop_limit: u8) -> Result<Self, TemplateError> {
        if hop_limit == 0 {
            return Err(TemplateError::ZeroHopLimit);
        }
        let header = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                Template::ipv4(source, destination, hop_limit)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                Template::ipv6(source, destination, hop_limit)
            }
            _ => return Err(TemplateError::FamilyMismatch { source, destination }),
        };
        Ok(Self { header })
    }

    /// Bytes the outer header adds to a packet: 20 for IPv4, 40 for IPv6.
    #[inline]
    #[must_use]
    pub const fn overhead(&self) -> usize {
        match self.header {
            Template::V4 { .. } => IPV4_HEADER_LEN,
            Template::V6 { .. } => IPV6_HEADER_LEN,
        }
    }

    /// Whether the outer header is IPv4.
    #[inline]
    #[must_use]
    pub const fn is_ipv4(&self) -> bool {
        matches!(self.header, Template::V4 { .. })
    }

    /// The tunnel entry's address.
    #[must_use]
    pub fn source(&self) -> IpAddr {
        match &self.header {
            Template::V4 { header, .. } => {
                Ipv4Addr::from(read_bytes::<_, 4>(header, ipv4::SOURCE)).into()
            }
            Template::V6 { header } => {
                Ipv6Addr::from(read_bytes::<_, 16>(header, ipv6::SOURCE)).into()
            }
        }
    }

    /// The tunnel exit's address.
    #[must_use]
    pub fn destination(&self) -> IpAddr {
        match &self.header {
            Template::V4 { header, .. } => {
                Ipv4Addr::from(read_bytes::<_, 4>(header, ipv4::DESTINATION)).into()
            }
            Template::V6 { header } => {
                Ipv6Addr::from(read_bytes::<_, 16>(header, ipv6::DESTINATION)).into()
            }
        }
    }

    /// TTL or hop limit of the outer header.
    #[must_use]
    pub const fn hop_limit(&self) -> u8 {
        match &self.header {
            Template::V4 { header, .. } => header[ipv4::TTL],
            Template::V6 { header } => header[ipv6::HOP_LIMIT],
        }
    }

    /// Writes the outer header into the [`overhead`](Self::overhead) bytes in front of the inner
    /// packet, and gives the index where the outer packet starts. It ends where the inner one does.
    ///
    /// `buffer[inner]` is one whole IPv4 or IPv6 packet, of exactly the length that it declares.
    /// Not a bit of it is changed. DSCP and ECN are copied from it to the outer header.
    ///
    /// # Errors
    /// See [`EncapError`]; the buffer is unchanged then.
    #[inline]
    pub fn encapsulate(
        &self,
        buffer: &mut [u8],
        inner: Range<usize>,
        outer: OuterFields,
    ) -> Result<usize, EncapError> {
        let Range { start, end } = inner;
        let length = buffer.len();
        let Some((headroom, packet)) =
            buffer.get_mut(..end).and_then(|used| used.split_at_mut_checked(start))
        else {
            return Err(EncapError::OutOfBuffer { start, end, buffer: length });
        };
        let view = IpView::new(packet, Side::Inner).map_err(EncapError::Inner)?;
        if view.length() != packet.len() {
            return Err(EncapError::TrailingBytes {
                declared: view.length(),
                actual: packet.len(),
            });
        }
        match &self.header {
            Template::V4 { header, sum } => write_ipv4(header, *sum, headroom, &view, outer)?,
            Template::V6 { header } => write_ipv6(header, headroom, &view, outer)?,
        }
        Ok(start - self.overhead())
    }
}

impl Template {
    fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, ttl: u8) -> Self {
        let mut header = [0; IPV4_HEADER_LEN];
        header[0] = 0x45;
        header[ipv4::TTL] = ttl;
        header[ipv4::SOURCE..ipv4::SOURCE + 4].copy_from_slice(&source.octets());
        header[ipv4::DESTINATION..ipv4::DESTINATION + 4].copy_from_slice(&destination.octets());
        Self::V4 { sum: ones_complement_sum(&header), header }
    }

    fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, hop_limit: u8) -> Self {
        let mut header = [0; IPV6_HEADER_LEN];
        header[0] = 0x60;
        header[ipv6::HOP_LIMIT] = hop_limit;
        header[ipv6::SOURCE..ipv6::SOURCE + 16].copy_from_slice(&source.octets());
        header[ipv6::DESTINATION..ipv6::DESTINATION + 16].copy_from_slice(&destination.octets());
        Self::V6 { header }
    }
}

#[inline]
fn write_ipv4(
    template: &[u8; IPV4_HEADER_LEN],
    sum: Sum,
    headroom: &mut [u8],
    inner: &IpView<'_>,
    outer: OuterFields,
) -> Result<(), EncapError> {
    let actual = headroom.len();
    let Some(header) = headroom.last_chunk_mut::<IPV4_HEADER_LEN>() else {
        return Err(EncapError::Headroom { needed: IPV4_HEADER_LEN, actual });
    };
    if let IpView::V4 { header: inner, .. } = inner
        && inner[ipv4::SOURCE..ipv4::SOURCE + 4]
            == template[ipv4::DESTINATION..ipv4::DESTINATION + 4]
    {
        return Err(EncapError::FromTunnelExit);
    }
    let total_length = length_field(IPV4_HEADER_LEN + inner.length())?;
    let traffic_class = ecn::outer_traffic_class(inner.traffic_class());
    let flags = if outer.dont_fragment { ipv4::DONT_FRAGMENT } else { 0 };
    let protocol = inner.family().protocol();
    let checksum = sum
        .add_u16(u16::from(traffic_class))
        .add_u16(total_length)
        .add_u16(outer.identification)
        .add_u16(flags)
        .add_u16(u16::from(protocol))
        .finish();
    *header = *template;
    header[ipv4::TRAFFIC_CLASS] = traffic_class;
    write_u16(header, ipv4::TOTAL_LENGTH, total_length);
    write_u16(header, ipv4::IDENTIFICATION, outer.identification);
    write_u16(header, ipv4::FLAGS, flags);
    header[ipv4::PROTOCOL] = protocol;
    write_u16(header, ipv4::CHECKSUM, checksum);
    Ok(())
}

#[inline]
fn write_ipv6(
    template: &[u8; IPV6_HEADER_LEN],
    headroom: &mut [u8],
    inner: &IpView<'_>,
    outer: OuterFields,
) -> Result<(), EncapError> {
    let actual = headroom.len();
    let Some(header) = headroom.last_chunk_mut::<IPV6_HEADER_LEN>() else {
        return Err(EncapError::Headroom { needed: IPV6_HEADER_LEN, actual });
    };
    if let IpView::V6 { header: inner, .. } = inner
        && inner[ipv6::SOURCE..ipv6::SOURCE + 16]
            == template[ipv6::DESTINATION..ipv6::DESTINATION + 16]
    {
        return Err(EncapError::FromTunnelExit);
    }
    let payload_length = length_field(inner.length())?;
    let traffic_class = ecn::outer_traffic_class(inner.traffic_class());
    let first_word = 6 << 28 | u32::from(traffic_class) << 20 | outer.flow_label & FLOW_LABEL_MASK;
    *header = *template;
    header[..4].copy_from_slice(&first_word.to_be_bytes());
    write_u16(header, ipv6::PAYLOAD_LENGTH, payload_length);
    header[ipv6::NEXT_HEADER] = inner.family().protocol();
    Ok(())
}

#[inline]
fn length_field(needed: usize) -> Result<u16, EncapError> {
    u16::try_from(needed).map_err(|_| EncapError::TooLong { needed, limit: MAX_LENGTH_FIELD })
}
