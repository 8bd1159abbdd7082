//! The director as a process on its host: how it starts and ends, what it makes and leaves there, what
//! it refuses.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod capture;
mod drain;
mod reload;
mod worker;
mod workers;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use adit_lab::neighbour::own;
use adit_lab::packet::syn;
use adit_lab::report;
use adit_lab::topology::{CLIENT, CLIENT_DEVICE, TAP, VIP, VIP6, vip, vip6};
use adit_lab::{
    Caller, Config, Director, Host, Lab, LabSpec, RawSender, SERVE_PORT, Service, Sniffer,
    wait_until,
};

const SOON: Duration = Duration::from_secs(30);

/// Packets of which each would come back many times if it went in circles.
const PACKETS: u16 = 20;

// It goes with the process, by its reaper. Tests take turns.
static LAB: LazyLock<Mutex<Lab>> = LazyLock::new(|| {
    let spec = LabSpec { reals: [1, 1], postgres: false, ..LabSpec::default() };
    let lab = Lab::build(spec).unwrap();
    report(&format!("real servers: {}", lab.real_kind()));
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

/// The lab, and the director's host without traces of directors before.
fn clean_lab() -> MutexGuard<'static, Lab> {
    let lab = LAB.lock().unwrap_or_else(PoisonError::into_inner);
    clean(&lab);
    lab
}

/// Removes what directors that were killed have left on their host.
fn clean(lab: &Lab) {
    let host = lab.director();
    host.run(&["rm", "-rf", &host.path("state")]).unwrap();
    wait_until(SOON, "the end of an earlier TAP", || !has_tap(host.as_ref())).unwrap();
    let script = "ip route flush proto 173; ip -6 route flush proto 173
        nft list tables | grep adit | while read -r _ table; do nft delete table $table; done";
    host.sh(script).unwrap();
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
    let (mac, _) = own(host.namespace(), CLIENT_DEVICE, false).unwrap();
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    for address in [VIP, VIP6] {
        lab.r0.ip(&format!("neigh replace {address} lladdr {mac} dev edge")).unwrap();
    }
    // A host without a firewall would send them back where they came from.
    host.sh("nft chain inet firewall forward '{ policy accept; }'").unwrap();
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
    host.sh("nft chain inet firewall forward '{ policy drop; }'").unwrap();

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
