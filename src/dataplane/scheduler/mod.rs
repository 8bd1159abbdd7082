//! Schedulers: which member of a service takes a new flow.
//!
//! A choice has two stages. *Placement* depends on the configured members and weights only and
//! is the same on every director; *eligibility* (health, drain, lag, load, all folded into an
//! effective weight) acts on new flows only and rebuilds nothing. [`maglev`] has both; [`wrr`]
//! has no placement and chooses among the eligible by effective weight.
//!
//! A scheduler is immutable and shared by all workers in a snapshot; what moves (the cursors of
//! `wrr`) lives in atomics that the next snapshot carries over by member address.

pub mod maglev;
mod rendezvous;
pub mod table;
pub mod wrr;

use std::{net::IpAddr, sync::Arc};

use serde::Serialize;

use self::{
    maglev::Maglev,
    table::{TableCache, TableError},
    wrr::Wrr,
};
use super::hash::PlacementKey;

/// Live state of one member of a service: all that the second stage looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The real server's address, its identity.
    pub address: IpAddr,
    /// The configured weight: the ceiling, and all that placement sees.
    pub weight: u32,
    /// What health, lag, slow start and `adit weight` leave of it, 0..=`weight`.
    pub effective_weight: u32,
    /// Dead as far as health checks know.
    pub down: bool,
    /// Takes no new flow, keeps those it has.
    pub draining: bool,
}

impl Member {
    /// A member that is up and takes its full share.
    pub const fn up(address: IpAddr, weight: u32) -> Self {
        Self { address, weight, effective_weight: weight, down: false, draining: false }
    }

    /// The weight with which this member takes part in choices for new flows; 0 takes none.
    #[inline]
    pub fn admitted_weight(&self) -> u32 {
        if self.down || self.draining { 0 } else { self.effective_weight.min(self.weight) }
    }

    /// Whether a new flow may go here. Persistence asks this too.
    #[inline]
    pub fn is_eligible(&self) -> bool {
        self.admitted_weight() > 0
    }

    /// Whether a probe's acceptance hash lies below this member's share of its configured
    /// weight. Exact: acceptance / 2^32 < admitted / configured, cross-multiplied.
    #[inline]
    fn accepts(&self, acceptance: u32) -> bool {
        let admitted = u64::from(self.admitted_weight()) << 32;
        u64::from(acceptance) * u64::from(self.weight) < admitted
    }
}

/// Chooses real servers for new flows. `members` is always the slice the scheduler was built
/// for, in the same order, with the live state of now.
pub trait Scheduler: Send + Sync {
    /// The name in the configuration.
    fn name(&self) -> &'static str;

    /// Whether a placement can be derived again from the key alone.
    fn is_hash(&self) -> bool;

    /// Member for a new flow, or `None` when nobody is eligible. Never allocates.
    fn schedule(&self, key: &PlacementKey, members: &[Member]) -> Option<usize>;

    /// The one guess for a packet in mid-flow that has no entry: the first placed candidate
    /// that is not down (draining counts as up). `None` for schedulers that are not hashes.
    fn rederive(&self, key: &PlacementKey, members: &[Member]) -> Option<usize>;

    /// How [`Scheduler::schedule`] would decide now, for `adit explain`. Moves no cursor.
    fn explain(&self, key: &PlacementKey, members: &[Member]) -> Explanation;

    /// The cursors to carry into the next snapshot, if this scheduler has any.
    fn as_wrr(&self) -> Option<&Wrr> {
        None
    }
}

/// The schedulers a service can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SchedulerKind {
    /// Consistent hashing over a Maglev table.
    Maglev,
    /// Weighted round robin.
    Wrr,
    /// Round robin: `wrr` with equal weights.
    Rr,
}

impl SchedulerKind {
    /// All kinds, in the order in which they are documented.
    pub const ALL: [Self; 3] = [Self::Maglev, Self::Wrr, Self::Rr];

    /// The name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Maglev => "maglev",
            Self::Wrr => "wrr",
            Self::Rr => "rr",
        }
    }

    /// The kind of this name in the configuration.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Builds the scheduler of one service. Tables come from `tables`, where services with the
    /// same members and weights share one; cursors are carried over from `previous`, the
    /// service's scheduler in the snapshot before.
    ///
    /// # Errors
    /// [`TableError`] when no table can hold the members; only for [`SchedulerKind::Maglev`].
    pub fn build(
        self,
        members: &[Member],
        tables: &mut TableCache,
        previous: Option<&dyn Scheduler>,
    ) -> Result<Arc<dyn Scheduler>, TableError> {
        let cursors = previous.and_then(|scheduler| scheduler.as_wrr());
        Ok(match self {
            Self::Maglev => Arc::new(Maglev::new(members, tables)?),
            Self::Wrr => Arc::new(Wrr::new(members, cursors)),
            Self::Rr => Arc::new(Wrr::round_robin(members, cursors)),
        })
    }
}

/// How a choice came about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The scheduler's name.
    pub scheduler: &'static str,
    /// The placement key, 32 hexadecimal digits; `None` when the scheduler does not look at it.
    pub key: Option<String>,
    /// Slots of the table; `None` without a table.
    pub table_size: Option<u32>,
    /// Every probed candidate in order, the taken one last.
    pub probes: Vec<ProbedCandidate>,
    /// Whether all probes were passed over, so that weighted rendezvous decided.
    pub rendezvous: bool,
    /// The chosen member, or `None` when nobody is eligible.
    pub chosen: Option<ChosenMember>,
    /// Whom a packet in mid-flow without an entry would be sent to.
    pub rederived: Option<ChosenMember>,
}

/// A member as an [`Explanation`] names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ChosenMember {
    /// Position among the members.
    pub index: usize,
    /// The real server's address.
    pub address: IpAddr,
}

impl ChosenMember {
    fn of(index: usize, members: &[Member]) -> Option<Self> {
        members.get(index).map(|member| Self { index, address: member.address })
    }
}

/// One step of an [`Explanation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ProbedCandidate {
    /// Number of the probe, from 0.
    pub probe: u32,
    /// The slot it looked at; `None` without a table.
    pub slot: Option<u32>,
    /// Who is in that slot.
    pub candidate: ChosenMember,
    /// Why the candidate was taken or passed over.
    pub outcome: ProbeOutcome,
}

/// Why a candidate was taken or passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeOutcome {
    /// It takes the flow.
    Taken,
    /// Health checks say it is dead.
    Down,
    /// It takes no new flows.
    Draining,
    /// Its effective weight is zero.
    WeightZero,
    /// Its effective weight is below the configured one, and this key is not in the share left.
    BeyondShare,
}

impl ProbeOutcome {
    fn of(member: &Member, acceptance: u32) -> Self {
        if member.down {
            Self::Down
        } else if member.draining {
            Self::Draining
        } else if member.admitted_weight() == 0 {
            Self::WeightZero
        } else if member.accepts(acceptance) {
            Self::Taken
        } else {
            Self::BeyondShare
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_end_exactly_where_they_should() {
        const HALF: u32 = 1 << 31;
        let cases = [
            // Configured, effective, acceptance, whether it takes the key.
            (100, 0, 0, false),
            (100, 50, HALF - 1, true),
            (100, 50, HALF, false),
            (100, 100, u32::MAX, true),
            (u32::MAX, u32::MAX, u32::MAX, true),
            (u32::MAX, 1, 1, true),
            (u32::MAX, 1, 2, false),
            (100, 500, u32::MAX, true),
            (0, 0, 0, false),
        ];
        for (weight, effective_weight, acceptance, takes) in cases {
            let member =
                Member { effective_weight, ..Member::up(IpAddr::from([10, 0, 0, 1]), weight) };
            let case = (weight, effective_weight, acceptance);
            assert_eq!(member.accepts(acceptance), takes, "{case:?}");
        }
    }
}
