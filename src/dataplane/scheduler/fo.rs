//! Weighted failover: everything to the highest weight that takes flows (`ip_vs_fo.c`).

use super::{Candidate, Candidates, ProbeOutcome, by_load::Rule};

/// The rule of `fo`.
pub(super) struct Fo;

/// The first of those with the highest weight.
pub(super) fn heaviest(candidates: impl Iterator<Item = Candidate>) -> Option<Candidate> {
    candidates.reduce(|best, next| if next.weight > best.weight { next } else { best })
}

impl Rule for Fo {
    const NAME: &'static str = "fo";

    fn choose(candidates: &Candidates<'_>) -> Option<usize> {
        heaviest(candidates.eligible()).map(|candidate| candidate.index)
    }

    fn passed_over(_candidate: &Candidate) -> ProbeOutcome {
        ProbeOutcome::LowerWeight
    }
}

#[cfg(test)]
mod tests {
    use super::super::scenes::Scene;
    use super::Fo;

    #[test]
    fn the_highest_weight_that_is_up_takes_everything() {
        let mut scene = Scene::new(&[10, 30, 30, 20], &[(0, 0), (900, 0), (0, 0), (0, 0)]);
        assert_eq!(scene.choose::<Fo>(), Some(1), "the first of two alike, whatever its load");
        scene.members[1].down = true;
        assert_eq!(scene.choose::<Fo>(), Some(2));
        scene.members[2].effective_weight = 15;
        assert_eq!(scene.choose::<Fo>(), Some(3), "the effective weight counts");
        scene.members[3].draining = true;
        assert_eq!(scene.choose::<Fo>(), Some(2));
    }
}
