//! Maglev hashing of clients, as IPVS's `mh` (`ip_vs_mh.c`): the client's address decides, with
//! `mh-port` its port too.
//!
//! The table is that of [`Maglev`]. IPVS hashes otherwise and rebuilds its table when a weight
//! changes; what is the same is who is asked: without `mh-fallback` the placed server alone, and
//! the client is refused when that takes no new flow; with it others, probe by probe.

use super::{
    Candidates, ChosenMember, Explanation, KeyedBy, Maglev, Member, ProbeOutcome, ProbedCandidate,
    Scheduler,
};
use crate::dataplane::hash::PlacementKey;

/// The `mh` scheduler of one service.
pub struct Mh {
    maglev: Maglev,
    port: bool,
    fallback: bool,
}

impl Mh {
    /// Over the table of `maglev`; whether the client's port decides too, and whether another
    /// server is asked.
    pub const fn new(maglev: Maglev, port: bool, fallback: bool) -> Self {
        Self { maglev, port, fallback }
    }
}

impl Scheduler for Mh {
    fn name(&self) -> &'static str {
        "mh"
    }

    fn keyed_by(&self) -> KeyedBy {
        if self.port { KeyedBy::ClientAndPort } else { KeyedBy::Client }
    }

    fn is_hash(&self) -> bool {
        true
    }

    fn schedule(&self, key: &PlacementKey, candidates: &Candidates<'_>) -> Option<usize> {
        if self.fallback {
            return self.maglev.schedule(key, candidates);
        }
        self.maglev.candidate(key.probe(0)).filter(|index| candidates.weight(*index) > 0)
    }

    fn rederive(&self, key: &PlacementKey, members: &[Member]) -> Option<usize> {
        if self.fallback {
            return self.maglev.rederive(key, members);
        }
        self.maglev.candidate(key.probe(0)).filter(|index| !members[*index].down)
    }

    fn explain(&self, key: &PlacementKey, candidates: &Candidates<'_>) -> Explanation {
        if self.fallback {
            return Explanation { scheduler: "mh", ..self.maglev.explain(key, candidates) };
        }
        let members = candidates.members;
        let size = self.maglev.table().size();
        let probe = key.probe(0);
        let looked_at = self.maglev.candidate(probe).and_then(|index| {
            let candidate = ChosenMember::of(index, members)?;
            // Acceptance 0: any share above zero takes all of the server's clients.
            let outcome = ProbeOutcome::of(candidates, index, 0);
            let slot = Some(probe.slot(size));
            Some(ProbedCandidate { probe: 0, slot, candidate, load: None, outcome })
        });
        let named = |index| ChosenMember::of(index, members);
        Explanation {
            scheduler: "mh",
            key: Some(key.to_string()),
            table_size: Some(size),
            probes: looked_at.into_iter().collect(),
            rendezvous: false,
            chosen: self.schedule(key, candidates).and_then(named),
            rederived: self.rederive(key, members).and_then(named),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        scenes::{Scene, client_key},
        table::TableCache,
    };
    use super::*;
    use crate::dataplane::hash::HashKey;

    fn mh(scene: &Scene, fallback: bool) -> Mh {
        let mut tables = TableCache::new(HashKey::DEFAULT);
        Mh::new(Maglev::new(&scene.members, &mut tables).unwrap(), false, fallback)
    }

    #[test]
    fn with_fallback_it_places_as_maglev_does() {
        let mut scene = Scene::new(&[100, 50, 10], &[(0, 0); 3]);
        let mh = mh(&scene, true);
        scene.members[0].effective_weight = 30;
        for n in 0..2_000 {
            let key = client_key(n);
            let chosen = mh.schedule(&key, &scene.candidates());
            assert_eq!(chosen, mh.maglev.schedule(&key, &scene.candidates()));
            assert!(chosen.is_some());
        }
    }

    #[test]
    fn without_fallback_the_placed_server_or_none() {
        let mut scene = Scene::new(&[100, 50, 10], &[(0, 0); 3]);
        let (strict, lenient) = (mh(&scene, false), mh(&scene, true));
        let all = |mh: &Mh, scene: &Scene| -> Vec<_> {
            (0..5_000).map(|n| mh.schedule(&client_key(n), &scene.candidates())).collect()
        };
        let before = all(&strict, &scene);
        assert_eq!(before, all(&lenient, &scene), "everybody takes its full share");
        // A small share is enough: IPVS knows weight zero or not.
        scene.members[1].effective_weight = 1;
        assert_eq!(before, all(&strict, &scene));
        scene.members[1].effective_weight = 0;
        let mut refused = 0;
        for (old, (strict, lenient)) in
            before.iter().zip(all(&strict, &scene).into_iter().zip(all(&lenient, &scene)))
        {
            if *old == Some(1) {
                assert_eq!(strict, None);
                assert!(matches!(lenient, Some(0 | 2)));
                refused += 1;
            } else {
                assert_eq!((strict, lenient), (*old, *old));
            }
        }
        assert!(refused > 1_000, "{refused}");
    }
}
