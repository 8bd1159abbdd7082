//! The parts of the kernel that a real server is made of, and their names.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Version {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Version {
    /// The version of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The option of `ip` that names it.
    #[must_use]
    pub const fn option(self) -> &'static str {
        match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        }
    }

    /// Length of the prefix that is one address.
    #[must_use]
    pub const fn host_bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

/// A kernel module that unwraps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Module {
    /// IPv4 in IPv4.
    Ipip,
    /// IPv6 in IPv4.
    Sit,
    /// Either in IPv6.
    Ip6Tunnel,
    /// GRE over IPv4.
    IpGre,
    /// GRE over IPv6.
    Ip6Gre,
    /// GUE over IPv4.
    Fou,
    /// GUE over IPv6.
    Fou6,
}

impl Module {
    /// All of them, in an order in which they can be loaded.
    pub const ALL: [Self; 7] =
        [Self::Ipip, Self::Sit, Self::Ip6Tunnel, Self::IpGre, Self::Ip6Gre, Self::Fou, Self::Fou6];

    /// As `modprobe` knows it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipip => "ipip",
            Self::Sit => "sit",
            Self::Ip6Tunnel => "ip6_tunnel",
            Self::IpGre => "ip_gre",
            Self::Ip6Gre => "ip6_gre",
            Self::Fou => "fou",
            Self::Fou6 => "fou6",
        }
    }

    /// The devices that come and go with the module; the first tells that it is there.
    #[must_use]
    pub const fn devices(self) -> &'static [&'static str] {
        match self {
            Self::Ipip => &["tunl0"],
            Self::Sit => &["sit0"],
            Self::Ip6Tunnel => &["ip6tnl0"],
            Self::IpGre => &["gre0", "gretap0", "erspan0"],
            Self::Ip6Gre => &["ip6gre0"],
            Self::Fou | Self::Fou6 => &[],
        }
    }

    /// The kinds of device, as `ip link` names them, that live by this module.
    #[must_use]
    pub const fn kinds(self) -> &'static [&'static str] {
        match self {
            Self::Ipip => &["ipip"],
            Self::Sit => &["sit"],
            Self::Ip6Tunnel => &["ip6tnl"],
            Self::IpGre => &["gre", "gretap", "erspan"],
            Self::Ip6Gre => &["ip6gre", "ip6gretap", "ip6erspan"],
            Self::Fou | Self::Fou6 => &[],
        }
    }
}

/// A device that unwraps packets for VIPs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// `tunl0`: IPv4 in IPv4.
    Tunl0,
    /// `sit0`: IPv6 in IPv4.
    Sit0,
    /// `adit-ip6`: either in IPv6. A device of our own since the module's `ip6tnl0` unwraps only IPv6
    /// in IPv6, and its mode cannot be changed (`ip6_tnl_changelink` in net/ipv6/ip6_tunnel.c
    /// refuses the fallback device).
    Ip6,
    /// `gre0`: either in GRE over IPv4, without checksum.
    Gre0,
    /// `adit-gre6`: either in GRE over IPv6.
    Gre6,
}

impl Device {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Tunl0, Self::Sit0, Self::Ip6, Self::Gre0, Self::Gre6];

    /// As `ip link` names it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tunl0 => "tunl0",
            Self::Sit0 => "sit0",
            Self::Ip6 => "adit-ip6",
            Self::Gre0 => "gre0",
            Self::Gre6 => "adit-gre6",
        }
    }

    /// The module it lives by.
    #[must_use]
    pub const fn module(self) -> Module {
        match self {
            Self::Tunl0 => Module::Ipip,
            Self::Sit0 => Module::Sit,
            Self::Ip6 => Module::Ip6Tunnel,
            Self::Gre0 => Module::IpGre,
            Self::Gre6 => Module::Ip6Gre,
        }
    }

    /// The kind as `ip link` names it, of those that are made here: the others are the modules' own.
    #[must_use]
    pub const fn made(self) -> Option<&'static str> {
        match self {
            Self::Tunl0 | Self::Sit0 | Self::Gre0 => None,
            Self::Ip6 => Some("ip6tnl"),
            Self::Gre6 => Some("ip6gre"),
        }
    }

    /// Version of the outer header.
    #[must_use]
    pub const fn outer(self) -> Version {
        match self {
            Self::Tunl0 | Self::Sit0 | Self::Gre0 => Version::V4,
            Self::Ip6 | Self::Gre6 => Version::V6,
        }
    }

    /// The IP protocols of the outer header that it unwraps.
    #[must_use]
    pub const fn protocols(self) -> &'static [u8] {
        match self {
            Self::Tunl0 => &[4],
            Self::Sit0 => &[41],
            Self::Ip6 => &[4, 41],
            Self::Gre0 | Self::Gre6 => &[47],
        }
    }

    /// Can what it unwraps be of this version?
    #[must_use]
    pub const fn carries(self, inner: Version) -> bool {
        match self {
            Self::Tunl0 => matches!(inner, Version::V4),
            Self::Sit0 => matches!(inner, Version::V6),
            Self::Ip6 | Self::Gre0 | Self::Gre6 => true,
        }
    }
}

/// The TUN device of `adit-realserver decap`, which unwraps in the kernel's stead.
pub const DECAP: &str = "adit-decap0";

/// Is this a device that unwraps for VIPs?
#[must_use]
pub fn unwraps(name: &str) -> bool {
    name == DECAP || Device::ALL.iter().any(|device| device.name() == name)
}

/// A UDP port where the kernel takes GUE off (`ip fou`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GuePort {
    /// Version of the outer header.
    pub version: Version,
    /// Destination port.
    pub port: u16,
}

/// A kernel parameter of IPv4 that a real server depends on (`Documentation/networking/ip-sysctl.rst`).
///
/// The value in force on an interface is the maximum of `all` and the interface's own
/// (`IN_DEV_MAXCONF` in include/linux/inetdevice.h).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Parameter {
    /// `all`, `default` or an interface.
    pub scope: String,
    /// Which one.
    pub name: ParameterName,
}

/// Names of [`Parameter`]s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ParameterName {
    /// For which addresses ARP is answered.
    ArpIgnore,
    /// Which address ARP requests come from.
    ArpAnnounce,
    /// Is a packet dropped whose answer would leave elsewhere? 0 no, 1 strict, 2 loose.
    RpFilter,
}

impl ParameterName {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::ArpIgnore, Self::ArpAnnounce, Self::RpFilter];

    /// As below /proc/sys.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ArpIgnore => "arp_ignore",
            Self::ArpAnnounce => "arp_announce",
            Self::RpFilter => "rp_filter",
        }
    }

    /// Does this value in force keep an interface silent about addresses of another one?
    #[must_use]
    pub const fn keeps_silent(self, value: i32) -> bool {
        match self {
            // 1 and 2 answer for the interface's own addresses, 8 for none. 3 answers for every
            // address of global scope, whichever interface it is on; other values are as good as 0
            // (`arp_ignore` in net/ipv4/arp.c).
            Self::ArpIgnore => matches!(value, 1 | 2 | 8),
            // Values above 2 are as good as 0 (`arp_solicit` there).
            Self::ArpAnnounce => value == 2,
            Self::RpFilter => true,
        }
    }

    /// That of `all` interfaces.
    #[must_use]
    pub fn all(self) -> Parameter {
        self.of("all")
    }

    /// That of one interface.
    #[must_use]
    pub fn of(self, scope: &str) -> Parameter {
        Parameter { scope: scope.to_owned(), name: self }
    }
}

impl Parameter {
    /// Its file.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/proc/sys/net/ipv4/conf/{}/{}", self.scope, self.name.name())
    }
}

impl fmt::Display for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // sysctl(8) has dots and slashes change places, for interfaces with a dot in their name.
        write!(f, "net.ipv4.conf.{}.{}", self.scope.replace('.', "/"), self.name.name())
    }
}

impl From<Parameter> for String {
    fn from(parameter: Parameter) -> Self {
        parameter.to_string()
    }
}

/// A text that names no [`Parameter`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no parameter that a real server depends on")]
pub struct UnknownParameter(String);

impl FromStr for Parameter {
    type Err = UnknownParameter;

    fn from_str(text: &str) -> Result<Self, UnknownParameter> {
        let unknown = || UnknownParameter(text.to_owned());
        let rest = text.strip_prefix("net.ipv4.conf.").ok_or_else(unknown)?;
        let (scope, name) = rest.rsplit_once('.').ok_or_else(unknown)?;
        let found = ParameterName::ALL.into_iter().find(|known| known.name() == name);
        Ok(found.ok_or_else(unknown)?.of(&scope.replace('/', ".")))
    }
}

impl TryFrom<String> for Parameter {
    type Error = UnknownParameter;

    fn try_from(text: String) -> Result<Self, UnknownParameter> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_interfaces_with_dots_are_told_apart() {
        let parameter = ParameterName::RpFilter.of("eth0.100");
        assert_eq!(parameter.to_string(), "net.ipv4.conf.eth0/100.rp_filter");
        assert_eq!(parameter.to_string().parse(), Ok(parameter.clone()));
        assert_eq!(parameter.path(), "/proc/sys/net/ipv4/conf/eth0.100/rp_filter");
        for wrong in ["net.ipv4.conf.all.forwarding", "net.ipv4.ip_forward", "rp_filter"] {
            assert!(wrong.parse::<Parameter>().is_err(), "{wrong}");
        }
    }
}
