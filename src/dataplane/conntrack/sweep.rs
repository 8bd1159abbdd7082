//! Giving back what has expired, a bounded piece at a time.
//!
//! Expiry itself is exact: a lookup never finds what has expired. The sweep only returns the
//! memory, so it may come late.

use super::{EndReason, Ended, FlowRef, FlowTable, Slot, Ticks};
use crate::dataplane::{
    ids::{DestinationId, RealId},
    time::Time,
};

/// Most slots that one call of [`FlowTable::sweep_due`] looks at. It keeps the call well below
/// 100 µs whether none or all of them have expired (the bench `conntrack` measures it).
pub const SWEEP_BUDGET: u32 = 4096;
/// Slots per millisecond: a busy worker sweeps a million flows in two seconds and spends less than
/// a hundredth of its time on it; an idle one, limited by the budget per tick, takes some ten.
const SWEEP_PACE: u32 = 512;
/// What ending a flow costs, in looked-at slots: three cache misses more, against a sequential
/// read.
const END_COST: u32 = 12;

impl<S: AsRef<[Slot]>> FlowTable<S> {
    /// Sweeps what is due since the last call: nothing within the same millisecond, a bounded piece
    /// after a pause. Returns how many flows ended.
    pub fn sweep_due(&mut self, now: Time, on_end: impl FnMut(Ended)) -> u32 {
        let elapsed = now.as_millis().saturating_sub(self.swept.as_millis());
        if elapsed == 0 {
            return 0;
        }
        self.swept = now;
        let due = u32::try_from(elapsed).unwrap_or(u32::MAX).saturating_mul(SWEEP_PACE);
        self.sweep(now, due.min(SWEEP_BUDGET), on_end)
    }

    /// Looks at up to `budget` slots, from where the last call stopped, and ends what has expired.
    /// Each ended flow costs several looks. Returns how many ended.
    pub fn sweep(&mut self, now: Time, budget: u32, mut on_end: impl FnMut(Ended)) -> u32 {
        let (count, tick) = (self.count(), Ticks::at(now));
        let (mut left, mut looked, mut ended) = (budget, 0, 0);
        while left > 0 && looked < count {
            let slot = self.hand;
            self.hand = if slot + 1 == count { 0 } else { slot + 1 };
            looked += 1;
            left -= 1;
            if !self.slot(slot).is_free() && self.slot(slot).is_expired(tick) {
                on_end(self.end(slot, now, EndReason::Expired));
                left = left.saturating_sub(END_COST);
                ended += 1;
            }
        }
        ended
    }

    /// Ends the flows that `doomed` names (a server is cut with `--now`), looking at up to `budget`
    /// slots from `cursor`. Returns the cursor for the next call, `None` after the last slot.
    pub fn cut(
        &mut self,
        cursor: u32,
        budget: u32,
        mut doomed: impl FnMut(RealId, DestinationId) -> bool,
        mut on_end: impl FnMut(Ended),
    ) -> Option<u32> {
        let stop = self.count().min(cursor.saturating_add(budget));
        for number in cursor..stop {
            let slot = self.slot(number);
            if !slot.is_free() && doomed(slot.real(), slot.destination()) {
                on_end(self.remove(FlowRef(number)));
            }
        }
        (stop < self.count()).then_some(stop)
    }
}
