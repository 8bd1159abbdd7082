//! What holds of every scheduler, whatever the state of its members.

use std::{
    net::IpAddr,
    sync::{Arc, LazyLock},
    time::Duration,
};

use proptest::prelude::*;

use super::{
    Member, Scheduler, SchedulerFlag, SchedulerKind, Threshold,
    scenes::{Scene, client_key},
    table::TableCache,
};
use crate::dataplane::hash::HashKey;

/// Weights by address; tables take a while to build, so there are few.
const WEIGHTS: [&[u32]; 4] = [&[100], &[1, 1, 1], &[10, 0, 50, 7, 1], &[0, 0]];

/// Every kind with no flag, and those that have flags with each set of them.
fn kinds_and_flags() -> Vec<(SchedulerKind, Vec<SchedulerFlag>)> {
    let mut all: Vec<_> = SchedulerKind::ALL.into_iter().map(|kind| (kind, vec![])).collect();
    use SchedulerFlag::{MhFallback, MhPort, ShFallback, ShPort};
    for (kind, port, fallback) in
        [(SchedulerKind::Sh, ShPort, ShFallback), (SchedulerKind::Mh, MhPort, MhFallback)]
    {
        all.extend([vec![port], vec![fallback], vec![port, fallback]].map(|flags| (kind, flags)));
    }
    all
}

fn members(weights: &[u32]) -> Vec<Member> {
    let address = |i| IpAddr::from([10, 0, 0, i]);
    (0u8..).zip(weights).map(|(i, &weight)| Member::up(address(i), weight)).collect()
}

type Build = Arc<dyn Scheduler>;

fn build(kind: SchedulerKind, flags: &[SchedulerFlag], weights: &[u32]) -> Build {
    let mut tables = TableCache::new(HashKey::DEFAULT);
    kind.build(flags, &members(weights), &mut tables, None).unwrap()
}

/// Those with tables, which keep nothing else: built once for all cases.
static WITH_TABLES: LazyLock<Vec<Vec<Build>>> = LazyLock::new(|| {
    let with_table = || kinds_and_flags().into_iter().filter(|(kind, _)| kind.has_table());
    let each =
        |weights: &&[u32]| with_table().map(|(kind, flags)| build(kind, &flags, weights)).collect();
    WEIGHTS.iter().map(each).collect()
});

/// All schedulers for one set of weights; those that keep something begin anew.
fn schedulers(weights: usize) -> Vec<Build> {
    let others = kinds_and_flags().into_iter().filter(|(kind, _)| !kind.has_table());
    let others = others.map(|(kind, flags)| build(kind, &flags, WEIGHTS[weights]));
    WITH_TABLES[weights].iter().cloned().chain(others).collect()
}

/// Schedulers under which nobody may have a flow though somebody is eligible.
fn may_refuse(scheduler: &dyn Scheduler) -> bool {
    matches!(scheduler.name(), "sh" | "dh" | "mh" | "ovf")
}

/// What may have changed when a flow begins.
#[derive(Clone, Debug)]
struct Step {
    client: u32,
    /// Down, draining, and what is left of the weight in percent, by member.
    states: Vec<(bool, bool, u32)>,
    loads: Vec<(u64, u64)>,
    /// Upper thresholds, where there are any.
    uppers: Vec<Option<u32>>,
    hours: u64,
}

fn steps() -> impl Strategy<Value = (usize, Vec<Step>)> {
    let state = (
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.2),
        prop::sample::select(&[0, 3, 50, 100, 100][..]),
    );
    let load = (0..200u64, 0..300u64);
    let step = (
        any::<u32>(),
        prop::collection::vec(state, 5),
        prop::collection::vec(load, 5),
        prop::collection::vec(prop::option::weighted(0.3, 1..500u32), 5),
        prop::sample::select(&[0, 0, 0, 1, 23, 25][..]),
    );
    let step = step.prop_map(|(client, states, loads, uppers, hours)| Step {
        client,
        states,
        loads,
        uppers,
        hours,
    });
    (0..WEIGHTS.len(), prop::collection::vec(step, 1..20))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn nobody_who_may_not_have_a_flow_is_chosen_and_explain_foretells((weights, steps) in steps()) {
        for scheduler in schedulers(weights) {
            let name = scheduler.name();
            let mut scene = Scene::new(WEIGHTS[weights], &[]);
            for step in &steps {
                scene.now = scene.now + Duration::from_secs(3600 * step.hours);
                scene.set_loads(&step.loads[..scene.members.len()]);
                for (member, (down, draining, percent)) in scene.members.iter_mut().zip(&step.states) {
                    member.down = *down;
                    member.draining = *draining;
                    member.effective_weight = member.weight * percent / 100;
                }
                scene.thresholds = step.uppers.iter().map(|upper| {
                    upper.map(|upper| Threshold::new(upper, None, None))
                }).collect();
                let (key, candidates) = (client_key(step.client), scene.candidates());
                let foretold = scheduler.explain(&key, &candidates);
                prop_assert_eq!(&foretold, &scheduler.explain(&key, &candidates), "{}: explain moved something", name);
                let chosen = scheduler.schedule(&key, &candidates);
                prop_assert_eq!(foretold.chosen.map(|c| c.index), chosen, "{}", name);
                let named = foretold.probes.iter().find(|p| p.outcome == super::ProbeOutcome::Taken);
                if !foretold.rendezvous {
                    prop_assert_eq!(named.map(|p| p.candidate.index), chosen, "{}", name);
                }
                match chosen {
                    Some(index) => prop_assert!(
                        scene.members[index].is_eligible() && !candidates.is_overloaded(index),
                        "{name}: {index}"
                    ),
                    None => prop_assert!(
                        may_refuse(&*scheduler) || candidates.eligible().next().is_none(),
                        "{name} refused"
                    ),
                }
                let guess = scheduler.rederive(&key, &scene.members);
                prop_assert_eq!(foretold.rederived.map(|c| c.index), guess);
                if let Some(index) = guess {
                    prop_assert!(scheduler.is_hash() && !scene.members[index].down, "{name}");
                }
            }
        }
    }

    /// Who has all its share is asked first, so a flow that began then is guessed rightly whatever
    /// became of others and of its server's weight.
    #[test]
    fn hashes_guess_whom_they_chose(client: u32, weights in 0..WEIGHTS.len(), others in any::<[bool; 5]>()) {
        let key = client_key(client);
        for scheduler in schedulers(weights).iter().filter(|scheduler| scheduler.is_hash()) {
            let mut scene = Scene::new(WEIGHTS[weights], &[(0, 0); 5][..WEIGHTS[weights].len()]);
            let chosen = scheduler.schedule(&key, &scene.candidates());
            for (index, (member, down)) in scene.members.iter_mut().zip(others).enumerate() {
                let is_chosen = Some(index) == chosen;
                member.down = down && !is_chosen;
                member.draining = is_chosen;
            }
            prop_assert_eq!(scheduler.rederive(&key, &scene.members), chosen, "{}", scheduler.name());
        }
    }

    /// Draining one takes its clients and nobody else's, and taking it back brings them back, whoever
    /// is drained or down besides. What keeps something (who serves a VIP, whose turn it is) forgets
    /// the drained one too.
    #[test]
    fn a_drained_member_gets_nothing_and_others_clients_stay(
        clients in prop::collection::vec(any::<u32>(), 1..20),
        weights in 0..WEIGHTS.len(),
        besides in prop::collection::vec((prop::bool::weighted(0.2), prop::bool::weighted(0.2)), 5),
        who in 0..5_usize,
    ) {
        let who = who % WEIGHTS[weights].len();
        for scheduler in schedulers(weights) {
            let name = scheduler.name();
            let mut scene = Scene::new(WEIGHTS[weights], &[(0, 0); 5][..WEIGHTS[weights].len()]);
            for (member, (down, draining)) in scene.members.iter_mut().zip(&besides) {
                (member.down, member.draining) = (*down, *draining);
            }
            scene.members[who].draining = false;
            let place = |scene: &Scene| -> Vec<Option<usize>> {
                let choose = |client: &u32| scheduler.schedule(&client_key(*client), &scene.candidates());
                clients.iter().map(choose).collect()
            };
            let before = place(&scene);
            scene.members[who].draining = true;
            let drained = place(&scene);
            prop_assert!(drained.iter().all(|chosen| *chosen != Some(who)), "{name}: {drained:?}");
            scene.members[who].draining = false;
            if scheduler.is_hash() {
                for (before, drained) in before.iter().zip(&drained) {
                    prop_assert!(before == drained || *before == Some(who), "{name}: {before:?}, {drained:?}");
                }
                prop_assert_eq!(place(&scene), before, "{}", name);
            }
        }
    }
}

#[test]
fn names_and_flags_are_each_others() {
    for kind in SchedulerKind::ALL {
        assert_eq!(SchedulerKind::from_name(kind.name()), Some(kind));
        assert_eq!(build(kind, &[], &[1]).name(), kind.name());
    }
    assert_eq!(SchedulerKind::from_name("sorry"), None);
    for flag in SchedulerFlag::ALL {
        assert!(flag.name().starts_with(flag.scheduler().name()));
    }
}

#[test]
fn what_moves_is_carried_into_the_next_snapshot() {
    let weights = &[3, 1, 2][..];
    let scene = Scene::new(weights, &[(1, 0), (1, 0), (0, 0)]);
    for (kind, flags) in kinds_and_flags() {
        let mut tables = TableCache::new(HashKey::DEFAULT);
        let mut rebuilt = build(kind, &flags, weights);
        let whole = build(kind, &flags, weights);
        for client in 0..40 {
            let (key, candidates) = (client_key(client), scene.candidates());
            let expected = whole.schedule(&key, &candidates);
            assert_eq!(rebuilt.schedule(&key, &candidates), expected, "{}", kind.name());
            // A reload between any two flows.
            rebuilt = kind.build(&flags, &scene.members, &mut tables, Some(&*rebuilt)).unwrap();
        }
    }
}
