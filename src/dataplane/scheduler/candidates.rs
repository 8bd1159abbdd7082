//! The members of a service at the moment of a choice.

use super::{
    Member, Threshold,
    load::{Load, Loads},
};
use crate::dataplane::time::Time;

/// The members that a scheduler was built for, in the same order, and how they stand now.
#[derive(Clone, Copy, Debug)]
pub struct Candidates<'a> {
    /// Their live state.
    pub members: &'a [Member],
    /// Their connections.
    pub loads: Loads<'a>,
    /// Their thresholds, where there are any; empty where no member has.
    pub thresholds: &'a [Option<Threshold>],
    /// Now.
    pub now: Time,
}

/// A member that may take a new flow.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Position among the members.
    pub index: usize,
    /// The weight with which it takes part, above zero.
    pub weight: u32,
    /// Its connections.
    pub load: Load,
}

impl Candidate {
    /// Whether it has more active connections than its weight.
    #[inline]
    pub(super) fn overflows(&self) -> bool {
        self.load.active > u64::from(self.weight)
    }

    /// Whether it has less to do for its weight than another.
    #[inline]
    pub(super) fn is_less_busy(self, other: Self) -> bool {
        lighter((self.load.overhead(), self), (other.load.overhead(), other))
    }
}

impl<'a> Candidates<'a> {
    /// Members without connections at the moment of boot: enough for schedulers that look at
    /// neither.
    pub const fn unloaded(members: &'a [Member]) -> Self {
        Self { members, loads: Loads::NONE, thresholds: &[], now: Time::ZERO }
    }

    /// The weight with which a member takes part in choices for new flows; 0 takes none.
    #[inline]
    pub fn weight(&self, index: usize) -> u32 {
        if self.is_overloaded(index) { 0 } else { self.members[index].admitted_weight() }
    }

    /// Whether a member has as many connections as it may.
    #[inline]
    pub fn is_overloaded(&self, index: usize) -> bool {
        let threshold = self.thresholds.get(index).and_then(Option::as_ref);
        threshold.is_some_and(|threshold| threshold.is_overloaded(self.loads.of(index)))
    }

    /// The member at a position, unless it takes no new flow.
    #[inline]
    pub fn get(&self, index: usize) -> Option<Candidate> {
        let weight = self.weight(index);
        (weight > 0).then(|| Candidate { index, weight, load: self.loads.of(index) })
    }

    /// All that may take a new flow, in the order of the members.
    #[inline]
    pub fn eligible(&self) -> impl Iterator<Item = Candidate> {
        (0..self.members.len()).filter_map(|index| self.get(index))
    }

    /// Whether the probe of a key with this acceptance lies within the member's share.
    #[inline]
    pub(super) fn accepts(&self, index: usize, acceptance: u32) -> bool {
        self.members[index].share_holds(self.weight(index), acceptance)
    }
}

/// The first of those with the least `load` for their weight. Loads are compared cross-multiplied,
/// a / v < b / w being a · w < b · v, as IPVS does; 128 bits hold any product.
#[inline]
pub(super) fn least(
    candidates: impl Iterator<Item = Candidate>,
    load: impl Fn(Load) -> u64,
) -> Option<Candidate> {
    let mut best: Option<(u64, Candidate)> = None;
    for candidate in candidates {
        let own = load(candidate.load);
        if best.is_none_or(|(lowest, holder)| lighter((own, candidate), (lowest, holder))) {
            best = Some((own, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// Whether the first has less load for its weight than the second.
#[inline]
fn lighter((a, one): (u64, Candidate), (b, other): (u64, Candidate)) -> bool {
    u128::from(a) * u128::from(other.weight) < u128::from(b) * u128::from(one.weight)
}
