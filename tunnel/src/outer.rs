//! The outer header: a template per tunnel, written into the headroom before each packet.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::ops::Range;

use crate::checksum::{Sum, ones_complement_sum};
use crate::ecn;
use crate::encapsulation::{Encapsulation, MAX_ENCAPSULATION};
use crate::error::HeaderError;
use crate::header::{
    IPV4_HEADER_LEN, IPV6_HEADER_LEN, IpView, Side, ipv4, ipv6, read_bytes, write_u16,
};

/// The most bytes any outer headers take: what a buffer keeps free in front of a packet.
pub const MAX_OVERHEAD: usize = IPV6_HEADER_LEN + MAX_ENCAPSULATION;

/// Bytes of a packet's payload that every ICMP error quotes (RFC 792).
const QUOTED: usize = 8;

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
    /// Stable over a flow, a hash of its tuple for instance: the UDP source port of GUE takes its
    /// lower 14 bits, so that receivers spread flows over queues and never reorder one.
    pub entropy: u16,
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
    encapsulation: Encapsulation,
    /// Length of what `encapsulation` puts between, in bytes.
    between: usize,
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
    /// A tunnel of IP in IP from `source` to `destination` whose outer packets start with
    /// `hop_limit`.
    ///
    /// # Errors
    /// The addresses are of different families, or the hop limit is 0.
    pub fn new(source: IpAddr, destination: IpAddr, hop_limit: u8) -> Result<Self, TemplateError> {
        Self::with(Encapsulation::Ipip, source, destination, hop_limit)
    }

    /// The same of any kind.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with(
        encapsulation: Encapsulation,
        source: IpAddr,
        destination: IpAddr,
        hop_limit: u8,
    ) -> Result<Self, TemplateError> {
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
        Ok(Self { header, encapsulation, between: encapsulation.len() })
    }

    /// Bytes the outer headers add to a packet: 20 for IPv4, 40 for IPv6, and what the
    /// encapsulation has of its own.
    #[inline]
    #[must_use]
    pub const fn overhead(&self) -> usize {
        self.ip_header_len() + self.between
    }

    /// Length of the outer IP header.
    #[inline]
    const fn ip_header_len(&self) -> usize {
        match self.header {
            Template::V4 { .. } => IPV4_HEADER_LEN,
            Template::V6 { .. } => IPV6_HEADER_LEN,
        }
    }

    /// How packets are carried.
    #[inline]
    #[must_use]
    pub const fn encapsulation(&self) -> Encapsulation {
        self.encapsulation
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

    /// Writes the outer headers into the [`overhead`](Self::overhead) bytes in front of the inner
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
        self.encapsulate_with(buffer, inner, outer, |_| outer.identification)
    }

    /// As [`encapsulate`](Self::encapsulate), with an identification that is computed from what
    /// follows the outer IP header, of which it is given the first 8 bytes or more: those every
    /// router quotes (RFC 792). It is asked for only where the header has one, that is, over IPv4.
    ///
    /// # Errors
    /// See [`EncapError`]; the buffer is unchanged then.
    #[inline]
    pub fn encapsulate_with(
        &self,
        buffer: &mut [u8],
        inner: Range<usize>,
        outer: OuterFields,
        identification: impl FnOnce(&[u8]) -> u16,
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
        let packet: &[u8] = packet;
        let family = view.family();
        let mut first = [0; QUOTED];
        let (headroom, payload, protocol) = if self.between == 0 {
            (headroom, packet, family.protocol())
        } else {
            let front = self.write_between(headroom, packet, &view, outer.entropy, &mut first)?;
            (front, &first[..], self.encapsulation.protocol(family))
        };
        let length = self.between + packet.len();
        match &self.header {
            Template::V4 { header, sum } => {
                let fields = (length, protocol, outer.dont_fragment);
                let identification = || identification(payload);
                write_ipv4(header, *sum, headroom, &view, fields, identification)?;
            }
            Template::V6 { header } => {
                write_ipv6(header, headroom, &view, (length, protocol, outer.flow_label))?;
            }
        }
        Ok(start - self.overhead())
    }

    /// Writes what stands between outer IP header and inner packet. Gives what is in front of it, and
    /// in `first` the beginning of the outer packet's payload. Apart, so that the usual case of IP in
    /// IP does not carry it along.
    #[inline(never)]
    fn write_between<'b>(
        &self,
        headroom: &'b mut [u8],
        packet: &[u8],
        inner: &IpView<'_>,
        entropy: u16,
        first: &mut [u8; QUOTED],
    ) -> Result<&'b mut [u8], EncapError> {
        let (needed, actual) = (self.overhead(), headroom.len());
        // All that could go wrong goes wrong before anything is written.
        if actual < needed {
            return Err(EncapError::Headroom { needed, actual });
        }
        match &self.header {
            Template::V4 { header, .. } => not_from_exit_v4(header, inner)?,
            Template::V6 { header } => not_from_exit_v6(header, inner)?,
        }
        length_field(match self.header {
            Template::V4 { .. } => needed + packet.len(),
            Template::V6 { .. } => self.between + packet.len(),
        })?;
        let (front, between) = headroom.split_at_mut(actual - self.between);
        let addresses = || self.address_sum();
        self.encapsulation.write(between, packet, inner.family(), addresses, entropy);
        for (to, from) in first.iter_mut().zip(between.iter().chain(packet)) {
            *to = *from;
        }
        Ok(front)
    }

    /// Sum of both addresses, for pseudo-headers.
    fn address_sum(&self) -> Sum {
        match &self.header {
            Template::V4 { header, .. } => ones_complement_sum(&header[ipv4::SOURCE..]),
            Template::V6 { header } => ones_complement_sum(&header[ipv6::SOURCE..]),
        }
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

/// A packet that comes from the tunnel's exit is not sent there again (RFC 2003 §4).
#[inline]
fn not_from_exit_v4(
    template: &[u8; IPV4_HEADER_LEN],
    inner: &IpView<'_>,
) -> Result<(), EncapError> {
    if let IpView::V4 { header: inner, .. } = inner
        && inner[ipv4::SOURCE..ipv4::SOURCE + 4]
            == template[ipv4::DESTINATION..ipv4::DESTINATION + 4]
    {
        return Err(EncapError::FromTunnelExit);
    }
    Ok(())
}

/// The same over IPv6.
#[inline]
fn not_from_exit_v6(
    template: &[u8; IPV6_HEADER_LEN],
    inner: &IpView<'_>,
) -> Result<(), EncapError> {
    if let IpView::V6 { header: inner, .. } = inner
        && inner[ipv6::SOURCE..ipv6::SOURCE + 16]
            == template[ipv6::DESTINATION..ipv6::DESTINATION + 16]
    {
        return Err(EncapError::FromTunnelExit);
    }
    Ok(())
}

/// Writes an outer IPv4 header to the end of `headroom`. `length` is that of its payload.
#[inline]
fn write_ipv4(
    template: &[u8; IPV4_HEADER_LEN],
    sum: Sum,
    headroom: &mut [u8],
    inner: &IpView<'_>,
    (length, protocol, dont_fragment): (usize, u8, bool),
    identification: impl FnOnce() -> u16,
) -> Result<(), EncapError> {
    let actual = headroom.len();
    let Some(header) = headroom.last_chunk_mut::<IPV4_HEADER_LEN>() else {
        return Err(EncapError::Headroom { needed: IPV4_HEADER_LEN, actual });
    };
    not_from_exit_v4(template, inner)?;
    let total_length = length_field(IPV4_HEADER_LEN + length)?;
    let traffic_class = ecn::outer_traffic_class(inner.traffic_class());
    let flags = if dont_fragment { ipv4::DONT_FRAGMENT } else { 0 };
    let identification = identification();
    let checksum = sum
        .add_u16(u16::from(traffic_class))
        .add_u16(total_length)
        .add_u16(identification)
        .add_u16(flags)
        .add_u16(u16::from(protocol))
        .finish();
    *header = *template;
    header[ipv4::TRAFFIC_CLASS] = traffic_class;
    write_u16(header, ipv4::TOTAL_LENGTH, total_length);
    write_u16(header, ipv4::IDENTIFICATION, identification);
    write_u16(header, ipv4::FLAGS, flags);
    header[ipv4::PROTOCOL] = protocol;
    write_u16(header, ipv4::CHECKSUM, checksum);
    Ok(())
}

/// Writes an outer IPv6 header to the end of `headroom`. `length` is that of its payload.
#[inline]
fn write_ipv6(
    template: &[u8; IPV6_HEADER_LEN],
    headroom: &mut [u8],
    inner: &IpView<'_>,
    (length, protocol, flow_label): (usize, u8, u32),
) -> Result<(), EncapError> {
    let actual = headroom.len();
    let Some(header) = headroom.last_chunk_mut::<IPV6_HEADER_LEN>() else {
        return Err(EncapError::Headroom { needed: IPV6_HEADER_LEN, actual });
    };
    not_from_exit_v6(template, inner)?;
    let payload_length = length_field(length)?;
    let traffic_class = ecn::outer_traffic_class(inner.traffic_class());
    let first_word = 6 << 28 | u32::from(traffic_class) << 20 | flow_label & FLOW_LABEL_MASK;
    *header = *template;
    header[..4].copy_from_slice(&first_word.to_be_bytes());
    write_u16(header, ipv6::PAYLOAD_LENGTH, payload_length);
    header[ipv6::NEXT_HEADER] = protocol;
    Ok(())
}

#[inline]
fn length_field(needed: usize) -> Result<u16, EncapError> {
    u16::try_from(needed).map_err(|_| EncapError::TooLong { needed, limit: MAX_LENGTH_FIELD })
}

#[cfg(test)]
mod tests {
    use std::vec;
    use std::vec::Vec;

    use super::*;
    use crate::error::{Layer, LenError};

    const FROM_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 5));
    const TO_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 20, 0, 11));
    const FROM_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 5));
    const TO_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 11));

    fn over_v4() -> OuterTemplate {
        OuterTemplate::new(FROM_V4, TO_V4, 64).unwrap()
    }

    fn over_v6() -> OuterTemplate {
        OuterTemplate::new(FROM_V6, TO_V6, 64).unwrap()
    }

    /// An IPv4 packet of `length` bytes in all, behind 40 bytes of headroom.
    fn ipv4_inner(length: usize) -> Vec<u8> {
        let mut buffer = vec![0; 40 + length];
        buffer[40] = 0x45;
        buffer[42..44].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
        buffer
    }

    /// An IPv6 packet of `length` bytes in all, behind 40 bytes of headroom.
    fn ipv6_inner(length: usize) -> Vec<u8> {
        let mut buffer = vec![0; 40 + length];
        buffer[40] = 0x60;
        buffer[44..46].copy_from_slice(&u16::try_from(length - 40).unwrap().to_be_bytes());
        buffer
    }

    fn wrap(template: &OuterTemplate, buffer: &mut [u8]) -> Result<usize, EncapError> {
        let end = buffer.len();
        template.encapsulate(buffer, 40..end, OuterFields::default())
    }

    #[test]
    fn a_tunnel_has_two_ends_of_one_family_and_lets_packets_out() {
        for (source, destination) in [(FROM_V4, TO_V6), (FROM_V6, TO_V4)] {
            assert_eq!(
                OuterTemplate::new(source, destination, 64),
                Err(TemplateError::FamilyMismatch { source, destination })
            );
        }
        assert_eq!(OuterTemplate::new(FROM_V4, TO_V4, 0), Err(TemplateError::ZeroHopLimit));
        assert_eq!((over_v4().overhead(), over_v4().is_ipv4()), (20, true));
        assert_eq!((over_v6().overhead(), over_v6().is_ipv4()), (40, false));
        assert_eq!((over_v6().source(), over_v6().destination()), (FROM_V6, TO_V6));
        assert_eq!(over_v6().hop_limit(), 64);
    }

    /// The exact bytes, once for each family, written by hand from the RFCs.
    #[test]
    fn the_outer_header_is_this() {
        let fields = OuterFields {
            dont_fragment: true,
            identification: 0xbeef,
            flow_label: 0xfff_abcde,
            entropy: 0,
        };
        let mut buffer = ipv4_inner(21);
        buffer[41] = 0b1011_1010; // DSCP EF, ECT(0)
        assert_eq!(over_v4().encapsulate(&mut buffer, 40..61, fields), Ok(20));
        assert_eq!(
            buffer[20..40],
            [
                0x45, 0xba, 0x00, 0x29, 0xbe, 0xef, 0x40, 0x00, 0x40, 0x04, 0x67, 0x04, 10, 0, 0,
                5, 10, 20, 0, 11,
            ]
        );

        let mut buffer = ipv6_inner(41);
        buffer[40] = 0x6b; // the same traffic class, over a nibble boundary
        buffer[41] = 0xa0;
        assert_eq!(over_v6().encapsulate(&mut buffer, 40..81, fields), Ok(0));
        assert_eq!(buffer[..8], [0x6b, 0xaa, 0xbc, 0xde, 0x00, 0x29, 41, 64]);
        assert_eq!(buffer[8..24], [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5]);
        assert_eq!(buffer[24..40], [0x20, 1, 0x0d, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 11]);
    }

    #[test]
    fn the_length_field_bounds_the_packet_and_never_wraps() {
        let limit = 65_535;
        let too_long = |needed| Err(EncapError::TooLong { needed, limit });
        let cases = [
            (over_v4(), ipv4_inner(65_515), Ok(20)),
            (over_v4(), ipv4_inner(65_516), too_long(65_536)),
            (over_v4(), ipv4_inner(65_535), too_long(65_555)),
            (over_v4(), ipv6_inner(65_515), Ok(20)),
            (over_v4(), ipv6_inner(65_575), too_long(65_595)),
            (over_v6(), ipv4_inner(65_535), Ok(0)),
            (over_v6(), ipv6_inner(65_535), Ok(0)),
            (over_v6(), ipv6_inner(65_536), too_long(65_536)),
            (over_v6(), ipv6_inner(65_575), too_long(65_575)),
        ];
        for (template, mut buffer, expected) in cases {
            let before = buffer.clone();
            assert_eq!(wrap(&template, &mut buffer), expected);
            if expected.is_err() {
                assert_eq!(buffer, before);
            }
        }
    }

    #[test]
    fn the_range_must_be_one_of_the_buffer() {
        let mut buffer = ipv4_inner(20);
        #[expect(clippy::reversed_empty_ranges, reason = "the case under test")]
        let ranges = [40..61, 61..61, 60..40, usize::MAX..usize::MAX];
        for range in ranges {
            let expected =
                EncapError::OutOfBuffer { start: range.start, end: range.end, buffer: 60 };
            let result = over_v4().encapsulate(&mut buffer, range, OuterFields::default());
            assert_eq!(result, Err(expected));
        }
    }

    #[test]
    fn padding_does_not_travel() {
        for (template, mut buffer) in [(over_v4(), ipv4_inner(24)), (over_v6(), ipv6_inner(44))] {
            let declared = buffer.len() - 40;
            buffer.extend([0; 6]);
            assert_eq!(
                wrap(&template, &mut buffer),
                Err(EncapError::TrailingBytes { declared, actual: declared + 6 })
            );
        }
    }

    #[test]
    fn what_comes_from_the_exit_is_not_sent_back_there() {
        let IpAddr::V4(exit) = TO_V4 else { panic!("{TO_V4} is IPv4") };
        let mut buffer = ipv4_inner(20);
        buffer[52..56].copy_from_slice(&exit.octets());
        assert_eq!(wrap(&over_v4(), &mut buffer), Err(EncapError::FromTunnelExit));
        assert_eq!(wrap(&over_v6(), &mut buffer), Ok(0));

        let IpAddr::V6(exit) = TO_V6 else { panic!("{TO_V6} is IPv6") };
        let mut buffer = ipv6_inner(40);
        buffer[48..64].copy_from_slice(&exit.octets());
        assert_eq!(wrap(&over_v6(), &mut buffer), Err(EncapError::FromTunnelExit));
        assert_eq!(wrap(&over_v4(), &mut buffer), Ok(20));
    }

    #[test]
    fn only_ip_is_wrapped() {
        let inner = |error| Err(EncapError::Inner(error));
        let version = |found| inner(HeaderError::Version { layer: Layer::Inner, found });
        let mut arp = [0; 80];
        assert_eq!(wrap(&over_v4(), &mut arp), version(0));
        let mut buffer = ipv4_inner(24);
        buffer[40] = 0x44;
        let layer = Layer::InnerIpv4;
        assert_eq!(
            wrap(&over_v4(), &mut buffer),
            inner(HeaderError::HeaderLength { layer, found: 16 })
        );
        buffer[40] = 0x47;
        assert_eq!(
            wrap(&over_v4(), &mut buffer),
            inner(LenError { layer, needed: 28, actual: 24 }.into())
        );
    }

    #[test]
    fn a_flow_label_is_20_bits_and_never_none() {
        for entropy in [0, 1, 0x0010_0001, 0xfff0_0000, 0xffff_ffff, 0xdead_beef] {
            assert!((1..1 << 20).contains(&flow_label(entropy)), "{entropy:#x}");
        }
        assert_ne!(flow_label(0x0100_0000), flow_label(0x0200_0000), "the high bits count");
    }
}
