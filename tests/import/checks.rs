//! Checks and prefixes: what keepalived's become.

use crate::imported;
use adit::control::config::{self, Check, CheckKind, Initial, Service};
use adit::control::import::{Imported, Source};
use std::time::Duration;

/// A server of one VIP with these options of its own and these real servers.
fn server(head: &str, options: &str, reals: &[&str]) -> String {
    let mut text = format!("{head} {{\nprotocol TCP\nlvs_sched rr\nlvs_method TUN\n{options}\n");
    for (index, inner) in reals.iter().enumerate() {
        text.push_str(&format!("real_server 10.0.0.{} 80 {{\n{inner}\n}}\n", index + 1));
    }
    text + "}\n"
}

fn services(text: &str) -> (Vec<Service>, Imported) {
    let imported = imported(Source::Keepalived, text);
    let count = imported.report.words;
    assert_eq!(count.read, count.used + count.reported, "{text}");
    (config::parse(&imported.config, "adit.toml").unwrap().services, imported)
}

/// What the report says that has these words in it.
fn says(imported: &Imported, why: &str) -> bool {
    imported.report.entries.iter().any(|entry| entry.why.contains(why))
}

const VIP: &str = "virtual_server 192.0.2.1 80";

#[test]
fn a_check_is_what_keepalived_would_do() {
    let ms = Duration::from_millis;
    let plain = Check {
        kind: CheckKind::Tcp,
        port: 80,
        interval: ms(60_000),
        timeout: ms(5000),
        down_interval: ms(60_000),
        rise: 1,
        fall: 2,
        initial: Initial::Up,
    };
    let cases = [
        ("", "TCP_CHECK {\n}", plain),
        (
            "delay_loop 6\nconnect_timeout 3\nretry 2\nalpha",
            "TCP_CHECK {\n}",
            Check {
                interval: ms(6000),
                timeout: ms(3000),
                down_interval: ms(6000),
                fall: 3,
                initial: Initial::Down,
                ..plain
            },
        ),
        // The inner ones go before the outer ones.
        (
            "delay_loop 6\nretry 5\nconnect_timeout 1",
            "delay_loop 2\nretry 4\nTCP_CHECK {\nretry 0\nconnect_port 8080\nconnect_timeout 0.75\n}",
            Check {
                port: 8080,
                interval: ms(2000),
                timeout: ms(750),
                down_interval: ms(2000),
                fall: 1,
                ..plain
            },
        ),
        // No check outlasts its interval.
        (
            "delay_loop 1",
            "TCP_CHECK {\nretry 0\n}",
            Check {
                interval: ms(1000),
                timeout: ms(1000),
                down_interval: ms(1000),
                fall: 1,
                ..plain
            },
        ),
        (
            "delay_loop 0.01",
            "TCP_CHECK {\nretry 1000\n}",
            Check {
                interval: ms(100),
                timeout: ms(100),
                down_interval: ms(100),
                fall: 100,
                ..plain
            },
        ),
    ];
    for (options, inner, right) in cases {
        let (services, _) = services(&server(VIP, options, &[inner, inner]));
        assert_eq!(services[0].check, Some(right), "{options}\n{inner}");
    }
}

#[test]
fn what_a_check_cannot_be_is_said() {
    let check = "TCP_CHECK {\n}";
    let cases = [
        (server(VIP, "", &[check, "TCP_CHECK {\nretry 7\n}"]), true, "says it otherwise"),
        (server(VIP, "", &[check, ""]), true, "it has no TCP_CHECK"),
        (server(VIP, "delay_loop 6", &[check]), true, "not after 1s"),
        (server(VIP, "", &["TCP_CHECK {\nconnect_ip 10.0.0.9\n}"]), true, "the way of clients"),
        (server(VIP, "delay_loop 6", &[""]), false, "only those by TCP are imported"),
        (
            server("virtual_server 2001:db8::1 80", "", &[check]),
            false,
            "the VIP and a real server are of different families",
        ),
        (
            server("virtual_server 192.0.2.1", "", &[check]).replace("10.0.0.1 80", "10.0.0.1"),
            false,
            "nothing says which one to check",
        ),
        // The first of a thousand real servers has the last port.
        (
            (1..=3).map(|vport| many(vport, 400)).collect(),
            true,
            "cannot be checked from the default ports",
        ),
    ];
    for (text, is_checked, why) in cases {
        let (services, imported) = services(&text);
        assert_eq!(services[0].check.is_some(), is_checked, "{text}");
        assert!(says(&imported, why), "no `{why}` in {}", imported.report.text());
    }
    // Two of them have ports for all real servers, and the third has none.
    let (services, _) = services(&(1..=3).map(|vport| many(vport, 400)).collect::<String>());
    let checked: Vec<bool> = services.iter().map(|service| service.check.is_some()).collect();
    assert_eq!(checked, [true, true, false]);
}

/// A service of many real servers, all checked at one port of the VIP.
fn many(vport: u16, reals: u16) -> String {
    let mut text = format!(
        "virtual_server 192.0.2.1 {vport} {{\nprotocol TCP\nlvs_sched rr\nlvs_method TUN\nretry 0\n"
    );
    for real in 0..reals {
        let (high, low) = (real / 200, real % 200 + 1);
        text.push_str(&format!(
            "real_server 10.0.{high}.{low} {vport} {{\nTCP_CHECK {{\nconnect_port 99\n}}\n}}\n"
        ));
    }
    text + "}\n"
}

/// The VIPs of the services that a group becomes.
fn vips(lines: &str, options: &str, inner: &str) -> (Vec<String>, Imported) {
    let text = format!(
        "virtual_server_group g {{\n{lines}\n}}\n{}",
        server("virtual_server group g", options, &[inner])
    );
    let (services, imported) = services(&text);
    let mut vips: Vec<String> = services.iter().map(|service| service.vip.to_string()).collect();
    vips.sort_unstable();
    (vips, imported)
}

#[test]
fn a_range_that_is_a_prefix_is_one_service() {
    let (whole, imported) = vips("198.51.100.16-31 80\n198.51.100.40/30 80", "", "");
    assert_eq!(whole, ["198.51.100.16/28", "198.51.100.40/30"]);
    assert!(imported.config.contains("name = \"tcp-198.51.100.16-28-80\""), "{}", imported.config);
    let (odd, _) = vips("198.51.100.16-18 80", "", "");
    assert_eq!(odd, ["198.51.100.16", "198.51.100.17", "198.51.100.18"]);
    // What each address has of its own in IPVS stays so.
    let (bounded, _) = vips("198.51.100.16-17 80", "", "uthreshold 10");
    assert_eq!(bounded, ["198.51.100.16", "198.51.100.17"]);
    let (persistent, imported) = vips("198.51.100.16-17 80", "persistence_timeout 60", "");
    assert_eq!(persistent, ["198.51.100.16/31"]);
    assert!(says(&imported, "remembers a client for all of them"));
    // An address that another line has already.
    let (taken, imported) = vips("198.51.100.17 80\n198.51.100.16-17 80", "", "");
    assert_eq!(taken, ["198.51.100.16", "198.51.100.17"]);
    assert!(says(&imported, "already"), "{}", imported.report.text());
    // An address nobody may serve.
    let (bad, imported) = vips("0.0.0.0-3 80", "", "");
    assert!(bad.is_empty() && says(&imported, "0.0.0.0 is"), "{bad:?}");
    // As many as fit, one by one.
    let (many, imported) = vips("10.1.0.0/23 80\n10.2.0.0-1 80", "", "");
    assert_eq!(many, ["10.1.0.0/23"]);
    assert!(says(&imported, "at most 512 VIPs"));
}
