//! Checked decapsulation: what a tunnel's exit verifies before it believes the packet inside.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::ops::Range;

use crate::checksum;
use crate::ecn::{self, Alarm, Ecn, Exit};
use crate::encapsulation::{
    GRE_CHECKSUM_HEADER_LEN, GRE_CHECKSUM_PRESENT, GRE_HEADER_LEN, GUE_HEADER_LEN, UDP_HEADER_LEN,
    ethertype,
};
use crate::error::{HeaderError, Layer, LenError};
use crate::header::{
    Family, IPV4_HEADER_LEN, IPV6_FRAGMENT_HEADER_LEN, IPV6_HEADER_LEN, IpView, PROTOCOL_GRE,
    PROTOCOL_IPV4, PROTOCOL_IPV6, PROTOCOL_UDP, Side, ipv4, ipv6, ipv6_traffic_class, read_bytes,
    read_u16,
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
    /// The checksum of the GRE header or of the outer UDP datagram is wrong.
    PayloadChecksum,
    /// A GRE or GUE header of another version, or with fields that are not read.
    Fields {
        /// Which header.
        layer: Layer,
        /// Its first two bytes.
        found: u16,
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
            Self::PayloadChecksum => f.write_str("checksum of the outer payload is wrong"),
            Self::Fields { layer, found } => {
                write!(f, "{layer} starts with {found:#06x}, which is not read")
            }
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
    /// Bytes before the inner packet: options, extension headers, GRE, UDP and GUE count.
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
    decapsulate_with(packet, None)
}

/// As [`decapsulate`], where UDP datagrams to `gue_port` are GUE.
///
/// # Errors
/// See [`DecapError`].
pub fn decapsulate_with(
    packet: &[u8],
    gue_port: Option<u16>,
) -> Result<Decapsulated<'_>, DecapError> {
    let (mut outer, protocol, payload) = match IpView::new(packet, Side::Outer)? {
        IpView::V4 { header, header_len, length } => {
            ipv4_outer(header, &packet[..length], header_len)?
        }
        IpView::V6 { header, length } => ipv6_outer(header, &packet[..length])?,
    };
    let (protocol, inner_start) = match protocol {
        PROTOCOL_GRE => open_gre(payload)?,
        PROTOCOL_UDP if gue_port.is_some() => open_gue(&outer, payload, gue_port)?,
        protocol => (protocol, 0),
    };
    outer.length += inner_start;
    let payload = &payload[inner_start..];
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

/// The protocol behind a GRE header, and where it starts. Keys, sequence numbers and routing are
/// not read.
fn open_gre(payload: &[u8]) -> Result<(u8, usize), DecapError> {
    let layer = Layer::Gre;
    let header = part::<GRE_HEADER_LEN>(payload, layer)?;
    let length = match read_u16(header, 0) {
        0 => GRE_HEADER_LEN,
        GRE_CHECKSUM_PRESENT => {
            part::<GRE_CHECKSUM_HEADER_LEN>(payload, layer)?;
            if !checksum::is_valid(checksum::ones_complement_sum(payload)) {
                return Err(DecapError::PayloadChecksum);
            }
            GRE_CHECKSUM_HEADER_LEN
        }
        found => return Err(DecapError::Fields { layer, found }),
    };
    let kind = read_u16(header, 2);
    let inner = [Family::V4, Family::V6].into_iter().find(|family| ethertype(*family) == kind);
    // What GRE carries otherwise has no protocol number of its own: it is named by GRE's.
    inner.map_or(Err(DecapError::Protocol { found: PROTOCOL_GRE }), |f| Ok((f.protocol(), length)))
}

/// The protocol behind UDP and GUE headers, and where it starts.
fn open_gue(
    outer: &OuterHeader,
    payload: &[u8],
    gue_port: Option<u16>,
) -> Result<(u8, usize), DecapError> {
    let layer = Layer::OuterUdp;
    let udp = part::<UDP_HEADER_LEN>(payload, layer)?;
    if Some(read_u16(udp, 2)) != gue_port {
        return Err(DecapError::Protocol { found: PROTOCOL_UDP });
    }
    let length = usize::from(read_u16(udp, 4));
    // An IP payload longer than its datagram is nobody's; one that is shorter is cut.
    if length != payload.len() {
        return Err(LenError { layer, needed: length, actual: payload.len() }.into());
    }
    if read_u16(udp, 6) != 0 {
        let pseudo_header = checksum::Sum::ZERO
            .add(address_sum(outer.source))
            .add(address_sum(outer.destination))
            .add_u16(u16::from(PROTOCOL_UDP))
            .add_u16(read_u16(udp, 4));
        let sum = pseudo_header.add(checksum::ones_complement_sum(payload));
        if !checksum::is_valid(sum) {
            return Err(DecapError::PayloadChecksum);
        }
    }
    let header = part::<GUE_HEADER_LEN>(&payload[UDP_HEADER_LEN..], Layer::Gue)?;
    // Variant, control bit and header length in the first byte, flags in the last two.
    match (header[0], read_u16(header, 2)) {
        (0, 0) => Ok((header[1], UDP_HEADER_LEN + GUE_HEADER_LEN)),
        _ => Err(DecapError::Fields { layer: Layer::Gue, found: read_u16(header, 0) }),
    }
}

fn address_sum(address: IpAddr) -> checksum::Sum {
    match address {
        IpAddr::V4(v4) => checksum::ones_complement_sum(&v4.octets()),
        IpAddr::V6(v6) => checksum::ones_complement_sum(&v6.octets()),
    }
}

/// The fixed header at the start of `bytes`.
fn part<const N: usize>(bytes: &[u8], layer: Layer) -> Result<&[u8; N], LenError> {
    bytes.first_chunk::<N>().ok_or(LenError { layer, needed: N, actual: bytes.len() })
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

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    const INNER_V4: [u8; 20] =
        [0x45, 0, 0, 20, 0, 0, 0, 0, 63, 59, 0, 0, 192, 0, 2, 1, 198, 51, 100, 10];

    /// An outer IPv4 packet; `change` may spoil its header before the checksum is computed.
    fn ipv4_outer(change: impl FnOnce(&mut [u8]), payload: &[u8]) -> Vec<u8> {
        let mut header = [0x45, 0, 0, 0, 0, 1, 0, 0, 64, 4, 0, 0, 10, 0, 0, 5, 10, 20, 0, 11];
        let length = u16::try_from(header.len() + payload.len()).unwrap();
        header[2..4].copy_from_slice(&length.to_be_bytes());
        change(&mut header);
        let checksum = checksum::ipv4_header_checksum(&header);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        [&header, payload].concat()
    }

    fn ipv6_outer(next_header: u8, payload: &[u8]) -> Vec<u8> {
        let mut header = [0; 40];
        header[0] = 0x60;
        header[4..6].copy_from_slice(&u16::try_from(payload.len()).unwrap().to_be_bytes());
        header[6] = next_header;
        header[7] = 64;
        [&header, payload].concat()
    }

    fn length(layer: Layer, needed: usize, actual: usize) -> DecapError {
        LenError { layer, needed, actual }.into()
    }

    #[test]
    fn a_spoilt_outer_header_is_refused_by_name() {
        use crate::error::HeaderError::{HeaderLength, Version};
        let layer = Layer::OuterIpv4;
        let v4 = |change: fn(&mut [u8])| ipv4_outer(change, &INNER_V4);
        let cases: [(&str, Vec<u8>, DecapError); 11] = [
            ("nothing", Vec::new(), length(Layer::Outer, 1, 0)),
            ("version 5", v4(|h| h[0] = 0x55), Version { layer: Layer::Outer, found: 5 }.into()),
            ("header of 16", v4(|h| h[0] = 0x44), HeaderLength { layer, found: 16 }.into()),
            ("total below header", v4(|h| h[3] = 19), length(layer, 20, 19)),
            ("total beyond packet", v4(|h| h[3] = 41), length(layer, 41, 40)),
            ("more fragments", v4(|h| h[6] = 0x20), DecapError::Fragment),
            ("later fragment", v4(|h| h[7] = 1), DecapError::Fragment),
            ("TCP", v4(|h| h[9] = 6), DecapError::Protocol { found: 6 }),
            ("41 with IPv4 inside", v4(|h| h[9] = 41), length(Layer::InnerIpv6, 40, 20)),
            ("UDP over IPv6", ipv6_outer(17, &INNER_V4), DecapError::Protocol { found: 17 }),
            ("nothing inside", ipv4_outer(|_| (), &[]), length(Layer::InnerIpv4, 20, 0)),
        ];
        for (what, packet, expected) in cases {
            assert_eq!(decapsulate(&packet), Err(expected), "{what}");
        }
    }

    #[test]
    fn the_protocol_and_the_version_inside_must_agree() {
        let mut inner_v6 = [0; 40];
        inner_v6[0] = 0x60;
        let mismatch = |layer, found| HeaderError::Version { layer, found }.into();
        assert_eq!(decapsulate(&ipv6_outer(4, &inner_v6)), Err(mismatch(Layer::InnerIpv4, 6)));
        let mut inner_v4 = [0; 40];
        inner_v4[..20].copy_from_slice(&INNER_V4);
        assert_eq!(decapsulate(&ipv6_outer(41, &inner_v4)), Err(mismatch(Layer::InnerIpv6, 4)));
    }

    #[test]
    fn a_bad_outer_checksum_is_named_with_the_right_one() {
        let mut packet = ipv4_outer(|_| (), &INNER_V4);
        let expected = u16::from_be_bytes([packet[10], packet[11]]);
        packet[11] ^= 0x40;
        let found = expected ^ 0x40;
        assert_eq!(decapsulate(&packet), Err(DecapError::Checksum { found, expected }));
    }

    #[test]
    fn outer_options_are_skipped_and_summed() {
        let mut packet = ipv4_outer(|_| (), &[&[1, 1, 1, 1], &INNER_V4[..]].concat());
        packet[0] = 0x46;
        let checksum = checksum::ipv4_header_checksum(&packet[..24]);
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        let out = decapsulate(&packet).unwrap();
        assert_eq!((out.inner, out.outer.length), (&INNER_V4[..], 24));
        packet[21] = 0;
        assert!(matches!(decapsulate(&packet), Err(DecapError::Checksum { .. })));
    }

    /// What Linux's ip6tnl sends by default: one destination option, the encapsulation limit.
    const ENCAPSULATION_LIMIT: [u8; 8] = [4, 0, 4, 1, 4, 1, 1, 0];

    #[test]
    fn ipv6_extension_headers_are_walked() {
        let chain = |headers: &[&[u8]]| [&headers.concat(), &INNER_V4[..]].concat();
        let mut hop_by_hop = [0; 16];
        hop_by_hop[..2].copy_from_slice(&[60, 1]);
        let atomic = [4, 0, 0, 0, 1, 2, 3, 4];
        let cases = [
            (60, chain(&[&ENCAPSULATION_LIMIT]), 48),
            (0, chain(&[&hop_by_hop, &ENCAPSULATION_LIMIT]), 64),
            (44, chain(&[&atomic]), 48),
        ];
        for (next_header, payload, start) in cases {
            let packet = ipv6_outer(next_header, &payload);
            let out = decapsulate(&packet).unwrap();
            assert_eq!((out.inner, out.outer.length), (&INNER_V4[..], start));
            // Cut off anywhere between: the layer that is short says so.
            for actual in 40..start {
                let mut cut = packet[..actual].to_vec();
                cut[4..6].copy_from_slice(&u16::try_from(actual - 40).unwrap().to_be_bytes());
                let Err(DecapError::Header(HeaderError::Length(error))) = decapsulate(&cut) else {
                    panic!("{actual} of {start} bytes were accepted");
                };
                assert_eq!(error.layer, Layer::OuterIpv6Extension);
                assert!(error.actual < error.needed && error.needed <= 16, "{error:?}");
            }
        }
    }

    #[test]
    fn ipv6_fragments_and_endless_chains_are_refused() {
        for spoilt in [[4, 0, 0, 1, 0, 0, 0, 0], [4, 0, 0, 8, 0, 0, 0, 0]] {
            let packet = ipv6_outer(44, &[&spoilt, &INNER_V4[..]].concat());
            assert_eq!(decapsulate(&packet), Err(DecapError::Fragment));
        }
        let four = [60, 0, 1, 4, 0, 0, 0, 0].repeat(3);
        let payload = |headers: &[u8]| [headers, &ENCAPSULATION_LIMIT, &INNER_V4].concat();
        assert_eq!(decapsulate(&ipv6_outer(60, &payload(&four))).unwrap().outer.length, 72);
        let five = [60, 0, 1, 4, 0, 0, 0, 0].repeat(4);
        assert_eq!(
            decapsulate(&ipv6_outer(60, &payload(&five))),
            Err(DecapError::ExtensionHeaders)
        );
    }

    #[test]
    fn congestion_marked_outside_reaches_those_who_can_hear_it() {
        let inner = |ecn: Ecn| {
            let mut packet = INNER_V4;
            packet[1] = ecn.bits();
            packet
        };
        let marked = ipv4_outer(|h| h[1] = 3, &inner(Ecn::Ect0));
        let out = decapsulate(&marked).unwrap();
        assert_eq!((out.ecn, out.ecn_alarm), (Ecn::Ce, Alarm::None));
        assert_eq!(Ecn::of(out.inner[1]), Ecn::Ect0, "the view is as received");

        let odd = ipv4_outer(|h| h[1] = 2, &inner(Ecn::NotEct));
        let out = decapsulate(&odd).unwrap();
        assert_eq!((out.ecn, out.ecn_alarm), (Ecn::NotEct, Alarm::Dangerous));

        let lost = ipv4_outer(|h| h[1] = 3, &inner(Ecn::NotEct));
        assert_eq!(decapsulate(&lost), Err(DecapError::CongestionWithoutEct));
    }

    #[test]
    fn gre_and_gue_headers_that_are_not_read_are_refused_by_name() {
        let gre = |header: &[u8]| ipv4_outer(|h| h[9] = 47, &[header, &INNER_V4].concat());
        let fields = |layer, found| Err(DecapError::Fields { layer, found });
        assert_eq!(decapsulate(&gre(&[0, 0, 8, 0])).unwrap().inner, INNER_V4);
        // A key, a sequence number, routing, version 1.
        for flags in [0x2000_u16, 0x1000, 0x4000, 1] {
            let [high, low] = flags.to_be_bytes();
            assert_eq!(decapsulate(&gre(&[high, low, 8, 0])), fields(Layer::Gre, flags));
        }
        let bridged = gre(&[0, 0, 0x65, 0x58]);
        assert_eq!(decapsulate(&bridged), Err(DecapError::Protocol { found: 47 }));
        assert_eq!(decapsulate(&ipv4_outer(|h| h[9] = 47, &[0; 3])), Err(length(Layer::Gre, 4, 3)));

        let gue = |header: &[u8]| {
            let datagram = [&[0xc0, 1, 0x17, 0xc0, 0, 32, 0, 0], header, &INNER_V4].concat();
            ipv4_outer(|h| h[9] = 17, &datagram)
        };
        let open = |packet: &[u8]| decapsulate_with(packet, Some(6080)).map(|out| out.inner.len());
        assert_eq!(open(&gue(&[0, 4, 0, 0])), Ok(20));
        // A control message, another variant, optional fields, flags.
        for header in [[0x20, 4, 0, 0], [0x40, 4, 0, 0], [1, 4, 0, 0], [0, 4, 0, 1]] {
            let found = u16::from_be_bytes([header[0], header[1]]);
            assert_eq!(open(&gue(&header)), Err(DecapError::Fields { layer: Layer::Gue, found }));
        }
        let short = ipv4_outer(|h| h[9] = 17, &[0xc0, 1, 0x17, 0xc0, 0, 40, 0, 0, 0, 4, 0, 0]);
        assert_eq!(open(&short), Err(length(Layer::OuterUdp, 40, 12)));
        let to_another_port = gue(&[0, 4, 0, 0]);
        assert_eq!(
            decapsulate_with(&to_another_port, Some(6081)),
            Err(DecapError::Protocol { found: 17 })
        );
    }

    #[test]
    fn padding_outside_and_inside_is_cut_off() {
        let packet = ipv4_outer(|_| (), &[&INNER_V4[..], &[0; 3]].concat());
        let padded = [&packet[..], &[0; 7]].concat();
        let out = decapsulate(&padded).unwrap();
        assert_eq!((out.inner, out.inner_range()), (&INNER_V4[..], 20..40));
    }
}
