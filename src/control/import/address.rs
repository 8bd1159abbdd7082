//! Addresses, ports and masks as `ipvsadm` and keepalived write them.

use crate::control::config::{MAX_VIP_HOST_BITS, VipPrefix};
use std::net::{IpAddr, Ipv4Addr};

/// The port `ipvsadm` and keepalived write for "every port".
pub(super) const ANY_PORT: u16 = 0;

/// `192.0.2.1:80`, `[2001:db8::1]:80`, `192.0.2.1` or `[2001:db8::1]`: numbers only.
pub(super) fn address_and_port(text: &str) -> Option<(IpAddr, u16)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        let address = IpAddr::V6(address.parse().ok()?);
        let port = match port.strip_prefix(':') {
            Some(port) => number(port)?,
            None if port.is_empty() => ANY_PORT,
            None => return None,
        };
        return Some((address, port));
    }
    match text.split_once(':') {
        // More than one colon: an IPv6 address without a port.
        Some((_, rest)) if rest.contains(':') => Some((text.parse().ok()?, ANY_PORT)),
        Some((address, port)) => Some((IpAddr::V4(address.parse().ok()?), number(port)?)),
        None => Some((text.parse().ok()?, ANY_PORT)),
    }
}

/// A decimal number without a sign.
pub(super) fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    // `parse` would take a plus sign.
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Why a mask cannot be a prefix length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MaskError {
    /// Neither a mask nor a length.
    NotAMask,
    /// Ones behind zeros.
    NotContiguous,
    /// No bit at all: every client would be one.
    Empty,
}

/// The prefix length of a persistence mask: dotted for IPv4, a number for IPv6.
pub(super) fn prefix_length(text: &str, is_ipv4: bool) -> Result<u8, MaskError> {
    if is_ipv4 {
        let mask: Ipv4Addr = text.parse().map_err(|_| MaskError::NotAMask)?;
        let bits = u32::from(mask);
        if bits == 0 {
            return Err(MaskError::Empty);
        }
        if bits.leading_ones() + bits.trailing_zeros() != 32 {
            return Err(MaskError::NotContiguous);
        }
        return u8::try_from(bits.leading_ones()).map_err(|_| MaskError::NotAMask);
    }
    match number::<u8>(text) {
        Some(0) => Err(MaskError::Empty),
        Some(length) if length <= 128 => Ok(length),
        _ => Err(MaskError::NotAMask),
    }
}

/// The addresses of a range, at most `most` of them; `None` when it is no address or range.
///
/// `192.0.2.1`, `192.0.2.1-9` (the last number alone, hexadecimal in IPv6), `192.0.2.250-192.0.3.5`
/// and `192.0.2.8/29`, as keepalived.conf(5) has them.
pub(super) fn range(text: &str, most: usize) -> Option<Range> {
    if let Some((first, last)) = text.split_once('-') {
        let first: IpAddr = first.parse().ok()?;
        return between(first, last_of(first, last)?, most);
    }
    if let Some((network, length)) = text.split_once('/') {
        let first: IpAddr = network.parse().ok()?;
        let host_bits = if first.is_ipv4() { 32u32 } else { 128 }.checked_sub(number(length)?)?;
        let size = 1u128.checked_shl(host_bits).unwrap_or(0).wrapping_sub(1);
        // keepalived takes only a network's own address.
        if as_number(first) & size != 0 {
            return None;
        }
        return between(first, as_address(first, as_number(first) | size)?, most);
    }
    let one: IpAddr = text.parse().ok()?;
    between(one, one, most)
}

/// The addresses of a range.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Range {
    Of(Vec<IpAddr>),
    /// More than asked for.
    TooMany,
}

/// The prefix that has just these addresses, which follow each other, and no more than a service may
/// have.
pub(super) fn as_prefix(addresses: &[IpAddr]) -> Option<VipPrefix> {
    let first = *addresses.first()?;
    if !addresses.len().is_power_of_two() {
        return None;
    }
    let host_bits = u8::try_from(addresses.len().ilog2()).ok()?;
    let length = VipPrefix::host(first).length().checked_sub(host_bits)?;
    let prefix = VipPrefix::holding(first, length);
    (host_bits <= MAX_VIP_HOST_BITS && prefix.address() == first).then_some(prefix)
}

fn between(first: IpAddr, last: IpAddr, most: usize) -> Option<Range> {
    let (from, to) = (as_number(first), as_number(last));
    let more = to.checked_sub(from)?;
    if more >= most as u128 {
        return Some(Range::TooMany);
    }
    (from..=to).map(|number| as_address(first, number)).collect::<Option<Vec<_>>>().map(Range::Of)
}

fn last_of(first: IpAddr, text: &str) -> Option<IpAddr> {
    if let Ok(last) = text.parse::<IpAddr>() {
        return (last.is_ipv4() == first.is_ipv4()).then_some(last);
    }
    let whole = as_number(first);
    let (last, replaced) = match first {
        IpAddr::V4(_) => (u128::from(number::<u8>(text)?), 0xff),
        IpAddr::V6(_) => (u128::from(u16::from_str_radix(text, 16).ok()?), 0xffff),
    };
    as_address(first, whole & !replaced | last)
}

fn as_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// The address of a number, of the family of `like`.
fn as_address(like: IpAddr, number: u128) -> Option<IpAddr> {
    Some(match like {
        IpAddr::V4(_) => IpAddr::V4(u32::try_from(number).ok()?.into()),
        IpAddr::V6(_) => IpAddr::V6(number.into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_with_and_without_ports() {
        let cases = [
            ("192.0.2.1:80", Some(("192.0.2.1", 80))),
            ("192.0.2.1", Some(("192.0.2.1", 0))),
            ("[2001:db8::1]:80", Some(("2001:db8::1", 80))),
            ("[2001:db8::1]", Some(("2001:db8::1", 0))),
            ("2001:db8::1", Some(("2001:db8::1", 0))),
            ("192.0.2.1:http", None),
            ("www:80", None),
            ("192.0.2.1:65536", None),
            ("192.0.2.1:+80", None),
            ("[192.0.2.1]:80", None),
            ("[2001:db8::1]80", None),
            ("[2001:db8::1", None),
            ("", None),
        ];
        for (text, right) in cases {
            let right = right.map(|(address, port)| (address.parse().unwrap(), port));
            assert_eq!(address_and_port(text), right, "{text}");
        }
    }

    #[test]
    fn masks() {
        let cases = [
            ("255.255.255.0", true, Ok(24)),
            ("255.255.255.255", true, Ok(32)),
            ("128.0.0.0", true, Ok(1)),
            ("0.0.0.0", true, Err(MaskError::Empty)),
            ("255.0.255.0", true, Err(MaskError::NotContiguous)),
            ("0.0.0.255", true, Err(MaskError::NotContiguous)),
            ("24", true, Err(MaskError::NotAMask)),
            ("64", false, Ok(64)),
            ("128", false, Ok(128)),
            ("129", false, Err(MaskError::NotAMask)),
            ("0", false, Err(MaskError::Empty)),
            ("ffff::", false, Err(MaskError::NotAMask)),
        ];
        for (text, is_ipv4, right) in cases {
            assert_eq!(prefix_length(text, is_ipv4), right, "{text}");
        }
    }

    #[test]
    fn ranges_that_are_prefixes() {
        let of = |text: &str| match range(text, 4096) {
            Some(Range::Of(all)) => as_prefix(&all).map(|prefix| prefix.to_string()),
            _ => panic!("{text}"),
        };
        let cases = [
            ("198.51.100.16-31", Some("198.51.100.16/28")),
            ("198.51.100.0/24", Some("198.51.100.0/24")),
            ("198.51.100.7", Some("198.51.100.7")),
            ("198.51.100.6-7", Some("198.51.100.6/31")),
            ("2001:db8::20-2f", Some("2001:db8::20/124")),
            // As many, and beginning elsewhere; not as many; more than a service may have.
            ("198.51.100.17-32", None),
            ("198.51.100.7-8", None),
            ("198.51.100.16-30", None),
            ("10.0.0.0/22", None),
        ];
        for (text, prefix) in cases {
            assert_eq!(of(text).as_deref(), prefix, "{text}");
        }
    }

    #[test]
    fn ranges() {
        let of = |text: &str| match range(text, 16) {
            Some(Range::Of(all)) => {
                format!("{}..{} {}", all[0], all[all.len() - 1], all.len())
            }
            Some(Range::TooMany) => "too many".to_owned(),
            None => "none".to_owned(),
        };
        let cases = [
            ("192.0.2.1", "192.0.2.1..192.0.2.1 1"),
            ("192.0.2.1-10", "192.0.2.1..192.0.2.10 10"),
            ("192.0.2.250-192.0.3.3", "192.0.2.250..192.0.3.3 10"),
            ("192.0.2.8/29", "192.0.2.8..192.0.2.15 8"),
            ("192.0.2.9/32", "192.0.2.9..192.0.2.9 1"),
            ("2001:db8::8-f", "2001:db8::8..2001:db8::f 8"),
            ("2001:db8::/124", "2001:db8::..2001:db8::f 16"),
            ("2001:db8::1/128", "2001:db8::1..2001:db8::1 1"),
            ("::/0", "too many"),
            ("0.0.0.0/0", "too many"),
            ("192.0.2.0/24", "too many"),
            ("192.0.2.9/29", "none"),
            ("192.0.2.9-1", "none"),
            ("192.0.2.9/33", "none"),
            ("192.0.2.9-300", "none"),
            ("192.0.2.9-2001:db8::1", "none"),
            ("www", "none"),
        ];
        for (text, right) in cases {
            assert_eq!(of(text), right, "{text}");
        }
    }
}
