//! What a [`Desired`] means on a host that is in a given state.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use crate::desired::Desired;
use crate::firewall::Rules;
use crate::kernel::{DECAP, Device, GuePort, Module, Parameter, ParameterName, Version};
use crate::observed::{Announced, Observed};
use crate::plan::PlanError;

/// Everything that is to be on the host; nothing at all for one that is no real server.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) modules: Vec<Module>,
    pub(crate) devices: BTreeSet<Device>,
    /// Local address of devices that are made.
    pub(crate) local: Option<Ipv6Addr>,
    /// Parameters that need another value, in an order that leaves no gap.
    pub(crate) parameters: Vec<(Parameter, i32)>,
    /// Are parameters needed that are not of one device that unwraps?
    silence: bool,
    pub(crate) addresses: BTreeSet<(String, IpAddr)>,
    pub(crate) rules: Option<Rules>,
    pub(crate) routes: Announced,
    pub(crate) ports: BTreeSet<GuePort>,
}

impl Wanted {
    pub(crate) fn new(desired: &Desired, observed: &Observed) -> Result<Self, PlanError> {
        let devices = desired.devices();
        let silence = desired.versions().contains(&Version::V4);
        let mut parameters = Vec::new();
        if silence {
            parameters = quiet(observed);
            let mut names: BTreeSet<_> = devices.iter().map(|device| device.name()).collect();
            if desired.is_in_userspace() {
                names.insert(DECAP);
            }
            unfilter(observed, &names, &mut parameters);
        }
        let held = |&vip: &IpAddr| (desired.holder(vip).to_owned(), vip);
        Ok(Self {
            modules: desired.modules(),
            local: local(desired, observed)?,
            parameters,
            silence,
            addresses: desired.vips().iter().map(held).collect(),
            rules: observed.nftables.then(|| desired.rules()),
            routes: if observed.nftables {
                Announced::default()
            } else {
                routes(desired, observed)?
            },
            ports: desired.ports(),
            devices,
        })
    }

    /// Is a value that was changed earlier still of use, now that it is `current`?
    pub(crate) fn needs(&self, parameter: &Parameter, current: Option<i32>) -> bool {
        let of_device = Device::ALL.into_iter().find(|device| device.name() == parameter.scope);
        // One that does not unwrap for us keeps a filter that it got in the stead of `all`'s.
        let idle = |device| !self.devices.contains(&device) && current == Some(0);
        let pending = self.parameters.iter().any(|(wanted, _)| wanted == parameter);
        pending || (self.silence && !of_device.is_some_and(idle))
    }
}

/// The address that directors send to over IPv6.
pub(crate) fn local(desired: &Desired, observed: &Observed) -> Result<Option<Ipv6Addr>, PlanError> {
    if !desired.devices().iter().any(|device| device.made().is_some()) {
        return Ok(None);
    }
    if let Some(local) = desired.local() {
        return Ok(Some(local));
    }
    let mut own = observed.own_addresses6();
    own.retain(|address| !desired.vips().contains(&IpAddr::V6(*address)));
    // Not that a second address makes the first a question.
    let in_use = observed.memory.devices.iter().find_map(|name| observed.links.get(name)?.local);
    if let Some(&local) = own.iter().find(|address| in_use == Some(IpAddr::V6(**address))) {
        return Ok(Some(local));
    }
    match own[..] {
        [only] => Ok(Some(only)),
        _ => Err(PlanError::Local { count: own.len() }),
    }
}

/// Values that keep every interface silent about addresses of others, those of `all` first so that a
/// new interface is silent too.
fn quiet(observed: &Observed) -> Vec<(Parameter, i32)> {
    let mut wanted = Vec::new();
    for (name, value) in [(ParameterName::ArpIgnore, 1), (ParameterName::ArpAnnounce, 2)] {
        let silent = |value| name.keeps_silent(value);
        let mut all = observed.own(name, "all");
        if !silent(all) {
            all = value;
            wanted.push((name.all(), value));
        }
        for interface in observed.arp_interfaces() {
            if !silent(all.max(observed.own(name, interface))) {
                wanted.push((name.of(interface), value));
            }
        }
    }
    wanted
}

/// Values that take the reverse-path filter off the devices that unwrap: clients are not reached by
/// them. The filter of `all` counts for every interface, so it must go; the others get it as their
/// own before, and keep what they had in force.
fn unfilter(observed: &Observed, devices: &BTreeSet<&str>, wanted: &mut Vec<(Parameter, i32)>) {
    let name = ParameterName::RpFilter;
    let all = observed.own(name, "all");
    if all > 0 {
        for (parameter, &value) in &observed.parameters {
            let ours = devices.contains(parameter.scope.as_str());
            // Writing `default` would change every interface that nobody has written to yet
            // (`devinet_copy_dflt_conf` in net/ipv4/devinet.c).
            let shared = ["all", "default"].contains(&parameter.scope.as_str());
            if parameter.name == name && !shared && !ours && value < all {
                wanted.push((parameter.clone(), all));
            }
        }
        wanted.push((name.all(), 0));
    }
    for device in devices {
        // What a new device begins with.
        let begins = observed.own(name, "default");
        let own = observed.parameters.get(&name.of(device)).copied();
        if own.unwrap_or(begins) != 0 {
            wanted.push((name.of(device), 0));
        }
    }
}

fn routes(desired: &Desired, observed: &Observed) -> Result<Announced, PlanError> {
    let mut routes = BTreeMap::new();
    let sizes = desired.segment_sizes();
    for (version, size) in &sizes {
        let way = observed.default_ways.get(version).ok_or(PlanError::NoRoute(*version))?;
        routes.insert(*version, (way.clone(), *size));
    }
    let limited = |vip: &&IpAddr| sizes.contains_key(&Version::of(**vip));
    Ok(Announced { sources: desired.vips().iter().filter(limited).copied().collect(), routes })
}
