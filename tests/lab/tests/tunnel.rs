//! The way that a director's packets take, walked by hand: wrapped here, through the routers, to a
//! real server's tunnel device, and the answer straight to the client.

use std::net::SocketAddr;
use std::time::Duration;

use adit_lab::neighbour::resolve;
use adit_lab::packet::{IPIP, IPV6_IN_IP, echo_request, encapsulate, syn};
use adit_lab::report;
use adit_lab::topology::{CLIENT, CLIENT6, DIRECTOR, DIRECTOR6, VIP, VIP6};
use adit_lab::{Lab, LabSpec, RawSender, SERVE_PORT, Sniffer, wait_for};

/// Answers come within milliseconds; the limit is for a busy computer.
const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_wrapped_packet_reaches_tunl0_and_the_answer_goes_straight_to_the_client() {
    let spec = LabSpec { reals: [1, 1], postgres: false, ..LabSpec::default() };
    let lab = Lab::build(spec).unwrap();
    report(&format!("real servers: {}", lab.real_kind()));
    let director = lab.director();
    let sender = RawSender::new(director.namespace()).unwrap();
    let client = Sniffer::start(&lab.client, "eth0", |frame| !frame.outgoing).unwrap();

    for (dc, real) in lab.reals.iter().enumerate() {
        let device = lab.egress_device(dc);
        let wire = Sniffer::start(director.namespace(), device, |_| true).unwrap();
        let families =
            [(CLIENT, DIRECTOR, VIP, IPIP, false), (CLIENT6, DIRECTOR6, VIP6, IPV6_IN_IP, true)];
        for (cip, dip, vip, protocol, ipv6) in families {
            client.clear();
            let ping = echo_request(cip, vip, 77, b"through the tunnel");
            sender.send(&encapsulate(dip, real.address(ipv6), &ping)).unwrap();
            let answer = client
                .wait_for(SOON, "the echo's answer", |ip| (ip.source == vip).then(|| ip.clone()))
                .unwrap();
            assert_eq!(answer.destination, cip);
            assert_eq!(answer.icmp().unwrap().0, if ipv6 { 129 } else { 0 });
            assert!(answer.payload.ends_with(b"through the tunnel"));

            let from = SocketAddr::new(cip, 40_000);
            let to = SocketAddr::new(vip, SERVE_PORT);
            sender.send(&encapsulate(dip, real.address(ipv6), &syn(from, to, 1000))).unwrap();
            let syn_ack = client
                .wait_for(SOON, "the SYN-ACK", |ip| ip.tcp().filter(|_| ip.source == vip))
                .unwrap();
            assert!(syn_ack.syn && syn_ack.ack);
            assert_eq!(syn_ack.acknowledgment_number, 1001);

            wire.wait_for(SOON, "the wrapped SYN", |ip| {
                (ip.protocol == protocol).then(|| ip.inner()?.tcp()).flatten()
            })
            .unwrap();
            let through_director = wire.packets().iter().any(|ip| ip.source == vip);
            assert!(!through_director, "an answer went through the director");
        }
    }
}

#[test]
fn nobody_answers_for_the_vip_while_no_director_runs() {
    let spec = LabSpec { reals: [1, 0], postgres: false, ..LabSpec::default() };
    let lab = Lab::build(spec).unwrap();
    // From the real server's own router, which shares a segment with it, and from r0 on the edge,
    // where a director would answer.
    let quiet = Duration::from_millis(1500);
    for (ipv6, vip) in [(false, VIP), (true, VIP6)] {
        let router = &lab.dc_routers[0];
        // A question can be lost; none has two answers.
        let own = || resolve(router, "dc", lab.reals[0].address(ipv6), quiet).unwrap();
        let own = wait_for(SOON, "an answer", || Some(own()).filter(|all| !all.is_empty()));
        assert_eq!(own.unwrap().len(), 1, "for the real server's own address");
        let answers = resolve(router, "dc", vip, quiet).unwrap();
        assert_eq!(answers, [], "the real server answered for {vip}");
        let answers = resolve(&lab.r0, "edge", vip, quiet).unwrap();
        assert_eq!(answers, [], "somebody answered for {vip}");
    }
}

#[test]
fn a_narrow_hop_says_what_fits() {
    let spec =
        LabSpec { reals: [0, 1], postgres: false, hop_mtu: [1500, 1400], ..LabSpec::default() };
    let lab = Lab::build(spec).unwrap();
    let director = lab.director();
    let sender = RawSender::new(director.namespace()).unwrap();
    let wire = Sniffer::start(director.namespace(), lab.egress_device(1), |frame| !frame.outgoing)
        .unwrap();
    let real = &lab.reals[0];
    for (cip, dip, vip, ipv6) in [(CLIENT, DIRECTOR, VIP, false), (CLIENT6, DIRECTOR6, VIP6, true)]
    {
        let large = echo_request(cip, vip, 78, &[7; 1380]);
        sender.send(&encapsulate(dip, real.address(ipv6), &large)).unwrap();
        let mtu = wire
            .wait_for(SOON, "the router's error", |ip| {
                ip.announced_mtu().filter(|_| ip.source.is_ipv6() == ipv6)
            })
            .unwrap();
        assert_eq!(mtu, 1400);
    }
}

#[test]
fn a_point_to_point_link_carries_the_tunnel_too() {
    let spec = LabSpec { reals: [1, 0], postgres: false, tun_egress: true, ..LabSpec::default() };
    let lab = Lab::build(spec).unwrap();
    let sender = RawSender::new(lab.director().namespace()).unwrap();
    let client = Sniffer::start(&lab.client, "eth0", |frame| !frame.outgoing).unwrap();
    let ping = echo_request(CLIENT, VIP, 79, b"no Ethernet here");
    sender.send(&encapsulate(DIRECTOR, lab.reals[0].address(false), &ping)).unwrap();
    client.wait_for(SOON, "the echo's answer", |ip| (ip.source == VIP).then(|| ip.icmp())).unwrap();
}
