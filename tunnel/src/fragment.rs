//! Cutting an outer packet into pieces that fit a path: RFC 791 §2.3 and RFC 8200 §4.5.
//!
//! Used where the inner packet may not be asked to shrink: it has no DF bit, or it is IPv6 of no
//! more than 1280 bytes (RFC 2473 §7.1). The tunnel's exit puts the pieces together.

use core::fmt;
use core::iter::FusedIterator;

use crate::checksum;
use crate::error::HeaderError;
use crate::header::{
    IPV4_HEADER_LEN, IPV6_FRAGMENT_HEADER_LEN, IPV6_HEADER_LEN, IpView, Side, ipv4, ipv6, read_u16,
    write_u16,
};

/// Offsets are counted in units of this many bytes, in both families.
const OFFSET_UNIT: usize = 8;

/// Why a packet was not cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FragmentError {
    /// The packet's header is not one.
    Header(HeaderError),
    /// The slice is longer than the packet.
    TrailingBytes {
        /// Length the packet declares.
        declared: usize,
        /// Length of the slice.
        actual: usize,
    },
    /// The packet has the DF bit.
    DontFragment,
    /// The packet is a fragment itself.
    AlreadyFragment,
    /// IPv4 options, or IPv6 extension headers that belong into every piece: no outer header that
    /// this crate writes has them.
    Options,
    /// Not even 8 bytes of payload fit into a piece.
    MtuTooSmall {
        /// The least that would do.
        needed: usize,
        /// The MTU given.
        actual: usize,
    },
    /// The piece does not belong to this packet.
    WrongPiece,
    /// The output buffer is too short.
    OutputTooShort {
        /// Bytes the piece takes.
        needed: usize,
        /// Bytes there are.
        actual: usize,
    },
}

impl fmt::Display for FragmentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(error) => error.fmt(f),
            Self::TrailingBytes { declared, actual } => {
                write!(f, "packet declares {declared} bytes, was given {actual}")
            }
            Self::DontFragment => f.write_str("packet must not be fragmented"),
            Self::AlreadyFragment => f.write_str("packet is a fragment already"),
            Self::Options => f.write_str("packet has options that belong into every fragment"),
            Self::MtuTooSmall { needed, actual } => {
                write!(f, "an MTU of {actual} holds no fragment, the least is {needed}")
            }
            Self::WrongPiece => f.write_str("the piece lies outside the packet"),
            Self::OutputTooShort { needed, actual } => {
                write!(f, "fragment needs {needed} bytes of output, has {actual}")
            }
        }
    }
}

impl core::error::Error for FragmentError {}

/// One piece of a packet's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// First byte, counted in the payload behind the IP header; a multiple of 8.
    pub offset: usize,
    /// Bytes of payload; a multiple of 8 in all pieces but the last.
    pub length: usize,
    /// Whether pieces follow.
    pub more: bool,
}

impl Piece {
    /// Whether this is all of the packet, which then needs no cutting.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.offset == 0 && !self.more
    }
}

/// The pieces of a packet, first to last.
#[derive(Clone, Debug)]
pub struct Pieces {
    /// Where the next piece starts; `None` after the last.
    offset: Option<usize>,
    /// Length of the whole payload.
    total: usize,
    /// Most payload of a piece that others follow; a multiple of 8.
    step: usize,
    /// Most payload of the last piece.
    last: usize,
}

impl Iterator for Pieces {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        let offset = self.offset?;
        let left = self.total - offset;
        let more = left > self.last;
        let length = if more { self.step } else { left };
        self.offset = more.then_some(offset + length);
        Some(Piece { offset, length, more })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let pieces = self.offset.map_or(0, |offset| {
            1 + (self.total - offset).saturating_sub(self.last).div_ceil(self.step)
        });
        (pieces, Some(pieces))
    }
}

impl ExactSizeIterator for Pieces {}
impl FusedIterator for Pieces {}

/// What is the same for all pieces of one packet.
struct Source<'a> {
    packet: &'a [u8],
    /// The packet's own IP header, without a fragment header.
    header: Header<'a>,
}

#[derive(Clone, Copy)]
enum Header<'a> {
    V4(&'a [u8; IPV4_HEADER_LEN]),
    V6(&'a [u8; IPV6_HEADER_LEN]),
}

impl<'a> Source<'a> {
    fn new(packet: &'a [u8]) -> Result<Self, FragmentError> {
        let view = IpView::new(packet, Side::Outer).map_err(FragmentError::Header)?;
        if view.length() != packet.len() {
            let declared = view.length();
            return Err(FragmentError::TrailingBytes { declared, actual: packet.len() });
        }
        match view {
            IpView::V4 { header, header_len, .. } => {
                if header_len != IPV4_HEADER_LEN {
                    return Err(FragmentError::Options);
                }
                let flags = read_u16(header, ipv4::FLAGS);
                if flags & (ipv4::MORE_FRAGMENTS | ipv4::OFFSET_MASK) != 0 {
                    return Err(FragmentError::AlreadyFragment);
                }
                Ok(Self { packet, header: Header::V4(header) })
            }
            IpView::V6 { header, .. } => match header[ipv6::NEXT_HEADER] {
                ipv6::NEXT_FRAGMENT => Err(FragmentError::AlreadyFragment),
                ipv6::NEXT_HOP_BY_HOP | ipv6::NEXT_ROUTING | ipv6::NEXT_DESTINATION_OPTIONS => {
                    Err(FragmentError::Options)
                }
                _ => Ok(Self { packet, header: Header::V6(header) }),
            },
        }
    }

    const fn header_len(&self) -> usize {
        match self.header {
            Header::V4(_) => IPV4_HEADER_LEN,
            Header::V6(_) => IPV6_HEADER_LEN,
        }
    }

    /// Length of the header of a piece.
    const fn piece_header_len(&self) -> usize {
        match self.header {
            Header::V4(_) => IPV4_HEADER_LEN,
            Header::V6(_) => IPV6_HEADER_LEN + IPV6_FRAGMENT_HEADER_LEN,
        }
    }

    /// Whether an IPv4 header forbids what is about to be done. IPv6 forbids it to routers only.
    const fn forbids_fragments(&self) -> bool {
        match self.header {
            Header::V4(header) => read_u16(header, ipv4::FLAGS) & ipv4::DONT_FRAGMENT != 0,
            Header::V6(_) => false,
        }
    }
}

/// Plans the pieces of `outer_packet`, each at most `mtu` bytes with its headers. A packet that
/// fits is one piece, [whole](Piece::is_whole).
///
/// # Errors
/// See [`FragmentError`]; DF and a small MTU matter only to a packet that does not fit.
pub fn plan(outer_packet: &[u8], mtu: usize) -> Result<Pieces, FragmentError> {
    let source = Source::new(outer_packet)?;
    let total = outer_packet.len() - source.header_len();
    if outer_packet.len() <= mtu {
        // One step suffices; it is never 0, so that the count of pieces can be computed.
        return Ok(Pieces { offset: Some(0), total, step: OFFSET_UNIT, last: total });
    }
    if source.forbids_fragments() {
        return Err(FragmentError::DontFragment);
    }
    let needed = source.piece_header_len() + OFFSET_UNIT;
    if mtu < needed {
        return Err(FragmentError::MtuTooSmall { needed, actual: mtu });
    }
    let room = mtu - source.piece_header_len();
    Ok(Pieces { offset: Some(0), total, step: room - room % OFFSET_UNIT, last: room })
}

/// Writes one piece of `outer_packet`, with its headers, to the start of `out`, and gives its
/// length. A whole piece is the packet itself.
///
/// `identification` is the same for all pieces of a packet and unlike that of other packets in
/// flight between the two ends. IPv4 has room for its low 16 bits.
///
/// # Errors
/// `out` is too short, or packet and piece do not fit together.
pub fn fragment_into(
    outer_packet: &[u8],
    piece: Piece,
    out: &mut [u8],
    identification: u32,
) -> Result<usize, FragmentError> {
    let source = Source::new(outer_packet)?;
    let payload = &source.packet[source.header_len()..];
    let end = piece.offset.checked_add(piece.length).ok_or(FragmentError::WrongPiece)?;
    let bytes = payload.get(piece.offset..end).ok_or(FragmentError::WrongPiece)?;
    let aligned = piece.offset.is_multiple_of(OFFSET_UNIT)
        && (!piece.more || piece.length.is_multiple_of(OFFSET_UNIT));
    if !aligned || (bytes.is_empty() && !payload.is_empty()) || piece.more != (end < payload.len())
    {
        return Err(FragmentError::WrongPiece);
    }
    if piece.is_whole() {
        output(out, outer_packet.len())?.copy_from_slice(outer_packet);
        return Ok(outer_packet.len());
    }
    if source.forbids_fragments() {
        return Err(FragmentError::DontFragment);
    }
    let out = output(out, source.piece_header_len() + bytes.len())?;
    let (header_out, payload_out) = out.split_at_mut(source.piece_header_len());
    payload_out.copy_from_slice(bytes);
    match source.header {
        Header::V4(header) => {
            header_out.copy_from_slice(&ipv4_piece(header, piece, identification))
        }
        Header::V6(header) => {
            let (fixed, fragment) = ipv6_piece(header, piece, identification);
            header_out[..IPV6_HEADER_LEN].copy_from_slice(&fixed);
            header_out[IPV6_HEADER_LEN..].copy_from_slice(&fragment);
        }
    }
    Ok(out.len())
}

fn output(out: &mut [u8], needed: usize) -> Result<&mut [u8], FragmentError> {
    let actual = out.len();
    out.get_mut(..needed).ok_or(FragmentError::OutputTooShort { needed, actual })
}

/// A length or offset inside a packet, whose own length field has 16 bits.
#[expect(clippy::cast_possible_truncation, reason = "a piece lies inside an IP packet")]
const fn field(value: usize) -> u16 {
    debug_assert!(value <= u16::MAX as usize);
    value as u16
}

#[expect(clippy::cast_possible_truncation, reason = "IPv4's identification has 16 bits")]
fn ipv4_piece(
    original: &[u8; IPV4_HEADER_LEN],
    piece: Piece,
    identification: u32,
) -> [u8; IPV4_HEADER_LEN] {
    let mut header = *original;
    let more = if piece.more { ipv4::MORE_FRAGMENTS } else { 0 };
    write_u16(&mut header, ipv4::TOTAL_LENGTH, field(IPV4_HEADER_LEN + piece.length));
    write_u16(&mut header, ipv4::IDENTIFICATION, identification as u16);
    write_u16(&mut header, ipv4::FLAGS, more | field(piece.offset / OFFSET_UNIT));
    let checksum = checksum::ipv4_header_checksum(&header);
    write_u16(&mut header, ipv4::CHECKSUM, checksum);
    header
}

fn ipv6_piece(
    original: &[u8; IPV6_HEADER_LEN],
    piece: Piece,
    identification: u32,
) -> ([u8; IPV6_HEADER_LEN], [u8; IPV6_FRAGMENT_HEADER_LEN]) {
    let mut header = *original;
    let mut fragment = [0; IPV6_FRAGMENT_HEADER_LEN];
    fragment[0] = header[ipv6::NEXT_HEADER];
    // The offset's unit is 8 bytes and its field is 3 bits from the right: a plain byte count.
    write_u16(&mut fragment, 2, field(piece.offset) | u16::from(piece.more));
    fragment[4..].copy_from_slice(&identification.to_be_bytes());
    header[ipv6::NEXT_HEADER] = ipv6::NEXT_FRAGMENT;
    write_u16(&mut header, ipv6::PAYLOAD_LENGTH, field(IPV6_FRAGMENT_HEADER_LEN + piece.length));
    (header, fragment)
}

#[cfg(test)]
mod tests {
    use std::vec;
    use std::vec::Vec;

    use super::*;
    use crate::error::{Layer, LenError};

    fn ipv4_packet(payload: usize) -> Vec<u8> {
        let mut packet = vec![0x11; 20 + payload];
        let length = u16::try_from(packet.len()).unwrap().to_be_bytes();
        packet[..12].copy_from_slice(&[0x45, 0, length[0], length[1], 0, 1, 0, 0, 64, 4, 0, 0]);
        packet
    }

    fn ipv6_packet(payload: usize) -> Vec<u8> {
        let mut packet = vec![0x11; 40 + payload];
        let length = u16::try_from(payload).unwrap().to_be_bytes();
        packet[..8].copy_from_slice(&[0x60, 0, 0, 0, length[0], length[1], 4, 64]);
        packet
    }

    fn lengths(packet: &[u8], mtu: usize) -> Vec<(usize, usize, bool)> {
        let pieces = plan(packet, mtu).unwrap();
        let announced = pieces.len();
        let list: Vec<_> = pieces.map(|piece| (piece.offset, piece.length, piece.more)).collect();
        assert_eq!(list.len(), announced);
        list
    }

    #[test]
    fn pieces_are_as_large_as_the_path_allows() {
        // 1500 - 20 = 1480 is a multiple of 8 already.
        assert_eq!(lengths(&ipv4_packet(1480), 1500), [(0, 1480, false)]);
        assert_eq!(lengths(&ipv4_packet(1481), 1500), [(0, 1480, true), (1480, 1, false)]);
        // 1406 - 20 = 1386: the last piece may use the two bytes that others cannot.
        assert_eq!(lengths(&ipv4_packet(2770), 1406), [(0, 1384, true), (1384, 1386, false)]);
        assert_eq!(lengths(&ipv4_packet(2771), 1406).len(), 3);
        // 1280 - 48 = 1232, also a multiple.
        assert_eq!(lengths(&ipv6_packet(1240), 1280), [(0, 1240, false)]);
        assert_eq!(lengths(&ipv6_packet(1241), 1280), [(0, 1232, true), (1232, 9, false)]);
        // The narrowest there is: 8 bytes each.
        assert_eq!(lengths(&ipv4_packet(24), 28), [(0, 8, true), (8, 8, true), (16, 8, false)]);
    }

    /// A plan that has been walked part of the way still knows how many are left.
    #[test]
    fn the_count_of_pieces_is_exact_all_the_way() {
        let mut pieces = plan(&ipv4_packet(5000), 576).unwrap();
        for left in (0..=pieces.len()).rev() {
            assert_eq!(pieces.len(), left);
            assert_eq!(pieces.next().is_some(), left > 0);
        }
    }

    #[test]
    fn a_packet_without_payload_is_not_lost() {
        for packet in [ipv4_packet(0), ipv6_packet(0)] {
            assert_eq!(lengths(&packet, 1500), [(0, 0, false)]);
            let piece = plan(&packet, 1500).unwrap().next().unwrap();
            let mut out = [0; 64];
            assert_eq!(fragment_into(&packet, piece, &mut out, 1), Ok(packet.len()));
            assert_eq!(out[..packet.len()], packet);
        }
    }

    #[test]
    fn what_cannot_be_cut_says_why() {
        let changed = |mut packet: Vec<u8>, at: usize, value: u8| {
            packet[at] = value;
            packet
        };
        let layer = Layer::OuterIpv4;
        let cases = [
            ("DF", changed(ipv4_packet(200), 6, 0x40), FragmentError::DontFragment),
            ("MF", changed(ipv4_packet(200), 6, 0x20), FragmentError::AlreadyFragment),
            ("offset", changed(ipv4_packet(200), 7, 1), FragmentError::AlreadyFragment),
            ("options", changed(ipv4_packet(200), 0, 0x46), FragmentError::Options),
            ("fragment header", changed(ipv6_packet(200), 6, 44), FragmentError::AlreadyFragment),
            ("hop-by-hop", changed(ipv6_packet(200), 6, 0), FragmentError::Options),
            ("routing", changed(ipv6_packet(200), 6, 43), FragmentError::Options),
            ("destination options", changed(ipv6_packet(200), 6, 60), FragmentError::Options),
            (
                "padding",
                [ipv4_packet(200), vec![0]].concat(),
                FragmentError::TrailingBytes { declared: 220, actual: 221 },
            ),
            (
                "cut off",
                ipv4_packet(200)[..219].to_vec(),
                FragmentError::Header(LenError { layer, needed: 220, actual: 219 }.into()),
            ),
        ];
        for (what, packet, expected) in cases {
            assert_eq!(plan(&packet, 100).unwrap_err(), expected, "{what}");
            let piece = Piece { offset: 0, length: 80, more: true };
            let mut out = [0; 256];
            assert_eq!(fragment_into(&packet, piece, &mut out, 1), Err(expected), "{what}");
            assert_eq!(out, [0; 256], "{what}");
        }
    }

    #[test]
    fn a_piece_of_another_packet_is_refused() {
        let packet = ipv4_packet(100);
        let wrong = [
            (0, 104, false),
            (0, 96, false),
            (0, 100, true),
            (0, 12, true),
            (4, 96, false),
            (104, 8, false),
            (0, 0, true),
            (96, 4, true),
            (usize::MAX & !7, 16, true),
        ];
        for (offset, length, more) in wrong {
            let piece = Piece { offset, length, more };
            let result = fragment_into(&packet, piece, &mut [0; 256], 1);
            assert_eq!(result, Err(FragmentError::WrongPiece), "{piece:?}");
        }
    }

    #[test]
    fn a_short_output_is_refused() {
        let (v4, v6) = (ipv4_packet(100), ipv6_packet(100));
        let first = Piece { offset: 0, length: 16, more: true };
        let whole = Piece { offset: 0, length: 100, more: false };
        for (packet, piece, needed) in
            [(&v4, first, 36), (&v6, first, 64), (&v4, whole, 120), (&v6, whole, 140)]
        {
            let mut out = vec![0; needed - 1];
            assert_eq!(
                fragment_into(packet, piece, &mut out, 1),
                Err(FragmentError::OutputTooShort { needed, actual: needed - 1 })
            );
            assert_eq!(fragment_into(packet, piece, &mut vec![0; needed], 1), Ok(needed));
        }
    }
}
