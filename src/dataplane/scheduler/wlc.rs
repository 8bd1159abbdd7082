//! Weighted least connections: the fewest for the weight (`ip_vs_wlc.c`), IPVS's own default.

use super::{Candidate, Candidates, Load, ProbeOutcome, by_load::Rule, candidates::least};

/// The rule of `wlc`.
pub(super) struct Wlc;

impl Rule for Wlc {
    const NAME: &'static str = "wlc";

    fn choose(candidates: &Candidates<'_>) -> Option<usize> {
        least(candidates.eligible(), Load::overhead).map(|candidate| candidate.index)
    }

    fn passed_over(_candidate: &Candidate) -> ProbeOutcome {
        ProbeOutcome::Busier
    }
}

#[cfg(test)]
mod tests {
    use super::super::scenes::Scene;
    use super::Wlc;

    #[test]
    fn connections_count_by_the_weight() {
        let cases = [
            // Nobody has any: the first.
            (vec![1, 9], vec![(0, 0), (0, 0)], 0),
            // 256/1 against 512/3: 170.7 is less.
            (vec![1, 3], vec![(1, 0), (2, 0)], 1),
            // 256/1 against 768/3: the same, so the first stays.
            (vec![1, 3], vec![(1, 0), (3, 0)], 0),
            // 257/1 against 768/3.
            (vec![1, 3], vec![(1, 1), (3, 0)], 1),
            // 5/5, 2/1, 3/4.
            (vec![5, 1, 4], vec![(0, 5), (0, 2), (0, 3)], 2),
        ];
        for (weights, loads, expected) in cases {
            let scene = Scene::new(&weights, &loads);
            assert_eq!(scene.choose::<Wlc>(), Some(expected), "{weights:?} {loads:?}");
        }
    }

    #[test]
    fn the_largest_loads_and_weights_do_not_overflow() {
        let most = u64::from(u32::MAX);
        let scene = Scene::new(&[u32::MAX, u32::MAX - 1], &[(most, most), (most, most)]);
        assert_eq!(scene.choose::<Wlc>(), Some(0));
        let scene = Scene::new(&[u32::MAX - 1, u32::MAX], &[(most, most), (most, most)]);
        assert_eq!(scene.choose::<Wlc>(), Some(1));
    }
}
