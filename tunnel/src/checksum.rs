//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! One's-complement arithmetic has two zeros, 0x0000 and 0xffff. The sum of anything that is not
//! all zeros folds to 1..=0xffff, so its checksum is 0..=0xfffe. [`update_u16`] uses equation 3 of
//! RFC 1624, which stays inside this range (equation 4, of RFC 1141, does not, and would write
//! 0xffff where a full computation gives 0). So patched and recomputed checksums are equal bit for
//! bit as long as the data is not all zeros, which no IP header and no pseudo-header is. Only UDP
//! over the field value 0 ("no checksum") needs care: see [`udp`].

use core::net::{Ipv4Addr, Ipv6Addr};

use crate::header::{IPV4_HEADER_LEN, ipv4, read_u16};

/// A running one's-complement sum, not yet folded to 16 bits.
///
/// 64 bits wide: 2³² additions of 32-bit words cannot overflow it, far more than any packet has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// The sum of nothing.
    pub const ZERO: Self = Self(0);

    /// Adds one 16-bit word.
    #[inline]
    #[must_use]
    pub const fn add_u16(self, word: u16) -> Self {
        Self(self.0 + word as u64)
    }

    /// Adds a 32-bit word, that is, its two halves.
    #[inline]
    #[must_use]
    pub const fn add_u32(self, word: u32) -> Self {
        Self(self.0 + word as u64)
    }

    /// Adds bytes in network order. An odd last byte counts as the high half of a word, so only
    /// the last piece of a message may have an odd length.
    #[inline]
    #[must_use]
    pub fn add_bytes(self, data: &[u8]) -> Self {
        let mut sum = self.0;
        let (words, rest) = data.as_chunks::<4>();
        for word in words {
            sum += u64::from(u32::from_be_bytes(*word));
        }
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        Self(sum + u64::from(u32::from_be_bytes(last)))
    }

    /// Adds another sum.
    #[inline]
    #[must_use]
    pub const fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// Folds the carries into 16 bits.
    #[inline]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "three folds leave at most 16 bits")]
    pub const fn fold(self) -> u16 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32); // at most 0x1_ffff_fffe
        let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32); // at most 0x1_fffe
        let sum = (sum & 0xffff) + (sum >> 16);
        sum as u16
    }

    /// The checksum to be written into a header: the complement of the folded sum.
    #[inline]
    #[must_use]
    pub const fn finish(self) -> u16 {
        !self.fold()
    }
}

/// Sum of `data` as big-endian 16-bit words, an odd last byte padded with zero (RFC 1071).
#[inline]
#[must_use]
pub fn ones_complement_sum(data: &[u8]) -> Sum {
    Sum::ZERO.add_bytes(data)
}

/// Checksum of an IPv4 header with options; what stands in its checksum field does not count.
///
/// `header` is the header alone. One shorter than 20 bytes is no header, and is summed as it is.
#[inline]
#[must_use]
pub fn ipv4_header_checksum(header: &[u8]) -> u16 {
    let sum = ones_complement_sum(header);
    match header.first_chunk::<IPV4_HEADER_LEN>() {
        // Adding the complement takes the field's own value out again.
        Some(fixed) => sum.add_u16(!read_u16(fixed, ipv4::CHECKSUM)).finish(),
        None => sum.finish(),
    }
}

/// Whether a header, or a segment with its pseudo-header, that contains its checksum is intact.
#[inline]
#[must_use]
pub const fn is_valid(sum_with_checksum: Sum) -> bool {
    // Both zeros: 0 only arises from data that is all zeros, which has no checksum at all.
    sum_with_checksum.fold() == 0xffff
}

/// The checksum after one 16-bit field changed from `old` to `new` (RFC 1624, equation 3).
#[inline]
#[must_use]
pub const fn update_u16(checksum: u16, old: u16, new: u16) -> u16 {
    Sum(!checksum as u64).add_u16(!old).add_u16(new).finish()
}

/// The checksum after a 32-bit field changed, an IPv4 address for instance.
#[inline]
#[must_use]
pub const fn update_u32(checksum: u16, old: u32, new: u32) -> u16 {
    Sum(!checksum as u64).add_u32(!old).add_u32(new).finish()
}

/// The checksum after a 16-byte field changed, an IPv6 address for instance.
#[inline]
#[must_use]
pub fn update_bytes16(checksum: u16, old: [u8; 16], new: [u8; 16]) -> u16 {
    let complement = !u128::from_be_bytes(old);
    Sum::ZERO.add_u16(!checksum).add_bytes(&complement.to_be_bytes()).add_bytes(&new).finish()
}

/// Sum of the IPv4 pseudo-header of TCP and UDP. `length` is that of header and payload of the
/// transport, in bytes.
#[inline]
#[must_use]
pub const fn pseudo_header_v4(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    length: u16,
) -> Sum {
    Sum::ZERO
        .add_u32(source.to_bits())
        .add_u32(destination.to_bits())
        .add_u16(protocol as u16)
        .add_u16(length)
}

/// Sum of the IPv6 pseudo-header of TCP, UDP and ICMPv6 (RFC 8200 §8.1). `length` is that of
/// header and payload of the transport, in bytes.
#[inline]
#[must_use]
pub fn pseudo_header_v6(
    source: Ipv6Addr,
    destination: Ipv6Addr,
    next_header: u8,
    length: u32,
) -> Sum {
    Sum::ZERO
        .add_bytes(&source.octets())
        .add_bytes(&destination.octets())
        .add_u16(u16::from(next_header))
        .add_u32(length)
}

/// Checksum of a transport segment whose checksum field holds zero, under a pseudo-header
/// ([`Sum::ZERO`] for ICMP, which has none).
#[inline]
#[must_use]
pub fn transport(pseudo_header: Sum, segment: &[u8]) -> u16 {
    pseudo_header.add_bytes(segment).finish()
}

/// A computed checksum as it is written into UDP: 0 there means that there is none, so the other
/// zero takes its place (RFC 768). A received field of 0 must not be patched.
#[inline]
#[must_use]
pub const fn udp(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::vec::Vec;

    use super::*;

    /// Words where one's-complement arithmetic has its corners.
    const CORNERS: [u16; 8] = [0, 1, 0x00ff, 0x0100, 0x7fff, 0x8000, 0xfffe, 0xffff];

    /// The plainest way: word by word, carry by carry, as RFC 1071 §1 says it.
    fn by_the_book(data: &[u8]) -> u16 {
        let mut sum = 0_u16;
        for pair in data.chunks(2) {
            let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
            let (next, carry) = sum.overflowing_add(word);
            sum = next + u16::from(carry);
        }
        !sum
    }

    #[test]
    fn examples_of_others() {
        // RFC 1071 §3.
        let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(ones_complement_sum(&data).fold(), 0xddf2);
        // RFC 1624 §4: the case in which equation 2 of RFC 1141 gives 0xffff.
        assert_eq!(update_u16(0xdd2f, 0x5555, 0x3285), 0x0000);
        // A header from a capture, its checksum field in place.
        let header = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8,
            0x00, 0x01, 0xc0, 0xa8, 0x00, 0xc7,
        ];
        assert_eq!(ipv4_header_checksum(&header), 0xb861);
        assert!(is_valid(ones_complement_sum(&header)));
    }

    #[test]
    fn each_flipped_bit_is_noticed() {
        let mut header = [0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 4, 0, 0, 10, 0, 0, 5, 10, 20, 0, 11];
        let checksum = ipv4_header_checksum(&header);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        assert!(is_valid(ones_complement_sum(&header)));
        for bit in 0..header.len() * 8 {
            header[bit / 8] ^= 1 << (bit % 8);
            assert!(!is_valid(ones_complement_sum(&header)), "bit {bit}");
            header[bit / 8] ^= 1 << (bit % 8);
        }
    }

    /// Patched and recomputed agree bit for bit at both zeros: the field never becomes 0xffff.
    #[test]
    fn patching_is_exact_at_the_corners() {
        for rest in CORNERS {
            for old in CORNERS {
                for new in CORNERS {
                    let full = |field| Sum::ZERO.add_u16(rest).add_u16(field).finish();
                    // Data that is all zeros before or after is outside of the promise.
                    if (rest, old) == (0, 0) || (rest, new) == (0, 0) {
                        continue;
                    }
                    let patched = update_u16(full(old), old, new);
                    assert_eq!(patched, full(new), "{rest:#x}: {old:#x} to {new:#x}");
                    assert_ne!(patched, 0xffff);
                }
            }
        }
    }

    #[test]
    fn a_checksum_that_holds_the_other_zero_stays_right() {
        // 0xffff in the field is a valid checksum too, of data that sums to 0xffff.
        for new in CORNERS {
            let patched = update_u16(0xffff, 0xffff, new);
            assert!(is_valid(Sum::ZERO.add_u16(patched).add_u16(new)) || new == 0, "{new:#x}");
        }
    }

    #[test]
    fn nothing_sums_to_nothing() {
        assert_eq!(ones_complement_sum(&[]), Sum::ZERO);
        assert_eq!(ones_complement_sum(&[0; 33]).finish(), 0xffff);
        assert!(!is_valid(ones_complement_sum(&[0; 20])));
    }

    #[test]
    fn udp_never_says_that_it_has_no_checksum() {
        assert_eq!([udp(0), udp(1), udp(0xffff)], [0xffff, 1, 0xffff]);
    }

    #[test]
    fn the_largest_packet_folds_right() {
        let data = [0xff; 65_535];
        assert_eq!(ones_complement_sum(&data).finish(), by_the_book(&data));
        assert_eq!(Sum(u64::MAX).fold(), 0xffff);
    }

    fn words() -> impl Strategy<Value = u16> {
        prop_oneof![any::<u16>(), proptest::sample::select(CORNERS.to_vec())]
    }

    proptest! {
        #[test]
        fn sums_are_those_of_the_book(data in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(ones_complement_sum(&data).finish(), by_the_book(&data));
        }

        #[test]
        fn sums_can_be_taken_in_pieces(
            data in prop::collection::vec(any::<u8>(), 0..200),
            at in any::<prop::sample::Index>(),
        ) {
            let at = at.index(data.len() + 1) & !1;
            let parts = ones_complement_sum(&data[..at]).add(ones_complement_sum(&data[at..]));
            prop_assert_eq!(parts.fold(), ones_complement_sum(&data).fold());
        }

        #[test]
        fn patching_is_recomputing(
            words in prop::collection::vec(words(), 8..40),
            at in any::<prop::sample::Index>(),
            new in prop::array::uniform8(words()),
        ) {
            let bytes = |words: &[u16]| words.iter().flat_map(|w| w.to_be_bytes()).collect::<Vec<_>>();
            let before = bytes(&words);
            // An all-zero message has no checksum; no packet is one.
            prop_assume!(before.iter().any(|byte| *byte != 0));
            let checksum = by_the_book(&before);
            let at = at.index(words.len() - 7) * 2;

            for length in [2, 4, 16] {
                let mut after = before.clone();
                after[at..at + length].copy_from_slice(&bytes(&new)[..length]);
                prop_assume!(after.iter().any(|byte| *byte != 0));
                let (old, new) = (&before[at..at + length], &after[at..at + length]);
                let patched = match length {
                    2 => update_u16(
                        checksum,
                        u16::from_be_bytes(old.try_into().unwrap()),
                        u16::from_be_bytes(new.try_into().unwrap()),
                    ),
                    4 => update_u32(
                        checksum,
                        u32::from_be_bytes(old.try_into().unwrap()),
                        u32::from_be_bytes(new.try_into().unwrap()),
                    ),
                    _ => update_bytes16(checksum, old.try_into().unwrap(), new.try_into().unwrap()),
                };
                prop_assert_eq!(patched, by_the_book(&after), "{} bytes", length);
            }
        }
    }
}
