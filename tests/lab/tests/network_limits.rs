//! What a service takes of new flows, VIPs by the prefix, and services that share persistence: with
//! real sessions, through a TAP and `tunl0`.
//!
//! In a file of its own, hence with a lab of its own: real servers own a prefix's addresses here, and a
//! flood leaves them half-open connections.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "what tests share is test code too")]

mod network;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use adit_lab::io::packet::PacketSocket;
use adit_lab::neighbour::{Mac, own, resolve};
use adit_lab::packet::{segment, syn};
use adit_lab::skip::has_root;
use adit_lab::topology::{CLIENT_DEVICE, VIP, vip};
use adit_lab::{
    Caller, Config, Conversation, Director, Lab, LabSpec, SERVE_PORT, Service, report, wait_for,
    wait_until,
};
use network::SOON;
use serde_json::Value;

/// Addresses of 198.51.100.16/28 and 2001:db8:100::20/124 that real servers own.
const OWNED: [&str; 6] = [
    "198.51.100.16",
    "198.51.100.17",
    "198.51.100.20",
    "198.51.100.31",
    "2001:db8:100::21",
    "2001:db8:100::2f",
];

/// A second port of the byte services.
const OTHER_PORT: u16 = 7001;

static LAB: LazyLock<Mutex<Lab>> = LazyLock::new(|| {
    let vips = OWNED.iter().map(|vip| vip.parse().unwrap());
    let vips = [VIP].into_iter().chain(vips).collect();
    let spec = LabSpec { reals: [2, 1], postgres: false, vips, ..LabSpec::default() };
    let lab = Lab::build(spec).unwrap();
    report(&format!("real servers: {}", lab.real_kind()));
    Mutex::new(lab)
});

/// The lab, for one test at a time.
fn lab() -> MutexGuard<'static, Lab> {
    LAB.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start(lab: &Lab, config: &Config) -> Director {
    let host = lab.director();
    host.run(&["rm", "-rf", &host.path("state")]).unwrap();
    Director::start(host, config).unwrap()
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

// --- A flood -------------------------------------------------------------------------------------

/// The smallest table there is, and established flows that fill nine tenths of it: sessions with real
/// servers, and others of which only the client's half exists, which is all that a director ever sees.
const TABLE: usize = 1024;
const SESSIONS: usize = 60;
const HALVES: usize = TABLE * 9 / 10 + 1 - SESSIONS;
/// Where these are to: nobody is behind it, so that they cost real servers nothing.
const IDLE: &str = "198.51.100.17";
const NOBODY: &str = "10.20.0.250";
/// Clients that come while the flood goes on, and how many at a time.
const NEWCOMERS: usize = 100;
const AT_ONCE: usize = 4;
/// Spoofed SYNs for each of them.
const SPOOFED: usize = 10;

/// Spoofed SYNs onto the director's link, each from an address and port of its own.
struct Flood {
    socket: PacketSocket,
    ethernet: [u8; 14],
}

impl Flood {
    fn new(lab: &Lab) -> Self {
        let director = lab.director();
        let (to, _): (Mac, _) = own(director.namespace(), CLIENT_DEVICE, false).unwrap();
        let mut ethernet = [2; 14];
        ethernet[..6].copy_from_slice(&to);
        ethernet[12..].copy_from_slice(&[8, 0]);
        let socket = lab.r0.enter(|| PacketSocket::open_to_send("edge")).unwrap().unwrap();
        Self { socket, ethernet }
    }

    fn send(&self, packet: &[u8]) {
        self.socket.send(&[&self.ethernet, packet].concat()).unwrap();
    }

    fn spoof(&self, number: usize) {
        let bits = 0x1600_0000 | u32::try_from(number).unwrap().wrapping_mul(2_654_435_761) >> 8;
        let port = 1024 + u16::try_from(number % 60_000).unwrap();
        self.send(&syn(SocketAddr::new(IpAddr::V4(bits.into()), port), vip(SERVE_PORT), bits));
    }

    /// What the clients of the halves of sessions send in one round, the first of which opens them.
    fn halves(&self, round: u32) {
        for number in 0..HALVES {
            let host = 0x1700_0001 + u32::try_from(number).unwrap();
            let source = SocketAddr::new(IpAddr::V4(host.into()), 5000);
            if round == 0 {
                self.send(&syn(source, at(IDLE, SERVE_PORT), 99));
            }
            self.send(&segment(source, at(IDLE, SERVE_PORT), 100 + round, 1, b"x"));
        }
    }
}

/// Asks every session for its server; which of them did not answer as before.
fn broken(sessions: &mut [Conversation]) -> Vec<String> {
    let ask = |session: &mut Conversation| match session.ask_name() {
        Ok(name) if name == session.server() => None,
        other => Some(format!("{} at {}: {other:?}", session.source(), session.server())),
    };
    sessions.iter_mut().filter_map(ask).collect()
}

#[test]
fn a_flood_over_a_table_nearly_full_breaks_no_session_and_keeps_few_clients_out() {
    if !has_root() {
        return;
    }
    let lab = lab();
    lab.dc_routers[0].ip(&format!("route replace blackhole {NOBODY}")).unwrap();
    // Answers to those who never asked end here: 22.0.0.0/8.
    lab.r0.ip("route replace blackhole 22.0.0.0/8").unwrap();
    let service = Service::tcp("bytes", vip(SERVE_PORT))
        .set("limits", "{ half_open = 32 }")
        .reals(&lab.reals);
    let config = Config::new()
        .set("max_connections", &TABLE.to_string())
        .service(service)
        .service(Service::tcp("idle", at(IDLE, SERVE_PORT)).address(NOBODY.parse().unwrap(), 100));
    let director = start(&lab, &config);

    let client = lab.add_client(30).unwrap();
    let caller = Caller::new(&client, vip(SERVE_PORT));
    let mut sessions: Vec<_> = (0..SESSIONS).map(|_| caller.converse().unwrap()).collect();
    let active = || director.status().unwrap()["active"].as_u64().unwrap();
    let flood = Flood::new(&lab);
    let mut round = 0;
    wait_until(SOON, "the table to be nine tenths full of established flows", || {
        flood.halves(round);
        round += 1;
        assert_eq!(broken(&mut sessions), [""; 0]);
        active() >= (SESSIONS + HALVES) as u64
    })
    .unwrap();

    let newcomer = lab.add_client(31).unwrap();
    let (begun, served, ended) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let mut rounds = 0;
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                let flood = Flood::new(&lab);
                let caller = Caller::new(&newcomer, vip(SERVE_PORT));
                loop {
                    let number = begun.fetch_add(1, Ordering::Relaxed);
                    if number >= NEWCOMERS {
                        break;
                    }
                    (0..SPOOFED).for_each(|n| flood.spoof(number * SPOOFED + n));
                    let is_served = caller.whoami().is_ok();
                    served.fetch_add(usize::from(is_served), Ordering::Relaxed);
                }
                ended.fetch_add(1, Ordering::Relaxed);
            });
        }
        // All the while, and once more when it is over.
        while ended.load(Ordering::Relaxed) < AT_ONCE || rounds == 0 {
            assert_eq!(broken(&mut sessions), [""; 0], "in the flood");
            rounds += 1;
        }
    });
    assert_eq!(broken(&mut sessions), [""; 0], "after the flood");
    let served = served.into_inner();
    let totals = director.totals().unwrap();
    report(&format!(
        "{served} of {NEWCOMERS} served in {rounds} rounds; gave way: {}, evicted half-open: {}",
        totals["gave_way"], totals["evicted_half_open"]
    ));
    assert!(served * 100 >= NEWCOMERS * 95, "{served} of {NEWCOMERS}");
    assert!(active() >= (SESSIONS + HALVES) as u64, "{} active", active());
    // It was a flood: nearly all of the spoofed SYNs had to be let go again.
    let let_go = totals["gave_way"] + totals["evicted_half_open"];
    assert!(let_go > (NEWCOMERS * SPOOFED * 9 / 10) as u64, "{totals:?}");
    assert_eq!(director.status().unwrap()["ledger_balances"], true);
}

#[test]
fn a_client_that_opens_too_many_is_held_back_and_others_are_not() {
    if !has_root() {
        return;
    }
    let lab = lab();
    // A token an hour or so: what is used up stays used up for this test.
    let service = Service::tcp("bytes", vip(SERVE_PORT))
        .set(
            "limits",
            "{ client_new_per_second = 1, client_new_burst = 5, client_ipv4_prefix = 32 }",
        )
        .reals(&lab.reals);
    let director = start(&lab, &Config::new().service(service));
    let [busy, other] = [32, 33].map(|number| lab.add_client(number).unwrap());
    let to = vip(SERVE_PORT);
    let mut sessions: Vec<_> = (0..5).map(|_| Caller::new(&busy, to).converse().unwrap()).collect();
    // SYNs that one packet socket sends in the client's name come faster than one a second.
    let flood = Flood::new(&lab);
    for port in 0..100 {
        let packet = syn(SocketAddr::new("10.1.0.32".parse().unwrap(), 20_000 + port), to, 1);
        flood.send(&packet);
    }
    wait_until(SOON, "the limit to be met", || director.drops().unwrap()["client_limited"] >= 90)
        .unwrap();
    Caller::new(&other, to).whoami().unwrap();
    assert_eq!(broken(&mut sessions), [""; 0]);
    assert_eq!(director.drops().unwrap()["service_limited"], 0);
    assert_eq!(director.status().unwrap()["ledger_balances"], true);
}

// --- Prefixes ------------------------------------------------------------------------------------

const PREFIX: &str = "198.51.100.16/28";
const PREFIX6: &str = "2001:db8:100::20/124";

fn listed_vip(director: &Director, service: &str) -> Option<String> {
    let list = director.json(&["list"]).unwrap();
    let services = list["services"].as_array().unwrap();
    let found = services.iter().find(|s| s["name"] == service)?;
    Some(found["vip"].as_str().unwrap().to_owned())
}

#[test]
fn a_prefix_is_served_on_each_of_its_addresses() {
    if !has_root() {
        return;
    }
    let lab = lab();
    let net = Service::tcp("net", at("198.51.100.16", SERVE_PORT)).prefix(PREFIX).reals(&lab.reals);
    let net6 =
        Service::tcp("net6", at("2001:db8:100::20", SERVE_PORT)).prefix(PREFIX6).reals(&lab.reals);
    let one = Service::tcp("one", at("198.51.100.20", SERVE_PORT)).reals(&lab.reals[2..]);
    let without = Config::new().service(one);
    let config = without.clone().service(net).service(net6);
    let mut director = start(&lab, &config);
    assert_eq!(listed_vip(&director, "net").as_deref(), Some(PREFIX));
    assert_eq!(listed_vip(&director, "net6").as_deref(), Some(PREFIX6));
    assert_eq!(listed_vip(&director, "one").as_deref(), Some("198.51.100.20"));

    // One route and one behind it for all; and an answer for each address, from the director.
    let host = lab.director();
    let routes =
        || host.sh(&format!("ip route show {PREFIX}; ip -6 route show {PREFIX6}")).unwrap();
    assert_eq!(routes().lines().count(), 4, "{}", routes());
    let (mac, _) = own(host.namespace(), CLIENT_DEVICE, false).unwrap();
    for last in 16..32 {
        let answers =
            resolve(&lab.r0, "edge", [198, 51, 100, last].into(), Duration::from_secs(5)).unwrap();
        assert_eq!(answers.iter().map(|a| a.mac).collect::<Vec<_>>(), [mac], "{last}");
    }

    let client = lab.add_client(34).unwrap();
    let open = |vip: &str| Caller::new(&client, at(vip, SERVE_PORT)).converse();
    let mut sessions: Vec<_> = OWNED
        .iter()
        .filter(|vip| **vip != "198.51.100.20")
        .flat_map(|vip| (0..8).map(|_| open(vip).unwrap()))
        .collect();
    let servers: BTreeSet<_> = sessions.iter().map(Conversation::server).collect();
    assert_eq!(servers.len(), 3, "all real servers take part: {servers:?}");
    // An address of its own goes before the prefix that holds it.
    let own_service: BTreeSet<_> =
        (0..8).map(|_| open("198.51.100.20").unwrap().server().to_owned()).collect();
    assert_eq!(own_service, BTreeSet::from([lab.reals[2].name().to_owned()]));
    // A connection is shown with the address it is to, and its service.
    let connections = director.json(&["connections"]).unwrap();
    let to = |vip: &str| -> Vec<&Value> {
        connections.as_array().unwrap().iter().filter(|c| c["vip"] == vip).collect()
    };
    assert!(to("198.51.100.31").len() >= 8, "{connections}");
    assert!(to("198.51.100.31").iter().all(|c| c["service"] == "net"), "{connections}");

    // Taken over by the next process, then drained by a reload: the sessions go on, others are refused.
    director.kill().unwrap();
    director.start_again().unwrap();
    assert_eq!(broken(&mut sessions), [""; 0], "after a restart");
    let said = director.reload(&without).unwrap();
    assert!(said.success, "{}", said.text);
    assert_eq!(broken(&mut sessions), [""; 0], "in a prefix that drains");
    assert_eq!(listed_vip(&director, "net").as_deref(), Some(PREFIX), "while it drains");
    assert_eq!(routes().lines().count(), 4, "{}", routes());
    let flood = Flood::new(&lab);
    let packet = syn(at("10.1.0.34", 999), at("198.51.100.17", SERVE_PORT), 1);
    flood.send(&packet);
    wait_until(SOON, "a refusal", || director.drops().unwrap()["no_service"] > 0).unwrap();
    // Taken out and cut, it is gone from the host as soon as nobody sends to it.
    let said = director.reload(&config).unwrap();
    assert!(said.success, "{}", said.text);
    without.write(host.as_ref(), "adit.toml").unwrap();
    let said = director.adit(&["reload", "--now"]).unwrap();
    assert!(said.success, "{}", said.text);
    drop(sessions);
    wait_until(SOON, "the prefix's routes to go", || routes().is_empty()).unwrap();
    assert!(open("198.51.100.20").is_ok(), "its neighbour stays");
    assert!(director.terminate().unwrap().success());
}

// --- Groups --------------------------------------------------------------------------------------

/// HTTP and HTTPS on one VIP, so to speak, and a service on another VIP, in one persistence group.
fn group(lab: &Lab, scheduler: &str, weight: impl Fn(&str) -> u32) -> Config {
    let service = |name: &str, at: SocketAddr| {
        let service = Service::tcp(name, at)
            .scheduler(scheduler)
            .set("persistence", r#"{ timeout = "10m", group = "shop" }"#);
        lab.reals.iter().fold(service, |service, real| {
            service.address(real.address(false), weight(real.name()))
        })
    };
    Config::new()
        .service(service("http", vip(SERVE_PORT)))
        .service(service("https", vip(OTHER_PORT)))
        .service(service("images", at("198.51.100.17", SERVE_PORT)))
}

const SHOP: [(&str, u16); 3] =
    [("198.51.100.10", SERVE_PORT), ("198.51.100.10", OTHER_PORT), ("198.51.100.17", SERVE_PORT)];

#[test]
fn services_of_a_group_send_a_client_to_one_server() {
    if !has_root() {
        return;
    }
    let lab = lab();
    let _https: Vec<_> = lab.reals.iter().map(|real| real.serve_on(OTHER_PORT).unwrap()).collect();
    let client = lab.add_client(40).unwrap();
    let mut sources = vec!["10.1.0.40".to_owned()];
    for number in 41..60 {
        client.ip(&format!("addr add 10.1.0.{number}/24 dev eth0")).unwrap();
        sources.push(format!("10.1.0.{number}"));
    }
    let mut ports = 30_000..40_000;
    let mut open = |source: &str, (vip, port): (&str, u16)| {
        let caller = Caller::new(&client, at(vip, port)).from(at(source, ports.next().unwrap()));
        caller.converse().unwrap()
    };

    // By placement: the first flow to each service, before anything is remembered.
    let director = start(&lab, &group(&lab, "maglev", |_| 100));
    let mut used = BTreeSet::new();
    for source in &sources {
        let servers = SHOP.map(|to| open(source, to).server().to_owned());
        assert!(servers.iter().all(|server| *server == servers[0]), "{source}: {servers:?}");
        used.extend(servers);
    }
    assert!(used.len() > 1, "one server for all clients proves nothing");
    assert_eq!(director.totals().unwrap()["persisted"], 0, "nobody was remembered yet");
    drop(director);

    // By memory: under turns nothing else keeps a client, and one service's flow tells the others.
    let director = start(&lab, &group(&lab, "wrr", |_| 100));
    let mut first = open(&sources[0], SHOP[0]);
    let own = first.server().to_owned();
    let address = lab.real(&own).unwrap().address(false);
    wait_for(SOON, "persistence to know the client", || {
        first.ask_name().unwrap();
        let known = director.persisted(first.source(), at(SHOP[2].0, SHOP[2].1)).unwrap();
        (known == Some(address)).then_some(())
    })
    .unwrap();
    let mut kept = vec![first];
    let mut at_own = |kept: &mut Vec<Conversation>, when: &str| {
        for to in SHOP {
            kept.extend((0..6).map(|_| open(&sources[0], to)));
        }
        let elsewhere: Vec<_> = kept.iter().filter(|session| session.server() != own).collect();
        assert!(elsewhere.is_empty(), "{when}: not at {own}: {elsewhere:?}");
    };
    at_own(&mut kept, "remembered by the other service");
    // Weights that prefer all others.
    let said =
        director.reload(&group(&lab, "wrr", |name| if name == own { 1 } else { 100 })).unwrap();
    assert!(said.success, "{}", said.text);
    at_own(&mut kept, "after weights changed");

    // Drained: its sessions stay, new ones of all services go to one other server.
    let said =
        director.reload(&group(&lab, "maglev", |name| if name == own { 0 } else { 100 })).unwrap();
    assert!(said.success, "{}", said.text);
    let servers = SHOP.map(|to| open(&sources[0], to).server().to_owned());
    assert!(servers.iter().all(|server| *server == servers[0] && *server != own), "{servers:?}");
    assert_eq!(broken(&mut kept), [""; 0], "at a drained server");
}
