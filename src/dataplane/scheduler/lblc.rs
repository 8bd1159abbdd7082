//! Locality-based least connections: a VIP stays at one server until that takes no flows, or has
//! too much to do while another is half idle; then the least loaded of all has it (`ip_vs_lblc.c`).

use super::{
    Candidates, Carried, Explanation, Member, ProbeOutcome, Scheduler,
    locality::{Locality, is_overloaded, least_of_all},
};
use crate::dataplane::hash::PlacementKey;

/// The `lblc` scheduler of one service.
pub struct Lblc {
    locality: Locality,
}

impl Lblc {
    /// A scheduler for `members` that remembers what `previous` did.
    pub fn new(members: &[Member], previous: Option<&Locality>) -> Self {
        Self { locality: Locality::new(members, previous) }
    }

    fn choose(&self, candidates: &Candidates<'_>) -> Option<usize> {
        let now = candidates.now;
        let serving = candidates.eligible().find(|c| self.locality.serves(c.index, now));
        let stays = serving.filter(|candidate| !is_overloaded(candidate, candidates));
        stays.or_else(|| least_of_all(candidates)).map(|candidate| candidate.index)
    }
}

impl Scheduler for Lblc {
    fn name(&self) -> &'static str {
        "lblc"
    }

    fn schedule(&self, _key: &PlacementKey, candidates: &Candidates<'_>) -> Option<usize> {
        let chosen = self.choose(candidates)?;
        if !self.locality.serves(chosen, candidates.now) {
            self.locality.clear();
            self.locality.add(chosen, candidates.now);
        }
        self.locality.touch(candidates.now);
        Some(chosen)
    }

    fn explain(&self, _key: &PlacementKey, candidates: &Candidates<'_>) -> Explanation {
        let chosen = self.choose(candidates);
        Explanation::of_members("lblc", candidates, chosen, true, |candidate| {
            Some(if self.locality.serves(candidate.index, candidates.now) {
                ProbeOutcome::Overflowing
            } else if chosen.is_some_and(|index| self.locality.serves(index, candidates.now)) {
                ProbeOutcome::NotServing
            } else {
                ProbeOutcome::Busier
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

    fn next(lblc: &Lblc, scene: &Scene) -> Option<usize> {
        lblc.schedule(&any_key(), &scene.candidates())
    }

    #[test]
    fn a_vip_stays_until_its_server_has_too_much_and_another_is_half_idle() {
        let mut scene = Scene::new(&[4, 4], &[(1, 0), (0, 0)]);
        let lblc = Lblc::new(&scene.members, None);
        assert_eq!(next(&lblc, &scene), Some(1), "the least loaded");
        scene.set_loads(&[(0, 0), (4, 50)]);
        assert_eq!(next(&lblc, &scene), Some(1), "four active of weight four");
        scene.set_loads(&[(2, 0), (5, 0)]);
        assert_eq!(next(&lblc, &scene), Some(1), "too many, but the other has half of its own");
        scene.set_loads(&[(1, 0), (5, 0)]);
        assert_eq!(next(&lblc, &scene), Some(0), "the other is half idle");
        scene.set_loads(&[(4, 0), (0, 0)]);
        assert_eq!(next(&lblc, &scene), Some(0), "and stays there");
    }

    #[test]
    fn a_server_that_takes_none_loses_its_vip() {
        let mut scene = Scene::new(&[4, 4], &[(0, 0), (1, 0)]);
        let lblc = Lblc::new(&scene.members, None);
        assert_eq!(next(&lblc, &scene), Some(0));
        scene.members[0].down = true;
        assert_eq!(next(&lblc, &scene), Some(1));
        scene.members[0].down = false;
        assert_eq!(next(&lblc, &scene), Some(1), "coming back is no reason to move");
        scene.members[1].draining = true;
        scene.members[0].effective_weight = 0;
        assert_eq!(next(&lblc, &scene), None);
    }

    #[test]
    fn what_was_not_used_for_a_day_is_forgotten() {
        let mut scene = Scene::new(&[4, 4], &[(0, 0), (1, 0)]);
        let lblc = Lblc::new(&scene.members, None);
        assert_eq!(next(&lblc, &scene), Some(0));
        scene.set_loads(&[(1, 0), (0, 0)]);
        scene.now = scene.now + EXPIRATION;
        assert_eq!(next(&lblc, &scene), Some(0), "to the last moment");
        scene.now = scene.now + EXPIRATION + Duration::from_nanos(1);
        assert_eq!(next(&lblc, &scene), Some(1));
    }

    #[test]
    fn the_next_snapshot_remembers_by_address() {
        let mut scene = Scene::new(&[4, 4, 4], &[(1, 0), (0, 0), (1, 0)]);
        let before = Lblc::new(&scene.members, None);
        assert_eq!(next(&before, &scene), Some(1));
        scene.set_loads(&[(0, 0), (3, 0), (1, 0)]);
        scene.members.swap(0, 1);
        let after = Lblc::new(&scene.members, Some(&before.locality));
        assert_eq!(next(&after, &scene), Some(0), "the same address at another place");
        // Without its server it is placed anew.
        scene.members.remove(0);
        let after = Lblc::new(&scene.members, Some(&after.locality));
        scene.set_loads(&[(2, 0), (1, 0)]);
        assert_eq!(next(&after, &scene), Some(1));
    }
}
