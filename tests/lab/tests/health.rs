//! Health checks through real tunnels: what becomes of a real server, how fast, and of everybody else.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use adit_lab::packet::{IpPacket, syn};
use adit_lab::topology::{CLIENT_DEVICE, TAP, VIP, vip, vip6};
use adit_lab::{
    Caller, Config, Conversation, Director, Host, Lab, LabSpec, RawSender, RealServer, SERVE_PORT,
    Service, Sniffer, binaries, report, wait_until,
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);
/// Checks of the tests: quick, and slow enough for guests on a busy computer.
const CHECK: &str = "{ kind = \"tcp\", interval = \"500ms\", timeout = \"400ms\", rise = 2, fall = 3, \
                     down_interval = \"700ms\" }";
/// Three intervals with their jitter of a tenth and the last one's timeout, and what a computer that is
/// busy with other things may add.
const TAKEN_OUT: Duration = Duration::from_millis(3 * 550 + 400 + 1500);

/// Port and first sequence number of a check that another host forges.
const FORGED_PORT: u16 = 61_002;
const FORGED: u32 = 0x0f0e_0d0c;

// It goes with the process, by its reaper. Tests take turns.
static LAB: LazyLock<Mutex<Lab>> = LazyLock::new(|| {
    let spec = LabSpec { reals: [1, 1], postgres: false, ..LabSpec::default() };
    let lab = Lab::build(spec).unwrap();
    report(&format!("real servers: {}", lab.real_kind()));
    Mutex::new(lab)
});

fn lab() -> MutexGuard<'static, Lab> {
    let lab = LAB.lock().unwrap_or_else(PoisonError::into_inner);
    let host = lab.director();
    host.run(&["rm", "-rf", &host.path("state")]).unwrap();
    for real in &lab.reals {
        // What a test that failed has left.
        let mend = format!("ip link set tunl0 up; ip addr replace {VIP}/32 dev tunl0");
        real.machine().sh(&mend).unwrap();
    }
    for router in &lab.dc_routers {
        router.sh(&format!("{NO_FILTER} 2>/dev/null || true")).unwrap();
    }
    lab
}

fn services(lab: &Lab) -> [Service; 2] {
    [
        Service::tcp("bytes", vip(SERVE_PORT)).reals(&lab.reals).set("check", CHECK),
        Service::tcp("bytes6", vip6(SERVE_PORT)).reals(&lab.reals).set("check", CHECK),
    ]
}

fn config(lab: &Lab) -> Config {
    services(lab).into_iter().fold(Config::new(), Config::service)
}

/// Has a router of the data centres filter what it forwards.
fn filter(rule: &str) -> String {
    format!(
        "nft add table ip t; nft add chain ip t f '{{ type filter hook forward priority 0; }}'
         nft add rule ip t f {rule}"
    )
}

const NO_FILTER: &str = "nft delete table ip t";

/// A real server that never answers the director, and everybody else.
fn silence() -> String {
    format!("ip saddr {VIP} ip daddr 10.3.0.0/16 drop")
}

/// What checks know, by service and real server.
fn health(director: &Director) -> BTreeMap<(String, IpAddr), Value> {
    let rows = director.json(&["list", "--health"]).unwrap();
    let rows = rows.as_array().unwrap().clone();
    let key = |row: &Value| {
        (
            row["service"].as_str().unwrap().to_owned(),
            row["real"].as_str().unwrap().parse().unwrap(),
        )
    };
    rows.into_iter().map(|row| (key(&row), row)).collect()
}

fn of(director: &Director, service: &str, real: &RealServer) -> Value {
    let address = real.address(service.ends_with('6'));
    health(director).remove(&(service.to_owned(), address)).unwrap()
}

fn wait_for_state(director: &Director, service: &str, real: &RealServer, state: &str) -> Value {
    let mut seen = Value::Null;
    wait_until(SOON, state, || {
        seen = of(director, service, real);
        seen["state"] == state
    })
    .unwrap_or_else(|error| panic!("{error}: {seen}\n{}", director.log()));
    seen
}

fn wait_all_up(director: &Director) {
    let said = director.adit(&["list", "--health", "--wait", "30s"]).unwrap();
    assert!(said.success, "{}\n{}", said.text, director.log());
}

/// The names that new connections of a few clients reach.
fn reached(lab: &Lab, director: &Director) -> BTreeMap<String, usize> {
    let mut names = BTreeMap::new();
    for port in 30_000..30_016 {
        let from = SocketAddr::new("10.1.0.10".parse().unwrap(), port);
        let caller = Caller::new(&lab.client, vip(SERVE_PORT)).from(from);
        let name = caller.whoami().unwrap_or_else(|e| panic!("{e}: {:?}", health(director)));
        *names.entry(name).or_default() += 1;
    }
    names
}

/// A real server whose byte services have ended. They begin anew when this is dropped.
struct Stopped<'a>(&'a RealServer);

impl<'a> Stopped<'a> {
    fn new(real: &'a RealServer) -> Self {
        real.machine().sh("pkill -f 'serve [-]-name'").unwrap();
        Self(real)
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        let Self(real) = self;
        let program = real.machine().program(&binaries::lab_guest().unwrap()).unwrap();
        let port = SERVE_PORT.to_string();
        let mut argv: Vec<&str> = program.iter().map(String::as_str).collect();
        argv.extend(["serve", "--name", real.name(), "--port", &port]);
        // It goes with its machine.
        std::mem::forget(real.machine().start("serve-again", &argv).unwrap());
    }
}

/// A session with each of the real servers.
fn sessions(lab: &Lab) -> Vec<Conversation> {
    let mut found: Vec<Conversation> = Vec::new();
    for _ in 0..64 {
        let session = Caller::new(&lab.client, vip(SERVE_PORT)).converse().unwrap();
        if found.iter().all(|known| known.server() != session.server()) {
            found.push(session);
        }
        if found.len() == lab.reals.len() {
            return found;
        }
    }
    panic!("not all of them are reached: {found:?}");
}

fn lives(session: &mut Conversation) -> bool {
    let server = session.server().to_owned();
    session.ask_name().is_ok_and(|name| name == server)
}

#[test]
#[allow(clippy::disallowed_methods, reason = "the time it takes is what is tested")]
fn a_service_that_stops_is_taken_out_and_comes_back_and_others_go_on() {
    let lab = lab();
    let director = Director::start(lab.director(), &config(&lab)).unwrap();
    wait_all_up(&director);
    let [one, other] = [&lab.reals[0], &lab.reals[1]];
    let both = reached(&lab, &director);
    assert_eq!(both.len(), 2, "{both:?}");
    let mut sessions = sessions(&lab);

    let server = Stopped::new(one);
    let stopped = Instant::now();
    let down = wait_for_state(&director, "bytes", one, "down");
    let took = stopped.elapsed();
    report(&format!("down after {took:?}: {}", down["reason"]));
    assert!(took <= TAKEN_OUT, "{took:?}");
    assert_eq!(down["last"], "refused", "{down}");
    assert!(down["reason"].as_str().unwrap().ends_with("3 of 3"), "{down}");
    // Every client goes to the other one now, and whoever was there has not noticed.
    let left = reached(&lab, &director);
    assert_eq!(left.keys().collect::<Vec<_>>(), [other.name()], "{left:?}");
    let session = sessions.iter_mut().find(|session| session.server() == other.name()).unwrap();
    assert!(lives(session), "a session of the other one broke");
    let client = "10.1.0.10:30000".to_owned();
    let explained = director.json(&["explain", &client, &vip(SERVE_PORT).to_string()]).unwrap();
    assert_eq!(explained["unhealthy"][0]["reason"], down["reason"], "{explained}");
    let waiting = director.adit(&["list", "--health", "--wait", "1s"]).unwrap();
    assert!(!waiting.success && waiting.text.contains("10.20.0.11 of bytes"), "{}", waiting.text);
    let log = director.log();
    assert!(log.contains("real server is down") && log.contains("3 of 3"), "{log}");

    drop(server);
    wait_all_up(&director);
    assert_eq!(reached(&lab, &director), both, "everybody is back where he was");
    let session = sessions.iter_mut().find(|session| session.server() == other.name()).unwrap();
    assert!(lives(session), "a session of the other one broke");
}

#[test]
fn each_obstacle_on_the_way_is_told_by_how_far_a_check_comes() {
    let lab = lab();
    let director = Director::start(lab.director(), &config(&lab)).unwrap();
    wait_all_up(&director);
    let [one, other] = [&lab.reals[0], &lab.reals[1]];
    let (machine, router) = (one.machine(), &lab.dc_routers[0]);
    // What stands in the way, where, and how it is taken away again.
    type Case<'a> = (&'a dyn Host, String, String, &'static str);
    let cases: [Case<'_>; 5] = [
        (router, filter("ip protocol 4 drop"), NO_FILTER.into(), "timeout"),
        (router, filter(&silence()), NO_FILTER.into(), "timeout"),
        (
            router,
            filter("ip protocol 4 reject with icmp host-unreachable"),
            NO_FILTER.into(),
            "timeout",
        ),
        (machine, "ip link set tunl0 down".into(), "ip link set tunl0 up".into(), "timeout"),
        (
            machine,
            format!("ip addr del {VIP}/32 dev tunl0"),
            format!("ip addr add {VIP}/32 dev tunl0"),
            "timeout",
        ),
    ];
    for (host, spoil, mend, step) in cases {
        let checks = |director: &Director| of(director, "bytes", other)["passed"].as_u64().unwrap();
        host.sh(&spoil).unwrap();
        let down = wait_for_state(&director, "bytes", one, "down");
        assert_eq!(down["last"], step, "{spoil}: {down}");
        // Whatever hangs there, the other one is checked as often as before.
        let (before, since) = (checks(&director), down["failures"]["timeout"].as_u64().unwrap());
        wait_until(SOON, "four more checks of the other one", || checks(&director) >= before + 4)
            .unwrap();
        let failed = of(&director, "bytes", one)["failures"]["timeout"].as_u64().unwrap() - since;
        assert!(
            failed <= 8,
            "{failed} checks of a dead server while there were four of a living one"
        );
        assert_eq!(of(&director, "bytes", other)["state"], "up");
        assert_eq!(reached(&lab, &director).len(), 1, "{spoil}");
        host.sh(&mend).unwrap();
        wait_all_up(&director);
    }
    let totals = director.totals().unwrap();
    assert!(totals["probe_packets"] > 50, "{totals:?}");
    assert!(director.drops().unwrap()["stale_probe"] == 0);
}

#[test]
fn when_all_are_down_new_connections_are_refused_and_it_is_said() {
    let lab = lab();
    let director = Director::start(lab.director(), &config(&lab)).unwrap();
    wait_all_up(&director);
    let mut sessions = sessions(&lab);
    for router in &lab.dc_routers {
        router.sh(&filter(&silence())).unwrap();
    }
    for real in &lab.reals {
        wait_for_state(&director, "bytes", real, "down");
    }
    let before = director.drops().unwrap()["no_real_server"];
    let caller = Caller::new(&lab.client, vip(SERVE_PORT)).from("10.1.0.10:32000".parse().unwrap());
    caller.whoami().expect_err("nobody may have it");
    assert!(director.drops().unwrap()["no_real_server"] > before);
    let status = director.status().unwrap();
    let conditions = status["conditions"].to_string();
    assert!(conditions.contains("service bytes: no real server is up"), "{status}");
    // Those that are there are not asked.
    assert!(sessions.iter_mut().all(lives), "a session broke");
    for router in &lab.dc_routers {
        router.sh(NO_FILTER).unwrap();
    }
    wait_all_up(&director);
    assert_eq!(director.status().unwrap()["conditions"], Value::Array(Vec::new()));
}

#[test]
fn nobody_on_the_network_can_use_the_ports_of_checks() {
    let lab = lab();
    let director = Director::start(lab.director(), &config(&lab)).unwrap();
    wait_all_up(&director);
    let host = lab.director();
    let is_forged = |ip: &IpPacket| ip.flow().is_some_and(|(from, _)| from.port() == FORGED_PORT);
    let wire = Sniffer::start(host.namespace(), CLIENT_DEVICE, move |frame| {
        frame.ip().is_some_and(|ip| is_forged(&ip))
    })
    .unwrap();
    // The director's own come by here too, from the same port.
    let tap = Sniffer::start(host.namespace(), TAP, move |frame| {
        frame.ip().is_some_and(|ip| is_forged(&ip) && ip.tcp().unwrap().sequence_number == FORGED)
    })
    .unwrap();
    let sender = RawSender::new(&lab.r0).unwrap();
    // Addresses that checks come from, as another host on the director's link would forge them, with
    // the highest hop limit there is.
    for (source, to) in [("10.3.1.5", vip(SERVE_PORT)), ("fd00:31::5", vip6(SERVE_PORT))] {
        let from = SocketAddr::new(source.parse().unwrap(), FORGED_PORT);
        sender.send(&with_hop_limit(&syn(from, to, FORGED), 255)).unwrap();
    }
    wait_until(SOON, "both at the director's host", || wire.count() >= 2).unwrap();
    wait_until(SOON, "the IPv6 one at the TAP", || tap.count() >= 1).unwrap();
    // The kernel has taken the IPv4 one for what it is: none from outside can have that source. The
    // other has come over a router, this host, which its hop limit says.
    let came = tap.packets();
    assert_eq!(came.len(), 1, "{came:?}");
    assert!(came[0].source.is_ipv6() && came[0].ttl == 254, "{came:?}");
    let connections = director.json(&["connections"]).unwrap();
    let flows: Vec<_> = connections
        .as_array()
        .unwrap()
        .iter()
        .filter(|connection| connection["client_port"] == FORGED_PORT)
        .collect();
    assert_eq!(flows.len(), 1, "it is a client's packet like any other: {connections}");
}

/// The packet with another hop limit, and the checksum to it.
fn with_hop_limit(packet: &[u8], hop_limit: u8) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 6 {
        packet[7] = hop_limit;
        return packet;
    }
    let (mut header, rest) = etherparse::Ipv4Header::from_slice(&packet).unwrap();
    header.time_to_live = hop_limit;
    header.header_checksum = header.calc_header_checksum();
    let mut changed = Vec::new();
    header.write(&mut changed).unwrap();
    changed.extend_from_slice(rest);
    changed
}

#[test]
fn reloads_keep_what_is_known_and_a_new_one_is_checked_first() {
    let lab = lab();
    let director = Director::start(lab.director(), &config(&lab)).unwrap();
    wait_all_up(&director);
    let [one, other] = [&lab.reals[0], &lab.reals[1]];
    let passed = of(&director, "bytes", one)["passed"].as_u64().unwrap();
    // An address where nobody is.
    let nobody: IpAddr = "10.20.0.99".parse().unwrap();
    let [bytes, bytes6] = services(&lab);
    let more = Config::new().service(bytes.address(nobody, 100)).service(bytes6);
    assert!(director.reload(&more).unwrap().success);
    let state = of(&director, "bytes", one);
    assert!(state["state"] == "up" && state["passed"].as_u64().unwrap() >= passed, "{state}");
    assert_eq!(of(&director, "bytes", other)["state"], "up");
    // It never gets a connection, not for a moment: each of these is answered.
    let mut found = Value::Null;
    wait_until(SOON, "the new one to be found dead", || {
        reached(&lab, &director);
        found = health(&director).remove(&("bytes".to_owned(), nobody)).unwrap();
        found["state"] == "down"
    })
    .unwrap();
    assert_eq!(found["passed"], 0, "{found}");
    let list = director.json(&["list"]).unwrap();
    let real = list["services"][0]["reals"].as_array().unwrap();
    let real = real.iter().find(|real| real["address"] == nobody.to_string()).unwrap();
    assert_eq!(real["counters"]["connections"], 0, "{real}");
    assert!(director.reload(&config(&lab)).unwrap().success);
    assert_eq!(reached(&lab, &director).len(), 2);
}

/// Clock ticks that a process has spent.
fn ticks(director: &Director) -> u64 {
    let pid = director.status().unwrap()["pid"].as_u64().unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
#[allow(clippy::disallowed_methods, reason = "what it costs is what is looked at")]
fn two_hundred_checks_run_and_cost_little() {
    let lab = lab();
    let check = format!("{{ kind = \"tcp\", port = {SERVE_PORT} }}");
    let service = |n: u16| {
        let name = format!("s{n}");
        Service::tcp(&name, vip(10_000 + n)).reals(&lab.reals).set("check", &check)
    };
    let config = (0..100).map(service).fold(Config::new(), Config::service);
    let director = Director::start(lab.director(), &config).unwrap();
    wait_all_up(&director);
    assert_eq!(health(&director).len(), 200);
    let packets = |director: &Director| director.totals().unwrap()["probe_packets"];
    let (begin, before, spent) = (Instant::now(), packets(&director), ticks(&director));
    // SYN, ACK and RST of a thousand more: ten seconds at the default interval.
    wait_until(SOON * 2, "a thousand checks", || packets(&director) >= before + 3000).unwrap();
    let (took, spent) = (begin.elapsed(), ticks(&director) - spent);
    let latencies = health(&director);
    let mut latencies: Vec<u64> =
        latencies.values().filter_map(|row| row["latency_us"].as_u64()).collect();
    latencies.sort_unstable();
    report(&format!(
        "1000 checks in {took:?}: {} ms of processor time, asking included; median latency {} us",
        spent * 10,
        latencies[latencies.len() / 2]
    ));
    let rows = health(&director);
    let down: Vec<_> = rows.values().filter(|row| row["state"] != "up").collect();
    assert!(down.is_empty(), "{down:?}");
    // It is a hundred connections a second, of an unoptimised build on a busy computer.
    assert!(Duration::from_millis(spent * 10) < took / 2, "{spent} ticks in {took:?}");
}
