//! One change of a host.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use serde::Serialize;

use crate::firewall::Rules;
use crate::kernel::{Device, GuePort, Module, Parameter, Version};
use crate::memory::Memory;

/// Number of the routing table, and priority of the rules, that carry the segment size where
/// nftables is missing.
pub const MSS_TABLE: u32 = 7705;

/// One change of the host. Each is done wholly or not at all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Write down what was found, in place of what was written before; if it is empty, forget it.
    Remember(Memory),
    /// Load a kernel module.
    Load(Module),
    /// Unload a kernel module, with the devices that are its own.
    Unload(Module),
    /// Make a tunnel device; down, as devices are when they are new.
    Make {
        /// Which.
        device: Device,
        /// Address of this host that directors send to.
        local: Ipv6Addr,
    },
    /// Remove a device, with all addresses on it.
    Unmake(Device),
    /// Write a kernel parameter.
    Set {
        /// Which.
        parameter: Parameter,
        /// Value.
        value: i32,
    },
    /// Add an address, of which there is one on that network.
    AddAddress {
        /// To which device.
        device: String,
        /// Address.
        address: IpAddr,
    },
    /// Take an address away.
    DeleteAddress {
        /// From which device.
        device: String,
        /// Address.
        address: IpAddr,
    },
    /// Put our nftables table in place, in one transaction.
    SetTable(Rules),
    /// Remove our nftables table.
    DeleteTable,
    /// Announce a segment size by the default route of [`MSS_TABLE`].
    SetRoute {
        /// IP version.
        version: Version,
        /// Way, as in `via 10.0.0.1 dev eth0`.
        way: String,
        /// Segment size in bytes.
        size: u16,
    },
    /// Remove that route.
    DeleteRoute(Version),
    /// Let packets from an address take that route.
    AddSource(IpAddr),
    /// Let them no more.
    DeleteSource(IpAddr),
    /// Take GUE off at a port.
    AddPort(GuePort),
    /// No more.
    DeletePort(GuePort),
    /// Set a device up.
    Up(String),
    /// Set a device down; IPv6 addresses go with it.
    Down(String),
}

impl Step {
    /// Does it change the host, and not only the memory?
    #[must_use]
    pub fn changes_host(&self) -> bool {
        !matches!(self, Self::Remember(_))
    }

    /// Words for `ip`, for the steps that it does.
    #[must_use]
    pub fn ip_words(&self) -> Option<String> {
        let address = |verb: &str, device: &str, address: IpAddr| {
            let version = Version::of(address);
            let dad = if verb == "add" && version == Version::V6 { " nodad" } else { "" };
            format!("addr {verb} {address}/{} dev {device}{dad}", version.host_bits())
        };
        let rule = |verb: &str, source: IpAddr| {
            let option = Version::of(source).option();
            format!("{option} rule {verb} from {source} lookup {MSS_TABLE} priority {MSS_TABLE}")
        };
        Some(match self {
            Self::Make { device, local } => {
                let kind = device.made()?;
                let mode = if *device == Device::Ip6 { " mode any" } else { "" };
                let name = device.name();
                format!("link add {name} type {kind}{mode} local {local} remote :: encaplimit none")
            }
            Self::Unmake(device) => format!("link del {}", device.name()),
            Self::AddAddress { device, address: added } => address("add", device, *added),
            Self::DeleteAddress { device, address: gone } => address("del", device, *gone),
            Self::SetRoute { version, way, size } => {
                let option = version.option();
                format!("{option} route replace default {way} advmss {size} table {MSS_TABLE}")
            }
            Self::DeleteRoute(version) => {
                format!("{} route flush table {MSS_TABLE}", version.option())
            }
            Self::AddSource(source) => rule("add", *source),
            Self::DeleteSource(source) => rule("del", *source),
            Self::AddPort(port) => {
                format!("{} fou add port {} gue", port.version.option(), port.port)
            }
            Self::DeletePort(port) => {
                format!("{} fou del port {}", port.version.option(), port.port)
            }
            Self::Up(device) => format!("link set {device} up"),
            Self::Down(device) => format!("link set {device} down"),
            Self::Remember(_)
            | Self::Load(_)
            | Self::Unload(_)
            | Self::Set { .. }
            | Self::SetTable(_)
            | Self::DeleteTable => return None,
        })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Remember(memory) if memory.is_empty() => f.write_str("forget what was found"),
            Self::Remember(_) => f.write_str("remember what was found"),
            Self::Load(module) => write!(f, "modprobe {}", module.name()),
            Self::Unload(module) => write!(f, "modprobe -r {}", module.name()),
            Self::Set { parameter, value } => write!(f, "sysctl {parameter}={value}"),
            Self::SetTable(rules) => write!(f, "nft table {rules}"),
            Self::DeleteTable => write!(f, "nft delete table inet {}", crate::firewall::TABLE),
            Self::Make { .. }
            | Self::Unmake(_)
            | Self::AddAddress { .. }
            | Self::DeleteAddress { .. }
            | Self::SetRoute { .. }
            | Self::DeleteRoute(_)
            | Self::AddSource(_)
            | Self::DeleteSource(_)
            | Self::AddPort(_)
            | Self::DeletePort(_)
            | Self::Up(_)
            | Self::Down(_) => {
                write!(f, "ip {}", self.ip_words().unwrap_or_default())
            }
        }
    }
}
