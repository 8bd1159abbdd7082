//! Room at the start: the region's directories may be full of real servers and VIPs that drain, and the
//! configuration needs ids.
//!
//! A reload that does not fit is refused, since the configuration in force goes on. A start has nothing
//! to go on with, so what is only draining gives way, those with the fewest connections first. Never
//! what the configuration names: it has half of each directory at most.

use super::build::World;
use super::config::{Config, VipPrefix};
use super::finding::Finding;
use crate::dataplane::conntrack::{self, FlowRecord, Slot};
use crate::dataplane::ids::{RealId, VipId};
use crate::dataplane::region::{Directory, DirectoryId, Entry};
use crate::dataplane::time::Time;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::net::IpAddr;

/// What has to go.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LetGo {
    reals: HashSet<RealId>,
    vips: HashSet<VipId>,
    /// Connections that go with them.
    connections: u64,
}

impl LetGo {
    /// What does not fit beside the configuration. `flows` are all there are, of which those that have
    /// expired by `now` count for nothing.
    pub fn beside<S: AsRef<[Entry]>>(
        world: &World<S>,
        config: &Config,
        flows: &[&[Slot]],
        now: Time,
    ) -> Self {
        let reals: Vec<_> = config
            .real_tunnels()
            .into_iter()
            .map(|(address, tunnel)| super::build::real_identity(address, tunnel))
            .collect();
        let vips: BTreeSet<IpAddr> = config.vips().iter().flat_map(VipPrefix::addresses).collect();
        let vips: Vec<_> = vips.into_iter().map(super::build::vip_identity).collect();
        let missing = (missing(&world.reals, &reals), missing(&world.vips, &vips));
        if missing == (0, 0) {
            return LetGo::default();
        }
        let (mut of_reals, mut of_vips) = (HashMap::new(), HashMap::new());
        for flow in living(flows, now) {
            *of_reals.entry(flow.real).or_default() += 1;
            *of_vips.entry(flow.key.vip).or_default() += 1;
        }
        let mut gone = LetGo {
            reals: fewest(&world.reals, &reals, missing.0, &of_reals),
            vips: fewest(&world.vips, &vips, missing.1, &of_vips),
            connections: 0,
        };
        gone.connections = living(flows, now).filter(|flow| gone.has(flow)).count() as u64;
        gone
    }

    /// Whether nothing has to go.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.reals.is_empty() && self.vips.is_empty()
    }

    /// Whether a flow goes.
    #[must_use]
    pub fn has(&self, flow: &FlowRecord) -> bool {
        self.has_real(flow.real) || self.vips.contains(&flow.key.vip)
    }

    /// Whether a real server goes.
    #[must_use]
    pub fn has_real(&self, real: RealId) -> bool {
        self.reals.contains(&real)
    }

    /// Takes the flows that go out of a region that is used as it is. To be done before the ids are
    /// free: whoever finds the region after a process that was killed must not take the flows for
    /// those of what has the ids next.
    pub fn end_flows(&self, flows: &[&[Slot]]) {
        if !self.is_empty() {
            flows.iter().for_each(|slots| conntrack::end(slots, |flow| self.has(flow)));
        }
    }

    /// Frees the ids.
    pub fn free<S: AsRef<[Entry]>>(&self, world: &mut World<S>) {
        if !self.is_empty() {
            world.reals.retain(|id, _| !self.reals.contains(&id));
            world.vips.retain(|id, _| !self.vips.contains(&id));
        }
    }

    /// What to say of it; `None` where nothing had to go.
    #[must_use]
    pub fn finding(&self) -> Option<Finding> {
        let LetGo { reals, vips, connections } = self;
        (!self.is_empty()).then(|| {
            Finding::warning(
                format!(
                    "{} VIPs and {} real servers of earlier configurations were let go at the start, \
                     with {connections} connections",
                    vips.len(),
                    reals.len()
                ),
                "there was no room for them beside those of the configuration, which go first; wait \
                 for connections to end, or `adit reload --now`, before the next such change",
            )
        })
    }
}

fn living(flows: &[&[Slot]], now: Time) -> impl Iterator<Item = FlowRecord> {
    let now = now.saturating_since(Time::ZERO);
    flows.iter().copied().flatten().filter_map(|slot| slot.read().ok().flatten()).filter(
        move |flow| {
            let progress = &flow.progress;
            progress.last_seen.to_duration() + progress.idle_limit.to_duration() >= now
        },
    )
}

/// How many ids are missing for `wanted`.
fn missing<Id, S>(directory: &Directory<Id, S>, wanted: &[Id::Identity]) -> usize
where
    Id: DirectoryId<Identity: PartialEq>,
    S: AsRef<[Entry]>,
{
    let (mut used, mut there) = (0, 0);
    for (_, identity) in directory.iter() {
        used += 1;
        there += usize::from(wanted.contains(&identity));
    }
    (used + wanted.len() - there).saturating_sub(directory.capacity())
}

/// So many ids that are not `wanted`, those with the fewest flows first.
fn fewest<Id, S>(
    directory: &Directory<Id, S>,
    wanted: &[Id::Identity],
    count: usize,
    flows: &HashMap<Id, u64>,
) -> HashSet<Id>
where
    Id: DirectoryId<Identity: PartialEq> + Eq + Hash,
    S: AsRef<[Entry]>,
{
    let mut others: Vec<(u64, usize, Id)> = directory
        .iter()
        .filter(|(_, identity)| count > 0 && !wanted.contains(identity))
        .map(|(id, _)| (flows.get(&id).copied().unwrap_or(0), id.position(), id))
        .collect();
    others.sort_unstable_by_key(|(flows, position, _)| (*flows, *position));
    others.into_iter().take(count).map(|(.., id)| id).collect()
}
