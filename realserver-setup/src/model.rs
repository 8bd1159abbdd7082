//! A host in memory, for properties of plans: what the kernel does at each step, written down
//! independently of how plans are made.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;
use proptest::sample::Index;

use crate::desired::{Desired, Tunnel, VipDevice, Wishes};
use crate::kernel::{Device, Module, Parameter, ParameterName, Version, unwraps};
use crate::observed::{Link, Observed};
use crate::plan::{PlanError, plan};
use crate::step::Step;

/// Takes a step as the kernel would. Panics where the kernel would refuse it.
fn take(host: &mut Observed, step: &Step) {
    match step {
        Step::Remember(memory) => host.memory = memory.clone(),
        Step::Load(module) => {
            assert!(host.modules.insert(*module), "{module:?} is loaded");
            for name in module.devices() {
                add_link(host, name, module.kinds()[0]);
            }
        }
        Step::Unload(module) => {
            assert!(host.modules.remove(module), "{module:?} is not loaded");
            let kinds = module.kinds();
            let gone = host.links.iter().filter(|(_, l)| kinds.contains(&l.kind.as_str()));
            let gone: Vec<_> = gone.map(|(name, _)| name.clone()).collect();
            gone.iter().for_each(|name| remove_link(host, name));
        }
        Step::Make { device, local } => {
            assert!(host.modules.contains(&device.module()));
            assert!(!host.links.contains_key(device.name()), "{device:?} is there");
            add_link(host, device.name(), device.made().expect("one that is made"));
            let link = host.links.get_mut(device.name()).expect("just added");
            (link.local, link.both_versions) = (Some((*local).into()), true);
        }
        Step::Unmake(device) => {
            assert!(host.links.contains_key(device.name()), "no {device:?}");
            remove_link(host, device.name());
        }
        Step::Set { parameter, value } => {
            let own = host.parameters.get_mut(parameter);
            *own.unwrap_or_else(|| panic!("no {parameter}")) = *value;
        }
        Step::AddAddress { device, address } => {
            let link = host.links.get_mut(device).unwrap_or_else(|| panic!("no {device}"));
            assert!(link.addresses.insert(*address), "{address} is on {device}");
        }
        Step::DeleteAddress { device, address } => {
            let link = host.links.get_mut(device).unwrap_or_else(|| panic!("no {device}"));
            assert!(link.addresses.remove(address), "{address} is not on {device}");
        }
        Step::SetTable(rules) => {
            assert!(host.nftables);
            host.table = Some(rules.table());
        }
        Step::DeleteTable => assert!(host.table.take().is_some()),
        Step::SetRoute { version, way, size } => {
            host.routes.routes.insert(*version, (way.clone(), *size));
        }
        Step::DeleteRoute(version) => assert!(host.routes.routes.remove(version).is_some()),
        Step::AddSource(source) => assert!(host.routes.sources.insert(*source)),
        Step::DeleteSource(source) => assert!(host.routes.sources.remove(source)),
        Step::AddPort(port) => {
            assert!(host.modules.contains(&Module::Fou));
            assert!(port.version == Version::V4 || host.modules.contains(&Module::Fou6));
            assert!(host.ports.insert(*port), "{port:?} is there");
        }
        Step::DeletePort(port) => assert!(host.ports.remove(port)),
        Step::Up(name) => {
            let link = host.links.get_mut(name).unwrap_or_else(|| panic!("no {name}"));
            assert!(!std::mem::replace(&mut link.up, true), "{name} is up");
        }
        Step::Down(name) => {
            let link = host.links.get_mut(name).unwrap_or_else(|| panic!("no {name}"));
            assert!(std::mem::replace(&mut link.up, false), "{name} is down");
            link.addresses.retain(IpAddr::is_ipv4);
        }
    }
}

fn add_link(host: &mut Observed, name: &str, kind: &str) {
    let link = Link { kind: kind.to_owned(), ..Link::default() };
    host.links.insert(name.to_owned(), link);
    for parameter in ParameterName::ALL {
        let default = host.own(parameter, "default");
        host.parameters.insert(parameter.of(name), default);
    }
}

fn remove_link(host: &mut Observed, name: &str) {
    host.links.remove(name);
    host.parameters.retain(|parameter, _| parameter.scope != name);
}

/// What is compared of two hosts: everything but the memory.
fn visible(host: &Observed) -> Observed {
    Observed { memory: crate::memory::Memory::default(), ..host.clone() }
}

/// The VIPs that some interface would tell of by ARP.
fn loud(host: &Observed, vips: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
    let silent = |interface: &str| {
        let in_force = |name| host.effective(name, interface);
        // net/ipv4/arp.c: 1 and 2 look at the interface's own addresses, 8 answers for none.
        [1, 2, 8].contains(&in_force(ParameterName::ArpIgnore))
            && in_force(ParameterName::ArpAnnounce) == 2
    };
    let arp: Vec<_> = host.links.iter().filter(|(_, link)| link.arp).collect();
    if arp.iter().all(|(name, _)| silent(name)) {
        return BTreeSet::new();
    }
    let shown = |vip: &&IpAddr| vip.is_ipv4() && host.holders(**vip).next().is_some();
    vips.iter().filter(shown).copied().collect()
}

/// Filter in force on interfaces that are no tunnels.
fn filters(host: &Observed) -> BTreeMap<String, i32> {
    let others = host.links.keys().filter(|name| !unwraps(name));
    others.map(|name| (name.clone(), host.effective(ParameterName::RpFilter, name))).collect()
}

const INTERFACES: [&str; 2] = ["eth0", "eth1.100"];

prop_compose! {
    /// A host in any state, as far as it is not a real server by us.
    fn any_host()(
        values in proptest::collection::vec(0..4i32, 3 * 5),
        odd in any::<Option<Index>>(),
        loaded in proptest::sample::subsequence(Module::ALL.to_vec(), 0..=7),
        own_device in any::<bool>(),
        up in proptest::collection::btree_set(proptest::sample::select(vec!["tunl0", "sit0", "gre0"]), 0..3),
        vips in proptest::collection::vec((proptest::sample::select(vec!["tunl0", "lo"]), 0..4usize), 0..3),
        nftables in any::<bool>(),
    ) -> Observed {
        let mut host = Observed { nftables, ..Observed::default() };
        let scopes = ["all", "default", "lo", INTERFACES[0], INTERFACES[1]];
        for (at, scope) in scopes.iter().enumerate() {
            for (name, value) in ParameterName::ALL.into_iter().zip(&values[at * 3..]) {
                let most = if name == ParameterName::RpFilter { 2 } else { 3 };
                host.parameters.insert(name.of(scope), *value.min(&most));
            }
        }
        if let Some(index) = odd {
            // Values that the kernel takes and has no meaning for.
            let arp = |p: &&Parameter| p.name != ParameterName::RpFilter;
            let all: Vec<_> = host.parameters.keys().filter(arp).cloned().collect();
            host.parameters.insert(index.get(&all).clone(), 9);
        }
        for name in INTERFACES {
            let addresses = if name == "eth0" {
                ["10.20.0.11".parse().unwrap(), "2001:db8:20::11".parse().unwrap()].into()
            } else {
                BTreeSet::new()
            };
            host.links.insert(name.to_owned(), Link { up: true, arp: true, addresses, ..Link::default() });
        }
        host.links.insert("lo".to_owned(), Link { up: true, ..Link::default() });
        for module in loaded {
            take(&mut host, &Step::Load(module));
        }
        if own_device && host.modules.contains(&Module::Ip6Tunnel) {
            let local = "2001:db8:20::11".parse().unwrap();
            take(&mut host, &Step::Make { device: Device::Ip6, local });
        }
        for name in up {
            if let Some(link) = host.links.get_mut(name) {
                link.up = true;
            }
        }
        for (device, vip) in vips {
            if let Some(link) = host.links.get_mut(device) {
                link.addresses.insert(VIPS[vip].parse().unwrap());
            }
        }
        for version in [Version::V4, Version::V6] {
            host.default_ways.insert(version, "via 10.20.0.1 dev eth0".to_owned());
        }
        host
    }
}

const VIPS: [&str; 6] = [
    "198.51.100.10",
    "198.51.100.11",
    "198.51.100.12",
    "203.0.113.9",
    "2001:db8:100::10",
    "2001:db8:100::11",
];

prop_compose! {
    fn any_desired()(
        vips in proptest::sample::subsequence(VIPS.to_vec(), 1..=6),
        directors in proptest::sample::subsequence(vec!["10.0.0.5", "10.0.0.6", "2001:db8::5"], 1..=3),
        tunnels in proptest::sample::subsequence(Tunnel::ALL.to_vec(), 0..=5),
        path_mtu in prop_oneof![Just(0), Just(1500), Just(1400)],
        vip_device in prop_oneof![Just(VipDevice::Tunnel), Just(VipDevice::Lo)],
        local in prop_oneof![
            Just(None),
            Just(Some("2001:db8:20::11".parse().unwrap())),
            Just(Some("2001:db8:20::12".parse().unwrap())),
        ],
        gue_port in prop_oneof![Just(6080), Just(6081)],
    ) -> Desired {
        let parsed = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let wishes = Wishes {
            vips: parsed(&vips),
            directors: parsed(&directors),
            tunnels: tunnels.into_iter().collect(),
            path_mtu,
            vip_device,
            local,
            gue_port,
        };
        // Where the tunnels do not fit, those that do.
        Desired::new(wishes.clone())
            .or_else(|_| Desired::new(Wishes { tunnels: BTreeSet::new(), ..wishes }))
            .expect("IP in IP fits all versions")
    }
}

/// What somebody else does in between.
#[derive(Clone, Debug)]
enum Foreign {
    Set(Index, i32),
    AddAddress(Index),
}

impl Foreign {
    /// Does it to the host, and to what the host would be without us.
    fn act(&self, host: &mut Observed, without: &mut Observed) {
        match self {
            Self::Set(index, value) => {
                let interfaces = |p: &&Parameter| !unwraps(&p.scope);
                let all: Vec<_> = without.parameters.keys().filter(interfaces).cloned().collect();
                let parameter = index.get(&all);
                // A value that we set, or were about to, cannot be told from ours.
                let ours = host.memory.parameters.get(parameter);
                if ours.is_some_and(|change| change.set.contains(value)) {
                    return;
                }
                host.parameters.insert(parameter.clone(), *value);
                without.parameters.insert(parameter.clone(), *value);
            }
            Self::AddAddress(index) => {
                let name = *index.get(&INTERFACES);
                let address = "10.99.0.1".parse().unwrap();
                for host in [host, without] {
                    let link = host.links.get_mut(name).expect("an interface");
                    link.addresses.insert(address);
                }
            }
        }
    }
}

fn any_foreign() -> impl Strategy<Value = Foreign> {
    prop_oneof![
        (any::<Index>(), 0..3i32).prop_map(|(index, value)| Foreign::Set(index, value)),
        any::<Index>().prop_map(Foreign::AddAddress),
    ]
}

/// Plans and takes steps, is killed after `steps` of them, and looks after each at what must hold.
/// `without` is the host as it would be without us: what it tells by ARP, it may tell again.
fn run(
    host: &mut Observed,
    desired: Option<&Desired>,
    steps: Option<Index>,
    without: &Observed,
) -> Result<(), PlanError> {
    let vips = &VIPS.iter().map(|vip| vip.parse().unwrap()).collect();
    // Without an IPv4 VIP there is nothing to be silent about.
    let silent = desired.is_some_and(|desired| desired.versions().contains(&Version::V4));
    let given_back = if silent { BTreeSet::new() } else { loud(without, vips) };
    let planned = plan(desired, host)?.steps;
    let taken = steps.map_or(planned.len(), |steps| steps.index(planned.len() + 1));
    let (loud_before, filters_before) = (loud(host, vips), filters(host));
    for step in &planned[..taken] {
        take(host, step);
        let loud = &loud(host, vips) - &given_back;
        assert!(loud.is_subset(&loud_before), "{loud:?} after {step} of {planned:#?}");
        if silent {
            let filters = filters(host);
            // One that went with its module has nothing to filter.
            let kept = |(name, before)| filters.get(name).is_none_or(|now| now >= before);
            assert!(filters_before.iter().all(kept), "{filters:?} after {step} of {planned:#?}");
        }
    }
    Ok(())
}

/// Runs until there is nothing to do. One run has to be enough: nobody interferes.
fn converge(
    host: &mut Observed,
    desired: Option<&Desired>,
    without: &Observed,
) -> Result<(), PlanError> {
    run(host, desired, None, without)?;
    let rest = plan(desired, host).expect("a second plan").steps;
    assert!(rest.is_empty(), "a second plan: {rest:#?}");
    Ok(())
}

/// Is the host what was wanted? Not how, but what packets need.
fn serves(host: &Observed, desired: &Desired) {
    let findings = crate::verify::verify(desired, host);
    let wrong: Vec<_> = findings
        .iter()
        .filter(|finding| finding.severity == crate::verify::Severity::Error)
        // An address of the host in this world is there or not as it likes.
        .filter(|finding| finding.name != "tunnel_local")
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

proptest! {
    #[test]
    fn one_run_is_enough_and_a_second_changes_nothing(host in any_host(), desired in any_desired()) {
        let (mut host, found) = (host.clone(), host);
        if converge(&mut host, Some(&desired), &found).is_ok() {
            serves(&host, &desired);
        }
    }

    #[test]
    fn remove_leaves_the_host_as_it_was(
        host in any_host(),
        desired in any_desired(),
        stops in proptest::collection::vec(any::<Index>(), 0..4),
        removals in proptest::collection::vec(any::<Index>(), 0..4),
    ) {
        let (mut host, found) = (host.clone(), host);
        for stop in stops {
            let _ = run(&mut host, Some(&desired), Some(stop), &found);
        }
        for stop in removals {
            run(&mut host, None, Some(stop), &found).unwrap();
        }
        converge(&mut host, None, &found).unwrap();
        prop_assert_eq!(visible(&host), visible(&found));
        prop_assert!(host.memory.is_empty());
    }

    #[test]
    fn other_wishes_interruptions_and_other_people(
        host in any_host(),
        runs in proptest::collection::vec(
            (any_desired(), any::<Option<Index>>(), proptest::option::of(any_foreign())), 1..5),
    ) {
        let (mut host, mut without) = (host.clone(), host);
        for (desired, stop, foreign) in &runs {
            if run(&mut host, Some(desired), *stop, &without).is_ok() && stop.is_none() {
                serves(&host, desired);
                prop_assert!(plan(Some(desired), &host).unwrap().steps.is_empty());
            }
            if let Some(foreign) = foreign {
                foreign.act(&mut host, &mut without);
            }
        }
        converge(&mut host, None, &without).unwrap();
        prop_assert_eq!(visible(&host), visible(&without));
    }
}
