//! Ways to real servers that are the kernel's: through IPsec policies, and without Ethernet.

#![allow(clippy::unwrap_used, reason = "what tests share is test code too")]

mod network;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use adit_lab::ipsec::{Cover, protect};
use adit_lab::packet::{ESP, IPIP, IPV6_IN_IP};
use adit_lab::report;
use adit_lab::skip::{has_guests, has_root};
use adit_lab::topology::{DIRECTOR, DIRECTOR6, VIP, VIP6, vip};
use adit_lab::{
    Caller, Config, Director, Host, Kind, Lab, LabSpec, SERVE_PORT, Sniffer, wait_until,
};
use network::{SOON, real, services};

/// The outer addresses that the policies of this test name.
const SOURCES: &str = "[tunnel]\nsource = [\"10.2.0.5\", \"fd00:2::5\"]";

/// How a director's packets reach the data centre's router: the protocols of what `work` sends.
fn protocols(lab: &Lab, work: impl FnOnce()) -> BTreeSet<u8> {
    let wire = Sniffer::start(&lab.dc_routers[0], "director", |frame| !frame.outgoing).unwrap();
    work();
    wire.packets()
        .iter()
        .map(|ip| ip.protocol)
        .filter(|protocol| [IPIP, IPV6_IN_IP, ESP].contains(protocol))
        .collect()
}

/// Sessions, a transfer each way, and datagrams that need fragments, in both versions.
fn traffic(lab: &Lab) {
    for vip in [VIP, VIP6] {
        let caller = Caller::new(&lab.client, SocketAddr::new(vip, SERVE_PORT));
        assert_eq!(caller.whoami().unwrap(), "real1");
        assert_eq!(caller.upload(500_000, 1).unwrap(), "real1");
        caller.download(500_000, 2).unwrap();
        assert_eq!(caller.datagram(1000, 3).unwrap(), "real1");
    }
    let caller = Caller::new(&lab.client, vip(SERVE_PORT));
    assert_eq!(caller.datagram(8192, 4).unwrap(), "real1");
}

/// Less than the time after which a director looks at its host by itself, 10 s.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Whether all ways to the real server come to be what `word` says within a time.
fn comes_to(director: &Director, lab: &Lab, word: &str, limit: Duration) -> Result<(), String> {
    for ipv6 in [false, true] {
        let address = lab.reals[0].address(ipv6);
        let mut seen = String::new();
        wait_until(limit, "the egress", || {
            seen = real(director, address)["egress"].to_string();
            seen.contains(word)
        })
        .map_err(|error| format!("{error}: {seen} towards {address}, not {word}"))?;
    }
    Ok(())
}

fn wait_egress(director: &Director, lab: &Lab, word: &str) {
    comes_to(director, lab, word, SOON).unwrap();
}

/// A director hears of policies. One that only looks now and then would see a change that comes right
/// after another one no sooner than at its next look.
fn it_hears_of_policies(director: &Director, lab: &Lab, protect: &dyn Fn(), lift: &dyn Fn()) {
    let heard = (0..3).any(|_| {
        protect();
        wait_egress(director, lab, "IPsec");
        lift();
        let at_once = comes_to(director, lab, "direct", AT_ONCE);
        wait_egress(director, lab, "direct");
        at_once.is_ok()
    });
    assert!(heard, "none of three changes was seen within {AT_ONCE:?}");
}

#[test]
fn tunnels_go_through_ipsec_policies_and_never_around_them() {
    if !has_root() || !has_guests() {
        return;
    }
    let spec =
        LabSpec { reals: [1, 0], postgres: false, director: Kind::Guest, ..LabSpec::default() };
    let lab = Lab::build(spec).unwrap();
    report(&format!("real servers: {}", lab.real_kind()));
    let host = lab.director();
    report(&format!("director on Linux {}", host.sh("uname -r").unwrap().trim()));
    let config = services(&lab.reals).into_iter().fold(Config::new(), Config::service);
    let mut director = Director::start(lab.director(), &config.section(SOURCES)).unwrap();

    let plain = BTreeSet::from([IPIP, IPV6_IN_IP]);
    wait_egress(&director, &lab, "direct");
    assert_eq!(protocols(&lab, || traffic(&lab)), plain, "without a policy");

    let real = lab.reals[0].machine() as &dyn Host;
    let ends = [false, true].map(|ipv6| {
        let own = if ipv6 { DIRECTOR6 } else { DIRECTOR };
        ((host.as_ref(), own), (real, lab.reals[0].address(ipv6)))
    });
    let lift = || {
        for host in [host.as_ref(), real] {
            host.sh("ip xfrm policy flush; ip xfrm state flush").unwrap();
        }
    };
    let tunnel = || ends.into_iter().for_each(|(a, b)| protect(Cover::Tunnel, a, b).unwrap());
    it_hears_of_policies(&director, &lab, &tunnel, &lift);
    for cover in [Cover::Tunnel, Cover::Everything] {
        // While it runs.
        for (a, b) in ends {
            protect(cover, a, b).unwrap();
        }
        wait_egress(&director, &lab, "IPsec");
        let seen = protocols(&lab, || traffic(&lab));
        assert_eq!(seen, BTreeSet::from([ESP]), "with a policy for {cover:?}");
        // And when they are there before it.
        director.kill().unwrap();
        director.start_again().unwrap();
        wait_egress(&director, &lab, "IPsec");
        let seen = protocols(&lab, || traffic(&lab));
        assert_eq!(seen, BTreeSet::from([ESP]), "with a policy for {cover:?} from the start");

        lift();
        wait_egress(&director, &lab, "direct");
    }
    assert_eq!(protocols(&lab, || traffic(&lab)), plain, "after the policies");
    assert!(director.terminate().unwrap().success());
}

#[test]
fn a_point_to_point_device_is_left_to_the_kernel() {
    if !has_root() {
        return;
    }
    let spec = LabSpec { reals: [1, 0], postgres: false, tun_egress: true, ..LabSpec::default() };
    let lab = Lab::build(spec).unwrap();
    report(&format!("real servers: {}", lab.real_kind()));
    let config = services(&lab.reals).into_iter().fold(Config::new(), Config::service);
    let director = Director::start(lab.director(), &config).unwrap();
    for ipv6 in [false, true] {
        let listed = real(&director, lab.reals[0].address(ipv6));
        assert_eq!(listed["egress"], "kernel (the device is not Ethernet)", "{listed}");
        assert_eq!(listed["interface"], lab.egress_device(0), "{listed}");
    }
    traffic(&lab);
    assert_eq!(network::dropped(&director, "egress_error"), 0);
}
