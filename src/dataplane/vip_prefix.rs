//! A virtual IP, or a prefix of them that one service takes as a whole.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A VIP, or all addresses of a prefix as VIPs. Written as the address alone where it is one, else as
/// `198.51.100.16/28`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VipPrefix {
    address: IpAddr,
    length: u8,
}

/// Why a text is no VIP.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VipPrefixError {
    /// Not an address, or something else than a prefix length behind it.
    #[error("{0}")]
    Syntax(String),
    /// A prefix longer than addresses are.
    #[error("a prefix of {family} has {most} bits at most")]
    Length {
        /// Which addresses.
        family: &'static str,
        /// How long they are.
        most: u8,
    },
    /// Bits behind the prefix that are not zero.
    #[error("{given} has bits behind its prefix")]
    HostBits {
        /// As it was given.
        given: String,
        /// The prefix that holds it.
        right: VipPrefix,
    },
}

impl VipPrefix {
    /// One address.
    pub const fn host(address: IpAddr) -> Self {
        Self { address, length: full_length(address) }
    }

    /// The prefix of that length that holds `address`. A length beyond the family's is taken as the
    /// whole address.
    pub fn holding(address: IpAddr, length: u8) -> Self {
        let length = length.min(full_length(address));
        let cut = bits(address) & !host_mask(full_length(address) - length);
        Self { address: with_bits(address, cut), length }
    }

    /// The first address of it, which is the VIP where it is one.
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// Leading bits that all its addresses share.
    pub const fn length(&self) -> u8 {
        self.length
    }

    /// Bits behind the prefix; 0 for one address.
    pub const fn host_bits(&self) -> u8 {
        full_length(self.address) - self.length
    }

    /// Whether these are IPv4 addresses.
    pub const fn is_ipv4(&self) -> bool {
        self.address.is_ipv4()
    }

    /// Whether these are IPv6 addresses.
    pub const fn is_ipv6(&self) -> bool {
        self.address.is_ipv6()
    }

    /// Whether an address is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.is_ipv4()
            && Self::holding(address, self.length).address == self.address
    }

    /// Whether all addresses of `other` are among these.
    pub fn covers(&self, other: &Self) -> bool {
        self.length <= other.length && self.contains(other.address)
    }

    /// All its addresses, in order. The configuration bounds how many there can be.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let address = self.address;
        let first = bits(address);
        (first..=first | host_mask(self.host_bits())).map(move |bits| with_bits(address, bits))
    }
}

const fn full_length(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// The lowest `count` bits.
const fn host_mask(count: u8) -> u128 {
    match count {
        0 => 0,
        _ => u128::MAX >> (128 - count),
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The address of these bits, of the family that `like` has.
fn with_bits(like: IpAddr, bits: u128) -> IpAddr {
    match like {
        #[expect(clippy::cast_possible_truncation, reason = "bits of an IPv4 address are 32")]
        IpAddr::V4(_) => IpAddr::V4((bits as u32).into()),
        IpAddr::V6(_) => IpAddr::V6(bits.into()),
    }
}

impl From<IpAddr> for VipPrefix {
    fn from(address: IpAddr) -> Self {
        Self::host(address)
    }
}

impl FromStr for VipPrefix {
    type Err = VipPrefixError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address
            .parse()
            .map_err(|error: std::net::AddrParseError| VipPrefixError::Syntax(error.to_string()))?;
        let Some(length) = length else { return Ok(Self::host(address)) };
        let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
        let wrong = || VipPrefixError::Syntax(format!("\"{length}\" is not a prefix length"));
        let length: u16 = length.parse().ok().filter(|_| digits).ok_or_else(wrong)?;
        let most = full_length(address);
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        let length = u8::try_from(length).ok().filter(|length| *length <= most);
        let length = length.ok_or(VipPrefixError::Length { family, most })?;
        let right = Self::holding(address, length);
        if right.address != address {
            return Err(VipPrefixError::HostBits { given: text.to_owned(), right });
        }
        Ok(right)
    }
}

impl fmt::Display for VipPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_bits() {
            0 => write!(f, "{}", self.address),
            _ => write!(f, "{}/{}", self.address, self.length),
        }
    }
}

impl Serialize for VipPrefix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for VipPrefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // test data is cut to size on purpose
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefix(text: &str) -> VipPrefix {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_prefix_has_its_addresses_and_no_others() {
        let sixteen = prefix("198.51.100.16/28");
        let all: Vec<_> = sixteen.addresses().collect();
        assert_eq!((all.len(), all[0], all[15]), (16, ip("198.51.100.16"), ip("198.51.100.31")));
        assert!(all.iter().all(|address| sixteen.contains(*address)));
        for outside in ["198.51.100.15", "198.51.100.32", "2001:db8::1"] {
            assert!(!sixteen.contains(ip(outside)), "{outside}");
        }
        assert_eq!(prefix("2001:db8::10/124").addresses().count(), 16);
        assert_eq!(prefix("192.0.2.1").addresses().collect::<Vec<_>>(), [ip("192.0.2.1")]);
        assert!(sixteen.covers(&prefix("198.51.100.20")) && sixteen.covers(&sixteen));
        assert!(!prefix("198.51.100.20").covers(&sixteen));
        // The families' bits are not to be mixed up.
        assert!(!prefix("::/1").covers(&sixteen) && !prefix("0.0.0.0/0").contains(ip("::1")));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let error = |text: &str| text.parse::<VipPrefix>().unwrap_err();
        let right = prefix("198.51.100.16/28");
        let given = "198.51.100.17/28".to_owned();
        assert_eq!(error("198.51.100.17/28"), VipPrefixError::HostBits { given, right });
        for text in ["192.0.2.0/33", "2001:db8::/129", "192.0.2.0/999"] {
            assert!(matches!(error(text), VipPrefixError::Length { .. }), "{text}");
        }
        for text in ["192.0.2.0/", "192.0.2.0/+8", "192.0.2.0/99999", "192.0.2/24", "x", ""] {
            assert!(matches!(error(text), VipPrefixError::Syntax(_)), "{text}");
        }
    }

    proptest! {
        #[test]
        fn text_is_read_as_it_is_written(v6: bool, bits: u128, length in 0..=128u8) {
            let address = if v6 { IpAddr::V6(bits.into()) } else { IpAddr::V4((bits as u32).into()) };
            let some = VipPrefix::holding(address, length);
            prop_assert_eq!(some.to_string().parse::<VipPrefix>().unwrap(), some);
            prop_assert!(some.contains(address));
            let json = serde_json::to_string(&some).unwrap();
            prop_assert_eq!(serde_json::from_str::<VipPrefix>(&json).unwrap(), some);
        }
    }
}
