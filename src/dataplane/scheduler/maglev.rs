//! Consistent hashing in two stages over a placement [`Table`].
//!
//! Stage one, placement: probe k of a key asks the member in slot hash(key, k). Stage two,
//! eligibility: that member takes the key when hash'(key, k) lies below its effective share of
//! its configured weight. A down, draining or weightless member has share zero. After
//! [`PROBES_MAX`] probes, weighted rendezvous over the eligible decides.
//!
//! Whether a member takes a probe depends on that member alone, so changing one weight moves
//! keys only to or from that member, and shares are proportional to effective weights.

use std::sync::Arc;

use super::{
    Candidates, ChosenMember, Explanation, Member, ProbeOutcome, ProbedCandidate, Scheduler,
    rendezvous,
    table::{Table, TableCache, TableError},
};
use crate::dataplane::hash::{PlacementKey, Probe};

/// Probes before rendezvous. With half of the weight gone, 2^-64 of the keys get that far; with
/// 1 in 100 left, half do, and rendezvous costs a hash for each member.
pub const PROBES_MAX: u32 = 64;

/// The `maglev` scheduler of one service.
pub struct Maglev {
    table: Arc<Table>,
    /// Position among the service's members, by rank in the table.
    positions: Box<[u16]>,
}

impl Maglev {
    /// The scheduler for `members`, with a table out of `tables`.
    ///
    /// # Errors
    /// As [`Table::build`].
    pub fn new(members: &[Member], tables: &mut TableCache) -> Result<Self, TableError> {
        let table = tables.table(members)?;
        Ok(Self { positions: table.positions(members), table })
    }

    /// The table, shared with services that have the same members and weights.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// Position of the member in the slot of `probe`.
    #[inline]
    pub(super) fn candidate(&self, probe: Probe) -> Option<usize> {
        let rank = self.table.rank(probe.slot(self.table.size()))?;
        Some(usize::from(self.positions[usize::from(rank)]))
    }

    fn last_resort(key: &PlacementKey, candidates: &Candidates<'_>) -> Option<usize> {
        let all = candidates.members.iter().enumerate();
        rendezvous::choose(key, all.map(|(i, m)| (i, m.address, candidates.weight(i))))
    }

    fn explain_probes(
        &self,
        key: &PlacementKey,
        candidates: &Candidates<'_>,
    ) -> (Vec<ProbedCandidate>, Option<usize>) {
        let mut probes = Vec::new();
        for k in 0..PROBES_MAX {
            let probe = key.probe(k);
            let Some(index) = self.candidate(probe) else { break };
            let Some(candidate) = ChosenMember::of(index, candidates.members) else {
                break;
            };
            let outcome = ProbeOutcome::of(candidates, index, probe.acceptance);
            let slot = Some(probe.slot(self.table.size()));
            probes.push(ProbedCandidate { probe: k, slot, candidate, load: None, outcome });
            if outcome == ProbeOutcome::Taken {
                return (probes, Some(index));
            }
        }
        (probes, None)
    }
}

impl Scheduler for Maglev {
    fn name(&self) -> &'static str {
        "maglev"
    }

    fn is_hash(&self) -> bool {
        true
    }

    #[inline]
    fn schedule(&self, key: &PlacementKey, candidates: &Candidates<'_>) -> Option<usize> {
        debug_assert_eq!(candidates.members.len(), self.positions.len());
        for k in 0..PROBES_MAX {
            let probe = key.probe(k);
            let index = self.candidate(probe)?;
            if candidates.accepts(index, probe.acceptance) {
                return Some(index);
            }
        }
        Self::last_resort(key, candidates)
    }

    fn rederive(&self, key: &PlacementKey, members: &[Member]) -> Option<usize> {
        debug_assert_eq!(members.len(), self.positions.len());
        for k in 0..PROBES_MAX {
            let index = self.candidate(key.probe(k))?;
            if !members[index].down {
                return Some(index);
            }
        }
        let up = members.iter().enumerate().filter(|(_, member)| !member.down);
        rendezvous::choose(key, up.map(|(i, member)| (i, member.address, member.weight)))
    }

    fn explain(&self, key: &PlacementKey, candidates: &Candidates<'_>) -> Explanation {
        let members = candidates.members;
        let (probes, taken) = self.explain_probes(key, candidates);
        let chosen = taken.or_else(|| Self::last_resort(key, candidates));
        Explanation {
            scheduler: self.name(),
            key: Some(key.to_string()),
            table_size: Some(self.table.size()),
            probes,
            rendezvous: taken.is_none() && chosen.is_some(),
            chosen: chosen.and_then(|index| ChosenMember::of(index, members)),
            rederived: self
                .rederive(key, members)
                .and_then(|index| ChosenMember::of(index, members)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // test data is cut to size on purpose
#[path = "maglev_tests.rs"]
mod tests;
