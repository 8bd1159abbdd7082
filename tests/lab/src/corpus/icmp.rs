//! ICMP to a VIP: echo and other questions, errors about what a real server sent to a client.

use std::net::{IpAddr, SocketAddr};

use super::List;
use super::build::{Ipv4, Segment, datagram, flag, icmp_message, payload};
use super::transport::Flow;

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const TCP: u8 = 6;
const UDP: u8 = 17;

pub(super) fn add(list: &mut List) {
    for v6 in [false, true] {
        questions(list, v6);
        errors(list, v6);
    }
}

impl Flow {
    /// An ICMP message of this flow's client to its VIP.
    fn icmp(&self, kind: (u8, u8), rest: u32, body: &[u8]) -> Vec<u8> {
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                self.ipv6(ICMPV6).packet(&icmp_message(kind, rest, body, Some((from, to))))
            }
            _ => self.ipv4(ICMP).packet(&icmp_message(kind, rest, body, None)),
        }
    }

    /// The flow of the answers.
    fn back(&self) -> Self {
        Self { source: self.destination, destination: self.source }
    }
}

fn questions(list: &mut List, v6: bool) {
    let version = if v6 { "ipv6" } else { "ipv4" };
    let echo = if v6 { (128, 0) } else { (8, 0) };
    for length in [0, 1, 56, 1001, if v6 { 1412 } else { 1452 }] {
        let flow = Flow::next(list, v6);
        let packet = flow.icmp(echo, 0x0007_0001, &payload(length));
        list.add(&format!("{version} echo of {length} bytes"), vec![packet]);
    }
    let flow = Flow::next(list, v6);
    let mut packet = flow.icmp(echo, 0x0007_0002, &payload(56));
    let last = packet.len() - 1;
    packet[last] ^= 1;
    list.add(&format!("{version} echo with a wrong checksum"), vec![packet]);
    let flow = Flow::next(list, v6);
    let packet = if v6 {
        let mut packet = flow.icmp(echo, 0x0007_0003, &payload(56));
        // Class 0xba: DSCP EF, ECN ECT(0); the pseudo-header does not hold it.
        (packet[0], packet[1]) = (0x6b, 0xa0);
        packet
    } else {
        let message = icmp_message(echo, 0x0007_0003, &payload(56), None);
        Ipv4 { class: 46 << 2 | 2, ..flow.ipv4(ICMP) }.packet(&message)
    };
    list.add(&format!("{version} echo, dscp ef, ecn ect(0)"), vec![packet]);
    let flow = Flow::next(list, v6);
    let packets = if v6 {
        let message = icmp_message(
            echo,
            0x0007_0004,
            &payload(1400),
            Some((list.ends.client6, list.ends.vip6)),
        );
        flow.ipv6(ICMPV6).fragments(&message, 704, flow.source.port().into())
    } else {
        let message = icmp_message(echo, 0x0007_0004, &payload(1400), None);
        let header = Ipv4 { identification: flow.source.port(), ..flow.ipv4(ICMP) };
        header.fragments(&message, 704)
    };
    list.add(&format!("{version} echo in fragments"), packets);
    let others: &[(&str, (u8, u8))] = if v6 {
        &[("echo reply", (129, 0)), ("node information query", (139, 0))]
    } else {
        &[("echo reply", (0, 0)), ("timestamp request", (13, 0)), ("redirect", (5, 1))]
    };
    for (name, kind) in others {
        let flow = Flow::next(list, v6);
        let packet = flow.icmp(*kind, 0x0007_0005, &payload(28));
        list.add(&format!("{version} {name}"), vec![packet]);
    }
    if !v6 {
        let flow = Flow::next(list, false);
        let header = Ipv4 { ttl: 1, ..flow.ipv4(ICMP) };
        let message = icmp_message(echo, 0x0007_0006, &payload(56), None);
        list.add("ipv4 echo with ttl 1", vec![header.packet(&message)]);
        let flow = Flow::next(list, false);
        let header = Ipv4 { options: vec![7, 7, 4, 0, 0, 0, 0, 0], ..flow.ipv4(ICMP) };
        list.add("ipv4 echo with record route", vec![header.packet(&message)]);
    }
}

/// What an error quotes: a packet that the real server sent to the client.
fn reply(flow: &Flow, protocol: u8) -> Vec<u8> {
    let back = flow.back();
    let upper = if protocol == TCP {
        Segment::new(back.source, back.destination, flag::SYN | flag::ACK).bytes(&payload(700))
    } else {
        datagram(back.source, back.destination, &payload(700))
    };
    back.packet(protocol, &upper)
}

/// The packet that begins the flow that the error is about.
fn opening(flow: &Flow, protocol: u8) -> Vec<u8> {
    if protocol == TCP { flow.tcp(flag::SYN, &[]) } else { flow.udp(&payload(20)) }
}

fn errors(list: &mut List, v6: bool) {
    let version = if v6 { "ipv6" } else { "ipv4" };
    // Name, type and code, and the 4 bytes behind the checksum.
    let kinds: &[(&str, (u8, u8), u32)] = if v6 {
        &[
            ("packet too big", (2, 0), 1400),
            ("port unreachable", (1, 4), 0),
            ("address unreachable", (1, 3), 0),
            ("time exceeded", (3, 0), 0),
            ("parameter problem", (4, 0), 40),
        ]
    } else {
        &[
            ("fragmentation needed", (3, 4), 1400),
            ("port unreachable", (3, 3), 0),
            ("host unreachable", (3, 1), 0),
            ("time exceeded", (11, 0), 0),
            ("parameter problem", (12, 0), 0x0500_0000),
            ("source quench", (4, 0), 0),
        ]
    };
    let header = if v6 { 40 } else { 20 };
    for (transport, protocol) in [("tcp", TCP), ("udp", UDP)] {
        for (name, kind, rest) in kinds {
            let flow = Flow::next(list, v6);
            let quote = &reply(&flow, protocol)[..header + 28];
            let packets = vec![opening(&flow, protocol), flow.icmp(*kind, *rest, quote)];
            list.add(&format!("{version} {name} about a {transport} flow"), packets);
        }
        let (_, kind, rest) = kinds[0];
        for (name, length) in [
            ("8 bytes of it", header + 8),
            ("4 bytes of it", header + 4),
            ("its ip header only", header),
            ("as much as may be", if v6 { 1232 } else { 548 }),
        ] {
            let flow = Flow::next(list, v6);
            let whole = reply(&flow, protocol);
            let quote = &whole[..length.min(whole.len())];
            let packets = vec![opening(&flow, protocol), flow.icmp(kind, rest, quote)];
            list.add(&format!("{version} error about a {transport} flow, quoting {name}"), packets);
        }
        let flow = Flow::next(list, v6);
        let quote = reply(&flow, protocol);
        let packet = flow.icmp(kind, rest, &quote[..header + 28]);
        list.add(&format!("{version} error about an unknown {transport} flow"), vec![packet]);
        let flow = Flow::next(list, v6);
        let quote = opening(&flow, protocol);
        let packets = vec![quote.clone(), flow.icmp(kind, rest, &quote)];
        let name = format!("{version} error that quotes what the client sent itself, {transport}");
        list.add(&name, packets);
        let flow = Flow::next(list, v6);
        let quote = reply(&flow, protocol);
        let mut error = flow.icmp(kind, rest, &quote[..header + 28]);
        let last = error.len() - 1;
        error[last] ^= 1;
        let name = format!("{version} error about a {transport} flow, with a wrong checksum");
        list.add(&name, vec![opening(&flow, protocol), error]);
    }
    let flow = Flow::next(list, v6);
    let other: IpAddr = if v6 { list.ends.narrow6.into() } else { list.ends.narrow4.into() };
    let elsewhere = Flow { destination: SocketAddr::new(other, list.ends.port), ..flow };
    let quote = reply(&flow, TCP);
    let (_, kind, rest) = kinds[0];
    let error = elsewhere.icmp(kind, rest, &quote[..header + 28]);
    let name = format!("{version} error to another vip than that of the flow");
    list.add(&name, vec![opening(&flow, TCP), error]);
}
