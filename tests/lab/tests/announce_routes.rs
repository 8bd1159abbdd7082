//! VIPs that routes announce: two directors behind BIRDs that share no segment, and a router between
//! them and the clients that learns by BGP where the VIPs are.
//!
//! ```text
//!   client ── r0 (BIRD) ─┬─ one (BIRD, director)      r0 prefers `one` where both announce a VIP
//!              │         └─ two (BIRD, director)
//!              ├─ r1 ── real1
//!              └─ r2 ── real2
//! ```

#![allow(clippy::unwrap_used, reason = "what tests share is test code too")]

mod network;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use adit_lab::neighbour::resolve;
use adit_lab::network::{addresses, make_router, wire};
use adit_lab::skip::{has_program, has_root};
use adit_lab::topology::{CLIENT, VIP, VIP6};
use adit_lab::{
    Caller, Config, Conversation, Director, Host as _, Lab, LabSpec, Namespace, Process,
    RealServer, SERVE_PORT, Service, report, wait_until,
};
use network::{SOON, udp_socket};
use nix::sys::signal::Signal;

/// The VIP that both directors have with both real servers: who answers does not depend on the way.
const COMMON: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 20));

/// Checks of a VIP: quick, and slow enough for a busy computer.
const CHECK: &str = "{ kind = \"tcp\", interval = \"500ms\", timeout = \"400ms\", rise = 2, fall = 3, \
                     down_interval = \"500ms\" }";

/// Until clients' new sessions must be served by the other director. Withdrawal, BGP and both
/// tables take milliseconds; a SYN that was lost is sent again after a second, and others keep the
/// computer busy.
const SERVED: Duration = Duration::from_secs(10);

/// Datagrams of a [`Stream`] that are on their way at once. A real server on a busy computer loses
/// what comes faster than it answers, and that is not what is to be seen.
const ON_THEIR_WAY: usize = 8;

/// A director's host and the daemon that exports its routes.
struct Site {
    host: Namespace,
    _bird: Process,
}

impl Site {
    /// A host at a wire of its own to r0, which is its way everywhere.
    fn build(lab: &Lab, label: &str, number: u8) -> Self {
        let host = Namespace::create(lab.run(), label).unwrap();
        make_router(&host).unwrap();
        wire(&lab.r0, label, &host, "eth0").unwrap();
        let own =
            |last: u8| [format!("10.5.{number}.{last}/30"), format!("fd00:5{number}::{last}/64")];
        let [near, far] = [own(1), own(2)];
        addresses(&lab.r0, label, &[&near[0], &near[1]]).unwrap();
        addresses(&host, "eth0", &[&far[0], &far[1]]).unwrap();
        host.ip(&format!(
            "route add default via 10.5.{number}.1\nroute add default via fd00:5{number}::1"
        ))
        .unwrap();
        let text = std::fs::read_to_string(format!(
            "{}/../../packaging/adit.bird.conf",
            env!("CARGO_MANIFEST_DIR")
        ))
        .unwrap()
        .replace("192.0.2.5", &format!("10.5.{number}.2"))
        .replace("192.0.2.1", &format!("10.5.{number}.1"))
        .replace("2001:db8:1::5", &format!("fd00:5{number}::2"))
        .replace("2001:db8:1::1", &format!("fd00:5{number}::1"))
        .replace("64501", &format!("6450{number}"));
        let bird = bird(&host, &text);
        Self { host, _bird: bird }
    }

    fn start(&self, services: &[Service]) -> Director {
        Director::start(Arc::new(self.host.clone()), &config(services)).unwrap()
    }

    /// Whether r0 sends what is for a VIP here.
    fn is_preferred(&self, r0: &Namespace, vip: IpAddr) -> bool {
        let version = if vip.is_ipv4() { 4 } else { 6 };
        let way = r0.sh(&format!("ip -{version} route show {vip}")).unwrap();
        way.contains(&format!("dev {} ", self.host.label()))
    }

    /// Routes that a daemon may export.
    fn announced(&self) -> String {
        self.host
            .sh("ip route show proto 173 metric 1; ip -6 route show proto 173 metric 1")
            .unwrap()
    }
}

/// Starts a BIRD on a host; it ends with the value, or with the lab.
fn bird(host: &Namespace, text: &str) -> Process {
    std::fs::write(host.dir().join("bird.conf"), text).unwrap();
    let [conf, socket, pid] = ["bird.conf", "bird.ctl", "bird.pid"].map(|name| host.path(name));
    host.start("bird", &["bird", "-f", "-c", &conf, "-s", &socket, "-P", &pid]).unwrap()
}

/// r0's BIRD: takes what both directors' hosts export, and tells each of the other's.
fn router_bird(r0: &Namespace) -> Process {
    let mut text = String::from(
        "router id 10.2.0.1;\nprotocol device {}\n\
         protocol kernel { ipv4 { import none; export where source = RTS_BGP; }; }\n\
         protocol kernel { ipv6 { import none; export where source = RTS_BGP; }; }\n",
    );
    for number in [1, 2] {
        for (version, local, remote) in [
            (4, format!("10.5.{number}.1"), format!("10.5.{number}.2")),
            (6, format!("fd00:5{number}::1"), format!("fd00:5{number}::2")),
        ] {
            writeln!(
                text,
                "protocol bgp {{ local {local} as 64500; neighbor {remote} as 6450{number}; \
                 connect delay time 1; ipv{version} {{ import all; export all; }}; }}"
            )
            .unwrap();
        }
    }
    bird(r0, &text)
}

fn config(services: &[Service]) -> Config {
    let config = Config::new().set("announce", "\"route\"").set("withdraw_wait", "\"60s\"");
    services.iter().cloned().fold(config, Config::service)
}

/// One director's services: VIPs that are its own real server's, with this weight, and one that
/// is everybody's.
fn services(own: &RealServer, weight: u32, reals: &[RealServer]) -> Vec<Service> {
    let at = |vip| SocketAddr::new(vip, SERVE_PORT);
    vec![
        Service::tcp("tcp4", at(VIP)).address(own.address(false), weight),
        Service::udp("udp4", at(VIP)).address(own.address(false), weight),
        Service::tcp("tcp6", at(VIP6)).address(own.address(true), weight),
        Service::tcp("common", at(COMMON)).reals(reals),
    ]
}

fn caller(host: &Namespace, vip: IpAddr) -> Caller<'_> {
    Caller::new(host, SocketAddr::new(vip, SERVE_PORT))
}

#[allow(clippy::disallowed_methods, reason = "how long a change takes is what the test tells")]
fn now() -> Instant {
    Instant::now()
}

/// Waits until new sessions to a VIP are served by `server`; says how long that took.
fn wait_served(lab: &Lab, vip: IpAddr, server: &str, since: Instant, what: &str) {
    // What cannot be connected to at all has no way yet.
    wait_until(SERVED, &format!("{server} to serve {vip} after {what}"), || {
        caller(&lab.client, vip).whoami().is_ok_and(|name| name == server)
    })
    .unwrap();
    report(&format!("{what}: {vip} is served by {server} after {:?}", since.elapsed()));
}

/// A session goes on at the real server it has.
fn goes_on(session: &mut Conversation) {
    assert_eq!(session.ask_name().unwrap(), session.server());
}

/// What a director says of a VIP: whether it is announced, and why not.
fn said(director: &Director, vip: IpAddr) -> (bool, String) {
    let status = director.status().unwrap();
    let vips = status["vips"].as_array().unwrap();
    let vip = vips.iter().find(|v| v["vip"] == vip.to_string()).unwrap();
    (vip["announced"].as_bool().unwrap(), vip["reason"].as_str().unwrap_or_default().to_owned())
}

/// Datagrams of one flow, each another, whose answers are counted however late they come.
#[derive(Default)]
struct Stream {
    end: AtomicBool,
    answered: AtomicUsize,
}

impl Stream {
    /// Sends as fast as answers come until it is told to end; then those that were not answered, of how
    /// many, and who answered.
    fn run(&self, client: &Namespace) -> (Vec<usize>, usize, BTreeSet<String>) {
        let socket = udp_socket(client, SocketAddr::new(CLIENT, 46_000));
        socket.connect(SocketAddr::new(VIP, SERVE_PORT)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
        let (mut sent, mut answered, mut servers) = (0, BTreeSet::<usize>::new(), BTreeSet::new());
        let mut ended = None;
        let mut buffer = [0; 100];
        loop {
            if !self.end.load(Ordering::Relaxed) {
                while sent < answered.len() + ON_THEIR_WAY {
                    socket.send(sent.to_string().as_bytes()).unwrap();
                    sent += 1;
                }
            } else if answered.len() == sent
                || ended.get_or_insert_with(now).elapsed() > Duration::from_secs(5)
            {
                let lost = (0..sent).filter(|number| !answered.contains(number)).collect();
                return (lost, sent, servers);
            }
            // Nothing within the time limit: on to the next.
            while let Ok(length) = socket.recv(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                let (server, number) = text.split_once(' ').unwrap();
                servers.insert(server.to_owned());
                assert!(answered.insert(number.parse().unwrap()), "{text} came twice");
                self.answered.store(answered.len(), Ordering::Relaxed);
            }
        }
    }

    /// Waits until so many more have been answered.
    fn goes_on(&self, more: usize) {
        let before = self.answered.load(Ordering::Relaxed);
        wait_until(SOON, "the stream's answers", || {
            self.answered.load(Ordering::Relaxed) >= before + more
        })
        .unwrap();
    }
}

#[test]
fn the_network_follows_what_directors_can_serve() {
    if !has_root() || !has_program("bird") {
        return;
    }
    let vips = vec![VIP, COMMON, VIP6];
    let spec = LabSpec { reals: [1, 1], postgres: false, vips, ..LabSpec::default() };
    let lab = Lab::build(spec).unwrap();
    for vip in [VIP, COMMON, VIP6] {
        // Here no director is on the router's own segment.
        lab.r0.ip(&format!("route del {vip} dev edge")).unwrap();
    }
    let router = router_bird(&lab.r0);
    let [one, two] =
        [("one", 1), ("two", 2)].map(|(label, number)| Site::build(&lab, label, number));
    let [real1, real2] = &lab.reals[..] else { panic!("two real servers") };

    let start = now();
    let mut first = one.start(&services(real1, 100, &lab.reals));
    let mut second = two.start(&services(real2, 100, &lab.reals));
    let up = || {
        [VIP, COMMON, VIP6].iter().all(|vip| one.is_preferred(&lab.r0, *vip))
            && [&one, &two].iter().all(|site| site.announced().lines().count() == 3)
    };
    wait_until(SOON, "the router to know all VIPs", up).unwrap();
    wait_served(&lab, VIP, "real1", start, "start");
    wait_served(&lab, VIP6, "real1", start, "start");
    let mut session = caller(&lab.client, COMMON).converse().unwrap();
    for site in ["one", "two"] {
        let answers = resolve(&lab.r0, site, VIP, Duration::from_millis(300)).unwrap();
        assert_eq!(answers, [], "{site} answers ARP for a VIP");
    }

    drained_and_back(&lab, &one, &mut first, &mut session);
    without_a_way_and_back(&lab, &one, &first, &mut session);
    down_by_checks_and_back(&lab, &one, &mut first, &mut session);

    let start = now();
    first.kill().unwrap();
    wait_served(&lab, VIP, "real2", start, "kill -9");
    wait_served(&lab, VIP6, "real2", start, "kill -9");
    goes_on(&mut session);
    // What comes all the same does not go back to where it came from, but on to the other director.
    assert_eq!(caller(&one.host, VIP).whoami().unwrap(), "real2");
    let start = now();
    first.start_again().unwrap();
    wait_served(&lab, VIP, "real1", start, "a start after kill -9");
    wait_served(&lab, VIP6, "real1", start, "a start after kill -9");
    goes_on(&mut session);

    stopped_without_loss((&lab, &router), &one, [&mut first, &mut second], &mut session);
}

/// All real servers of two VIPs are drained, and come back.
fn drained_and_back(lab: &Lab, one: &Site, first: &mut Director, session: &mut Conversation) {
    let real1 = &lab.reals[0];
    let start = now();
    let done = first.reload(&config(&services(real1, 0, &lab.reals))).unwrap();
    assert!(done.success, "{}", done.text);
    wait_served(lab, VIP, "real2", start, "draining");
    wait_served(lab, VIP6, "real2", start, "draining");
    let reason = "no real server takes new connections".to_owned();
    assert_eq!(
        [VIP, COMMON, VIP6].map(|vip| said(first, vip)),
        [(false, reason.clone()), (true, String::new()), (false, reason)]
    );
    assert!(first.adit(&["list"]).unwrap().text.contains("VIP 198.51.100.10 withdrawn: no real"));
    assert!(one.is_preferred(&lab.r0, COMMON), "the other VIP stays");
    goes_on(session);

    // The other director's route, learnt by BGP, goes before what is left of the own one.
    wait_until(SOON, "the other way", || {
        one.host.sh(&format!("ip route get {VIP}")).unwrap().contains("via 10.5.1.1")
    })
    .unwrap();
    assert_eq!(caller(&one.host, VIP).whoami().unwrap(), "real2");
    assert!(one.host.sh(&format!("ip route show {VIP}")).unwrap().contains("blackhole"));

    // The upkeep takes back what somebody else announces, and announces nothing itself.
    one.host.ip(&format!("route add {VIP} dev adit0 metric 1 proto 173 scope link")).unwrap();
    wait_until(SOON, "the withdrawal to be put back", || {
        !one.announced().contains(&format!("{VIP} "))
    })
    .unwrap();
    assert!(first.log().contains("the withdrawal of 198.51.100.10"), "{}", first.log());
    assert_eq!(one.announced().lines().count(), 1, "{}", one.announced());

    let start = now();
    let done = first.reload(&config(&services(real1, 100, &lab.reals))).unwrap();
    assert!(done.success, "{}", done.text);
    wait_served(lab, VIP, "real1", start, "undraining");
    wait_served(lab, VIP6, "real1", start, "undraining");
    goes_on(session);
}

/// The way to the real server of one VIP is lost, and comes back.
fn without_a_way_and_back(lab: &Lab, one: &Site, first: &Director, session: &mut Conversation) {
    let real1 = lab.reals[0].address(false);
    let start = now();
    one.host.ip(&format!("route add unreachable {real1}/32")).unwrap();
    wait_served(lab, VIP, "real2", start, "a lost way");
    let reason = "there is no way to the real servers that take new connections".to_owned();
    assert_eq!(said(first, VIP), (false, reason));
    assert!(one.is_preferred(&lab.r0, VIP6), "the way in IPv6 is there");
    assert!(one.is_preferred(&lab.r0, COMMON), "one of its real servers has a way");
    let start = now();
    one.host.ip(&format!("route del unreachable {real1}/32")).unwrap();
    // This one was withdrawn for the second time within a minute.
    wait_served(lab, VIP, "real1", start, "a way that came back");
    goes_on(session);
}

/// A VIP's only real server fails its checks, while another director has one that would pass them. Checks
/// never go by the way that is learnt from there, which would bring the VIP back for nothing.
fn down_by_checks_and_back(
    lab: &Lab,
    one: &Site,
    first: &mut Director,
    session: &mut Conversation,
) {
    let real1 = &lab.reals[0];
    let at = |vip| SocketAddr::new(vip, SERVE_PORT);
    let checked = [
        Service::tcp("tcp4", at(VIP)).address(real1.address(false), 100).set("check", CHECK),
        Service::tcp("common", at(COMMON)).reals(&lab.reals),
    ];
    let start = now();
    let done = first.reload(&config(&checked)).unwrap();
    assert!(done.success, "{}", done.text);
    let up = first.adit(&["list", "--health", "--wait", "30s"]).unwrap();
    assert!(up.success, "{}", up.text);
    wait_served(lab, VIP, "real1", start, "the first check");

    let start = now();
    real1.machine().sh(&format!("ip addr del {VIP}/32 dev tunl0")).unwrap();
    wait_served(lab, VIP, "real2", start, "failed checks");
    wait_until(SOON, "the other way", || {
        one.host.sh(&format!("ip route show {VIP}")).unwrap().contains("via 10.5.1.1")
    })
    .unwrap();
    // Two that pass in a row would bring it back.
    let (passed, failed) = checks(first);
    wait_until(SOON, "more checks that fail", || checks(first).1 >= failed + 6)
        .unwrap_or_else(|error| panic!("{error}: {:?}, before {passed} {failed}", checks(first)));
    assert_eq!(checks(first).0, passed, "checks were answered by the other director's real server");
    assert_eq!(said(first, VIP), (false, "no real server takes new connections".to_owned()));
    goes_on(session);

    let start = now();
    real1.machine().sh(&format!("ip addr replace {VIP}/32 dev tunl0")).unwrap();
    wait_served(lab, VIP, "real1", start, "checks that pass");
    let start = now();
    let done = first.reload(&config(&services(real1, 100, &lab.reals))).unwrap();
    assert!(done.success, "{}", done.text);
    wait_served(lab, VIP6, "real1", start, "an IPv6 VIP that was left out for a while");
    goes_on(session);
}

/// How many checks have passed and failed, of all real servers.
fn checks(director: &Director) -> (u64, u64) {
    let rows = director.json(&["list", "--health"]).unwrap();
    let (mut passed, mut failed) = (0, 0);
    for row in rows.as_array().unwrap() {
        passed += row["passed"].as_u64().unwrap();
        let failures = row["failures"].as_object().unwrap();
        failed += failures.values().map(|count| count.as_u64().unwrap()).sum::<u64>();
    }
    (passed, failed)
}

/// A director is told to stop under load, with a router that is slow to choose another way.
fn stopped_without_loss(
    (lab, router): (&Lab, &Process),
    one: &Site,
    [first, second]: [&mut Director; 2],
    session: &mut Conversation,
) {
    let stream = Stream::default();
    let (lost, sent, servers) = std::thread::scope(|scope| {
        let streaming = scope.spawn(|| stream.run(&lab.client));
        // Should anything here fail, the stream is to end too.
        let _end = EndOf(&stream);
        stream.goes_on(500);
        router.signal(Signal::SIGSTOP).unwrap();
        first.signal(Signal::SIGTERM).unwrap();
        wait_until(SOON, "the withdrawal", || one.announced().is_empty()).unwrap();
        // The router has not heard of it.
        stream.goes_on(500);
        goes_on(session);
        assert!(one.is_preferred(&lab.r0, VIP));
        let start = now();
        router.signal(Signal::SIGCONT).unwrap();
        wait_served(lab, VIP, "real2", start, "SIGTERM");
        goes_on(session);
        stream.goes_on(500);
        // Nothing comes any more; the rest of the wait would only be longer.
        assert!(first.terminate().unwrap().success(), "{}", first.log());
        stream.goes_on(500);
        goes_on(session);
        stream.end.store(true, Ordering::Relaxed);
        streaming.join().unwrap()
    });
    report(&format!("SIGTERM: {} of {sent} datagrams lost", lost.len()));
    let drops = second.drops().unwrap();
    let dropped: Vec<_> = drops.iter().filter(|(_, count)| **count > 0).collect();
    assert_eq!(
        lost,
        [0; 0],
        "of {sent}; dropped by the other director: {dropped:?} {:?}",
        second.totals()
    );
    assert_eq!(servers, BTreeSet::from(["real1".to_owned(), "real2".to_owned()]));
    assert_eq!(one.host.sh("ip route show proto 173; ip -6 route show proto 173").unwrap(), "");
}

/// Ends a stream when a test does, however that does.
struct EndOf<'a>(&'a Stream);

impl Drop for EndOf<'_> {
    fn drop(&mut self) {
        self.0.end.store(true, Ordering::Relaxed);
    }
}
