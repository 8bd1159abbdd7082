//! What `apply` found before it changed it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::kernel::{GuePort, Module, Parameter};

/// What was changed, and how it was found: what `remove` gives back.
///
/// It is written before the change it tells of, so that there is none that it does not know. It lasts
/// as long as the changes do, that is until the next boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Modules that were not there.
    pub modules: BTreeSet<Module>,
    /// Devices that were not there, of those that are made by name.
    pub devices: BTreeSet<String>,
    /// Devices that were down, with the addresses that they had then.
    pub down: BTreeMap<String, BTreeSet<IpAddr>>,
    /// Addresses that were not there, by device.
    pub addresses: BTreeMap<String, BTreeSet<IpAddr>>,
    /// Kernel parameters that had other values.
    pub parameters: BTreeMap<Parameter, Change>,
    /// GUE ports that were not there.
    pub ports: BTreeSet<GuePort>,
}

/// A changed value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The last value that was somebody else's.
    pub found: i32,
    /// Ours: the last one, and any before, since a run may have ended between writing this and the
    /// change.
    pub set: BTreeSet<i32>,
}

impl Memory {
    /// Was nothing changed?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Did `apply` put this address there?
    #[must_use]
    pub fn has_address(&self, device: &str, address: IpAddr) -> bool {
        self.addresses.get(device).is_some_and(|ours| ours.contains(&address))
    }
}
