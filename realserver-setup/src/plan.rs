//! The steps from what is there to what is wanted: pure.
//!
//! The order is that of the plan's parts below. It holds whatever is there already, and after an
//! interruption at any step, since every plan is made anew from what is seen:
//!
//! - what is about to change is written down first;
//! - modules and devices, which are down when they are new;
//! - kernel parameters, so that ARP is silent before there is a VIP;
//! - VIPs, then rules, and the devices are set up last: nothing is unwrapped before the rules say whose;
//! - what earlier runs left and is of no use any more goes in the opposite order, except that rules, which
//!   also keep others out, stay until nothing unwraps.

mod silence;
mod surplus;

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::desired::Desired;
use crate::firewall::version_name;
use crate::kernel::{Device, ParameterName, Version, unwraps};
use crate::memory::{Change, Memory};
use crate::observed::{Link, Observed};
use crate::step::Step;
use crate::wanted::Wanted;

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Steps in their order. Empty where everything is as wanted.
    pub steps: Vec<Step>,
    /// What stays as it is although one might expect otherwise, and why.
    pub notes: Vec<String>,
}

impl Plan {
    /// Does it change the host?
    #[must_use]
    pub fn changes_host(&self) -> bool {
        self.steps.iter().any(Step::changes_host)
    }
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A VIP is an ordinary address of the host.
    #[error(
        "{vip} is an address of {device}, which answers for it: a VIP is the director's on the network. \
         Take it away there first (ip addr del {vip}/… dev {device}), and from the host's network \
         configuration"
    )]
    VipElsewhere {
        /// The VIP.
        vip: IpAddr,
        /// Where it is.
        device: String,
    },
    /// Somebody else's device has the name of ours.
    #[error(
        "{} is there and does not unwrap both IP versions for {local}, and was not made by \
         adit-realserver: remove it (ip link del {}), or name the address that it has as `local`",
        device.name(), device.name()
    )]
    ForeignDevice {
        /// The device.
        device: Device,
        /// What it should unwrap for.
        local: std::net::Ipv6Addr,
    },
    /// The module is there and its device is not.
    #[error(
        "the kernel has {}, but no {} here: fallback devices are only made in the host's own network \
         namespace (sysctl net.core.fb_tunnels_only_for_init_net)",
        device.module().name(), device.name()
    )]
    NoDevice {
        /// The device.
        device: Device,
    },
    /// It is not known where directors send to over IPv6.
    #[error(
        "this host has {count} IPv6 addresses: name the one that directors send to (local = \"…\", or \
         --local)"
    )]
    Local {
        /// How many it has.
        count: usize,
    },
    /// A segment size cannot be announced by a route that does not exist.
    #[error(
        "neither nftables nor a default route for {} to announce a segment size by: install nftables, or \
         set path_mtu = 0",
        version_name(*.0)
    )]
    NoRoute(Version),
    /// A plan that must not be carried out.
    #[error(
        "refused: after `{step}` this host would have {vip} and answer ARP for it; this is a fault of \
         adit-realserver"
    )]
    Loud {
        /// The VIP.
        vip: IpAddr,
        /// The step after which it would be so.
        step: String,
    },
}

/// What must be done so that the host is a real server; `None`: an ordinary host, as it was found.
///
/// # Errors
/// See [`PlanError`].
pub fn plan(desired: Option<&Desired>, observed: &Observed) -> Result<Plan, PlanError> {
    let mut seen = observed.clone();
    let mut wanted = Wanted::default();
    let mut renewed = Vec::new();
    if let Some(desired) = desired {
        elsewhere(desired, observed)?;
        renewed = renew(desired, &mut seen)?;
        wanted = Wanted::new(desired, &seen)?;
    }
    let mut missing = Missing { observed: &seen, memory: observed.memory.clone(), steps: renewed };
    missing.modules(&wanted);
    missing.devices(&wanted)?;
    missing.parameters(&wanted);
    missing.addresses(&wanted);
    missing.rules(&wanted);
    missing.ports(&wanted);
    missing.up(&wanted);
    let Missing { memory, steps: mut changes, .. } = missing;

    let surplus = surplus::surplus(&wanted, &seen, memory.clone());
    changes.extend(surplus.steps);
    let mut steps = Vec::new();
    if !changes.is_empty() && memory != observed.memory {
        steps.push(Step::Remember(memory.clone()));
    }
    let written = if changes.is_empty() { &observed.memory } else { &memory };
    let left = surplus.memory;
    let rest = (left != *written).then_some(Step::Remember(left));
    steps.extend(changes);
    steps.extend(rest);
    silence::stays_silent(observed, &steps)?;
    Ok(Plan { steps, notes: surplus.notes })
}

/// Refuses VIPs that are on devices which answer for them.
fn elsewhere(desired: &Desired, observed: &Observed) -> Result<(), PlanError> {
    for &vip in desired.vips() {
        if let Some(device) = observed.holders(vip).find(|name| *name != "lo" && !unwraps(name)) {
            return Err(PlanError::VipElsewhere { vip, device: device.to_owned() });
        }
    }
    Ok(())
}

/// Collects the steps towards what is wanted, and notes what they change.
struct Missing<'o> {
    observed: &'o Observed,
    memory: Memory,
    steps: Vec<Step>,
}

impl Missing<'_> {
    fn modules(&mut self, wanted: &Wanted) {
        for &module in &wanted.modules {
            if !self.observed.modules.contains(&module) {
                self.memory.modules.insert(module);
                self.steps.push(Step::Load(module));
            }
        }
    }

    fn devices(&mut self, wanted: &Wanted) -> Result<(), PlanError> {
        for &device in &wanted.devices {
            if self.observed.links.contains_key(device.name()) {
                continue;
            }
            if device.made().is_none() && self.observed.modules.contains(&device.module()) {
                return Err(PlanError::NoDevice { device });
            }
            // Without a local address it comes with its module.
            if let Some(local) = wanted.local.filter(|_| device.made().is_some()) {
                self.memory.devices.insert(device.name().to_owned());
                self.steps.push(Step::Make { device, local });
            }
        }
        Ok(())
    }

    fn parameters(&mut self, wanted: &Wanted) {
        for (parameter, value) in &wanted.parameters {
            // A new device has what `default` says; should the device outlive us, it gets that.
            let default = self.observed.own(parameter.name, "default");
            let current = self.observed.parameters.get(parameter).copied().unwrap_or(default);
            let new = Change { found: current, set: BTreeSet::new() };
            let change = self.memory.parameters.entry(parameter.clone()).or_insert(new);
            if !change.set.contains(&current) && current != change.found {
                // Somebody else has set it since.
                *change = Change { found: current, set: BTreeSet::new() };
            }
            change.set.insert(*value);
            self.steps.push(Step::Set { parameter: parameter.clone(), value: *value });
        }
    }

    fn addresses(&mut self, wanted: &Wanted) {
        for (device, address) in &wanted.addresses {
            let link = self.observed.links.get(device);
            if link.is_some_and(|link| link.addresses.contains(address)) {
                continue;
            }
            self.memory.addresses.entry(device.clone()).or_default().insert(*address);
            self.steps.push(Step::AddAddress { device: device.clone(), address: *address });
        }
    }

    fn rules(&mut self, wanted: &Wanted) {
        let Some(rules) = wanted.rules.as_ref().filter(|rules| !rules.is_empty()) else {
            return self.routes(wanted);
        };
        if self.observed.table != Some(rules.table()) {
            self.steps.push(Step::SetTable(rules.clone()));
        }
    }

    fn routes(&mut self, wanted: &Wanted) {
        let there = &self.observed.routes;
        for (&version, (way, size)) in &wanted.routes.routes {
            if there.routes.get(&version) != Some(&(way.clone(), *size)) {
                self.steps.push(Step::SetRoute { version, way: way.clone(), size: *size });
            }
        }
        let new = wanted.routes.sources.difference(&there.sources);
        self.steps.extend(new.map(|source| Step::AddSource(*source)));
    }

    fn ports(&mut self, wanted: &Wanted) {
        for &port in wanted.ports.difference(&self.observed.ports) {
            self.memory.ports.insert(port);
            self.steps.push(Step::AddPort(port));
        }
    }

    fn up(&mut self, wanted: &Wanted) {
        for &device in &wanted.devices {
            let name = device.name();
            let link = self.observed.links.get(name);
            if link.is_some_and(|link| link.up) {
                continue;
            }
            // Ours are not among those that were found.
            let found = |address: &&IpAddr| !self.memory.has_address(name, **address);
            let found = link.map(|link| link.addresses.iter().filter(found).copied().collect());
            self.memory.down.entry(name.to_owned()).or_insert_with(|| found.unwrap_or_default());
            self.steps.push(Step::Up(name.to_owned()));
        }
    }
}

/// Steps that remove devices of ours which unwrap for another address than is wanted now; `seen` loses
/// them too.
fn renew(desired: &Desired, seen: &mut Observed) -> Result<Vec<Step>, PlanError> {
    let Some(local) = crate::wanted::local(desired, seen)? else { return Ok(Vec::new()) };
    let mut steps = Vec::new();
    for device in desired.devices() {
        let (name, Some(kind)) = (device.name(), device.made()) else { continue };
        let wrong = |link: &&Link| !fits(link, device, kind, local.into());
        if seen.links.get(name).filter(wrong).is_none() {
            continue;
        }
        if !seen.memory.devices.contains(name) {
            return Err(PlanError::ForeignDevice { device, local });
        }
        seen.links.remove(name);
        seen.parameters.retain(|parameter, _| parameter.scope != name);
        steps.push(Step::Unmake(device));
    }
    Ok(steps)
}

/// Is this the device that [`Step::Make`] makes?
fn fits(link: &Link, device: Device, kind: &str, local: IpAddr) -> bool {
    let both = link.both_versions || device != Device::Ip6;
    link.kind == kind && link.local == Some(local) && link.remote.is_none() && both
}

/// Does any of the host's devices filter by the reverse path, so that what is unwrapped is dropped?
/// The value in force: 1 drops packets of clients, which are not reached by the tunnel; 2 does so where the
/// device has no IPv4 address (`__fib_validate_source` in net/ipv4/fib_frontend.c).
#[must_use]
pub fn filters(observed: &Observed, device: &str) -> bool {
    let has_address = || {
        let link = observed.links.get(device);
        link.is_some_and(|link| link.addresses.iter().any(IpAddr::is_ipv4))
    };
    match observed.effective(ParameterName::RpFilter, device) {
        1 => true,
        2 => !has_address(),
        _ => false,
    }
}
