//! The frame of schedulers that look at weights and connections of now, and keep nothing.

use std::marker::PhantomData;

use super::{Candidate, Candidates, Explanation, ProbeOutcome, Scheduler};
use crate::dataplane::hash::PlacementKey;

/// What tells one such scheduler from another.
pub(super) trait Rule: Send + Sync {
    /// The name in the configuration.
    const NAME: &'static str;

    /// Who takes a new flow.
    fn choose(candidates: &Candidates<'_>) -> Option<usize>;

    /// Why an eligible member was not chosen.
    fn passed_over(candidate: &Candidate) -> ProbeOutcome;
}

/// The scheduler of a rule.
pub(super) struct ByLoad<R>(PhantomData<R>);

impl<R> Default for ByLoad<R> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<R: Rule> Scheduler for ByLoad<R> {
    fn name(&self) -> &'static str {
        R::NAME
    }

    fn schedule(&self, _key: &PlacementKey, candidates: &Candidates<'_>) -> Option<usize> {
        R::choose(candidates)
    }

    fn explain(&self, _key: &PlacementKey, candidates: &Candidates<'_>) -> Explanation {
        let chosen = R::choose(candidates);
        Explanation::of_members(R::NAME, candidates, chosen, true, |c| Some(R::passed_over(c)))
    }
}
