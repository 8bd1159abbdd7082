//! Never queue: the first that is idle, else as `sed` (`ip_vs_nq.c`).

use super::{Candidate, Candidates, ProbeOutcome, by_load::Rule, candidates::least, sed::expected};

/// The rule of `nq`.
pub(super) struct Nq;

impl Rule for Nq {
    const NAME: &'static str = "nq";

    fn choose(candidates: &Candidates<'_>) -> Option<usize> {
        let idle = candidates.eligible().find(|candidate| candidate.load.active == 0);
        idle.or_else(|| least(candidates.eligible(), expected)).map(|candidate| candidate.index)
    }

    fn passed_over(_candidate: &Candidate) -> ProbeOutcome {
        ProbeOutcome::Busier
    }
}

#[cfg(test)]
mod tests {
    use super::super::scenes::Scene;
    use super::Nq;

    #[test]
    fn an_idle_one_goes_before_a_fast_one() {
        let cases = [
            // By `sed` the first had it: 2/9 against 1/1.
            (vec![9, 1], vec![(1, 0), (0, 30)], 1),
            // Two are idle: the first of them.
            (vec![9, 1, 5], vec![(1, 0), (0, 0), (0, 0)], 1),
            // Nobody is: 3/9 against 2/1.
            (vec![1, 9], vec![(1, 0), (2, 0)], 1),
        ];
        for (weights, loads, expected) in cases {
            let scene = Scene::new(&weights, &loads);
            assert_eq!(scene.choose::<Nq>(), Some(expected), "{weights:?} {loads:?}");
        }
    }

    #[test]
    fn one_that_takes_no_flow_is_not_idle() {
        let mut scene = Scene::new(&[1, 1], &[(0, 0), (5, 0)]);
        scene.members[0].draining = true;
        assert_eq!(scene.choose::<Nq>(), Some(1));
    }
}
