//! Weighted round robin, and round robin as its case of equal weights.
//!
//! Stride scheduling (Waldspurger & Weihl 1995): each member has a pass, the virtual time of its
//! next turn; the lowest pass goes next and moves on by 1 / effective weight. So turns
//! interleave as evenly as the weights allow, and a changed weight counts from the next turn.
//! Every pass is held between the virtual now and one stride from now: a member that comes back
//! has saved up no turns, and one whose weight rises does not sit out its old stride.
//!
//! Passes are atomics that the next snapshot carries over by address. Workers share
//! them; where two ask at the same moment, the worst is a turn given twice.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::{Candidates, Carried, Explanation, Member, Scheduler};
use crate::dataplane::hash::PlacementKey;

/// The stride of weight 1. Dividing 2^40 by a weight up to 65535 is exact to 10^−7; passes wrap
/// and are compared as distances, which stay below 2^41.
const UNIT_STRIDE: u64 = 1 << 40;

/// Weighted round robin over the eligible members.
pub struct Wrr {
    equal: bool,
    /// Virtual now: the pass of the turn given last.
    now: Arc<AtomicU64>,
    passes: Box<[(IpAddr, Arc<AtomicU64>)]>,
}

impl Wrr {
    /// A scheduler for `members`, by effective weight, that goes on where `previous` stood.
    pub fn new(members: &[Member], previous: Option<&Self>) -> Self {
        Self::build(members, previous, false)
    }

    /// The same with equal weights: each eligible member in its turn.
    pub fn round_robin(members: &[Member], previous: Option<&Self>) -> Self {
        Self::build(members, previous, true)
    }

    fn build(members: &[Member], previous: Option<&Self>, equal: bool) -> Self {
        let now = previous.map_or_else(Arc::default, |wrr| Arc::clone(&wrr.now));
        let kept: HashMap<IpAddr, &Arc<AtomicU64>> = previous
            .into_iter()
            .flat_map(|wrr| wrr.passes.iter())
            .map(|(address, pass)| (*address, pass))
            .collect();
        let passes = members
            .iter()
            .map(|member| {
                let pass = kept.get(&member.address).map_or_else(
                    || Arc::new(AtomicU64::new(now.load(Relaxed))),
                    |pass| Arc::clone(pass),
                );
                (member.address, pass)
            })
            .collect();
        Self { equal, now, passes }
    }

    /// 2^40 / weight; `None` for a member that takes no new flow.
    fn stride(&self, weight: u32) -> Option<u64> {
        match weight {
            0 => None,
            _ if self.equal => Some(UNIT_STRIDE),
            weight => Some(UNIT_STRIDE / u64::from(weight)),
        }
    }

    /// Virtual time until the member's next turn, and its stride.
    fn until_turn(&self, weight: u32, pass: u64, now: u64) -> Option<(u64, u64)> {
        let stride = self.stride(weight)?;
        let distance = pass.wrapping_sub(now);
        // A distance in the upper half is a pass before now, of a member that was away.
        Some((if distance > u64::MAX / 2 { 0 } else { distance.min(stride) }, stride))
    }

    /// The member whose turn it is, with the virtual time of this turn and of its next.
    fn next_turn(&self, candidates: &Candidates<'_>) -> Option<(usize, u64, u64)> {
        debug_assert_eq!(candidates.members.len(), self.passes.len());
        let now = self.now.load(Relaxed);
        let mut best: Option<(u64, usize, u64)> = None;
        for (index, (_, pass)) in self.passes.iter().enumerate() {
            let turn = self.until_turn(candidates.weight(index), pass.load(Relaxed), now);
            let Some((distance, stride)) = turn else { continue };
            if best.is_none_or(|(lowest, ..)| distance < lowest) {
                best = Some((distance, index, stride));
            }
        }
        best.map(|(distance, index, stride)| {
            let turn = now.wrapping_add(distance);
            (index, turn, turn.wrapping_add(stride))
        })
    }

    /// Writes back the passes that were held within one stride from now, lest the bound move
    /// along with now.
    fn settle(&self, candidates: &Candidates<'_>) {
        let now = self.now.load(Relaxed);
        for (index, (_, pass)) in self.passes.iter().enumerate() {
            let stored = pass.load(Relaxed);
            if let Some((distance, _)) = self.until_turn(candidates.weight(index), stored, now)
                && stored != now.wrapping_add(distance)
            {
                pass.store(now.wrapping_add(distance), Relaxed);
            }
        }
    }
}

impl Scheduler for Wrr {
    fn name(&self) -> &'static str {
        if self.equal { "rr" } else { "wrr" }
    }

    fn schedule(&self, _key: &PlacementKey, candidates: &Candidates<'_>) -> Option<usize> {
        self.settle(candidates);
        let (index, turn, next) = self.next_turn(candidates)?;
        // Relaxed: a pass guards no other memory, and only order of turns hangs on it.
        self.now.store(turn, Relaxed);
        self.passes[index].1.store(next, Relaxed);
        Some(index)
    }

    fn explain(&self, _key: &PlacementKey, candidates: &Candidates<'_>) -> Explanation {
        let chosen = self.next_turn(candidates).map(|(index, ..)| index);
        // Those whose turn comes later are no news.
        Explanation::of_members(self.name(), candidates, chosen, false, |_| None)
    }

    fn carried(&self) -> Carried<'_> {
        Carried::Turns(self)
    }
}

#[cfg(test)]
mod tests {
    use super::super::ProbeOutcome;
    use super::*;
    use crate::dataplane::hash::{FlowTuple, HashKey};

    fn any_key() -> PlacementKey {
        PlacementKey::of_flow(
            &HashKey::DEFAULT,
            &FlowTuple {
                client: IpAddr::from([192, 0, 2, 1]),
                client_port: 1,
                vip: IpAddr::from([198, 51, 100, 1]),
                vip_port: 1,
                protocol: 6,
            },
        )
    }

    fn members(weights: &[u32]) -> Vec<Member> {
        (0u8..)
            .zip(weights)
            .map(|(i, &weight)| Member::up(IpAddr::from([10, 0, 0, i]), weight))
            .collect()
    }

    fn turns(wrr: &Wrr, members: &[Member], count: usize) -> Vec<usize> {
        (0..count)
            .map(|_| wrr.schedule(&any_key(), &Candidates::unloaded(members)).unwrap())
            .collect()
    }

    fn tally(turns: &[usize], members: usize) -> Vec<usize> {
        (0..members).map(|i| turns.iter().filter(|&&turn| turn == i).count()).collect()
    }

    #[test]
    fn round_robin_gives_everyone_a_turn_whatever_the_weights() {
        let members = members(&[1, 50, 7]);
        let rr = Wrr::round_robin(&members, None);
        assert_eq!(rr.name(), "rr");
        assert_eq!(turns(&rr, &members, 7), [0, 1, 2, 0, 1, 2, 0]);
    }

    #[test]
    fn turns_are_proportional_in_every_stretch() {
        let weights = [5, 1, 3, 0, 1];
        let members = members(&weights);
        let wrr = Wrr::new(&members, None);
        let turns = turns(&wrr, &members, 1000);
        // Any ten turns in a row hold each member's weight of them, give or take one.
        for window in turns.windows(10) {
            for (count, weight) in tally(window, 5).into_iter().zip(weights) {
                assert!(count.abs_diff(weight as usize) <= 1, "{window:?}");
            }
        }
        assert_eq!(tally(&turns, 5), [500, 100, 300, 0, 100]);
    }

    #[test]
    fn the_effective_weight_counts_at_once_and_no_turns_are_saved_up() {
        let mut members = members(&[10, 10]);
        let wrr = Wrr::new(&members, None);
        // The second: a tie would favour the first.
        members[1].effective_weight = 1;
        let reduced = tally(&turns(&wrr, &members, 110), 2);
        assert!(reduced[1].abs_diff(10) <= 1, "{reduced:?}");
        members[1].effective_weight = 10;
        let risen = tally(&turns(&wrr, &members, 20), 2);
        assert!(risen[1].abs_diff(10) <= 1, "{risen:?}");
        members[1].down = true;
        assert_eq!(tally(&turns(&wrr, &members, 1000), 2), [1000, 0]);
        members[1].down = false;
        let returned = tally(&turns(&wrr, &members, 20), 2);
        assert!(returned[1].abs_diff(10) <= 1, "{returned:?}");
    }

    #[test]
    fn nobody_eligible_is_none_and_nothing_is_rederived() {
        let mut members = members(&[1, 1, 0]);
        let wrr = Wrr::new(&members, None);
        assert_eq!(wrr.rederive(&any_key(), &members), None);
        members[0].down = true;
        members[1].draining = true;
        assert_eq!(wrr.schedule(&any_key(), &Candidates::unloaded(&members)), None);
        let outcomes: Vec<ProbeOutcome> = wrr
            .explain(&any_key(), &Candidates::unloaded(&members))
            .probes
            .iter()
            .map(|probe| probe.outcome)
            .collect();
        use ProbeOutcome::{Down, Draining, WeightZero};
        assert_eq!(outcomes, [Down, Draining, WeightZero]);
    }

    #[test]
    fn a_new_snapshot_goes_on_where_the_old_one_stood() {
        let old = members(&[1, 1, 1]);
        let before = Wrr::new(&old, None);
        assert_eq!(turns(&before, &old, 100)[97..], [1, 2, 0]);
        // One member new, one gone, the others at other places.
        let new = vec![
            Member::up(IpAddr::from([10, 0, 0, 0]), 1),
            Member::up(IpAddr::from([10, 0, 0, 2]), 1),
            Member::up(IpAddr::from([10, 0, 0, 9]), 1),
        ];
        let after = Wrr::new(&new, Some(&before));
        // 10.0.0.0 had its turn already: it comes last.
        assert_eq!(turns(&after, &new, 3), [1, 2, 0]);
    }

    #[test]
    fn explain_names_the_next_turn_without_taking_it() {
        let members = members(&[2, 1]);
        let wrr = Wrr::new(&members, None);
        for _ in 0..9 {
            let foretold = wrr
                .explain(&any_key(), &Candidates::unloaded(&members))
                .chosen
                .map(|chosen| chosen.index);
            assert_eq!(foretold, wrr.schedule(&any_key(), &Candidates::unloaded(&members)));
        }
    }

    #[test]
    fn passes_wrap_without_a_hiccup() {
        let members = members(&[1, 2]);
        let wrr = Wrr::new(&members, None);
        wrr.now.store(u64::MAX - 5 * UNIT_STRIDE, Relaxed);
        let wrapped = tally(&turns(&wrr, &members, 300), 2);
        assert!(wrapped[0].abs_diff(100) <= 1, "{wrapped:?}");
    }
}
