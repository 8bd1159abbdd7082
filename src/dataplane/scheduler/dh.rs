//! Destination hashing: the VIP decides, whatever the weights (IPVS: `ip_vs_dh.c`).
//!
//! All of a VIP's clients have one server; it is of use where many VIPs share servers that keep
//! something per VIP, such as caches. Weights count as zero or not; a server that takes no new
//! flow is not replaced, so that its VIPs are refused. IPVS deals 256 buckets in turn; here
//! rendezvous decides, so that a server added or removed moves only its own VIPs.

use super::{Candidates, Explanation, KeyedBy, Member, Scheduler, rendezvous, sh::explain_placed};
use crate::dataplane::hash::PlacementKey;

/// The `dh` scheduler of one service.
pub struct Dh;

fn placed(key: &PlacementKey, members: &[Member]) -> Option<usize> {
    let configured = members.iter().enumerate();
    rendezvous::choose(key, configured.map(|(i, m)| (i, m.address, u32::from(m.weight > 0))))
}

impl Scheduler for Dh {
    fn name(&self) -> &'static str {
        "dh"
    }

    fn keyed_by(&self) -> KeyedBy {
        KeyedBy::Vip
    }

    fn is_hash(&self) -> bool {
        true
    }

    fn schedule(&self, key: &PlacementKey, candidates: &Candidates<'_>) -> Option<usize> {
        placed(key, candidates.members).filter(|index| candidates.weight(*index) > 0)
    }

    fn rederive(&self, key: &PlacementKey, members: &[Member]) -> Option<usize> {
        placed(key, members).filter(|index| !members[*index].down)
    }

    fn explain(&self, key: &PlacementKey, candidates: &Candidates<'_>) -> Explanation {
        let chosen = self.schedule(key, candidates);
        explain_placed(self, key, candidates, placed(key, candidates.members), chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::super::scenes::{Scene, client_key};
    use super::*;

    #[test]
    fn vips_spread_evenly_whatever_the_weights() {
        let scene = Scene::new(&[1, 0, 1000, 7], &[(0, 0), (0, 0), (500, 0), (0, 0)]);
        let mut counts = [0usize; 4];
        for n in 0..9_000 {
            counts[Dh.schedule(&client_key(n), &scene.candidates()).unwrap()] += 1;
        }
        // Standard deviation 45: five of them.
        for (count, expected) in counts.into_iter().zip([3_000, 0, 3_000, 3_000usize]) {
            assert!(count.abs_diff(expected) <= 225, "{counts:?}");
        }
    }

    #[test]
    fn a_vip_whose_server_takes_none_is_refused() {
        let mut scene = Scene::new(&[5, 5, 5], &[(0, 0); 3]);
        let key = client_key(1);
        let placed = Dh.schedule(&key, &scene.candidates()).unwrap();
        scene.members[placed].draining = true;
        assert_eq!(Dh.schedule(&key, &scene.candidates()), None);
        assert_eq!(Dh.rederive(&key, &scene.members), Some(placed), "those there are stay");
        scene.members[placed].down = true;
        assert_eq!(Dh.rederive(&key, &scene.members), None);
        // Out of the placement by the configuration: another has it.
        scene.members[placed].weight = 0;
        assert!(Dh.schedule(&key, &scene.candidates()).is_some_and(|other| other != placed));
    }
}
