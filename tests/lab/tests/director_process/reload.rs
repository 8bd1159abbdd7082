//! What a configuration in force can become, and what it cannot.

use adit_lab::topology::{VIP, VIP6, vip};
use adit_lab::{Caller, Config, Director, Lab, SERVE_PORT, Service, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{SOON, clean_lab, config, echoes, of_host, start};

#[test]
fn sighup_reloads_and_a_bad_file_is_refused_by_name() {
    let lab = clean_lab();
    let only =
        |name: &str| Config::new().service(Service::tcp(name, vip(SERVE_PORT)).reals(&lab.reals));
    let director = start(&lab, &only("first"));
    let host = lab.director();
    let hash = || director.status().unwrap()["config_hash"].clone();
    let first = hash();

    only("second").write(host.as_ref(), "adit.toml").unwrap();
    director.signal(Signal::SIGHUP).unwrap();
    wait_until(SOON, "SIGHUP to reload", || hash() != first).unwrap();
    let second = hash();
    let services = director.json(&["list"]).unwrap()["services"].clone();
    assert_eq!(services[0]["name"], "second", "{services}");

    // What is wrong, where, and that the old one stays; by command and by signal.
    let bad = only("third").section("[timeouts]\ntcp_estabished = \"1h\"");
    let said = director.reload(&bad).unwrap();
    assert!(!said.success, "{}", said.text);
    for word in ["tcp_estabished", "tcp_established", "adit.toml", "old configuration stays"] {
        assert!(said.text.contains(word), "{word} is not in: {}", said.text);
    }
    director.signal(Signal::SIGHUP).unwrap();
    wait_until(SOON, "a refusal in the log", || director.log().contains("reload refused")).unwrap();

    // What only a restart can change is refused by name too.
    let fixed = [
        ("max_connections", "50_000"),
        ("tap", "\"other0\""),
        ("io", "\"poll\""),
        ("interface", "\"eth1\""),
    ];
    for (key, value) in fixed {
        let said = director.reload(&only("third").set(key, value)).unwrap();
        assert!(!said.success && said.text.contains(key), "{key}: {}", said.text);
    }
    let said = director.reload(&only("third").set("workers", "2")).unwrap();
    assert!(!said.success && said.text.contains("workers"), "{}", said.text);

    assert_eq!(hash(), second);
    let services = director.json(&["list"]).unwrap()["services"].clone();
    assert_eq!(services[0]["name"], "second", "{services}");
    Caller::new(&lab.client, vip(SERVE_PORT)).whoami().unwrap();
}

/// A configuration in force, as its user sees it; without what traffic changes.
fn in_force(director: &Director) -> (Value, Value) {
    let mut list = director.json(&["list"]).unwrap();
    for service in list["services"].as_array_mut().unwrap() {
        for real in service["reals"].as_array_mut().unwrap() {
            let real = real.as_object_mut().unwrap();
            real.retain(|key, _| {
                ["address", "weight", "effective_weight", "state"].contains(&&**key)
            });
        }
    }
    (list["status"]["config_hash"].take(), list["services"].take())
}

/// A configuration with two VIPs more, one server less, another weight, and without IPv6.
fn all_different(lab: &Lab, new: [&str; 2]) -> Config {
    let [first, second] = &lab.reals[..] else { panic!("two real servers") };
    let mut all = Config::new().service(
        Service::tcp("bytes", vip(SERVE_PORT)).scheduler("wrr").address(first.address(false), 50),
    );
    for (number, vip) in new.into_iter().enumerate() {
        let at = std::net::SocketAddr::new(vip.parse().unwrap(), SERVE_PORT);
        all = all.service(Service::tcp(&format!("new{number}"), at).reals([second]));
    }
    all
}

#[test]
fn a_reload_that_fails_half_way_changes_nothing() {
    let lab = clean_lab();
    let host = lab.director();
    let director = start(&lab, &config(&lab));
    let mut session = Caller::new(&lab.client, vip(SERVE_PORT)).echo().unwrap();
    assert!(echoes(&mut session));

    // Somebody else routes one of the VIPs, on either side of which there are others.
    for taken in ["198.51.100.66", "198.51.100.77"] {
        let new = all_different(&lab, ["198.51.100.66", "198.51.100.77"]);
        let foreign = format!("route add {taken}/32 via 10.2.0.1 metric 1");
        host.sh(&format!("ip {foreign}")).unwrap();
        let before = (in_force(&director), of_host(host.as_ref()));
        let said = director.reload(&new).unwrap();
        assert!(!said.success, "{}", said.text);
        for word in [taken, "ip route show", "old configuration stays"] {
            assert!(said.text.contains(word), "{word} is not in: {}", said.text);
        }
        let (force, on_host) = (in_force(&director), of_host(host.as_ref()));
        assert_eq!(force, before.0, "with a route for {taken}");
        let changed: Vec<_> = on_host.symmetric_difference(&before.1).collect();
        assert!(changed.is_empty(), "with a route for {taken}: {changed:#?}");
        assert!(echoes(&mut session), "the session broke");
        Caller::new(&lab.client, vip(SERVE_PORT)).whoami().unwrap();
        host.sh(&format!("ip route del {taken}/32 via 10.2.0.1 metric 1")).unwrap();
    }

    // The obstacle was all there was.
    let said = director.reload(&all_different(&lab, ["198.51.100.66", "198.51.100.77"])).unwrap();
    assert!(said.success, "{}", said.text);
    let routes = || host.sh("ip route; ip -6 route").unwrap();
    for vip in [&VIP.to_string(), "198.51.100.66", "198.51.100.77"] {
        assert!(routes().contains(vip), "no {vip} in {}", routes());
    }
    let gone = wait_until(SOON, "the end of a VIP", || !routes().contains(&VIP6.to_string()));
    gone.unwrap_or_else(|error| panic!("{error}: {}", routes()));
    assert!(echoes(&mut session), "the session broke");
}
