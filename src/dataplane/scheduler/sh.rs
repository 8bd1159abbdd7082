//! Source hashing: a client's address decides, by the weights (IPVS: `ip_vs_sh.c`).
//!
//! IPVS deals 256 buckets to its servers in turn, so that nearly all clients move when one is added
//! or removed. Here weighted rendezvous over the configured members decides: only clients of the
//! changed server move, every director places alike, and the order in the file is irrelevant.
//!
//! Without `sh-fallback` a client whose server takes no new flow is refused, as by IPVS. With it
//! the rendezvous is held among those that take one, by their effective weights; so a client whose
//! server takes its full share stays there.

use super::{
    Candidates, ChosenMember, Explanation, KeyedBy, Member, ProbeOutcome, ProbedCandidate,
    Scheduler, rendezvous,
};
use crate::dataplane::hash::PlacementKey;

/// The `sh` scheduler of one service.
pub struct Sh {
    port: bool,
    fallback: bool,
}

impl Sh {
    /// Whether the client's port decides too, and whether another server is asked.
    pub const fn new(port: bool, fallback: bool) -> Self {
        Self { port, fallback }
    }
}

/// Where a key belongs, whatever the state of the members.
fn placed(key: &PlacementKey, members: &[Member]) -> Option<usize> {
    let configured = members.iter().enumerate();
    rendezvous::choose(key, configured.map(|(i, member)| (i, member.address, member.weight)))
}

impl Scheduler for Sh {
    fn name(&self) -> &'static str {
        "sh"
    }

    fn keyed_by(&self) -> KeyedBy {
        if self.port { KeyedBy::ClientAndPort } else { KeyedBy::Client }
    }

    fn is_hash(&self) -> bool {
        true
    }

    fn schedule(&self, key: &PlacementKey, candidates: &Candidates<'_>) -> Option<usize> {
        let members = candidates.members;
        if !self.fallback {
            return placed(key, members).filter(|index| candidates.weight(*index) > 0);
        }
        let each = members.iter().enumerate();
        rendezvous::choose(key, each.map(|(i, member)| (i, member.address, candidates.weight(i))))
    }

    fn rederive(&self, key: &PlacementKey, members: &[Member]) -> Option<usize> {
        if !self.fallback {
            return placed(key, members).filter(|index| !members[*index].down);
        }
        let up = members.iter().enumerate().filter(|(_, member)| !member.down);
        rendezvous::choose(key, up.map(|(i, member)| (i, member.address, member.weight)))
    }

    fn explain(&self, key: &PlacementKey, candidates: &Candidates<'_>) -> Explanation {
        let chosen = self.schedule(key, candidates);
        explain_placed(self, key, candidates, placed(key, candidates.members), chosen)
    }
}

/// The explanation of a scheduler that first looks at the one member that a key belongs to.
pub(super) fn explain_placed(
    scheduler: &dyn Scheduler,
    key: &PlacementKey,
    candidates: &Candidates<'_>,
    placed: Option<usize>,
    chosen: Option<usize>,
) -> Explanation {
    let members = candidates.members;
    let probe = placed.and_then(|index| {
        let outcome = if chosen == placed {
            ProbeOutcome::Taken
        } else {
            // The highest acceptance: one with less than its full share was passed over for that.
            ProbeOutcome::of(candidates, index, u32::MAX)
        };
        let candidate = ChosenMember::of(index, members)?;
        Some(ProbedCandidate { probe: 0, slot: None, candidate, load: None, outcome })
    });
    Explanation {
        scheduler: scheduler.name(),
        key: Some(key.to_string()),
        table_size: None,
        probes: probe.into_iter().collect(),
        rendezvous: chosen.is_some() && chosen != placed,
        chosen: chosen.and_then(|index| ChosenMember::of(index, members)),
        rederived: scheduler
            .rederive(key, members)
            .and_then(|index| ChosenMember::of(index, members)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::scenes::{Scene, client_key};
    use super::*;

    fn choices(sh: &Sh, scene: &Scene) -> Vec<Option<usize>> {
        (0..10_000).map(|n| sh.schedule(&client_key(n), &scene.candidates())).collect()
    }

    #[test]
    fn shares_follow_the_weights() {
        let scene = Scene::new(&[50, 0, 30, 20], &[(9, 9); 4]);
        let choices = choices(&Sh::new(false, false), &scene);
        let count = |index| choices.iter().filter(|&&choice| choice == Some(index)).count();
        // Standard deviations are at most 50: five of them.
        for (index, expected) in [5_000, 0, 3_000, 2_000usize].into_iter().enumerate() {
            assert!(count(index).abs_diff(expected) <= 250, "{index}: {}", count(index));
        }
    }

    #[test]
    fn clients_of_a_server_that_takes_none_are_refused_or_fall_back() {
        let up = Scene::new(&[10, 20, 30], &[(0, 0); 3]);
        let (strict, lenient) = (Sh::new(false, false), Sh::new(false, true));
        let before = choices(&strict, &up);
        assert_eq!(choices(&lenient, &up), before, "nothing to fall back from");
        for state in ["down", "draining", "weight 0"] {
            let mut scene = up.clone();
            match state {
                "down" => scene.members[1].down = true,
                "draining" => scene.members[1].draining = true,
                _ => scene.members[1].effective_weight = 0,
            }
            let refused = choices(&strict, &scene);
            let moved = choices(&lenient, &scene);
            for ((old, strict), lenient) in before.iter().zip(refused).zip(moved) {
                if *old == Some(1) {
                    assert_eq!(strict, None, "{state}");
                    assert!(matches!(lenient, Some(0 | 2)), "{state}");
                } else {
                    assert_eq!((strict, lenient), (*old, *old), "{state}: others stay");
                }
            }
        }
    }

    #[test]
    fn the_guess_is_where_the_flow_was_placed() {
        let mut scene = Scene::new(&[10, 20, 30], &[(0, 0); 3]);
        let (strict, lenient) = (Sh::new(false, false), Sh::new(false, true));
        let before = choices(&strict, &scene);
        scene.members[1].draining = true;
        let guess = |sh: &Sh, scene: &Scene, n| sh.rederive(&client_key(n), &scene.members);
        for (n, placed) in (0..).zip(&before) {
            assert_eq!(guess(&strict, &scene, n), *placed, "draining counts as up");
            assert_eq!(guess(&lenient, &scene, n), *placed, "draining counts as up");
        }
        scene.members[1].down = true;
        for (n, placed) in (0..).zip(&before).filter(|(_, placed)| **placed == Some(1)) {
            assert_eq!(guess(&strict, &scene, n), None, "{placed:?}");
            assert!(matches!(guess(&lenient, &scene, n), Some(0 | 2)));
        }
    }

    #[test]
    fn the_order_in_the_file_is_irrelevant() {
        let scene = Scene::new(&[10, 20, 30, 7], &[(0, 0); 4]);
        let mut reversed = scene.clone();
        reversed.members.reverse();
        let sh = Sh::new(true, true);
        for (one, other) in choices(&sh, &scene).into_iter().zip(choices(&sh, &reversed)) {
            let (one, other) = (one.unwrap(), other.unwrap());
            assert_eq!(scene.members[one].address, reversed.members[other].address);
        }
    }
}
