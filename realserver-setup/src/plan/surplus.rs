//! What earlier runs left and is of no use any more.
//!
//! Only what `apply` changed is undone, and only where nobody has changed it since: whoever did, meant
//! something by it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::kernel::{Device, Module, Version, unwraps};
use crate::memory::Memory;
use crate::observed::{Announced, Link, Observed};
use crate::step::Step;
use crate::wanted::Wanted;

pub(super) struct Surplus {
    pub(super) steps: Vec<Step>,
    pub(super) notes: Vec<String>,
    /// What is left to be undone some day.
    pub(super) memory: Memory,
}

/// Steps that undo what is remembered and not wanted.
pub(super) fn surplus(wanted: &Wanted, observed: &Observed, memory: Memory) -> Surplus {
    let mut undo = Undo {
        wanted,
        observed,
        memory,
        steps: Vec::new(),
        notes: Vec::new(),
        gone: BTreeSet::new(),
        lowered: BTreeSet::new(),
    };
    undo.addresses();
    undo.down();
    undo.ports();
    undo.devices();
    undo.rules();
    undo.parameters();
    undo.modules();
    Surplus { steps: undo.steps, notes: undo.notes, memory: undo.memory }
}

struct Undo<'o> {
    wanted: &'o Wanted,
    observed: &'o Observed,
    memory: Memory,
    steps: Vec<Step>,
    notes: Vec<String>,
    /// Addresses that the steps so far take away.
    gone: BTreeSet<(String, IpAddr)>,
    /// Devices that they set down or remove.
    lowered: BTreeSet<String>,
}

impl Undo<'_> {
    fn link(&self, device: &str) -> Option<&Link> {
        self.observed.links.get(device)
    }

    fn wants_device(&self, name: &str) -> bool {
        self.wanted.devices.iter().any(|device| device.name() == name)
    }

    /// Addresses that stay on a device, but for those that it had when it was found.
    fn used(&self, device: &str) -> Vec<IpAddr> {
        let Some(link) = self.link(device) else { return Vec::new() };
        let found = self.memory.down.get(device);
        let stays = |address: &&IpAddr| {
            !self.gone.contains(&(device.to_owned(), **address))
                && !found.is_some_and(|found| found.contains(*address))
        };
        link.addresses.iter().filter(stays).copied().collect()
    }

    fn addresses(&mut self) {
        let remembered = std::mem::take(&mut self.memory.addresses);
        for (device, addresses) in remembered {
            for address in addresses {
                if self.wanted.addresses.contains(&(device.clone(), address)) {
                    self.memory.addresses.entry(device.clone()).or_default().insert(address);
                    continue;
                }
                if self.link(&device).is_some_and(|link| link.addresses.contains(&address)) {
                    self.gone.insert((device.clone(), address));
                    self.steps.push(Step::DeleteAddress { device: device.clone(), address });
                }
            }
        }
    }

    fn down(&mut self) {
        for name in self.memory.down.clone().into_keys() {
            if self.wants_device(&name) {
                continue;
            }
            let used = self.used(&name);
            let lost = self.memory.down[&name].iter().find(|address| address.is_ipv6());
            match self.link(&name).is_some_and(|link| link.up) {
                true if !used.is_empty() => {
                    self.notes.push(format!("{name} stays up: somebody else put {used:?} on it"));
                }
                true if lost.is_some() => self.notes.push(format!(
                    "{name} stays up: set down it would lose the IPv6 addresses that it was found with"
                )),
                true => {
                    self.steps.push(Step::Down(name.clone()));
                    self.lowered.insert(name.clone());
                }
                false => {}
            }
            self.memory.down.remove(&name);
        }
    }

    fn ports(&mut self) {
        for port in self.memory.ports.clone() {
            if self.wanted.ports.contains(&port) {
                continue;
            }
            if self.observed.ports.contains(&port) {
                self.steps.push(Step::DeletePort(port));
            }
            self.memory.ports.remove(&port);
        }
    }

    fn devices(&mut self) {
        for device in Device::ALL {
            let name = device.name();
            if !self.memory.devices.contains(name) || self.wants_device(name) {
                continue;
            }
            self.memory.devices.remove(name);
            let ours =
                self.link(name).is_some_and(|link| Some(link.kind.as_str()) == device.made());
            let used = self.used(name);
            if ours && used.is_empty() {
                self.steps.push(Step::Unmake(device));
                self.lowered.insert(name.to_owned());
            } else if ours {
                self.notes.push(format!("{name} stays: somebody else put {used:?} on it"));
            }
        }
    }

    fn rules(&mut self) {
        let table = self.wanted.rules.as_ref().is_some_and(|rules| !rules.is_empty());
        if self.observed.table.is_some() && !table {
            self.steps.push(Step::DeleteTable);
        }
        let Announced { sources, routes } = &self.observed.routes;
        for source in sources.difference(&self.wanted.routes.sources) {
            self.steps.push(Step::DeleteSource(*source));
        }
        for version in [Version::V4, Version::V6] {
            if routes.contains_key(&version) && !self.wanted.routes.routes.contains_key(&version) {
                self.steps.push(Step::DeleteRoute(version));
            }
        }
    }

    /// In the opposite order of names, so that the filter of `all` is back before the interfaces lose
    /// what they got in its stead.
    fn parameters(&mut self) {
        let remembered = self.memory.parameters.clone();
        let (all, others): (Vec<_>, Vec<_>) =
            remembered.into_iter().partition(|(parameter, _)| parameter.scope == "all");
        for (parameter, change) in all.into_iter().chain(others) {
            let current = self.observed.parameters.get(&parameter).copied();
            if self.wanted.needs(&parameter, current) {
                continue;
            }
            self.memory.parameters.remove(&parameter);
            // The device is gone, or about to go.
            let Some(current) = current.filter(|_| !self.unmade(&parameter.scope)) else {
                continue;
            };
            if change.set.contains(&current) && current != change.found {
                self.steps.push(Step::Set { parameter, value: change.found });
            } else if current != change.found {
                self.notes.push(format!(
                    "{parameter} stays {current}: somebody else changed it; it was {} before adit-realserver",
                    change.found
                ));
            }
        }
    }

    /// Unloads modules that were not there, while nobody else has taken to them: other devices of
    /// theirs, or what makes their own useful.
    fn modules(&mut self) {
        for module in Module::ALL.into_iter().rev() {
            if !self.memory.modules.contains(&module) || self.wanted.modules.contains(&module) {
                continue;
            }
            self.memory.modules.remove(&module);
            if !self.observed.modules.contains(&module) {
                continue;
            }
            if let Some(user) = self.user(module) {
                self.notes.push(format!("{} stays loaded: {user}", module.name()));
            } else {
                self.steps.push(Step::Unload(module));
            }
        }
        if self.wanted.devices.is_empty() {
            self.others();
        }
    }

    /// Who uses a module.
    fn user(&self, module: Module) -> Option<String> {
        let port_version = match module {
            Module::Fou => Some(Version::V4),
            Module::Fou6 => Some(Version::V6),
            Module::Ipip | Module::Sit | Module::Ip6Tunnel | Module::IpGre | Module::Ip6Gre => None,
        };
        // fou serves both versions' ports; fou6 only its own.
        let mut ports = self.observed.ports.iter().filter(|port| {
            port_version.is_some_and(|version| version == Version::V4 || version == port.version)
        });
        let leaving =
            |port: &&crate::kernel::GuePort| self.steps.contains(&Step::DeletePort(**port));
        if let Some(port) = ports.find(|port| !leaving(port)) {
            return Some(format!("port {} takes off GUE", port.port));
        }
        for (name, link) in &self.observed.links {
            if !module.kinds().contains(&link.kind.as_str()) || self.unmade(name) {
                continue;
            }
            if !module.devices().contains(&name.as_str()) {
                return Some(format!("there is {name}"));
            }
            let up = link.up && !self.lowered.contains(name);
            let held = link
                .addresses
                .iter()
                .find(|address| !self.gone.contains(&(name.clone(), **address)));
            match held {
                Some(address) => return Some(format!("{name} has {address}")),
                None if up => return Some(format!("{name} is up")),
                None => {}
            }
        }
        None
    }

    fn unmade(&self, name: &str) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Unmake(device) if device.name() == name))
    }

    /// Says which addresses stay on devices that unwrap.
    fn others(&mut self) {
        for (name, link) in self.observed.links.iter().filter(|(name, _)| unwraps(name)) {
            for address in &link.addresses {
                if !self.gone.contains(&(name.clone(), *address)) {
                    self.notes.push(format!(
                        "{address} stays on {name}: it was not adit-realserver that put it there"
                    ));
                }
            }
        }
    }
}
