//! The hop that the director is: one off the inner packet's TTL or hop limit.

use core::fmt;

use crate::checksum;
use crate::error::{HeaderError, Layer, LenError};
use crate::header::{IPV4_HEADER_LEN, IPV6_HEADER_LEN, ipv4, ipv6, read_u16, write_u16};

/// Why a packet may not go one hop further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HopLimitError {
    /// The limit is 1 or 0: the sender is owed a time-exceeded (RFC 1812 §5.3.1, RFC 4443 §3.3).
    Expired,
    /// There is no whole IP header.
    Header(HeaderError),
}

impl fmt::Display for HopLimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expired => f.write_str("hop limit expired"),
            Self::Header(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for HopLimitError {}

/// Takes one off the TTL (its checksum patched) or hop limit of the packet, and gives what is left.
///
/// Only the fixed header must be there; the packet's own length is not looked at.
///
/// # Errors
/// [`HopLimitError::Expired`] when none would be left, or a header that is not one. The packet is
/// unchanged then.
#[inline]
pub fn decrement_hop_limit(packet: &mut [u8]) -> Result<u8, HopLimitError> {
    let Some(first) = packet.first() else {
        return Err(short(Layer::Inner, 1, 0));
    };
    match first >> 4 {
        4 => decrement_ipv4(packet),
        6 => decrement_ipv6(packet),
        found => Err(HopLimitError::Header(HeaderError::Version { layer: Layer::Inner, found })),
    }
}

#[inline]
fn decrement_ipv4(packet: &mut [u8]) -> Result<u8, HopLimitError> {
    let actual = packet.len();
    let Some(header) = packet.first_chunk_mut::<IPV4_HEADER_LEN>() else {
        return Err(short(Layer::InnerIpv4, IPV4_HEADER_LEN, actual));
    };
    let ttl = header[ipv4::TTL];
    if ttl <= 1 {
        return Err(HopLimitError::Expired);
    }
    let old = read_u16(header, ipv4::TTL);
    header[ipv4::TTL] = ttl - 1;
    let new = read_u16(header, ipv4::TTL);
    let patched = checksum::update_u16(read_u16(header, ipv4::CHECKSUM), old, new);
    write_u16(header, ipv4::CHECKSUM, patched);
    Ok(ttl - 1)
}

#[inline]
fn decrement_ipv6(packet: &mut [u8]) -> Result<u8, HopLimitError> {
    let actual = packet.len();
    let Some(header) = packet.first_chunk_mut::<IPV6_HEADER_LEN>() else {
        return Err(short(Layer::InnerIpv6, IPV6_HEADER_LEN, actual));
    };
    let limit = header[ipv6::HOP_LIMIT];
    if limit <= 1 {
        return Err(HopLimitError::Expired);
    }
    header[ipv6::HOP_LIMIT] = limit - 1;
    Ok(limit - 1)
}

const fn short(layer: Layer, needed: usize, actual: usize) -> HopLimitError {
    HopLimitError::Header(HeaderError::Length(LenError { layer, needed, actual }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::{ipv4_header_checksum, is_valid, ones_complement_sum};

    fn ipv4_packet(ttl: u8, identification: u16) -> [u8; 20] {
        let mut header = [0x45, 0, 0, 20, 0, 0, 0, 0, ttl, 6, 0, 0, 192, 0, 2, 1, 198, 51, 100, 10];
        header[4..6].copy_from_slice(&identification.to_be_bytes());
        let checksum = ipv4_header_checksum(&header);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        header
    }

    /// Every checksum a header can have, through its identification, and with it each corner of
    /// one's-complement arithmetic.
    #[test]
    fn the_patched_checksum_is_the_recomputed_one_for_all_checksums() {
        for identification in 0..=u16::MAX {
            let mut packet = ipv4_packet(2, identification);
            assert_eq!(decrement_hop_limit(&mut packet), Ok(1));
            assert_eq!(packet, ipv4_packet(1, identification), "{identification}");
            assert!(is_valid(ones_complement_sum(&packet)));
        }
    }

    #[test]
    fn every_limit_goes_down_by_one_until_it_expires() {
        for limit in 0..=u8::MAX {
            let mut v6 = [0; 40];
            v6[0] = 0x60;
            v6[7] = limit;
            let mut v4 = ipv4_packet(limit, 0);
            let expected = if limit > 1 { Ok(limit - 1) } else { Err(HopLimitError::Expired) };
            let left = if limit > 1 { limit - 1 } else { limit };
            assert_eq!(decrement_hop_limit(&mut v4), expected);
            assert_eq!(decrement_hop_limit(&mut v6), expected);
            assert_eq!(v4, ipv4_packet(left, 0));
            assert_eq!(v6[7], left);
        }
    }

    #[test]
    fn only_ip_has_a_hop_limit() {
        for version in (0..16).filter(|version| ![4, 6].contains(version)) {
            let mut packet = [version << 4; 40];
            assert_eq!(
                decrement_hop_limit(&mut packet),
                Err(HopLimitError::Header(HeaderError::Version {
                    layer: Layer::Inner,
                    found: version
                }))
            );
            assert_eq!(packet, [version << 4; 40]);
        }
    }
}
