//! A real server that unwraps in userspace, on this computer's kernel, which may have no `ipip`: all four
//! pairs of IP versions, both engines, strangers, a killed process.

#![allow(clippy::unwrap_used, reason = "what tests share is test code too")]

mod network;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use adit_lab::host::Process;
use adit_lab::network::addresses;
use adit_lab::packet::{IpPacket, datagram, echo_request, encapsulate};
use adit_lab::skip::skipped;
use adit_lab::topology::{CLIENT, CLIENT6, DIRECTOR, DIRECTOR6};
use adit_lab::{
    Caller, Config, Director, Engine, Host, Kind, Lab, LabSpec, Namespace, RawSender, SERVE_PORT,
    Service, Sniffer, binaries, wait_for, wait_until,
};
use network::SOON;
use nix::sys::signal::Signal;
use serde_json::Value;

const REAL: &str = "10.20.0.11";
const REAL6: &str = "fd00:20::11";
/// Of the hop to the real server: packets of 1500 bytes come in several pieces.
const HOP_MTU: u16 = 1400;

/// VIP and real server's address: IPv4 and IPv6 in IPv4 and IPv6.
const WAYS: [(&str, &str); 4] = [
    ("198.51.100.10", REAL),
    ("198.51.100.11", REAL6),
    ("2001:db8:100::10", REAL),
    ("2001:db8:100::11", REAL6),
];

fn at(vip: &str) -> SocketAddr {
    SocketAddr::new(vip.parse().unwrap(), SERVE_PORT)
}

/// What the real server is told, as options.
fn options() -> Vec<&'static str> {
    let mut words = vec!["--director", "10.2.0.5", "--director", "fd00:2::5"];
    words.extend(WAYS.iter().flat_map(|(vip, _)| ["--vip", vip]));
    words
}

struct Server<'a> {
    host: &'a Namespace,
    engine: Engine,
    process: Process,
}

impl<'a> Server<'a> {
    /// Starts to unwrap; `None` where this kernel lacks the engine.
    fn start(host: &'a Namespace, engine: Engine) -> Option<Self> {
        let program = binaries::realserver().unwrap().display().to_string();
        let mut argv = vec![program.as_str(), "decap", "--json", "--io", engine.name()];
        argv.extend(options());
        let name = format!("decap-{}", engine.name());
        let before = host.dir().join(format!("{name}.log"));
        // The log of one that was killed is another's.
        let _ = std::fs::remove_file(before);
        let process = host.start(&name, &argv).unwrap();
        wait_until(SOON, "the device", || {
            process.log().contains("unwraps on") || process.exit_status().unwrap().is_some()
        })
        .unwrap();
        let log = process.log();
        if log.contains("is not usable here") && engine == Engine::Multishot {
            skipped(log.trim());
            return None;
        }
        assert!(log.contains(&format!("engine {}", engine.name())), "{log}");
        Some(Self { host, engine, process })
    }

    /// Its counters now.
    fn counters(&self) -> Value {
        let seen = |log: &str| log.lines().filter(|line| line.starts_with('{')).count();
        let before = seen(&self.process.log());
        self.process.signal(Signal::SIGUSR1).unwrap();
        wait_for(SOON, "counters", || {
            let log = self.process.log();
            (seen(&log) > before && log.ends_with('\n')).then(|| last_counters(&log))
        })
        .unwrap()
    }

    /// Waits until it has dropped so many packets for a reason.
    fn wait_lost(&self, reason: &str, count: u64) {
        let mut counters = Value::Null;
        wait_until(SOON, reason, || {
            counters = self.counters();
            counters["lost"][reason] == count
        })
        .unwrap_or_else(|error| panic!("{error}: {count} expected of {counters}"));
    }

    fn stop(self) -> Value {
        self.process.signal(Signal::SIGTERM).unwrap();
        let status = self.process.wait_exit(SOON).unwrap();
        let log = self.process.log();
        assert!(status.success(), "{status}: {log}");
        // The kernel closes a ring's files a moment after its process.
        wait_until(SOON, "the device's end", || !has_device(self.host)).unwrap();
        last_counters(&log)
    }
}

fn last_counters(log: &str) -> Value {
    let line = log.lines().rfind(|line| line.starts_with('{')).expect("counters");
    serde_json::from_str(line).expect("JSON")
}

fn has_device(host: &Namespace) -> bool {
    host.sh("ip -o link show").unwrap().contains("adit-decap0")
}

fn build() -> (Lab, Namespace) {
    let spec = LabSpec {
        reals: [0, 0],
        postgres: false,
        real_kind: Some(Kind::Namespace),
        hop_mtu: [HOP_MTU, 1500],
        vips: WAYS.iter().map(|(vip, _)| vip.parse().unwrap()).collect(),
        ..LabSpec::default()
    };
    let lab = Lab::build(spec).expect("the lab comes up");
    for name in ["net.ipv4.icmp_ratelimit", "net.ipv6.icmp.ratelimit"] {
        lab.dc_routers[0].sysctl(name, "0").unwrap();
    }
    let host = Namespace::create(lab.run(), "real1").unwrap();
    lab.dcs[0].plug(&host, "eth0").unwrap();
    addresses(&host, "eth0", &[&format!("{REAL}/24"), &format!("{REAL6}/64")]).unwrap();
    host.ip("route add default via 10.20.0.1\nroute add default via fd00:20::1").unwrap();
    // What has to be overcome.
    host.sysctl("net.ipv4.conf.all.rp_filter", "1").unwrap();
    host.sysctl("net.ipv4.conf.default.rp_filter", "1").unwrap();
    (lab, host)
}

fn serve(host: &Namespace) -> Process {
    let program = binaries::lab_guest().unwrap().display().to_string();
    let port = SERVE_PORT.to_string();
    let mut argv = vec![program.as_str(), "serve", "--name", "real1", "--port", &port];
    argv.extend(WAYS.iter().flat_map(|(vip, _)| ["--udp", vip]));
    host.start("serve", &argv).unwrap()
}

fn director(lab: &Lab) -> Director {
    let services = WAYS.iter().enumerate().flat_map(|(number, (vip, real))| {
        let services = [
            Service::tcp(&format!("tcp-{number}"), at(vip)),
            Service::udp(&format!("udp-{number}"), at(vip)),
        ];
        services.map(|service| service.address(real.parse().unwrap(), 100))
    });
    let source = "[tunnel]\nsource = [\"10.2.0.5\", \"fd00:2::5\"]";
    let config = services.fold(Config::new(), Config::service).section(source);
    let director = Director::start(lab.director(), &config).unwrap();
    // The next hops answer.
    wait_until(SOON, "the ways", || {
        let list = director.json(&["list"]).unwrap();
        let services = list["services"].as_array().unwrap();
        services.iter().all(|service| service["reals"][0]["egress"] == "direct")
    })
    .unwrap();
    director
}

#[test]
fn a_real_server_without_ipip_unwraps_in_userspace() {
    let (lab, host) = build();
    let _director = director(&lab);
    let mut serving = None;
    for engine in [Engine::Multishot, Engine::Poll] {
        let Some(server) = Server::start(&host, engine) else { continue };
        let wire = Sniffer::start(&host, "eth0", |frame| !frame.outgoing).unwrap();
        serving.get_or_insert_with(|| serve(&host));
        let first = Caller::new(&lab.client, at(WAYS[0].0));
        wait_until(SOON, "the byte services", || first.whoami().is_ok()).unwrap();
        for (seed, (vip, _)) in (1..).zip(WAYS) {
            let caller = Caller::new(&lab.client, at(vip));
            let served = |what: &str, result: adit_lab::Result<String>| {
                let name = result.unwrap_or_else(|e| panic!("{} {vip} {what}: {e}", engine.name()));
                assert_eq!(name, "real1");
            };
            served("session", caller.whoami());
            // Full segments, by which the director learns of the hop.
            served("upload", caller.upload(500_000, seed));
            served("datagram", caller.datagram(1000, seed));
            served("large datagram", caller.datagram(4000, seed));
            caller.download(500_000, seed).unwrap();
        }
        pieces_are_put_together(&lab, &wire, engine);
        has_given_up_its_rights(&server);
        strangers_are_dropped(&lab, &server);
        checksums_left_to_us_are_taken(&lab);
        goes_on_after_being_killed(&lab, server);
    }
}

/// A client that has not heard of the hop yet sends packets which the director wraps in several.
fn pieces_are_put_together(lab: &Lab, wire: &Sniffer, engine: Engine) {
    let client = lab.add_client(if engine == Engine::Poll { 12 } else { 11 }).unwrap();
    // IPv6 inside is never cut: its sender is told.
    for (vip, real) in &WAYS[..2] {
        wire.clear();
        assert_eq!(Caller::new(&client, at(vip)).datagram(4000, 5).unwrap(), "real1");
        let real: IpAddr = real.parse().unwrap();
        let cut = |ip: &IpPacket| ip.destination == real && ip.fragment.0 > 0;
        wire.wait_for(SOON, "outer fragments", |ip| cut(ip).then_some(()))
            .unwrap_or_else(|error| panic!("to {real}: {error}"));
    }
}

/// It needs no rights any more once it looks at packets.
fn has_given_up_its_rights(server: &Server<'_>) {
    let processes = server.host.processes().unwrap();
    let of = |pid: &u32, file: &str| {
        std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default()
    };
    let ours = |pid: &u32| of(pid, "comm").trim() == "adit-realserver";
    let pid = processes.into_iter().find(ours).expect("it runs");
    let status = of(&pid, "status");
    let effective = status.lines().find(|line| line.starts_with("CapEff:")).expect("a line");
    assert!(effective.ends_with("\t0000000000000000"), "{effective}");
}

/// Packets of others are dropped by the process itself, also where no firewall does.
fn strangers_are_dropped(lab: &Lab, server: &Server<'_>) {
    let program = binaries::realserver().unwrap().display().to_string();
    let mut argv = vec![program.as_str(), "verify", "--json"];
    argv.extend(options());
    let findings = server.host.run(&argv).unwrap();
    assert!(findings.contains("unwrapped by adit-realserver decap"), "{findings}");
    // Where this kernel's nftables is good for them, there are rules too.
    let table =
        "nft delete table inet adit_realserver 2>/dev/null || ! nft list tables | grep adit_";
    server.host.sh(table).unwrap();

    let sender = RawSender::new(&lab.dc_routers[0]).unwrap();
    let client = Sniffer::start(&lab.client, "eth0", |frame| !frame.outgoing).unwrap();
    let before = server.counters();
    let stranger: [IpAddr; 2] = ["10.3.1.1", "fd00:31::1"].map(|text| text.parse().unwrap());
    let pings =
        [(CLIENT, DIRECTOR, stranger[0], WAYS[0]), (CLIENT6, DIRECTOR6, stranger[1], WAYS[3])];
    let send = |from: IpAddr, cip: IpAddr, (vip, real): (&str, &str), number: u16| {
        let ping = echo_request(cip, vip.parse().unwrap(), number, b"who is it?");
        sender.send(&encapsulate(from, real.parse().unwrap(), &ping)).unwrap();
    };
    for (cip, _, stranger, way) in pings {
        send(stranger, cip, way, 1);
    }
    let lost = before["lost"]["not_from_a_director"].as_u64().unwrap();
    server.wait_lost("not_from_a_director", lost + 2);
    // For another address than a VIP: this host's own.
    send(DIRECTOR, CLIENT, ("10.20.0.11", REAL), 1);
    server.wait_lost("not_for_a_vip", before["lost"]["not_for_a_vip"].as_u64().unwrap() + 1);
    // The same in a director's name is answered; what was dropped would have been before.
    for (cip, director, _, way) in pings {
        send(director, cip, way, 2);
        let vip: IpAddr = way.0.parse().unwrap();
        client.wait_for(SOON, "an answer", |ip| (ip.source == vip).then_some(())).unwrap();
    }
    let vips = WAYS.map(|(vip, _)| vip.parse::<IpAddr>().unwrap());
    let answers = client.packets().into_iter().filter(|ip| vips.contains(&ip.source));
    let answers = answers.filter(|ip| ip.icmp().is_some_and(|(kind, _)| [0, 129].contains(&kind)));
    assert_eq!(answers.count(), 2);
}

/// Datagrams whose checksum covers the pseudo header alone, as the kernel leaves it where it has put
/// segments together or carried a packet over from another namespace, are taken; others are verified.
fn checksums_left_to_us_are_taken(lab: &Lab) {
    let sender = RawSender::new(&lab.dc_routers[0]).unwrap();
    let client = Sniffer::start(&lab.client, "eth0", |frame| !frame.outgoing).unwrap();
    for (cip, director, (vip, real)) in [(CLIENT, DIRECTOR, WAYS[0]), (CLIENT6, DIRECTOR6, WAYS[3])]
    {
        let from = SocketAddr::new(cip, 40_123);
        let ip = datagram(from, at(vip), &[7; 1000]);
        let udp = ip.len() - 1008;
        for damage in [1, 0] {
            let mut inner = ip.clone();
            let checksum = pseudo_header_sum(cip, at(vip).ip(), 1008) ^ damage;
            inner[udp + 6..udp + 8].copy_from_slice(&checksum.to_be_bytes());
            sender.send(&encapsulate(director, real.parse().unwrap(), &inner)).unwrap();
        }
        let answered = |ip: &IpPacket| ip.flow().is_some_and(|(_, to)| to == from);
        client.wait_for(SOON, "an answer", |ip| answered(ip).then_some(())).unwrap();
        let answers = client.packets().into_iter().filter(answered).count();
        assert_eq!(answers, 1, "{vip}: a damaged datagram was answered");
    }
}

/// Of UDP, folded and not complemented.
fn pseudo_header_sum(source: IpAddr, destination: IpAddr, length: u16) -> u16 {
    let octets = |address| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let bytes = [octets(source), octets(destination)].concat();
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum = words.sum::<u32>() + 17 + u32::from(length);
    let sum = (sum >> 16) + (sum & 0xffff);
    u16::try_from((sum >> 16) + (sum & 0xffff)).unwrap()
}

/// A killed process leaves nothing in the way of the next, and sessions go on with that.
fn goes_on_after_being_killed(lab: &Lab, server: Server<'_>) {
    let (host, engine) = (server.host, server.engine);
    let mut sessions: Vec<_> =
        WAYS.iter().map(|(vip, _)| Caller::new(&lab.client, at(vip)).converse().unwrap()).collect();
    server.process.signal(Signal::SIGKILL).unwrap();
    assert!(!server.process.wait_exit(SOON).unwrap().success());
    let server = Server::start(host, engine).unwrap();
    for session in &mut sessions {
        assert_eq!(session.ask_name().unwrap(), "real1");
    }
    assert_eq!(Caller::new(&lab.client, at(WAYS[0].0)).whoami().unwrap(), "real1");
    let counters = server.stop();
    assert_eq!(counters["lost"]["device_refused"], 0, "{counters}");
    assert!(counters["delivered"].as_u64().unwrap() > 0, "{counters}");
    // ARP stays silent until it is told otherwise.
    let silent = host.sh("sysctl -n net.ipv4.conf.all.arp_ignore").unwrap();
    assert_eq!(silent.trim(), "1");
}

#[test]
fn a_device_that_is_deleted_ends_the_process() {
    let (_lab, host) = build();
    let server = Server::start(&host, Engine::Poll).unwrap();
    assert!(has_device(&host));
    host.ip("link del adit-decap0").unwrap();
    let status = server.process.wait_exit(Duration::from_secs(30)).unwrap();
    assert_eq!(status.code(), Some(1), "{}", server.process.log());
    assert!(server.process.log().contains("the device is gone"), "{}", server.process.log());
}
