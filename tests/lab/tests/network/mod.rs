//! What the tests of the network's behaviour share: looking at a director, and at packets.

// Every test binary uses another part of it.
#![allow(dead_code)]

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use adit_lab::packet::IpPacket;
use adit_lab::topology::{vip, vip6};
use adit_lab::{
    Config, Director, Engine, Lab, Namespace, RealServer, SERVE_PORT, Service, wait_for, wait_until,
};
use etherparse::Ipv4Header;
use serde_json::Value;

/// Limit for things that take milliseconds on an idle computer; others may keep it busy.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// A configuration for an engine, with [`services`].
pub(crate) fn config<'a>(
    engine: Engine,
    reals: impl IntoIterator<Item = &'a RealServer> + Clone,
) -> Config {
    services(reals).into_iter().fold(engine.config(), Config::service)
}

/// Starts a director that knows nothing of the ones before, and sees that it reads as it was told to.
pub(crate) fn start(lab: &Lab, engine: Engine, config: &Config) -> Director {
    let host = lab.director();
    host.run(&["rm", "-rf", &host.path("state")]).expect("no state is left");
    let director = Director::start(lab.director(), config).expect("the director starts");
    assert_eq!(status(&director)["engine"], engine.name());
    director
}

/// The four byte services (TCP and UDP, IPv4 and IPv6) with these real servers.
pub(crate) fn services<'a>(
    reals: impl IntoIterator<Item = &'a RealServer> + Clone,
) -> Vec<Service> {
    vec![
        Service::tcp("tcp4", vip(SERVE_PORT)).reals(reals.clone()),
        Service::udp("udp4", vip(SERVE_PORT)).reals(reals.clone()),
        Service::tcp("tcp6", vip6(SERVE_PORT)).reals(reals.clone()),
        Service::udp("udp6", vip6(SERVE_PORT)).reals(reals),
    ]
}

/// What `adit list` says of a real server, in the first service that has it.
pub(crate) fn real(director: &Director, address: IpAddr) -> Value {
    let list = director.json(&["list", "--stats"]).expect("the director lists");
    let wanted = address.to_string();
    let services = list["services"].as_array().unwrap_or_else(|| panic!("no services: {list}"));
    services
        .iter()
        .flat_map(|service| service["reals"].as_array().into_iter().flatten())
        .find(|real| real["address"] == wanted.as_str())
        .unwrap_or_else(|| panic!("no {wanted} in {list}"))
        .clone()
}

/// Path MTU in bytes to a real server, as `adit list` says it.
pub(crate) fn path_mtu(director: &Director, address: IpAddr) -> u64 {
    let real = real(director, address);
    real["path_mtu"].as_u64().unwrap_or_else(|| panic!("no path_mtu: {real}"))
}

/// Packets dropped for a reason, as `adit drops` says it.
pub(crate) fn dropped(director: &Director, reason: &str) -> u64 {
    let drops = director.json(&["drops", "--all"]).expect("the director tells its drops");
    let all = drops.as_array().unwrap_or_else(|| panic!("no list: {drops}"));
    all.iter()
        .find(|drop| drop["reason"] == reason)
        .and_then(|drop| drop["count"].as_u64())
        .unwrap_or_else(|| panic!("no {reason} in {drops}"))
}

/// What `adit list` says of the director itself.
pub(crate) fn status(director: &Director) -> Value {
    director.json(&["list"]).expect("the director lists")["status"].clone()
}

/// One of the worker's totals.
pub(crate) fn total(director: &Director, name: &str) -> u64 {
    count(&status(director), name)
}

/// One of the worker's totals in a status.
pub(crate) fn count(status: &Value, name: &str) -> u64 {
    status["totals"][name].as_u64().unwrap_or_else(|| panic!("no {name} in {status}"))
}

/// Waits until the worker has taken in all that was sent to it: two looks that see the same.
///
/// Returns the status then.
pub(crate) fn settled(director: &Director) -> Value {
    let mut before = None;
    wait_for(SOON, "the director to be idle", || {
        let now = status(director);
        let received = now["totals"]["received"].clone();
        let idle = now["totals"]["in_flight"] == 0 && before == Some(received.clone());
        before = Some(received);
        idle.then_some(now)
    })
    .expect("it comes to rest")
}

/// Waits until a drop reason has been counted `count` times.
pub(crate) fn wait_dropped(director: &Director, reason: &str, count: u64) {
    let mut seen = 0;
    wait_until(SOON, reason, || {
        seen = dropped(director, reason);
        seen >= count
    })
    .unwrap_or_else(|error| panic!("{error}: {seen} instead of {count}"));
    assert_eq!(seen, count, "{reason}");
}

/// A UDP socket of a host that does not wait for ever.
pub(crate) fn udp_socket(host: &Namespace, source: std::net::SocketAddr) -> UdpSocket {
    let socket = host.enter(|| UdpSocket::bind(source)).expect("enter").expect("a free port");
    socket.set_read_timeout(Some(SOON)).expect("a time");
    socket
}

/// The packet with another identification in its IPv4 header, and the checksum to it.
pub(crate) fn with_identification(packet: &[u8], identification: u16) -> Vec<u8> {
    let (mut header, rest) = Ipv4Header::from_slice(packet).expect("an IPv4 packet");
    header.identification = identification;
    header.header_checksum = header.calc_header_checksum();
    let mut changed = Vec::new();
    header.write(&mut changed).expect("memory");
    changed.extend_from_slice(rest);
    changed
}

/// Length of the headers in front of what an IP packet carries.
pub(crate) fn header_len(packet: &IpPacket) -> usize {
    packet.bytes.len() - packet.payload.len()
}
