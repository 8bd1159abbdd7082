//! Every kind of tunnel against the kernel that unwraps it: sessions and datagrams of both versions,
//! inside outer packets of both versions, and unwrapped on a segment.

#![allow(clippy::unwrap_used, reason = "what tests share is test code too")]

mod network;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use adit_lab::network::wire;
use adit_lab::packet::{IPIP, IPV6_IN_IP, IpPacket, TCP, UDP};
use adit_lab::{
    Caller, Config, Director, Host, Lab, LabSpec, SERVE_PORT, Service, Sniffer, report, wait_for,
    wait_until,
};
use network::{SOON, settled};
use serde_json::Value;

/// IP protocol number of GRE.
const GRE: u8 = 47;
/// MTU in bytes of the hop to the real server, smaller than any other: a director that does not
/// believe the router's word for packets of a kind loses what is larger.
const HOP_MTU: u16 = 1400;
/// The real server's addresses: behind a router for most, for GRE with checksum (a device of Linux
/// takes either those with or those without), and on the director's own segment.
const ROUTED: [&str; 2] = ["10.20.0.11", "fd00:20::11"];
const SUMMED: &str = "10.20.0.112";
const ON_LINK: [&str; 2] = ["10.20.0.111", "fd00:20::111"];

/// One way to the real server, with a VIP of its own.
struct Way {
    name: &'static str,
    vip: &'static str,
    real: &'static str,
    /// As TOML.
    tunnel: &'static str,
    /// As `adit list` shows it.
    shown: &'static str,
    /// What the packets on the real server's wire are.
    protocol: u8,
}

const GUE_SUM: &str = "{ kind = \"gue\", checksum = true }";
const GRE_SUM: &str = "{ kind = \"gre\", checksum = true }";

#[rustfmt::skip]
const WAYS: [Way; 16] = [
    way("ipip", "198.51.100.10", ROUTED[0], "\"ipip\"", "ipip", IPIP),
    way("4in6", "198.51.100.11", ROUTED[1], "\"ipip\"", "ipip", IPIP),
    way("sit", "2001:db8:100::10", ROUTED[0], "\"ipip\"", "ipip", IPV6_IN_IP),
    way("6in6", "2001:db8:100::11", ROUTED[1], "\"ipip\"", "ipip", IPV6_IN_IP),
    way("gre", "198.51.100.12", ROUTED[0], "\"gre\"", "gre", GRE),
    way("gre-6", "2001:db8:100::12", ROUTED[0], "\"gre\"", "gre", GRE),
    way("gre-over-6", "198.51.100.13", ROUTED[1], "\"gre\"", "gre", GRE),
    way("gre-6-over-6", "2001:db8:100::13", ROUTED[1], "\"gre\"", "gre", GRE),
    way("gre-sum", "198.51.100.14", SUMMED, GRE_SUM, "gre with checksum", GRE),
    way("gue", "198.51.100.15", ROUTED[0], "\"gue\"", "gue port 6080", UDP),
    way("gue-6", "2001:db8:100::14", ROUTED[0], "\"gue\"", "gue port 6080", UDP),
    way("gue-sum", "198.51.100.16", ROUTED[0], GUE_SUM, "gue port 6080 with checksum", UDP),
    way("gue-over-6", "198.51.100.17", ROUTED[1], "\"gue\"", "gue port 6080 with checksum", UDP),
    way("gue-6-over-6", "2001:db8:100::15", ROUTED[1], "\"gue\"", "gue port 6080 with checksum", UDP),
    way("direct", "198.51.100.18", ON_LINK[0], "\"direct\"", "direct", TCP),
    way("direct-6", "2001:db8:100::16", ON_LINK[1], "\"direct\"", "direct", TCP),
];

const fn way(
    name: &'static str,
    vip: &'static str,
    real: &'static str,
    tunnel: &'static str,
    shown: &'static str,
    protocol: u8,
) -> Way {
    Way { name, vip, real, tunnel, shown, protocol }
}

impl Way {
    fn at(&self) -> SocketAddr {
        SocketAddr::new(self.vip.parse().unwrap(), SERVE_PORT)
    }

    fn services(&self) -> [Service; 2] {
        let (tcp, udp) = (format!("{}-tcp", self.name), format!("{}-udp", self.name));
        [Service::tcp(&tcp, self.at()), Service::udp(&udp, self.at())].map(|service| {
            service.set("tunnel", self.tunnel).address(self.real.parse().unwrap(), 100)
        })
    }

    fn is_direct(&self) -> bool {
        self.shown == "direct"
    }
}

/// Outer sources of the director, two of each version.
const SOURCES: &str =
    "[tunnel]\nsource = [\"10.2.0.5\", \"10.3.1.5\", \"fd00:2::5\", \"fd00:31::5\"]";

fn config() -> Config {
    let services = WAYS.iter().flat_map(Way::services);
    services.fold(Config::new(), Config::service).section(SOURCES)
}

/// One lab for all tests here: its one real server unwraps everything.
static LAB: LazyLock<Mutex<Lab>> = LazyLock::new(|| {
    let spec = LabSpec {
        reals: [1, 0],
        postgres: false,
        hop_mtu: [HOP_MTU, 1500],
        vips: WAYS.iter().map(|way| way.vip.parse().unwrap()).collect(),
        ..LabSpec::default()
    };
    let lab = Lab::build(spec).expect("the lab comes up");
    report(&format!("real server: {}", lab.real_kind()));
    // Every kind of tunnel is to be told at once.
    lab.dc_routers[0].sysctl("net.ipv4.icmp_ratelimit", "0").unwrap();
    lab.dc_routers[0].sysctl("net.ipv6.icmp.ratelimit", "0").unwrap();
    let [v4, v6] = ROUTED;
    let [link4, link6] = ON_LINK;
    lab.reals[0]
        .machine()
        .sh(&format!(
            "modprobe -a sit ip_gre ip6_gre fou fou6
             ip addr add {SUMMED}/24 dev eth0
             ip addr add {link4}/24 dev eth0
             ip addr add {link6}/64 dev eth0 nodad
             ip link set gre0 up
             ip link add gresum type gre local {SUMMED} icsum
             ip link set gresum up
             ip link add gre6 type ip6gre local {v6} encaplimit none
             ip link set gre6 up
             ip link set sit0 up
             ip fou add port 6080 gue
             ip -6 fou add port 6080 gue
             for device in gre0 gresum gre6 sit0; do
                 sysctl -qw net.ipv4.conf.$device.rp_filter=0
             done
             ping -c 1 -W 5 {v4} >/dev/null || true"
        ))
        .expect("the real server unwraps every kind");
    // The director's own foot in the real server's segment.
    let host = lab.director();
    let segment = &lab.dcs[0];
    wire(segment.host(), "direct", host.namespace(), "eth3").unwrap();
    segment.host().ip(&format!("link set direct master {}", segment.device())).unwrap();
    host.namespace()
        .ip(&format!(
            "addr add 10.20.0.5/32 dev eth3\naddr add fd00:20::5/128 dev eth3 nodad\n\
             route add {link4}/32 dev eth3 src 10.20.0.5\n\
             route add {link6}/128 dev eth3 src fd00:20::5"
        ))
        .unwrap();
    Mutex::new(lab)
});

fn lab() -> MutexGuard<'static, Lab> {
    LAB.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start(lab: &Lab, config: &Config) -> Director {
    let host = lab.director();
    host.run(&["rm", "-rf", &host.path("state")]).unwrap();
    Director::start(host, config).unwrap()
}

/// What arrives at the real server's wire.
fn at_real(lab: &Lab) -> Sniffer {
    let namespace = lab.reals[0].machine().namespace();
    Sniffer::start(namespace, "eth0", |frame| !frame.outgoing).unwrap()
}

/// What `adit list` says of the real server of a service, all rows.
fn rows(director: &Director, service: &str) -> Vec<Value> {
    let list = director.json(&["list", service]).unwrap();
    list["services"][0]["reals"].as_array().unwrap().clone()
}

/// Waits until the way of a service is there: its next hop has to answer first.
fn wait_way(director: &Director, service: &str) {
    let mut seen = Value::Null;
    wait_until(SOON, "the way", || {
        seen = rows(director, service)[0].clone();
        seen["egress"] == "direct"
    })
    .unwrap_or_else(|error| panic!("{error}: {seen}"));
}

/// Packets of the way on the real server's wire, and what of them is wrong.
fn check_wire(way: &Way, packets: &[IpPacket]) {
    let (vip, real): (IpAddr, IpAddr) = (way.vip.parse().unwrap(), way.real.parse().unwrap());
    let to = if way.is_direct() { vip } else { real };
    let seen: BTreeSet<u8> =
        packets.iter().filter(|ip| ip.destination == to).map(|ip| ip.protocol).collect();
    let expected =
        if way.is_direct() { BTreeSet::from([TCP, UDP]) } else { BTreeSet::from([way.protocol]) };
    assert_eq!(seen, expected, "{}", way.name);
    for ip in packets.iter().filter(|ip| ip.destination == to && way.protocol == UDP) {
        // Later pieces of an outer packet have no ports.
        if ip.fragment.0 == 0 {
            let udp = ip.udp().unwrap();
            assert_eq!(udp.destination_port, 6080, "{}", way.name);
            assert!(udp.source_port >= 49_152, "{}: from {}", way.name, udp.source_port);
            let filled = way.shown.contains("checksum");
            assert_eq!(udp.checksum != 0, filled, "{}: {:#06x}", way.name, udp.checksum);
        }
    }
}

#[test]
fn every_kind_of_tunnel_carries_sessions_and_datagrams_to_the_kernel_that_unwraps_it() {
    let lab = lab();
    let mut director = start(&lab, &config());
    let wire = at_real(&lab);
    for (seed, way) in (1..).zip(&WAYS) {
        let service = format!("{}-tcp", way.name);
        wait_way(&director, &service);
        wire.clear();
        let caller = Caller::new(&lab.client, way.at());
        let served = |what: &str, result: adit_lab::Result<String>| {
            assert_eq!(result.unwrap_or_else(|e| panic!("{} {what}: {e}", way.name)), "real1");
        };
        served("session", caller.whoami());
        // Many full segments that must become smaller than the hop.
        served("upload", caller.upload(100_000, seed));
        served("datagram", caller.datagram(1000, seed));
        // In pieces, by the client and then by the director.
        served("large datagram", caller.datagram(4000, seed));

        check_wire(way, &wire.packets());
        let mtu = if way.is_direct() { 1500 } else { HOP_MTU };
        let mut row = Value::Null;
        // The worker tells control of it a moment later.
        wait_until(SOON, "the path MTU", || {
            row = rows(&director, &service)[0].clone();
            row["path_mtu"] == mtu
        })
        .unwrap_or_else(|error| panic!("{error}: {}: {row}", way.name));
        assert_eq!(row["tunnel"], way.shown, "{row}");
    }
    let status = settled(&director);
    assert_eq!(status["ledger_balances"], true);
    // Not that none was guessed: last segments of connections that an earlier director had may come.
    assert!(director.terminate().unwrap().success());
}

#[test]
fn flows_spread_over_sources_and_ports() {
    let lab = lab();
    let director = start(&lab, &config());
    for name in ["ipip", "6in6", "gue", "gue-over-6"] {
        let way = WAYS.iter().find(|way| way.name == name).unwrap();
        wait_way(&director, &format!("{name}-tcp"));
        let wire = at_real(&lab);
        let caller = Caller::new(&lab.client, way.at());
        for _ in 0..24 {
            assert_eq!(caller.whoami().unwrap(), "real1");
        }
        let real: IpAddr = way.real.parse().unwrap();
        let outer = wire.packets().into_iter().filter(|ip| ip.destination == real);
        let outer: Vec<_> = outer.filter(|ip| ip.protocol == way.protocol).collect();
        let sources: BTreeSet<IpAddr> = outer.iter().map(|ip| ip.source).collect();
        // That 24 flows choose one of two alike is one chance in eight million.
        assert_eq!(sources.len(), 2, "{name}: {sources:?}");
        if way.protocol == UDP {
            let ports: BTreeSet<u16> =
                outer.iter().map(|ip| ip.udp().unwrap().source_port).collect();
            assert!((20..=24).contains(&ports.len()), "{name}: {ports:?}");
        }
        let row = &rows(&director, &format!("{name}-tcp"))[0];
        assert_eq!(row["more_sources"].as_array().unwrap().len(), 1, "{row}");
    }
}

#[test]
fn a_session_goes_on_by_the_tunnel_it_began_with() {
    let lab = lab();
    let [ipip, gue] = ["ipip", "gue"].map(|name| WAYS.iter().find(|w| w.name == name).unwrap());
    let by = |way: &Way| {
        let service = Service::tcp("db", ipip.at()).set("tunnel", way.tunnel);
        Config::new().service(service.address(ipip.real.parse().unwrap(), 100))
    };
    let director = start(&lab, &by(ipip));
    wait_way(&director, "db");
    let caller = Caller::new(&lab.client, ipip.at());
    let mut before = caller.converse().unwrap();
    let said = director.reload(&by(gue)).unwrap();
    assert!(said.success, "{}", said.text);
    assert!(said.text.contains("tunnel ipip -> gue port 6080"), "{}", said.text);
    let mut after = caller.converse().unwrap();

    let wire = at_real(&lab);
    let protocol_of = |source: SocketAddr| {
        let carries = |ip: &IpPacket, inner: &[u8]| {
            IpPacket::from_ip(inner)
                .and_then(|inner| inner.flow())
                .filter(|(from, _)| *from == source)
                .map(|_| ip.protocol)
        };
        let mut seen = || {
            wire.packets().iter().find_map(|ip| match ip.protocol {
                IPIP => carries(ip, &ip.payload),
                // Behind UDP and GUE.
                UDP => carries(ip, ip.payload.get(12..)?),
                _ => None,
            })
        };
        wait_for(SOON, "a packet of the session", &mut seen).unwrap()
    };
    for _ in 0..3 {
        assert_eq!(before.ask_name().unwrap(), "real1");
        assert_eq!(after.ask_name().unwrap(), "real1");
    }
    assert_eq!(protocol_of(before.source()), IPIP);
    assert_eq!(protocol_of(after.source()), UDP);
    let rows = rows(&director, "db");
    let shown: Vec<_> = rows.iter().map(|row| (&row["tunnel"], &row["state"])).collect();
    assert_eq!(
        shown,
        [
            (&Value::from("gue port 6080"), &Value::from("up")),
            (&Value::from("ipip"), &Value::from("draining")),
        ]
    );
    // A restart knows both ways from its flow table's directory.
    let mut director = director;
    director.kill().unwrap();
    director.start_again().unwrap();
    wire.clear();
    assert_eq!(before.ask_name().unwrap(), "real1");
    assert_eq!(after.ask_name().unwrap(), "real1");
    assert_eq!(protocol_of(before.source()), IPIP);
    assert_eq!(protocol_of(after.source()), UDP);
}

#[test]
fn what_cannot_be_is_refused_and_said() {
    let lab = lab();
    let direct = WAYS.iter().find(|way| way.name == "direct").unwrap();
    let to = |address: &str| {
        let service = Service::tcp("db", direct.at()).set("tunnel", "\"direct\"");
        Config::new().service(service.address(address.parse().unwrap(), 100))
    };
    let foreign =
        |config: Config| config.section("[tunnel]\nsource = [\"10.2.0.5\", \"10.2.0.6\"]");
    let host = lab.director();
    host.run(&["rm", "-rf", &host.path("state")]).unwrap();
    let refused = Director::start(lab.director(), &foreign(to(direct.real)));
    let error = refused.map(drop).unwrap_err().to_string();
    assert!(error.contains("10.2.0.6 is not an address of this host"), "{error}");

    let director = start(&lab, &to(direct.real));
    wait_way(&director, "db");
    let said = director.reload(&foreign(to(direct.real))).unwrap();
    assert!(!said.success && said.text.contains("10.2.0.6 is not an address"), "{}", said.text);

    // Behind a router the frame would not be the real server's.
    let said = director.reload(&to(ROUTED[0])).unwrap();
    assert!(said.success, "{}", said.text);
    let lost =
        |row: &Value| row["egress"] == "none (the real server is not on a connected segment)";
    assert!(rows(&director, "db").iter().any(lost), "{:?}", rows(&director, "db"));
    let status = network::status(&director);
    let conditions = status["conditions"].to_string();
    assert!(conditions.contains("cannot be sent (direct)"), "{conditions}");
    let path = director.config_path();
    let check = adit_lab::director::adit(host.as_ref(), &["check", "--config", &path]).unwrap();
    assert!(!check.success && check.text.contains("not on a connected segment"), "{}", check.text);
    let before = network::dropped(&director, "no_egress");
    Caller::new(&lab.client, direct.at()).whoami().unwrap_err();
    assert!(network::dropped(&director, "no_egress") > before);
}
