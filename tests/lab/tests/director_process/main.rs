//! The director as a process on its host: how it ends, what it leaves there, what it refuses.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]
#![allow(clippy::print_stdout, reason = "the test runner shows it")]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use adit_lab::packet::syn;
use adit_lab::topology::{CLIENT, TAP, VIP, VIP6, vip, vip6};
use adit_lab::{
    Caller, Config, Director, Host, Lab, LabSpec, RawSender, SERVE_PORT, Service, Sniffer,
    wait_until,
};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(15);

/// Packets of which each would come back many times if it went in circles.
const PACKETS: u16 = 20;

// It goes with the process, by its reaper. Tests take turns.
static LAB: LazyLock<Mutex<Lab>> = LazyLock::new(|| {
    let spec = LabSpec { reals: [1, 1], postgres: false, ..LabSpec::default() };
    let lab = Lab::build(spec).unwrap();
    println!("real servers: {}", lab.real_kind());
    Mutex::new(lab)
});

fn config(lab: &Lab) -> Config {
    Config::new()
        .service(Service::tcp("bytes", vip(SERVE_PORT)).reals(&lab.reals))
        .service(Service::tcp("bytes6", vip6(SERVE_PORT)).reals(&lab.reals))
}

fn start(lab: &Lab, config: &Config) -> Director {
    Director::start(lab.director(), config).unwrap()
}

/// The lab, and the director's host without traces of directors before: those of other tests
/// were killed.
fn clean_lab() -> MutexGuard<'static, Lab> {
    let lab = LAB.lock().unwrap_or_else(PoisonError::into_inner);
    let host = lab.director();
    host.run(&["rm", "-rf", &host.path("state")]).unwrap();
    wait_until(SOON, "the end of an earlier TAP", || !has_tap(host.as_ref())).unwrap();
    let script = "ip route flush proto 173; ip -6 route flush proto 173
        nft list tables | grep adit | while read -r _ table; do nft delete table $table; done";
    host.sh(script).unwrap();
    lab
}

/// The kernel takes a TAP away when the last completion of its ring has ended, which may be a
/// moment after its process.
fn has_tap(host: &dyn Host) -> bool {
    host.sh(&format!("ip link show {TAP}")).is_ok()
}

/// All that a director could leave on a host: devices, routes, rules, multicast groups.
fn of_host(host: &dyn Host) -> BTreeSet<String> {
    let script = "ip -br link | cut -d' ' -f1
        ip route show table all; ip -6 route show table all
        ip rule; ip -6 rule; nft list ruleset; ip maddr | grep -v users; ip neigh show proxy";
    host.sh(script).unwrap().lines().map(|line| line.trim().to_owned()).collect()
}

/// Blackhole routes of VIPs.
fn blackholes(host: &dyn Host) -> String {
    host.sh("ip route show type blackhole; ip -6 route show type blackhole").unwrap()
}

fn echoes(session: &mut TcpStream) -> bool {
    let mut back = [0; 5];
    session.write_all(b"again").is_ok()
        && session.read_exact(&mut back).is_ok()
        && back == *b"again"
}

#[test]
fn sigterm_ends_it_and_nothing_of_it_stays_on_the_host() {
    let lab = clean_lab();
    let host = lab.director();
    let before = of_host(host.as_ref());
    let mut director = start(&lab, &config(&lab));
    for to in [vip(SERVE_PORT), vip6(SERVE_PORT)] {
        Caller::new(&lab.client, to).whoami().unwrap();
    }
    let during = of_host(host.as_ref());
    let made: Vec<_> = during.difference(&before).cloned().collect();
    let has = |words: &[&str]| made.iter().any(|line| words.iter().all(|word| line.contains(word)));
    let (v4, v6) = (VIP.to_string(), VIP6.to_string());
    assert!(has(&[TAP]) && has(&[&v4, TAP]) && has(&[&v6, TAP]), "{made:#?}");
    assert!(has(&["blackhole", &v4]) && has(&["blackhole", &v6]), "{made:#?}");
    assert!(has(&["table inet adit"]) && has(&["notrack"]), "{made:#?}");

    let status = director.terminate().unwrap();
    assert!(status.success(), "{status}: {}", director.log());
    let after = of_host(host.as_ref());
    let left: Vec<_> = after.symmetric_difference(&before).collect();
    assert!(left.is_empty(), "{left:#?}");
}

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

#[test]
fn after_kill_9_nothing_loops_and_the_next_start_adopts() {
    let lab = clean_lab();
    let host = lab.director();
    let before = of_host(host.as_ref());
    let mut director = start(&lab, &config(&lab));
    let mut session = Caller::new(&lab.client, vip(SERVE_PORT)).echo().unwrap();
    assert!(echoes(&mut session));

    director.kill().unwrap();
    wait_until(SOON, "the TAP to go", || !has_tap(host.as_ref())).unwrap();
    let left = blackholes(host.as_ref());
    assert!(left.contains(&VIP.to_string()) && left.contains(&VIP6.to_string()), "{left}");

    // Nobody answers for the VIP any more, but routers remember for a while who did.
    let mac = host.sh("cat /sys/class/net/eth0/address").unwrap();
    let mac = mac.trim();
    for address in [VIP, VIP6] {
        lab.r0.ip(&format!("neigh replace {address} lladdr {mac} dev edge")).unwrap();
    }
    let sender = RawSender::new(&lab.client).unwrap();
    let wire = Sniffer::start(host.namespace(), "eth0", |frame| {
        frame.ip().is_some_and(|ip| ip.destination == VIP || ip.destination == VIP6)
    })
    .unwrap();
    for (to, client) in [(vip(SERVE_PORT), CLIENT), (vip6(SERVE_PORT), adit_lab::topology::CLIENT6)]
    {
        wire.clear();
        for port in 9000..9000 + PACKETS {
            sender.send(&syn(SocketAddr::new(client, port), to, 1)).unwrap();
        }
        let came = || wire.frames().iter().filter(|frame| !frame.outgoing).count();
        wait_until(SOON, "the packets at the director's host", || came() >= PACKETS.into())
            .unwrap();
        let back = wire.frames().iter().filter(|frame| frame.outgoing).count();
        assert_eq!(back, 0, "packets to {} went back to the router", to.ip());
    }
    for address in [VIP, VIP6] {
        lab.r0.ip(&format!("neigh del {address} lladdr {mac} dev edge")).unwrap();
    }

    director.start_again().unwrap();
    assert!(echoes(&mut session), "the session broke");
    assert!(director.status().unwrap()["adopted"].as_u64() >= Some(1));
    assert_eq!(director.totals().unwrap()["rederived"], 0);
    let status = director.terminate().unwrap();
    assert!(status.success(), "{status}");
    let after = of_host(host.as_ref());
    let left: Vec<_> = after.symmetric_difference(&before).collect();
    assert!(left.is_empty(), "what the killed one left was not adopted: {left:#?}");
}

#[test]
fn a_worker_that_dies_takes_the_daemon_down() {
    let lab = clean_lab();
    let director = start(&lab, &config(&lab));
    Caller::new(&lab.client, vip(SERVE_PORT)).whoami().unwrap();
    lab.director().sh(&format!("ip link del {TAP}")).unwrap();
    let status = director.process().wait_exit(SOON).unwrap();
    assert!(!status.success(), "{status}");
    assert!(status.code().is_some(), "it was to end by itself, not by a signal: {status}");
    let log = director.log();
    let last = log.lines().last().unwrap_or_default();
    for words in ["the worker ended", "the TAP cannot be read", "deleted"] {
        assert!(last.contains(words), "the log's last line does not say what happened: {log}");
    }
}
