//! What stands between the outer IP header and the inner packet: nothing, GRE, or UDP with GUE.

use crate::checksum::{self, Sum, ones_complement_sum};
use crate::header::{Family, PROTOCOL_GRE, PROTOCOL_UDP, read_u16, write_u16};

/// Length of a GRE header without checksum, in bytes (RFC 2784 §2).
pub const GRE_HEADER_LEN: usize = 4;
/// Length of a GRE header with checksum, in bytes (RFC 2784 §2.5).
pub const GRE_CHECKSUM_HEADER_LEN: usize = 8;
/// Length of a UDP header, in bytes (RFC 768).
pub const UDP_HEADER_LEN: usize = 8;
/// Length of a GUE header of variant 0 without optional fields, in bytes
/// (draft-ietf-intarea-gue-09 §3.1).
pub const GUE_HEADER_LEN: usize = 4;
/// The UDP port that Linux and IPVS use for GUE where nobody says another (IANA).
pub const GUE_PORT: u16 = 6080;

/// The longest of these headers: UDP and GUE.
pub(crate) const MAX_ENCAPSULATION: usize = UDP_HEADER_LEN + GUE_HEADER_LEN;

/// GRE's checksum flag (RFC 2784 §2.1).
pub(crate) const GRE_CHECKSUM_PRESENT: u16 = 0x8000;
/// The first source port of GUE: the dynamic ports of RFC 6335 §6, as draft-ietf-intarea-gue-09
/// §5.6.1 has it.
const FIRST_SOURCE_PORT: u16 = 0xc000;

/// How a packet is carried inside an outer IP packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Encapsulation {
    /// Directly (RFC 2003, RFC 2473, RFC 4213).
    #[default]
    Ipip,
    /// Behind a GRE header (RFC 2784; over IPv6 RFC 7676).
    Gre {
        /// Whether the header has a checksum, over itself and the packet.
        checksum: bool,
    },
    /// Behind UDP and a GUE header of variant 0, as Linux's `fou` receives it.
    Gue {
        /// Destination port.
        port: u16,
        /// Whether the UDP checksum is filled in; else it is 0. Over IPv6 a receiver must have been
        /// told to accept that (RFC 6935).
        checksum: bool,
    },
}

impl Encapsulation {
    /// Bytes between the outer IP header and the inner packet.
    #[inline]
    #[must_use]
    pub const fn len(self) -> usize {
        match self {
            Self::Ipip => 0,
            Self::Gre { checksum: false } => GRE_HEADER_LEN,
            Self::Gre { checksum: true } => GRE_CHECKSUM_HEADER_LEN,
            Self::Gue { .. } => UDP_HEADER_LEN + GUE_HEADER_LEN,
        }
    }

    /// Whether nothing stands there.
    #[inline]
    #[must_use]
    pub const fn is_empty(self) -> bool {
        matches!(self, Self::Ipip)
    }

    /// What the outer IP header announces for an inner packet of this family.
    #[inline]
    #[must_use]
    pub const fn protocol(self, inner: Family) -> u8 {
        match self {
            Self::Ipip => inner.protocol(),
            Self::Gre { .. } => PROTOCOL_GRE,
            Self::Gue { .. } => PROTOCOL_UDP,
        }
    }

    /// Whether an outer packet of this protocol, whose payload starts with `payload`, is one that
    /// this kind writes, as far as its first 8 bytes tell.
    #[must_use]
    pub fn wrote(self, protocol: u8, payload: &[u8]) -> bool {
        match self {
            Self::Ipip => [Family::V4, Family::V6].iter().any(|f| f.protocol() == protocol),
            Self::Gre { checksum } => {
                let flags = if checksum { GRE_CHECKSUM_PRESENT } else { 0 };
                let inner = |kind| [Family::V4, Family::V6].iter().any(|f| ethertype(*f) == kind);
                protocol == PROTOCOL_GRE
                    && payload.first_chunk::<GRE_HEADER_LEN>().is_some_and(|header| {
                        read_u16(header, 0) == flags && inner(read_u16(header, 2))
                    })
            }
            Self::Gue { port, checksum } => {
                protocol == PROTOCOL_UDP
                    && payload.first_chunk::<UDP_HEADER_LEN>().is_some_and(|header| {
                        read_u16(header, 0) >= FIRST_SOURCE_PORT
                            && read_u16(header, 2) == port
                            // A sum that is filled in is never 0 (RFC 768).
                            && (read_u16(header, 6) != 0) == checksum
                    })
            }
        }
    }

    /// Writes the headers into `room`, of exactly [`len`](Self::len) bytes, which stand in front of
    /// `inner`. `addresses` is the sum of both outer addresses, `entropy` is stable over a flow.
    ///
    /// The caller has seen to it that `inner` fits a length field with them.
    pub(crate) fn write(
        self,
        room: &mut [u8],
        inner: &[u8],
        family: Family,
        addresses: impl FnOnce() -> Sum,
        entropy: u16,
    ) {
        match self {
            Self::Ipip => {}
            Self::Gre { checksum: false } => {
                let Some(header) = room.first_chunk_mut::<GRE_HEADER_LEN>() else { return };
                *header = [0; GRE_HEADER_LEN];
                write_u16(header, 2, ethertype(family));
            }
            Self::Gre { checksum: true } => {
                let Some(header) = room.first_chunk_mut::<GRE_CHECKSUM_HEADER_LEN>() else {
                    return;
                };
                *header = [0; GRE_CHECKSUM_HEADER_LEN];
                write_u16(header, 0, GRE_CHECKSUM_PRESENT);
                write_u16(header, 2, ethertype(family));
                let sum = ones_complement_sum(header).add(ones_complement_sum(inner));
                write_u16(header, 4, sum.finish());
            }
            Self::Gue { port, checksum: filled } => {
                let Some(header) = room.first_chunk_mut::<MAX_ENCAPSULATION>() else { return };
                let length = u16::try_from(MAX_ENCAPSULATION + inner.len()).unwrap_or(u16::MAX);
                *header = [0; MAX_ENCAPSULATION];
                write_u16(header, 0, FIRST_SOURCE_PORT | entropy);
                write_u16(header, 2, port);
                write_u16(header, 4, length);
                // Variant 0, no control message, no optional fields: all of the first byte is 0.
                header[UDP_HEADER_LEN + 1] = family.protocol();
                if filled {
                    let sum = addresses()
                        .add_u16(u16::from(PROTOCOL_UDP))
                        .add_u16(length)
                        .add(ones_complement_sum(header))
                        .add(ones_complement_sum(inner));
                    write_u16(header, 6, checksum::udp(sum.finish()));
                }
            }
        }
    }
}

/// The ethertype by which GRE announces an inner packet.
pub(crate) const fn ethertype(family: Family) -> u16 {
    match family {
        Family::V4 => 0x0800,
        Family::V6 => 0x86dd,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INNER: [u8; 20] =
        [0x45, 0, 0, 20, 0, 0, 0, 0, 63, 59, 0, 0, 192, 0, 2, 1, 198, 51, 100, 10];

    fn written(kind: Encapsulation, family: Family, entropy: u16) -> std::vec::Vec<u8> {
        let mut room = std::vec![0xa5; kind.len()];
        // 10.0.0.5 and 10.20.0.11
        let addresses = || ones_complement_sum(&[10, 0, 0, 5, 10, 20, 0, 11]);
        kind.write(&mut room, &INNER, family, addresses, entropy);
        room
    }

    /// The exact bytes, written by hand from the specifications.
    #[test]
    fn the_headers_are_these() {
        let gre = |checksum| Encapsulation::Gre { checksum };
        let gue = |checksum| Encapsulation::Gue { port: GUE_PORT, checksum };
        assert!(written(Encapsulation::Ipip, Family::V4, 1).is_empty());
        assert_eq!(written(gre(false), Family::V4, 1), [0, 0, 8, 0]);
        assert_eq!(written(gre(false), Family::V6, 1), [0, 0, 0x86, 0xdd]);
        // 0x8000 + 0x0800 + the inner packet's words, 0x1aca1 in all.
        let inner: u32 =
            INNER.as_chunks().0.iter().map(|w| u32::from(u16::from_be_bytes(*w))).sum();
        let sum = 0x8000 + 0x0800 + inner;
        let checksum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
        let [high, low] = checksum.to_be_bytes();
        assert_eq!(written(gre(true), Family::V4, 1), [0x80, 0, 8, 0, high, low, 0, 0]);
        assert_eq!(
            written(gue(false), Family::V6, 0x1234),
            [0xd2, 0x34, 0x17, 0xc0, 0, 32, 0, 0, 0, 41, 0, 0]
        );
        let full = written(gue(true), Family::V4, 0xffff);
        assert_eq!(full[..6], [0xff, 0xff, 0x17, 0xc0, 0, 32]);
        assert_eq!(full[8..], [0, 4, 0, 0]);
        let pseudo = [&[10, 0, 0, 5, 10, 20, 0, 11, 0, 17, 0, 32], &full[..], &INNER].concat();
        assert!(crate::checksum::is_valid(ones_complement_sum(&pseudo)));
    }

    #[test]
    fn a_kind_knows_what_it_wrote() {
        let kinds = [
            Encapsulation::Ipip,
            Encapsulation::Gre { checksum: false },
            Encapsulation::Gre { checksum: true },
            Encapsulation::Gue { port: GUE_PORT, checksum: false },
            Encapsulation::Gue { port: GUE_PORT, checksum: true },
            Encapsulation::Gue { port: 5555, checksum: true },
        ];
        for (writer, kind) in kinds.into_iter().enumerate() {
            for family in [Family::V4, Family::V6] {
                let payload = [&written(kind, family, 7)[..], &INNER].concat();
                for (reader, other) in kinds.into_iter().enumerate() {
                    let known = other.wrote(kind.protocol(family), &payload);
                    assert_eq!(known, reader == writer, "{kind:?} read as {other:?}");
                }
            }
        }
        // Another sender's datagram to that port.
        let foreign = [0x80, 0, 0x17, 0xc0, 0, 32, 0, 0];
        assert!(!kinds[3].wrote(17, &foreign));
        assert!(!kinds[3].wrote(17, &foreign[..3]), "too short to tell");
    }
}
