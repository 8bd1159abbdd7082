//! How packets come to the TAP.

use std::net::SocketAddr;

use adit_lab::io::packet::PacketSocket;
use adit_lab::packet::{IPIP, IpPacket, datagram};
use adit_lab::topology::{CLIENT, TAP, VIP, vip};
use adit_lab::{Caller, Director, Host, Lab, RawSender, SERVE_PORT, Service, Sniffer};

use serde_json::Value;

use crate::{SOON, clean, clean_lab, config, echoes, start};

/// TTL of the lab's own packets.
const TTL: u8 = 64;

/// Routes of the IPv4 VIP.
fn routes(host: &dyn Host) -> Vec<String> {
    let all = host.sh("ip route show table all").unwrap();
    all.lines().filter(|line| line.contains(&format!("{VIP} "))).map(str::to_owned).collect()
}

/// What the kernel says of the TAP.
fn tap(host: &dyn Host) -> Value {
    let links = host.sh(&format!("ip -j link show dev {TAP}")).unwrap();
    serde_json::from_str::<Value>(&links).unwrap()[0].take()
}

/// Sends a datagram by `send` and returns the TTL with which it leaves the director, wrapped.
fn wrapped_ttl(lab: &Lab, port: u16, send: impl FnOnce(&[u8])) -> u8 {
    let source = SocketAddr::new(CLIENT, port);
    let wires = [0, 1].map(|dc| {
        Sniffer::start(&lab.dc_routers[dc], "director", move |frame| {
            let inner = frame.ip().filter(|ip| ip.protocol == IPIP).and_then(|ip| ip.inner());
            inner.is_some_and(|inner| inner.flow() == Some((source, vip(SERVE_PORT))))
        })
        .unwrap()
    });
    send(&datagram(source, vip(SERVE_PORT), b"how old am I?"));
    let look = || wires.iter().flat_map(Sniffer::packets).find_map(|ip| ip.inner());
    adit_lab::wait_for(SOON, "the wrapped datagram", look).unwrap().ttl
}

/// Puts a packet onto the TAP as a bridge would, without a router before it.
fn bridged(host: &dyn Host, packet: &[u8]) {
    let mac = tap(host)["address"].as_str().unwrap().to_owned();
    let mac = mac.split(':').map(|part| u8::from_str_radix(part, 16).unwrap());
    let source = [0x02, 0, 0, 0, 0, 0x77];
    let frame: Vec<u8> = mac.chain(source).chain([8, 0]).chain(packet.iter().copied()).collect();
    let socket = host.namespace().enter(|| PacketSocket::open_to_send(TAP)).unwrap().unwrap();
    socket.send(&frame).unwrap();
}

#[test]
fn what_others_bring_to_the_tap_is_carried_and_loses_a_hop_of_its_own() {
    let lab = clean_lab();
    let host = lab.director();
    let sender = RawSender::new(&lab.client).unwrap();
    let config = config(&lab).service(Service::udp("udp", vip(SERVE_PORT)).reals(&lab.reals));
    // Where Adit has made the route, the routers' count is all: r0's and the director's host's.
    let director = start(&lab, &config);
    assert!(!routes(host.as_ref()).is_empty());
    let routed = wrapped_ttl(&lab, 40_001, |packet| sender.send(packet).unwrap());
    assert_eq!(routed, TTL - 2);
    drop(director);

    clean(&lab);
    let director = start(&lab, &config.set("capture", "\"manual\""));
    assert_eq!(routes(host.as_ref()), [""; 0], "routes that nobody asked for");
    let missing = Caller::new(&lab.client, vip(SERVE_PORT)).whoami();
    missing.expect_err("nobody has brought it to the TAP");
    host.sh(&format!("ip route add {VIP}/32 dev {TAP}")).unwrap();
    let mut session = Caller::new(&lab.client, vip(SERVE_PORT)).echo().unwrap();
    assert!(echoes(&mut session));
    // What may come round again, over whatever was built around the TAP, must grow old here.
    let routed = wrapped_ttl(&lab, 40_002, |packet| sender.send(packet).unwrap());
    assert_eq!(routed, TTL - 2 - 1);
    let as_it_came = wrapped_ttl(&lab, 40_003, |packet| bridged(host.as_ref(), packet));
    assert_eq!(as_it_came, TTL - 1);
    let own = routes(host.as_ref());
    assert_eq!(own.len(), 1, "{own:?}");
    drop(director);
}

/// Client-facing networks with large frames, and the ways to a real server that hold them with the
/// outer header.
struct Jumbo<'a>(&'a Lab);

impl<'a> Jumbo<'a> {
    const MTU: u16 = 9000;

    fn new(lab: &'a Lab) -> Self {
        let jumbo = Self(lab);
        jumbo.set(Self::MTU);
        jumbo
    }

    fn set(&self, mtu: u16) {
        let host = self.0.director();
        let lab = self.0;
        for (host, devices) in [
            (&lab.r0, &["client", "clients", "director", "edge"][..]),
            (&lab.client, &["eth0"]),
            (host.namespace(), &["eth0", "eth1", "eth2"]),
            (&lab.dc_routers[0], &["director"]),
            (&lab.dc_routers[1], &["director"]),
        ] {
            for device in devices {
                host.ip(&format!("link set {device} mtu {mtu}")).unwrap();
            }
        }
    }
}

impl Drop for Jumbo<'_> {
    fn drop(&mut self) {
        self.set(1500);
    }
}

#[test]
fn the_tap_takes_what_the_client_facing_interface_takes() {
    let lab = clean_lab();
    let host = lab.director();
    let config = config(&lab).service(Service::udp("udp", vip(SERVE_PORT)).reals(&lab.reals));
    let director: Director = start(&lab, &config);
    assert_eq!(tap(host.as_ref())["mtu"], 1500);
    drop(director);

    clean(&lab);
    let _jumbo = Jumbo::new(&lab);
    let _director = start(&lab, &config);
    assert_eq!(tap(host.as_ref())["mtu"], Jumbo::MTU);
    let source = SocketAddr::new(CLIENT, 40_010);
    let large = datagram(source, vip(SERVE_PORT), &[0x5a; 8000]);
    let wires = [0, 1].map(|dc| {
        Sniffer::start(&lab.dc_routers[dc], "director", |frame| !frame.outgoing).unwrap()
    });
    RawSender::new(&lab.client).unwrap().send(&large).unwrap();
    let whole =
        |ip: &IpPacket| ip.inner().filter(|ip| ip.flow() == Some((source, vip(SERVE_PORT))));
    let look = || wires.iter().flat_map(Sniffer::packets).find_map(|ip| whole(&ip));
    let inner = adit_lab::wait_for(SOON, "the wrapped datagram in one piece", look).unwrap();
    assert_eq!(inner.payload, IpPacket::from_ip(&large).unwrap().payload);
}
