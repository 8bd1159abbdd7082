//! What is there: the state of a host, as far as a real server depends on it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use crate::firewall::Table;
use crate::kernel::{GuePort, Module, Parameter, ParameterName, Version, unwraps};
use crate::memory::Memory;

/// State of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Modules that are loaded or built in.
    pub modules: BTreeSet<Module>,
    /// Every network device.
    pub links: BTreeMap<String, Link>,
    /// Kernel parameters, of all interfaces that have them, `all` and `default`.
    pub parameters: BTreeMap<Parameter, i32>,
    /// Ports where GUE is taken off.
    pub ports: BTreeSet<GuePort>,
    /// Does nftables work here, for the family `inet` and the size of TCP segments?
    pub nftables: bool,
    /// Our own table.
    pub table: Option<Table>,
    /// Everybody's rules, as `nft -j list ruleset` prints them; null where there is no nftables.
    pub ruleset: serde_json::Value,
    /// Tables of the old iptables that are in use, which nftables does not show.
    pub old_tables: Vec<String>,
    /// Segment sizes that routes announce.
    pub routes: Announced,
    /// How default routes go, as in `via 10.0.0.1 dev eth0`.
    pub default_ways: BTreeMap<Version, String>,
    /// What earlier runs changed.
    pub memory: Memory,
}

/// A network device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Kind as `ip link` names it; empty for hardware.
    pub kind: String,
    /// Is it set up?
    pub up: bool,
    /// Does it speak ARP?
    pub arp: bool,
    /// A tunnel's local address.
    pub local: Option<IpAddr>,
    /// A tunnel's remote address; none: anybody.
    pub remote: Option<IpAddr>,
    /// Does a tunnel over IPv6 unwrap both versions (`mode any`)?
    pub both_versions: bool,
    /// Addresses, without those that the kernel gives by itself.
    pub addresses: BTreeSet<IpAddr>,
}

/// Segment sizes announced by routes, where nftables is missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announced {
    /// Sources whose packets take the routes below.
    pub sources: BTreeSet<IpAddr>,
    /// Way and size in bytes of the default route for them.
    pub routes: BTreeMap<Version, (String, u16)>,
}

impl Observed {
    /// Own value of a parameter; 0 where there is none.
    #[must_use]
    pub fn own(&self, name: ParameterName, scope: &str) -> i32 {
        own(&self.parameters, name, scope)
    }

    /// Value in force on an interface.
    #[must_use]
    pub fn effective(&self, name: ParameterName, scope: &str) -> i32 {
        self.own(name, "all").max(self.own(name, scope))
    }

    /// Interfaces that speak ARP.
    pub fn arp_interfaces(&self) -> impl Iterator<Item = &str> {
        self.links.iter().filter(|(_, link)| link.arp).map(|(name, _)| name.as_str())
    }

    /// Does no interface tell of addresses of others by ARP?
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.is_silent_with(&self.parameters)
    }

    /// [`Self::is_silent`], with other parameters.
    #[must_use]
    pub fn is_silent_with(&self, parameters: &BTreeMap<Parameter, i32>) -> bool {
        let effective =
            |name, scope| own(parameters, name, "all").max(own(parameters, name, scope));
        self.arp_interfaces().all(|interface| {
            ParameterName::ALL.into_iter().all(|name| name.keeps_silent(effective(name, interface)))
        })
    }

    /// Devices that have this address.
    pub fn holders(&self, address: IpAddr) -> impl Iterator<Item = &str> {
        self.links
            .iter()
            .filter(move |(_, link)| link.addresses.contains(&address))
            .map(|(name, _)| name.as_str())
    }

    /// IPv6 addresses of the host that are not VIPs: on no device that unwraps, nor loopback.
    #[must_use]
    pub fn own_addresses6(&self) -> Vec<Ipv6Addr> {
        let links = self.links.iter().filter(|(name, _)| !unwraps(name) && *name != "lo");
        let mut found: Vec<_> = links
            .flat_map(|(_, link)| &link.addresses)
            .filter_map(|address| match address {
                IpAddr::V6(address) => Some(*address),
                IpAddr::V4(_) => None,
            })
            .collect();
        found.dedup();
        found
    }
}

fn own(parameters: &BTreeMap<Parameter, i32>, name: ParameterName, scope: &str) -> i32 {
    parameters.get(&name.of(scope)).copied().unwrap_or(0)
}
