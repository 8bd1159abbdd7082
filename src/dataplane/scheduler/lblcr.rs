//! Locality-based least connections with replication: a VIP has a set of servers, which grows by
//! the least loaded of all when its own have too much to do, and loses its busiest after a day
//! without change (`ip_vs_lblcr.c`).

use super::{
    Candidate, Candidates, Carried, Explanation, Load, Member, ProbeOutcome, Scheduler,
    candidates::least,
    locality::{Locality, is_overloaded, least_of_all},
};
use crate::dataplane::hash::PlacementKey;

/// The `lblcr` scheduler of one service.
pub struct Lblcr {
    locality: Locality,
}

impl Lblcr {
    /// A scheduler for `members` that remembers what `previous` did.
    pub fn new(members: &[Member], previous: Option<&Locality>) -> Self {
        Self { locality: Locality::new(members, previous) }
    }

    /// Those of the set that take new flows.
    fn set<'a>(&'a self, candidates: &'a Candidates<'a>) -> impl Iterator<Item = Candidate> + 'a {
        candidates.eligible().filter(|c| self.locality.serves(c.index, candidates.now))
    }

    /// Who takes a flow, and whether it is of the set.
    fn choose(&self, candidates: &Candidates<'_>) -> Option<(usize, bool)> {
        let of_set = least(self.set(candidates), Load::overhead);
        match of_set.filter(|candidate| !is_overloaded(candidate, candidates)) {
            Some(candidate) => Some((candidate.index, true)),
            None => least_of_all(candidates).map(|candidate| (candidate.index, false)),
        }
    }

    /// Of a set that has not changed for a day the busiest goes: what it was needed for is over.
    fn shrink(&self, candidates: &Candidates<'_>) {
        let now = candidates.now;
        if self.locality.count(now) < 2 || !self.locality.is_settled(now) {
            return;
        }
        let busier = |most: Candidate, next| if most.is_less_busy(next) { next } else { most };
        let busiest = self.set(candidates).reduce(busier);
        if let Some(busiest) = busiest {
            self.locality.remove(busiest.index, now);
        }
    }
}

impl Scheduler for Lblcr {
    fn name(&self) -> &'static str {
        "lblcr"
    }

    fn schedule(&self, _key: &PlacementKey, candidates: &Candidates<'_>) -> Option<usize> {
        let now = candidates.now;
        // As in IPVS: chosen first, so that the one that goes may have this flow still.
        let chosen = self.choose(candidates);
        self.shrink(candidates);
        let (index, of_set) = chosen?;
        if !of_set {
            if self.locality.count(now) == 0 {
                // An entry that has expired leaves its marks behind.
                self.locality.clear();
            }
            self.locality.add(index, now);
        }
        self.locality.touch(now);
        Some(index)
    }

    fn explain(&self, _key: &PlacementKey, candidates: &Candidates<'_>) -> Explanation {
        let chosen = self.choose(candidates);
        let of_set = chosen.is_some_and(|(_, of_set)| of_set);
        let serves = |candidate: &Candidate| self.locality.serves(candidate.index, candidates.now);
        let index = chosen.map(|(index, _)| index);
        Explanation::of_members("lblcr", candidates, index, true, |candidate| {
            Some(match serves(candidate) {
                true if is_overloaded(candidate, candidates) => ProbeOutcome::Overflowing,
                false if of_set => ProbeOutcome::NotServing,
                true | false => ProbeOutcome::Busier,
            })
        })
    }

    fn carried(&self) -> Carried<'_> {
        Carried::Locality(&self.locality)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        locality::EXPIRATION,
        scenes::{Scene, any_key},
    };
    use super::*;
    use std::time::Duration;

    const MOMENT: Duration = Duration::from_nanos(1);

    fn next(lblcr: &Lblcr, scene: &Scene) -> Option<usize> {
        lblcr.schedule(&any_key(), &scene.candidates())
    }

    /// Three members of weight 4 of which 0 and 1 serve.
    fn replicated() -> (Lblcr, Scene) {
        let mut scene = Scene::new(&[4, 4, 4], &[(0, 0), (1, 0), (2, 0)]);
        let lblcr = Lblcr::new(&scene.members, None);
        assert_eq!(next(&lblcr, &scene), Some(0), "the least loaded of all");
        scene.set_loads(&[(5, 0), (1, 0), (2, 0)]);
        assert_eq!(next(&lblcr, &scene), Some(1), "0 has too many and 1 less than half");
        (lblcr, scene)
    }

    #[test]
    fn the_set_grows_and_its_least_loaded_takes_the_flow() {
        let (lblcr, mut scene) = replicated();
        scene.set_loads(&[(1, 0), (2, 0), (0, 0)]);
        assert_eq!(next(&lblcr, &scene), Some(0), "2 is idle and not of the set");
        scene.set_loads(&[(3, 0), (2, 0), (0, 0)]);
        assert_eq!(next(&lblcr, &scene), Some(1));
        scene.set_loads(&[(6, 0), (5, 0), (2, 0)]);
        assert_eq!(next(&lblcr, &scene), Some(1), "nobody is half idle");
        scene.set_loads(&[(6, 0), (5, 0), (1, 0)]);
        assert_eq!(next(&lblcr, &scene), Some(2), "the set has three now");
        scene.set_loads(&[(1, 0), (2, 0), (3, 0)]);
        assert_eq!(next(&lblcr, &scene), Some(0));
    }

    #[test]
    fn after_a_day_without_change_the_busiest_goes() {
        let (lblcr, mut scene) = replicated();
        scene.set_loads(&[(1, 0), (2, 0), (0, 0)]);
        scene.now = scene.now + EXPIRATION;
        assert_eq!(next(&lblcr, &scene), Some(0));
        assert_eq!(lblcr.locality.count(scene.now), 2, "to the last moment");
        scene.now = scene.now + MOMENT;
        assert_eq!(next(&lblcr, &scene), Some(0));
        assert_eq!(lblcr.locality.count(scene.now), 1);
        scene.set_loads(&[(3, 0), (0, 0), (0, 0)]);
        assert_eq!(next(&lblcr, &scene), Some(0), "1 is of the set no more");
        scene.now = scene.now + EXPIRATION;
        assert_eq!(next(&lblcr, &scene), Some(0), "the last stays");
    }

    #[test]
    fn an_unused_set_is_forgotten_as_a_whole() {
        let (lblcr, mut scene) = replicated();
        scene.set_loads(&[(1, 0), (1, 0), (0, 0)]);
        scene.now = scene.now + EXPIRATION + MOMENT;
        assert_eq!(next(&lblcr, &scene), Some(2));
        assert_eq!(lblcr.locality.count(scene.now), 1);
        scene.set_loads(&[(0, 0), (0, 0), (3, 0)]);
        assert_eq!(next(&lblcr, &scene), Some(2));
    }

    #[test]
    fn members_that_take_none_are_passed_over() {
        let (lblcr, mut scene) = replicated();
        scene.set_loads(&[(0, 0), (3, 0), (1, 0)]);
        scene.members[0].draining = true;
        assert_eq!(next(&lblcr, &scene), Some(1), "the other of the set");
        scene.members[1].down = true;
        assert_eq!(next(&lblcr, &scene), Some(2), "none of the set");
        scene.members[2].effective_weight = 0;
        assert_eq!(next(&lblcr, &scene), None);
    }

    #[test]
    fn the_next_snapshot_remembers_the_set() {
        let (before, mut scene) = replicated();
        scene.members.reverse();
        scene.set_loads(&[(0, 0), (2, 0), (1, 0)]);
        let after = Lblcr::new(&scene.members, Some(&before.locality));
        assert_eq!(next(&after, &scene), Some(2), "of what were 0 and 1 the less loaded");
    }
}
