//! Shortest expected delay: the fewest active connections for the weight, the new one counted in
//! (`ip_vs_sed.c`).

use super::{Candidate, Candidates, Load, ProbeOutcome, by_load::Rule, candidates::least};

/// The rule of `sed`.
pub(super) struct Sed;

/// Active connections once the new one is among them.
pub(super) fn expected(load: Load) -> u64 {
    load.active.saturating_add(1)
}

impl Rule for Sed {
    const NAME: &'static str = "sed";

    fn choose(candidates: &Candidates<'_>) -> Option<usize> {
        least(candidates.eligible(), expected).map(|candidate| candidate.index)
    }

    fn passed_over(_candidate: &Candidate) -> ProbeOutcome {
        ProbeOutcome::Busier
    }
}

#[cfg(test)]
mod tests {
    use super::super::scenes::Scene;
    use super::Sed;

    #[test]
    fn the_new_connection_counts_and_inactive_ones_do_not() {
        let cases = [
            // 1/1 against 1/9.
            (vec![1, 9], vec![(0, 0), (0, 500)], 1),
            // 1/1 against 9/9: the same, the first.
            (vec![1, 9], vec![(0, 0), (8, 0)], 0),
            // 1/1 against 8/9.
            (vec![1, 9], vec![(0, 0), (7, 0)], 1),
            // 3/2, 4/3, 2/1.
            (vec![2, 3, 1], vec![(2, 0), (3, 0), (1, 0)], 1),
        ];
        for (weights, loads, expected) in cases {
            let scene = Scene::new(&weights, &loads);
            assert_eq!(scene.choose::<Sed>(), Some(expected), "{weights:?} {loads:?}");
        }
    }
}
