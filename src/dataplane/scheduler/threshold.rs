//! Connection thresholds of a real server, as `ipvsadm -x` and `-y` set them: one that has reached
//! its upper threshold takes no new flow until it has fewer than its lower one.
//!
//! Between both it depends on which was met last. That is one mark for each member, set and taken
//! back by the worker as flows begin ([`Threshold::note`]), and carried over by the next snapshot;
//! the looks of schedulers and of control change nothing.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use super::Load;

/// Thresholds of one member, and whether it is over them.
#[derive(Clone, Debug)]
pub struct Threshold {
    upper: u64,
    lower: u64,
    reached: Arc<AtomicBool>,
}

impl Threshold {
    /// The lower threshold where none is given: three quarters of the upper one, rounded up, as in
    /// IPVS.
    pub const fn default_lower(upper: u32) -> u32 {
        // As `upper * 3`.div_ceil(4), which could overflow.
        upper - upper / 4
    }

    /// At `upper` connections a member is overloaded, below `lower` no more. The mark is that of `previous` if that
    /// had the same thresholds.
    pub fn new(upper: u32, lower: Option<u32>, previous: Option<&Self>) -> Self {
        let lower = u64::from(lower.unwrap_or(Self::default_lower(upper)));
        let upper = u64::from(upper);
        let same = previous.filter(|before| (before.upper, before.lower) == (upper, lower));
        let reached = same.map_or_else(Arc::default, |before| Arc::clone(&before.reached));
        Self { upper, lower, reached }
    }

    /// Whether a member with this load takes no new flow.
    #[inline]
    pub fn is_overloaded(&self, load: Load) -> bool {
        let total = load.total();
        total >= self.upper || (total >= self.lower && self.reached.load(Relaxed))
    }

    /// Remembers which threshold was met last. Called before and after a flow begins: nothing else
    /// brings a load up. Between the thresholds it writes nothing, so that a worker which looked
    /// before another one's flow began takes nothing back. Relaxed: the mark guards no other memory.
    #[inline]
    pub fn note(&self, load: Load) {
        let total = load.total();
        if total >= self.upper || total < self.lower {
            self.reached.store(total >= self.upper, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Loads in order, each noted, and whether the member is overloaded then.
    fn walk(threshold: &Threshold, totals: &[(u64, bool)]) {
        for &(total, overloaded) in totals {
            let load = Load { active: total / 2, inactive: total - total / 2 };
            assert_eq!(threshold.is_overloaded(load), overloaded, "{total}");
            threshold.note(load);
            assert_eq!(threshold.is_overloaded(load), overloaded, "noting {total} changed it");
        }
    }

    #[test]
    fn between_the_thresholds_the_last_that_was_met_counts() {
        let given = Threshold::new(10, Some(4), None);
        let last = [(10, true), (9, true), (4, true), (3, false), (9, false)];
        walk(&given, &[&[(0, false), (9, false)][..], &last].concat());
        // Three quarters of 10 are 7.5: from 8 on it stays.
        let default = Threshold::new(10, None, None);
        walk(&default, &[(10, true), (8, true), (7, false), (8, false)]);
        walk(&Threshold::new(1, None, None), &[(0, false), (1, true), (0, false)]);
        walk(&Threshold::new(5, Some(5), None), &[(5, true), (4, false), (6, true)]);
    }

    #[test]
    fn the_lower_one_is_three_quarters_by_default() {
        // Open again at total · 4 < upper · 3.
        for upper in 1..100 {
            let by_hand = (0..=upper).find(|total| total * 4 >= upper * 3).unwrap();
            assert_eq!(Threshold::default_lower(upper), by_hand, "{upper}");
        }
    }

    #[test]
    fn a_look_changes_nothing() {
        let threshold = Threshold::new(10, Some(4), None);
        let load = |inactive| Load { active: 0, inactive };
        assert!(threshold.is_overloaded(load(10)));
        assert!(!threshold.is_overloaded(load(9)), "nobody noted the tenth");
    }

    #[test]
    fn the_mark_is_carried_while_the_thresholds_stay() {
        let before = Threshold::new(10, Some(4), None);
        before.note(Load { active: 10, inactive: 0 });
        let six = Load { active: 6, inactive: 0 };
        assert!(Threshold::new(10, Some(4), Some(&before)).is_overloaded(six));
        assert!(!Threshold::new(20, Some(4), Some(&before)).is_overloaded(six));
    }
}
