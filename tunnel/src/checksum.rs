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
    #[expect(clippy::cast_possible_truncation, reason = "four folds leave at most 16 bits")]
    pub const fn fold(self) -> u16 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
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
