//! What people see: tables of `list`, `drops` and `check`, as they are printed. What differs from run
//! to run is replaced by its name.

use crate::THREE;
use crate::lab::{Lab, eventually, lab};

/// Replaces the word behind each of `after`, up to the next space or the line's end.
fn masked(text: &str, after: &[&str]) -> String {
    let line = |line: &str| {
        let mut line = line.to_owned();
        for &before in after {
            let Some(start) = line.find(before).map(|at| at + before.len()) else { continue };
            let end = line[start..].find([' ', '\n']).map_or(line.len(), |end| start + end);
            line.replace_range(start..end, &format!("<{}>", before.trim()));
        }
        line
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// A director that has forwarded 20 datagrams by known next hops and dropped 5.
fn director() -> Option<Lab> {
    let mut lab = lab()?;
    // Nobody needs to receive what is sent there.
    let mac = "02:00:00:00:00:99";
    for real in ["10.0.0.2", "10.0.0.3", "10.0.0.4"] {
        lab.on_director(&format!("ip neigh replace {real} lladdr {mac} dev eth1 nud permanent"));
    }
    lab.configure(THREE);
    lab.start();
    eventually("direct egress to all", || {
        let paths = lab.json("list")["services"][0]["reals"].clone();
        paths.as_array().unwrap().iter().all(|real| real["egress"] == "direct").then_some(())
    });
    for port in 40_000..40_020 {
        lab.datagram(&format!("198.51.100.1:{port}"), "192.0.2.10:7");
    }
    // There is no such service.
    for port in 40_000..40_005 {
        lab.datagram(&format!("198.51.100.1:{port}"), "192.0.2.10:9");
    }
    Some(lab)
}

#[test]
fn services_and_drops() {
    let Some(lab) = director() else { return };
    eventually("20 connections", || Some(lab.connections()).filter(|found| found.len() == 20));
    eventually("5 drops", || {
        lab.json("drops").as_array().unwrap().iter().any(|drop| drop["count"] == 5).then_some(())
    });
    let differs = ["up ", "engine: ", "config ", "frames ", "TAP, "];
    insta::assert_snapshot!("list", masked(&lab.ok("list"), &differs));
    insta::assert_snapshot!("list_stats", masked(&lab.ok("list --stats"), &differs));
    insta::assert_snapshot!("drops", lab.ok("drops"));
}

#[test]
fn findings_about_config_and_host() {
    let Some(lab) = lab() else { return };
    lab.on_director("sysctl -qw net.ipv4.ip_forward=0 net.ipv4.conf.eth0.forwarding=0");
    lab.on_director("sysctl -qw net.ipv4.conf.all.rp_filter=1");
    lab.configure(THREE);
    let file = lab.file("adit.toml").display().to_string();
    let shown = lab.refused("check").replace(&file, "<file>");
    // The hash of the configuration, in which the test's directory is.
    insta::assert_snapshot!("check", masked(&shown, &["config "]));
}
