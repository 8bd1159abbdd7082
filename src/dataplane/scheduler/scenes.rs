//! Members with connections, for the tests of schedulers.

use std::net::IpAddr;

use super::{Candidates, Loads, Member, Threshold, by_load::Rule};
use crate::dataplane::{
    counters::DestinationCounters,
    hash::{HashKey, PlacementKey},
    ids::DestinationId,
    time::Time,
};

/// Members, their gauges and a clock.
pub(super) struct Scene {
    pub(super) members: Vec<Member>,
    pub(super) now: Time,
    pub(super) thresholds: Vec<Option<Threshold>>,
    destinations: Vec<DestinationId>,
    counters: Vec<DestinationCounters>,
}

impl Scene {
    /// Members of these weights with these active and inactive connections.
    pub(super) fn new(weights: &[u32], loads: &[(u64, u64)]) -> Self {
        let member = |(i, &weight)| Member::up(IpAddr::from([10, 0, 0, i]), weight);
        let mut scene = Self {
            members: (0u8..).zip(weights).map(member).collect(),
            now: Time(1_000_000_000_000),
            // Not at the same numbers: a member's gauges are those of its destination.
            destinations: (3..).map(DestinationId).take(weights.len()).collect(),
            counters: Vec::new(),
            thresholds: Vec::new(),
        };
        scene.set_loads(loads);
        scene
    }

    pub(super) fn set_loads(&mut self, loads: &[(u64, u64)]) {
        let stranger = (9_999, 9_999);
        let all = [stranger; 3].into_iter().chain(loads.iter().copied()).chain([stranger]);
        self.counters = all.map(|(active, inactive)| gauges(active, inactive)).collect();
    }

    pub(super) fn candidates(&self) -> Candidates<'_> {
        Candidates {
            members: &self.members,
            loads: Loads::new(&self.destinations, &self.counters),
            thresholds: &self.thresholds,
            now: self.now,
        }
    }

    pub(super) fn choose<R: Rule>(&self) -> Option<usize> {
        R::choose(&self.candidates())
    }
}

impl Clone for Scene {
    fn clone(&self) -> Self {
        let read = |c: &DestinationCounters| gauges(c.active.get(), c.inactive.get());
        Self {
            members: self.members.clone(),
            now: self.now,
            thresholds: self.thresholds.clone(),
            destinations: self.destinations.clone(),
            counters: self.counters.iter().map(read).collect(),
        }
    }
}

fn gauges(active: u64, inactive: u64) -> DestinationCounters {
    let counters = DestinationCounters::default();
    counters.active.add(active);
    counters.inactive.add(inactive);
    counters
}

/// The key of a client by its number.
pub(super) fn client_key(number: u32) -> PlacementKey {
    PlacementKey::of_address(&HashKey::DEFAULT, IpAddr::from(number.to_be_bytes()))
}

/// A key that has no say.
pub(super) fn any_key() -> PlacementKey {
    client_key(0)
}
