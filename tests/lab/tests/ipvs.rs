//! The whole lab with the kernel's own director: IPVS in a guest, tunnelling to the real servers.
//! What works here and not with Adit is Adit's; what fails here is the lab's.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use adit_lab::neighbour::resolve;
use adit_lab::packet::IPIP;
use adit_lab::postgres::PORT;
use adit_lab::report;
use adit_lab::skip::{has_guests, has_root};
use adit_lab::topology::{CLIENT, VIP, vip};
use adit_lab::{Caller, Kind, Lab, LabSpec, SERVE_PORT, Session, Sniffer, wait_for};
use etherparse::TcpOptionElement;

const SOON: Duration = Duration::from_secs(30);

#[test]
fn ipvs_carries_database_sessions_through_the_lab() {
    if !has_root() || !has_guests() {
        return;
    }
    let spec =
        LabSpec { reals: [1, 1], director: Kind::Guest, clamp_mtu: 1500, ..LabSpec::default() };
    let lab = Lab::build(spec).unwrap();
    report(&format!("real servers: {}", lab.real_kind()));
    let mut script = format!(
        "modprobe -a ip_vs ip_vs_rr; ip addr add {VIP}/32 dev eth0; sysctl -qw net.ipv4.vs.conntrack=0\n"
    );
    for port in [PORT, SERVE_PORT] {
        script.push_str(&format!("ipvsadm -A -t {VIP}:{port} -s rr\n"));
        for real in &lab.reals {
            script.push_str(&format!("ipvsadm -a -t {VIP}:{port} -r {} -i\n", real.address(false)));
        }
    }
    lab.director().sh(&script).unwrap();
    // A question can be lost; none has two answers.
    let answers = || resolve(&lab.r0, "edge", VIP, Duration::from_secs(1)).unwrap();
    let answers =
        wait_for(SOON, "an answer for the VIP", || Some(answers()).filter(|all| !all.is_empty()));
    assert_eq!(answers.unwrap().len(), 1, "only the director answers for the VIP");

    let client = Sniffer::start(&lab.client, "eth0", |frame| !frame.outgoing).unwrap();
    let sources: Vec<_> = (0..20).map(|n| SocketAddr::new(CLIENT, 40_000 + n)).collect();
    let sessions = Session::open_many(&lab.client, &sources, vip(PORT), 4).unwrap();
    let servers: BTreeSet<_> = sessions.iter().map(Session::server).collect();
    assert_eq!(servers, BTreeSet::from(["real1", "real2"]));
    assert_eq!(Session::broken(&sessions), []);
    for real in &lab.reals {
        let logged = real.database_connections().unwrap();
        let ours = sessions.iter().filter(|session| session.server() == real.name());
        for session in ours {
            assert!(logged.contains(&session.source()), "{} of {}", session.source(), real.name());
        }
    }

    // Real servers clamp what clients send to what fits 1500 bytes with the largest outer header, since
    // their directors have addresses of both IP versions: 40 bytes of IPv6.
    let offered = client
        .wait_for(SOON, "a SYN-ACK", |ip| {
            let tcp = ip.tcp().filter(|tcp| tcp.syn && tcp.ack)?;
            tcp.options_iterator().flatten().find_map(|option| {
                let TcpOptionElement::MaximumSegmentSize(size) = option else { return None };
                Some(size)
            })
        })
        .unwrap();
    assert_eq!(offered, 1420);

    let wire = Sniffer::start(lab.dcs[0].host(), "director", |frame| !frame.outgoing).unwrap();
    let caller = Caller::new(&lab.client, vip(SERVE_PORT));
    let served: BTreeSet<_> = (0..2).map(|seed| caller.upload(5_000_000, seed).unwrap()).collect();
    assert_eq!(served.len(), 2, "in turn: {served:?}");
    for seed in 0..2 {
        caller.download(5_000_000, seed).unwrap();
    }
    let packets = wire.packets();
    let tunnelled = packets.iter().filter(|ip| ip.protocol == IPIP);
    assert!(tunnelled.clone().count() > 1000, "uploads go through the tunnel");
    assert!(tunnelled.clone().all(|ip| ip.bytes.len() <= 1500));

    // With its director gone, the VIP is gone.
    lab.director().sh("ipvsadm -C").unwrap();
    let broken = Caller::new(&lab.client, vip(SERVE_PORT)).whoami();
    broken.expect_err("nobody forwards any more");
}
