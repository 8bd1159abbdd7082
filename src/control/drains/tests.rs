//! Drains against configurations and snapshots.

use super::*;
use crate::control::config::parse;
use crate::control::explain::offline_snapshot;
use crate::dataplane::hash::HashKey;

/// Two services; of `web` one real server has no weight.
const TEXT: &str = "[director]\ninterface = \"eth0\"\n\
    [[service]]\nname = \"db\"\nvip = \"192.0.2.1\"\nport = 5432\n\
    [[service.real]]\naddress = \"10.0.0.1\"\n[[service.real]]\naddress = \"10.0.0.2\"\n\
    [[service]]\nname = \"web\"\nvip = \"192.0.2.1\"\nport = 80\n\
    [[service.real]]\naddress = \"10.0.0.1\"\n\
    [[service.real]]\naddress = \"10.0.0.3\"\nweight = 0\n";

fn config(text: &str) -> Config {
    parse(text, "t").unwrap()
}

fn real(last: u8) -> IpAddr {
    [10, 0, 0, last].into()
}

fn key(service: Option<&str>, last: u8) -> DrainKey {
    DrainKey { service: service.map(str::to_owned), real: real(last) }
}

fn drain(owner: &str) -> Drain {
    Drain { owner: owner.to_owned(), reason: None, since: 7 }
}

fn drains(keys: &[DrainKey]) -> Drains {
    Drains::of(keys.iter().map(|key| (key.clone(), drain("root"))))
}

/// The services as the core has them under these drains, in which those named are down.
fn services(drains: &Drains, down: &[(&str, u8)]) -> ServiceTable {
    let snapshot = offline_snapshot(&config(TEXT), HashKey::DEFAULT).unwrap();
    let mut services = snapshot.services.into_services();
    for service in &mut services {
        drains.judge(&service.name, &mut service.members);
        for member in &mut service.members {
            member.down =
                down.iter().any(|(s, r)| **s == *service.name && real(*r) == member.address);
        }
    }
    ServiceTable::new(services)
}

#[test]
fn a_drain_holds_in_its_service_or_in_all() {
    let held = |drains: &Drains| -> Vec<(String, IpAddr)> {
        let table = services(drains, &[]);
        let members = |s: &crate::dataplane::service::Service| {
            let name = s.name.to_string();
            let draining = s.members.iter().filter(|m| m.draining && !m.is_eligible());
            draining.map(|m| (name.clone(), m.address)).collect::<Vec<_>>()
        };
        let mut held: Vec<_> = table.services().iter().flat_map(members).collect();
        held.sort();
        held
    };
    let (db, web) = ("db".to_owned(), "web".to_owned());
    assert_eq!(held(&Drains::default()), []);
    assert_eq!(held(&drains(&[key(Some("db"), 1)])), [(db.clone(), real(1))]);
    assert_eq!(held(&drains(&[key(None, 1)])), [(db.clone(), real(1)), (web.clone(), real(1))]);
    assert_eq!(held(&drains(&[key(Some("web"), 2)])), [], "that is not in this service");
    // Whoever drained a service is named before whoever drained all.
    let both = Drains::of([(key(None, 1), drain("bob")), (key(Some("db"), 1), drain("alice"))]);
    assert_eq!(both.find("db", real(1)).unwrap().1.owner, "alice");
    assert_eq!(both.find("web", real(1)).unwrap().1.owner, "bob");
    assert_eq!(both.without(&key(Some("db"), 1)).find("db", real(1)).unwrap().1.owner, "bob");
    assert_eq!(both.find("web", real(2)), None);
}

#[test]
fn the_first_who_asked_stays_the_owner() {
    let first = Drains::default().with(key(None, 1), drain("alice"));
    assert_eq!(first.with(key(None, 1), drain("bob")), first);
    assert_eq!(first.without(&key(None, 1)), Drains::default());
    assert_eq!(first.without(&key(Some("db"), 1)), first, "that is another one");
}

#[test]
fn whoever_would_take_a_service_down_is_told_which() {
    let none = &[][..];
    type Case<'a> = (Vec<DrainKey>, &'a [(&'a str, u8)], DrainKey, &'a [&'a str]);
    let (db1, db2, web1, all1) =
        (key(Some("db"), 1), key(Some("db"), 2), key(Some("web"), 1), key(None, 1));
    let cases: [Case<'_>; 12] = [
        // Drained already, down, what is to be drained, which services would have nobody.
        (vec![], none, db1.clone(), &[]),
        (vec![], none, web1.clone(), &["web"]),
        (vec![], none, all1.clone(), &["web"]),
        (vec![db2.clone()], none, db1.clone(), &["db"]),
        (vec![db2.clone()], none, all1.clone(), &["db", "web"]),
        (vec![key(None, 2)], none, db1.clone(), &["db"]),
        // The other one is down now.
        (vec![], &[("db", 2)], db1.clone(), &["db"]),
        // One that is down is no loss, as long as there is another one with weight.
        (vec![], &[("db", 1)], db1.clone(), &[]),
        (vec![], &[("db", 1), ("db", 2)], db1.clone(), &[]),
        (vec![db2.clone()], &[("db", 1), ("db", 2)], db1.clone(), &["db"]),
        // What has no weight, or is drained already, makes no difference.
        (vec![], none, key(Some("web"), 3), &[]),
        (vec![web1.clone()], none, all1.clone(), &[]),
    ];
    for (before, down, asked, expected) in cases {
        let before = drains(&before);
        let told = before.emptied_by(&asked, &services(&before, down));
        assert_eq!(told, expected, "{asked} after {before:?}, down: {down:?}");
        // Neither does one that is recorded and that workers do not know of yet.
        let told = before.emptied_by(&asked, &services(&Drains::default(), down));
        assert_eq!(told, expected, "{asked} after {before:?}, not in force; down: {down:?}");
    }
}

#[test]
fn what_leaves_the_configuration_is_dropped_and_nothing_else() {
    let all = drains(&[key(Some("db"), 2), key(None, 1), key(Some("web"), 1)]);
    let left = |text: &str| -> Vec<String> {
        let config = config(text);
        let left: Vec<_> = all.leaving(&config).map(|(key, _)| key.clone()).collect();
        let stay = all.staying(&config);
        assert!(left.iter().all(|key| stay.get(key).is_none()));
        assert_eq!(stay.len() + left.len(), all.len());
        left.iter().map(ToString::to_string).collect()
    };
    assert_eq!(left(TEXT), Vec::<String>::new());
    let without = "[[service.real]]\naddress = \"10.0.0.2\"\n";
    assert_eq!(left(&TEXT.replace(without, "")), ["10.0.0.2 in service db"]);
    // A service with another name is another service; whoever is drained in all is so there.
    assert_eq!(left(&TEXT.replace("\"web\"", "\"www\"")), ["10.0.0.1 in service web"]);
    // Weights, VIPs, ports and tunnels change nothing.
    let other = TEXT
        .replace("192.0.2.1", "192.0.2.9")
        .replace("port = 80", "port = 81")
        .replace("\"10.0.0.1\"", "\"10.0.0.1\"\nweight = 7\ntunnel = \"gue\"");
    assert_eq!(left(&other), Vec::<String>::new());
    let gone = "[director]\ninterface = \"eth0\"\n";
    assert_eq!(left(gone).len(), 3);
}

#[test]
fn services_whose_real_servers_are_all_drained_are_named() {
    let named = |keys: &[DrainKey]| -> Vec<String> {
        let found = drains(keys).findings(&config(TEXT));
        found.into_iter().map(|finding| finding.message).collect()
    };
    assert!(named(&[]).is_empty());
    assert!(named(&[key(Some("db"), 1)]).is_empty());
    assert_eq!(named(&[key(None, 1)]), ["service web: every real server is drained"]);
    assert_eq!(named(&[key(None, 1), key(Some("db"), 2)]).len(), 2);
}

#[test]
fn reasons_are_one_line() {
    assert_eq!(check_reason("kernel 6.1, ticket №7"), Ok(()));
    assert_eq!(check_reason(&"ä".repeat(LONGEST_REASON)), Ok(()));
    assert_eq!(check_reason(&"a".repeat(LONGEST_REASON + 1)), Err(BadReason::TooLong));
    for garbled in ["a\nb", "\u{1b}[2J", "\u{7f}", "\u{85}"] {
        assert_eq!(check_reason(garbled), Err(BadReason::Control), "{garbled:?}");
    }
}
