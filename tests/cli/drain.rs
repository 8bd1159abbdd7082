//! `adit drain` as operators meet it: what goes on, what moves, what a killed director remembers.

use crate::lab::{Lab, eventually, lab};
use crate::{THREE, real};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::BTreeMap;

/// Two workers; sessions of UDP end when nothing was heard for three seconds.
const WORKERS: &str = "workers = 2\n";
const SHORT: &str = "protocol = \"udp\"\ntimeouts = { udp = \"3s\" }";

/// What `list` says of a real server of the first service.
fn member(lab: &Lab, address: &str) -> Value {
    let services = lab.json("list")["services"].clone();
    let reals = services[0]["reals"].as_array().unwrap().clone();
    reals.into_iter().find(|real| real["address"] == address).unwrap()
}

/// Sends a datagram from each port, and waits until each has its connection.
fn send(lab: &Lab, ports: std::ops::Range<u16>) -> BTreeMap<u64, String> {
    for port in ports.clone() {
        lab.datagram(&format!("198.51.100.1:{port}"), "192.0.2.10:7");
    }
    eventually("each datagram has its connection", || {
        let found: BTreeMap<_, _> = lab
            .connections()
            .into_iter()
            .filter(|(port, _)| ports.contains(&u16::try_from(*port).unwrap()))
            .collect();
        (found.len() == ports.len()).then_some(found)
    })
}

fn at(placed: &BTreeMap<u64, String>, address: &str) -> usize {
    placed.values().filter(|real| *real == address).count()
}

/// Sessions that remain, once they were counted.
fn remaining(lab: &Lab, address: &str) -> u64 {
    eventually("what remains is counted", || member(lab, address)["drain"]["remaining"].as_u64())
}

#[test]
fn a_drained_real_server_keeps_its_sessions_and_gets_no_others_not_even_after_kill_9() {
    let Some(mut lab) = lab() else { return };
    lab.configure(&format!("{WORKERS}{THREE}"));
    lab.start();
    let before = send(&lab, 40_000..40_030);
    let there = at(&before, "10.0.0.4");
    assert!(there > 0, "{before:?}");

    let said = lab.json("drain echo 10.0.0.4 --reason kernel");
    assert_eq!((&said["changed"], &said["drains"][0]["owner"]), (&true.into(), &"root".into()));
    assert_eq!(remaining(&lab, "10.0.0.4"), there as u64);
    let drained = member(&lab, "10.0.0.4");
    assert_eq!((&drained["state"], &drained["effective_weight"]), (&"drained".into(), &0.into()));
    assert_eq!(drained["drain"]["reason"], "kernel");
    let placed = send(&lab, 41_000..41_030);
    assert_eq!(at(&placed, "10.0.0.4"), 0, "{placed:?}");
    // Others' clients do not move, and its own are where they were.
    let again = send(&lab, 40_000..40_030);
    assert_eq!(again, before);

    // Waiting ends at the deadline, and cuts nothing.
    let output = lab.adit("drain echo 10.0.0.4 --deadline 300ms --json");
    assert_eq!(output.status.code(), Some(1));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&said["remaining"], &said["changed"]), (&there.into(), &false.into()), "{said}");
    let said = lab.refused("drain echo 10.0.0.4 --deadline 300ms");
    let left = format!("the deadline has come and {there} session");
    assert!(said.contains(&left) && said.contains("nothing was cut"), "{said}");
    // Every command shows it.
    let shown = lab.ok("list");
    assert!(
        shown.contains("10.0.0.4 of echo: drained by root for ") && shown.contains(": kernel; ")
    );
    let own = |placed: &BTreeMap<u64, String>| {
        placed.iter().find(|(_, real)| *real == "10.0.0.4").map(|(port, _)| *port).unwrap()
    };
    let asked = format!("explain 198.51.100.1:{} 192.0.2.10:7/udp", own(&before));
    let explained = lab.json(&asked);
    assert_eq!(explained["drained"][0]["drain"]["owner"], "root", "{explained}");
    assert!(lab.ok(&asked).contains("10.0.0.4  drained by root for "));
    let metrics = lab.ok("metrics");
    let count = metrics.lines().find(|line| line.starts_with("adit_drain_remaining_sessions{"));
    assert!(count.unwrap().ends_with(&format!(" {there}")), "{count:?}");
    assert!(lab.ok("doctor --json").contains("adit undrain echo 10.0.0.4"));
    assert!(lab.ok("top --once").contains("drained, "));
    let log = lab.log();
    assert!(log.contains("drained key=10.0.0.4 in service echo"), "{log}");

    let since = drained["drain"]["since"].clone();
    assert_eq!(lab.end(Signal::SIGKILL), None);
    lab.start();
    let drained = member(&lab, "10.0.0.4");
    assert_eq!((&drained["drain"]["since"], &drained["state"]), (&since, &"drained".into()));
    assert_eq!(
        (&drained["drain"]["owner"], &drained["drain"]["reason"]),
        (&"root".into(), &"kernel".into())
    );
    assert_eq!(remaining(&lab, "10.0.0.4"), there as u64, "its sessions are counted again");
    assert_eq!(at(&send(&lab, 42_000..42_030), "10.0.0.4"), 0);
    assert_eq!(send(&lab, 40_000..40_030), before);

    // A reload knows it too, and whoever takes it back gets its own clients.
    lab.configure(&format!("{WORKERS}{}", THREE.replace("port = 7", "port = 7\ndf = \"clear\"")));
    lab.ok("reload");
    assert_eq!(member(&lab, "10.0.0.4")["drain"]["since"], since);
    let foretold = |port: u64| {
        let asked = format!("explain --offline 198.51.100.1:{port} 192.0.2.10:7/udp");
        lab.json(&asked)["real"].as_str().unwrap().to_owned()
    };
    let own = (43_000..44_000).find(|port| foretold(*port) == "10.0.0.4").unwrap();
    let own = u16::try_from(own).unwrap();
    assert_eq!(lab.json("undrain echo 10.0.0.4")["changed"], true);
    assert_eq!(lab.json("undrain echo 10.0.0.4")["changed"], false, "once is enough");
    eventually("the workers know", || {
        let asked = format!("explain 198.51.100.1:{own} 192.0.2.10:7/udp");
        (lab.json(&asked)["real"] == "10.0.0.4").then_some(())
    });
    assert_eq!(at(&send(&lab, own..own + 1), "10.0.0.4"), 1);
    assert_eq!(member(&lab, "10.0.0.4")["drain"], Value::Null);
}

#[test]
fn whoever_waits_hears_when_the_last_session_has_ended() {
    let Some(mut lab) = lab() else { return };
    lab.configure(&THREE.replace("protocol = \"udp\"", SHORT));
    lab.start();
    let placed = send(&lab, 40_000..40_030);
    assert!(at(&placed, "10.0.0.3") > 0, "{placed:?}");
    let output = lab.adit("drain all 10.0.0.3 --deadline 50s");
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{out}{err}");
    assert!(err.contains("sessions remain (") && err.contains("unproven)"), "{err}");
    assert!(out.contains("10.0.0.3: no session remains"), "{out}");
    let left: Vec<_> =
        lab.connections().into_iter().filter(|(_, real)| real == "10.0.0.3").collect();
    assert_eq!(left, [], "so it is");
    // Whose drain is gone waits for nothing; a session of five minutes keeps it waiting until then.
    lab.configure(THREE);
    lab.ok("reload");
    let own = placed.iter().find(|(_, real)| *real == "10.0.0.4").map(|(port, _)| *port).unwrap();
    let own = u16::try_from(own).unwrap();
    assert_eq!(at(&send(&lab, own..own + 1), "10.0.0.4"), 1);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| lab.refused("drain all 10.0.0.4 --wait"));
        eventually("it is drained", || {
            (!member(&lab, "10.0.0.4")["drain"].is_null()).then_some(())
        });
        lab.ok("undrain all 10.0.0.4");
        assert!(waiting.join().unwrap().contains("not drained any more"));
    });
}

#[test]
fn what_would_take_a_service_down_or_means_nothing_is_refused() {
    let Some(mut lab) = lab() else { return };
    let two = THREE.replace(&real("10.0.0.3"), "");
    lab.configure(&format!("admin_group = \"daemon\"\n{two}"));
    lab.start();
    assert!(lab.refused("drain ecco 10.0.0.4").contains("there is no service ecco"));
    assert!(lab.refused("drain echo 10.0.0.9").contains("no such real server"));
    assert!(lab.refused("undrain all 10.0.0.9").contains("no such real server"));
    assert!(lab.refused("drain echo 10.0.0.4 --reason a\tb").contains("no control characters"));
    for usage in ["drain echo", "drain echo here", "drain echo 10.0.0.4 --deadline 30"] {
        assert_eq!(lab.adit(usage).status.code(), Some(2), "{usage}");
    }
    let output = lab.adit_as("daemon", "drain echo 10.0.0.4");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("only shows"), "{said}");
    assert_eq!(member(&lab, "10.0.0.4")["drain"], Value::Null, "nothing of that did anything");

    // All services, and one: each is taken back as it was asked for.
    lab.ok("drain all 10.0.0.4");
    let said = lab.refused("undrain echo 10.0.0.4");
    assert!(said.contains("`adit undrain all 10.0.0.4` takes that back"), "{said}");
    let said = lab.refused("drain echo 10.0.0.2");
    assert!(said.contains("no real server left") && said.contains("echo"), "{said}");
    assert_eq!(member(&lab, "10.0.0.2")["state"], "up");
    let said = lab.ok("drain echo 10.0.0.2 --force");
    assert!(said.contains("warning: service echo: every real server is drained"), "{said}");
    assert!(lab.ok("list").contains("warning: service echo: every real server is drained"));
    let said = lab.refused("doctor");
    assert!(said.contains("service echo: no real server takes new connections"), "{said}");
    lab.datagram("198.51.100.1:40000", "192.0.2.10:7");
    eventually("nobody gets it", || {
        let drops = lab.json("drops");
        let mut drops = drops.as_array()?.iter();
        drops.find(|drop| drop["reason"] == "no_real_server").map(|_| ())
    });

    // What leaves the configuration is dropped, and said before and after.
    lab.configure(&format!(
        "admin_group = \"daemon\"\n{}",
        two.replace(&real("10.0.0.4"), &real("10.0.0.3"))
    ));
    let dry = lab.ok("reload --dry-run");
    assert!(dry.contains("the drain of 10.0.0.4 in all services, by root: is dropped"), "{dry}");
    assert_eq!(member(&lab, "10.0.0.4")["state"], "drained", "not yet");
    lab.ok("reload");
    assert!(lab.log().contains("drain dropped"), "{}", lab.log());
    lab.configure(&format!("admin_group = \"daemon\"\n{two}"));
    lab.ok("reload");
    assert_eq!(member(&lab, "10.0.0.4")["drain"], Value::Null, "it is a new one");
    assert_eq!(member(&lab, "10.0.0.2")["state"], "drained");

    // A damaged file is said and set aside, and the start goes on.
    assert_eq!(lab.end(Signal::SIGTERM), Some(0));
    let file = lab.file("state/drains.json");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, &text[..text.len() / 2]).unwrap();
    lab.start();
    assert!(lab.ok("list").contains("warning: drains of an earlier process are lost"));
    assert!(lab.file("state/drains.json.bad").exists());
    assert_eq!(member(&lab, "10.0.0.2")["state"], "up");
    // One that cannot be kept is not begun.
    std::fs::create_dir(lab.file("state/drains.json.new")).unwrap();
    let said = lab.refused("drain echo 10.0.0.4");
    assert!(said.contains("a restart would forget it"), "{said}");
    assert_eq!(member(&lab, "10.0.0.4")["state"], "up");
}
