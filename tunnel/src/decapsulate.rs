//! Checked decapsulation: what a tunnel's exit verifies before it believes the packet inside.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::ops::Range;

use crate::checksum;
use crate::ecn::{self, Alarm, Ecn, Exit};
use crate::error::{HeaderError, Layer, LenError};
use crate::header::{
    Family, IPV4_HEADER_LEN, IPV6_FRAGMENT_HEADER_LEN, IPV6_HEADER_LEN, IpView, PROTOCOL_IPV4,
    PROTOCOL_IPV6, Side, ipv4, ipv6, ipv6_traffic_class, read_bytes, read_u16,
};

/// Extension headers that are walked before the inner packet. RFC 8200 §4.1 has each kind once,
/// destination options twice; Linux's ip6tnl sends one (the tunnel encapsulation limit).
const MAX_EXTENSION_HEADERS: usize = 4;

/// Why a packet was not unwrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DecapError {
    /// A header is not one, or something is longer than what is there.
    Header(HeaderError),
    /// The outer IPv4 header's checksum is wrong.
    Checksum {
        /// What the header holds.
        found: u16,
        /// What it should hold.
        expected: u16,
    },
    /// A fragment of an outer packet: it must be reassembled first.
    Fragment,
    /// The outer packet carries something that is not an IP packet.
    Protocol {
        /// The protocol or next-header number.
        found: u8,
    },
    /// More extension headers than are walked.
    ExtensionHeaders,
    /// Congestion was marked outside a packet whose flow only understands loss (RFC 6040 §4.2).
    CongestionWithoutEct,
}

impl fmt::Display for DecapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(error) => error.fmt(f),
            Self::Checksum { found, expected } => {
                write!(f, "outer IPv4 checksum is {found:#06x}, should be {expected:#06x}")
            }
            Self::Fragment => f.write_str("outer packet is a fragment"),
            Self::Protocol { found } => write!(f, "outer packet carries protocol {found}, not IP"),
            Self::ExtensionHeaders => {
                write!(f, "outer packet has more than {MAX_EXTENSION_HEADERS} extension headers")
            }
            Self::CongestionWithoutEct => {
                f.write_str("congestion marked on a flow without congestion notification")
            }
        }
    }
}

impl core::error::Error for DecapError {}

impl From<HeaderError> for DecapError {
    fn from(error: HeaderError) -> Self {
        Self::Header(error)
    }
}

impl From<LenError> for DecapError {
    fn from(error: LenError) -> Self {
        Self::Header(error.into())
    }
}

/// The outer header of a packet that was unwrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OuterHeader {
    /// The tunnel entry's address.
    pub source: IpAddr,
    /// The tunnel exit's address.
    pub destination: IpAddr,
    /// TTL or hop limit as received.
    pub hop_limit: u8,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// The DF bit; true for IPv6, which is never fragmented on the way.
    pub dont_fragment: bool,
    /// Identification of an IPv4 header; 0 for IPv6.
    pub identification: u16,
    /// Flow label of an IPv6 header; 0 for IPv4.
    pub flow_label: u32,
    /// Bytes before the inner packet: options and extension headers count.
    pub length: usize,
}

/// A packet that was unwrapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decapsulated<'a> {
    /// What stood around it.
    pub outer: OuterHeader,
    /// The inner packet, cut to the length that it declares.
    pub inner: &'a [u8],
    /// Its family.
    pub family: Family,
    /// The codepoint that the inner packet goes on with; [`ecn::set`] writes it.
    pub ecn: Ecn,
    /// Whether the two codepoints fit together.
    pub ecn_alarm: Alarm,
}

impl Decapsulated<'_> {
    /// Where the inner packet is in the slice given to [`decapsulate`].
    #[must_use]
    pub const fn inner_range(&self) -> Range<usize> {
        self.outer.length..self.outer.length + self.inner.len()
    }
}

/// Checks the outer packet at the start of `packet` and gives the inner one.
///
/// Bytes behind the length that a packet declares are ignored, as an IP receiver does (Ethernet
/// pads short frames). The inner packet's version, header length and length are checked; its
/// checksums are its receiver's to verify.
///
/// # Errors
/// See [`DecapError`].
pub fn decapsulate(packet: &[u8]) -> Result<Decapsulated<'_>, DecapError> {
    let (outer, protocol, payload) = match IpView::new(packet, Side::Outer)? {
        IpView::V4 { header, header_len, length } => {
            ipv4_outer(header, &packet[..length], header_len)?
        }
        IpView::V6 { header, length } => ipv6_outer(header, &packet[..length])?,
    };
    let inner = match protocol {
        PROTOCOL_IPV4 => IpView::ipv4(payload, Layer::InnerIpv4)?,
        PROTOCOL_IPV6 => IpView::ipv6(payload, Layer::InnerIpv6)?,
        found => return Err(DecapError::Protocol { found }),
    };
    match ecn::exit(Ecn::of(inner.traffic_class()), Ecn::of(outer.traffic_class)) {
        Exit::Drop => Err(DecapError::CongestionWithoutEct),
        Exit::Forward(ecn, ecn_alarm) => Ok(Decapsulated {
            outer,
            inner: &payload[..inner.length()],
            family: inner.family(),
            ecn,
            ecn_alarm,
        }),
    }
}

/// An outer header, the protocol behind it, and what it carries.
type Opened<'a> = (OuterHeader, u8, &'a [u8]);

fn ipv4_outer<'a>(
    header: &[u8; IPV4_HEADER_LEN],
    packet: &'a [u8],
    length: usize,
) -> Result<Opened<'a>, DecapError> {
    let (whole_header, payload) = packet.split_at(length);
    if !checksum::is_valid(checksum::ones_complement_sum(whole_header)) {
        return Err(DecapError::Checksum {
            found: read_u16(header, ipv4::CHECKSUM),
            expected: checksum::ipv4_header_checksum(whole_header),
        });
    }
    let flags = read_u16(header, ipv4::FLAGS);
    if flags & (ipv4::MORE_FRAGMENTS | ipv4::OFFSET_MASK) != 0 {
        return Err(DecapError::Fragment);
    }
    let outer = OuterHeader {
        source: Ipv4Addr::from(read_bytes::<_, 4>(header, ipv4::SOURCE)).into(),
        destination: Ipv4Addr::from(read_bytes::<_, 4>(header, ipv4::DESTINATION)).into(),
        hop_limit: header[ipv4::TTL],
        traffic_class: header[ipv4::TRAFFIC_CLASS],
        dont_fragment: flags & ipv4::DONT_FRAGMENT != 0,
        identification: read_u16(header, ipv4::IDENTIFICATION),
        flow_label: 0,
        length,
    };
    Ok((outer, header[ipv4::PROTOCOL], payload))
}

fn ipv6_outer<'a>(
    header: &[u8; IPV6_HEADER_LEN],
    packet: &'a [u8],
) -> Result<Opened<'a>, DecapError> {
    let (protocol, payload) =
        skip_extension_headers(header[ipv6::NEXT_HEADER], &packet[IPV6_HEADER_LEN..])?;
    let outer = OuterHeader {
        source: Ipv6Addr::from(read_bytes::<_, 16>(header, ipv6::SOURCE)).into(),
        destination: Ipv6Addr::from(read_bytes::<_, 16>(header, ipv6::DESTINATION)).into(),
        hop_limit: header[ipv6::HOP_LIMIT],
        traffic_class: ipv6_traffic_class(header),
        dont_fragment: true,
        identification: 0,
        flow_label: u32::from_be_bytes([0, header[1] & 0x0f, header[2], header[3]]),
        length: packet.len() - payload.len(),
    };
    Ok((outer, protocol, payload))
}

/// Walks options and whole-datagram fragment headers, up to the first header that is neither.
fn skip_extension_headers(mut next_header: u8, mut rest: &[u8]) -> Result<(u8, &[u8]), DecapError> {
    for _ in 0..=MAX_EXTENSION_HEADERS {
        let length = match next_header {
            ipv6::NEXT_HOP_BY_HOP | ipv6::NEXT_DESTINATION_OPTIONS => {
                8 + 8 * usize::from(extension_header(rest, 8)?[1])
            }
            ipv6::NEXT_FRAGMENT => {
                let fragment = extension_header(rest, IPV6_FRAGMENT_HEADER_LEN)?;
                // Offset and M flag both zero: an atomic fragment is whole (RFC 6946).
                if u16::from_be_bytes([fragment[2], fragment[3]]) & 0xfff9 != 0 {
                    return Err(DecapError::Fragment);
                }
                IPV6_FRAGMENT_HEADER_LEN
            }
            _ => return Ok((next_header, rest)),
        };
        next_header = extension_header(rest, length)?[0];
        rest = &rest[length..];
    }
    Err(DecapError::ExtensionHeaders)
}

/// The first `needed` bytes of an extension header.
fn extension_header(rest: &[u8], needed: usize) -> Result<&[u8], LenError> {
    let layer = Layer::OuterIpv6Extension;
    rest.get(..needed).ok_or(LenError { layer, needed, actual: rest.len() })
}
