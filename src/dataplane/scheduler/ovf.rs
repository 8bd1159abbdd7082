//! Weighted overflow: the highest weight, until its active connections exceed it; then the next
//! (`ip_vs_ovf.c`).
//!
//! As in IPVS a member of weight w takes flows while it has w active connections or fewer, and
//! nobody is asked when all are beyond their weights.

use super::{Candidate, Candidates, ProbeOutcome, by_load::Rule, fo::heaviest};

/// The rule of `ovf`.
pub(super) struct Ovf;

impl Rule for Ovf {
    const NAME: &'static str = "ovf";

    fn choose(candidates: &Candidates<'_>) -> Option<usize> {
        let with_room = candidates.eligible().filter(|candidate| !candidate.overflows());
        heaviest(with_room).map(|candidate| candidate.index)
    }

    fn passed_over(candidate: &Candidate) -> ProbeOutcome {
        if candidate.overflows() { ProbeOutcome::Overflowing } else { ProbeOutcome::LowerWeight }
    }
}

#[cfg(test)]
mod tests {
    use super::super::scenes::Scene;
    use super::Ovf;

    #[test]
    fn beyond_its_weight_the_next_has_its_turn() {
        let cases = [
            ([(0, 0), (0, 0), (0, 0)], Some(1)),
            ([(0, 0), (3, 99), (0, 0)], Some(1)),
            ([(0, 0), (4, 0), (0, 0)], Some(2)),
            ([(0, 0), (4, 0), (3, 0)], Some(0)),
            ([(2, 0), (4, 0), (3, 0)], None),
        ];
        for (loads, expected) in cases {
            let scene = Scene::new(&[1, 3, 2], &loads);
            assert_eq!(scene.choose::<Ovf>(), expected, "{loads:?}");
        }
    }
}
