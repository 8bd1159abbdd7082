//! Least connections: the fewest, whatever the weights (`ip_vs_lc.c`).

use super::{Candidate, Candidates, Load, ProbeOutcome, by_load::Rule};

/// The rule of `lc`.
pub(super) struct Lc;

impl Rule for Lc {
    const NAME: &'static str = "lc";

    fn choose(candidates: &Candidates<'_>) -> Option<usize> {
        // The first of several with the same load, as `min_by_key` has it.
        let overhead = |candidate: &Candidate| Load::overhead(candidate.load);
        candidates.eligible().min_by_key(overhead).map(|candidate| candidate.index)
    }

    fn passed_over(_candidate: &Candidate) -> ProbeOutcome {
        ProbeOutcome::Busier
    }
}

#[cfg(test)]
mod tests {
    use super::super::scenes::Scene;
    use super::Lc;

    #[test]
    fn an_active_connection_weighs_as_much_as_256_others() {
        // Active and inactive connections of three members of weights 1, 9 and 1.
        let cases = [
            ([(0, 0), (0, 0), (0, 0)], 0),
            ([(0, 1), (0, 0), (0, 0)], 1),
            ([(1, 0), (0, 255), (0, 256)], 1),
            ([(1, 0), (0, 257), (0, 256)], 0),
            ([(2, 0), (1, 9), (1, 8)], 2),
        ];
        for (loads, expected) in cases {
            let scene = Scene::new(&[1, 9, 1], &loads);
            assert_eq!(scene.choose::<Lc>(), Some(expected), "{loads:?}");
        }
    }
}
