//! Power of two choices: two are drawn by weight, the one with less load for its weight takes the
//! flow (`ip_vs_twos.c`; Mitzenmacher 1996).
//!
//! The core knows no randomness: draw number n is taken from a stream that the hash key seeds, and
//! the next snapshot goes on with the count. IPVS draws from 0 to the sum of the weights with both
//! ends, which favours its first server by one; here the shares are exact.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use super::{Candidate, Candidates, Carried, Explanation, ProbeOutcome, Scheduler};
use crate::dataplane::hash::{HashKey, PlacementKey, stream};

/// The `twos` scheduler of one service.
pub struct Twos {
    seed: u64,
    /// Pairs drawn so far.
    drawn: Arc<AtomicU64>,
}

impl Twos {
    /// A scheduler that goes on with the draws of `previous`.
    pub fn new(key: &HashKey, previous: Option<&Self>) -> Self {
        let drawn = previous.map_or_else(Arc::default, |twos| Arc::clone(&twos.drawn));
        Self { seed: key.draw_seed(), drawn }
    }

    /// Both that the next pair falls on. They may be one.
    fn pair(&self, candidates: &Candidates<'_>) -> Option<(Candidate, Candidate)> {
        let total: u64 = candidates.eligible().map(|candidate| u64::from(candidate.weight)).sum();
        let drawn = self.drawn.load(Relaxed);
        let point = |which: u64| {
            let number = drawn.wrapping_mul(2).wrapping_add(which);
            let product = u128::from(stream(self.seed, number)) * u128::from(total);
            // Below `total`: the product lost 64 bits.
            #[allow(clippy::cast_possible_truncation)]
            let point = (product >> 64) as u64;
            point
        };
        let at = |mut point: u64| {
            candidates.eligible().find(|candidate| {
                let weight = u64::from(candidate.weight);
                let here = point < weight;
                point = point.saturating_sub(weight);
                here
            })
        };
        Some((at(point(0))?, at(point(1))?))
    }

    fn choose(&self, candidates: &Candidates<'_>) -> Option<usize> {
        let (first, second) = self.pair(candidates)?;
        Some(if second.is_less_busy(first) { second.index } else { first.index })
    }
}

impl Scheduler for Twos {
    fn name(&self) -> &'static str {
        "twos"
    }

    fn schedule(&self, _key: &PlacementKey, candidates: &Candidates<'_>) -> Option<usize> {
        let chosen = self.choose(candidates);
        // Relaxed: it guards no other memory. Where two workers ask at once, the worst is a pair
        // that is drawn twice.
        self.drawn.store(self.drawn.load(Relaxed).wrapping_add(1), Relaxed);
        chosen
    }

    fn explain(&self, _key: &PlacementKey, candidates: &Candidates<'_>) -> Explanation {
        let chosen = self.choose(candidates);
        let pair = self.pair(candidates);
        let drawn = |index| pair.is_some_and(|(a, b)| a.index == index || b.index == index);
        Explanation::of_members("twos", candidates, chosen, true, |candidate| {
            Some(if drawn(candidate.index) { ProbeOutcome::Busier } else { ProbeOutcome::NotDrawn })
        })
    }

    fn carried(&self) -> Carried<'_> {
        Carried::Draws(self)
    }
}

#[cfg(test)]
mod tests {
    use super::super::scenes::{Scene, any_key};
    use super::*;

    fn tally(twos: &Twos, scene: &Scene, draws: usize) -> Vec<usize> {
        let mut tally = vec![0; scene.members.len()];
        for _ in 0..draws {
            tally[twos.schedule(&any_key(), &scene.candidates()).unwrap()] += 1;
        }
        tally
    }

    #[test]
    fn without_load_the_first_draw_decides_by_weight() {
        let scene = Scene::new(&[50, 0, 30, 20], &[(0, 0); 4]);
        let tally = tally(&Twos::new(&HashKey::DEFAULT, None), &scene, 100_000);
        // Standard deviations are at most 158: five of them.
        for (count, expected) in tally.iter().zip([50_000, 0, 30_000, 20_000usize]) {
            assert!(count.abs_diff(expected) <= 790, "{tally:?}");
        }
        assert_eq!(tally[1], 0);
    }

    #[test]
    fn of_two_that_are_drawn_the_lighter_takes_the_flow() {
        // The last has most: it takes a flow only when it is drawn twice, one in sixteen.
        let scene = Scene::new(&[1; 4], &[(1, 0), (2, 0), (3, 0), (4, 0)]);
        let tally = tally(&Twos::new(&HashKey::DEFAULT, None), &scene, 16_000);
        // 7, 5, 3 and 1 of 16; standard deviations are at most 63.
        for (count, expected) in tally.iter().zip([7_000, 5_000, 3_000, 1_000usize]) {
            assert!(count.abs_diff(expected) <= 315, "{tally:?}");
        }
    }

    #[test]
    fn load_counts_by_the_weight() {
        // 512/2 against 257/1: the first is lighter though it has more, and takes every flow for
        // which it is drawn at all: 1 − (1/3)² = 8/9.
        let scene = Scene::new(&[2, 1], &[(2, 0), (1, 1)]);
        let tally = tally(&Twos::new(&HashKey::DEFAULT, None), &scene, 9_000);
        assert!(tally[0].abs_diff(8_000) <= 150, "{tally:?}");
    }

    #[test]
    fn the_next_snapshot_goes_on_and_a_restart_draws_the_same() {
        let scene = Scene::new(&[1; 7], &[(0, 0); 7]);
        let sequence = |twos: &Twos, count: usize| -> Vec<_> {
            (0..count).map(|_| twos.schedule(&any_key(), &scene.candidates())).collect()
        };
        let whole = sequence(&Twos::new(&HashKey::DEFAULT, None), 60);
        let before = Twos::new(&HashKey::DEFAULT, None);
        assert_eq!(sequence(&before, 30), whole[..30]);
        let after = Twos::new(&HashKey::DEFAULT, Some(&before));
        assert_eq!(sequence(&after, 30), whole[30..]);
        assert_ne!(sequence(&Twos::new(&HashKey([7; 16]), None), 60), whole);
    }
}
