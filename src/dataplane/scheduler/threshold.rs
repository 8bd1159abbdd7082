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
    /// At `upper` connections a member is overloaded, below `lower` no more. Without `lower` it is
    /// three quarters of `upper`, rounded up, as in IPVS. The mark is that of `previous` if that
    /// had the same thresholds.
    pub fn new(upper: u32, lower: Option<u32>, previous: Option<&Self>) -> Self {
        let upper = u64::from(upper);
        let lower = lower.map_or_else(|| (upper * 3).div_ceil(4), u64::from);
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
    /// brings a load up. Relaxed: the mark guards no other memory.
    #[inline]
    pub fn note(&self, load: Load) {
        self.reached.store(self.is_overloaded(load), Relaxed);
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
        let walks: [(u32, Option<u32>, &[(u64, bool)]); 4] = [
            (
                10,
                Some(4),
                &[(0, false), (9, false), (10, true), (9, true), (4, true), (3, false), (9, false)],
            ),
            // Three quarters of 10 are 7.5: from 8 on it stays.
            (10, None, &[(10, true), (8, true), (7, false), (8, false)]),
            (1, None, &[(0, false), (1, true), (0, false)]),
            (5, Some(5), &[(5, true), (4, false), (6, true)]),
        ];
        for (upper, lower, totals) in walks {
            walk(&Threshold::new(upper, lower, None), totals);
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
