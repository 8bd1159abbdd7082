//! What is special in an IPv6 header and behind it: class, flow label, hop limit, extension headers
//! (RFC 8200 §4), fragments.

use std::net::Ipv6Addr;

use super::List;
use super::build::{Ipv6, flag, payload};
use super::transport::Flow;

const TCP: u8 = 6;
const UDP: u8 = 17;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const NO_NEXT_HEADER: u8 = 59;
const DESTINATION_OPTIONS: u8 = 60;

pub(super) fn add(list: &mut List) {
    fields(list);
    extensions(list);
    fragments(list);
}

fn with(list: &mut List, name: &str, alter: impl FnOnce(&mut Ipv6)) {
    let flow = Flow::next(list, true);
    let mut header = flow.ipv6(UDP);
    alter(&mut header);
    let packet = header.packet(&flow.datagram(&payload(33)));
    list.add(&format!("ipv6 {name}"), vec![packet]);
}

fn fields(list: &mut List) {
    for (name, ecn) in [("not-ect", 0), ("ect(1)", 1), ("ect(0)", 2), ("ce", 3)] {
        with(list, &format!("ecn {name}"), |header| header.class = ecn);
        with(list, &format!("dscp ef, ecn {name}"), |header| header.class = 46 << 2 | ecn);
    }
    for dscp in [8, 10, 48, 63] {
        with(list, &format!("dscp {dscp}"), |header| header.class = dscp << 2);
    }
    for flow_label in [1, 0xf_ffff] {
        with(list, &format!("flow label {flow_label:#x}"), |header| {
            header.flow_label = flow_label;
        });
    }
    for hop_limit in [0, 1, 2, 64, 255] {
        with(list, &format!("hop limit {hop_limit}"), |header| header.hop_limit = hop_limit);
    }
    let mapped: Ipv6Addr = list.ends.client4.to_ipv6_mapped();
    let vip = list.ends.vip6;
    for (name, source) in [
        ("a loopback address", Ipv6Addr::LOCALHOST),
        ("an unspecified address", Ipv6Addr::UNSPECIFIED),
        ("a multicast address", Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 5)),
        ("a mapped address", mapped),
        ("a link-local address", Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 7)),
        ("the vip itself", vip),
    ] {
        with(list, &format!("from {name}"), |header| header.source = source);
    }
}

/// An extension header, of which the first byte is still to be written, and the number of its kind.
type Extension = (u8, Vec<u8>);

/// An extension header without its first byte: how many 8-byte units follow the first, and the rest.
fn extension(rest: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0];
    bytes.extend_from_slice(rest);
    assert!(bytes.len().is_multiple_of(8), "whole units");
    bytes[1] = u8::try_from(bytes.len() / 8 - 1).expect("short");
    bytes
}

/// A datagram behind these headers, of which the first is of kind `first` and so on.
fn behind(flow: &Flow, headers: &[Extension], last: u8, upper: &[u8]) -> Vec<u8> {
    let mut rest = Vec::new();
    for (index, (_, header)) in headers.iter().enumerate() {
        let next = headers.get(index + 1).map_or(last, |(kind, _)| *kind);
        let start = rest.len();
        rest.extend_from_slice(header);
        rest[start] = next;
    }
    rest.extend_from_slice(upper);
    flow.ipv6(headers.first().map_or(last, |(kind, _)| *kind)).packet(&rest)
}

fn extensions(list: &mut List) {
    // PadN of 6 bytes (RFC 8200 §4.2); router alert (RFC 2711) and 2 bytes of padding.
    let padding = extension(&[1, 4, 0, 0, 0, 0]);
    let alert = extension(&[5, 2, 0, 0, 1, 0]);
    // Options that nobody knows, whose kind says: skip, drop, drop and say so.
    let unknown = |kind: u8| extension(&[kind, 4, 0, 0, 0, 0]);
    let hops = |kind: u8, left: u8| {
        let mut rest = vec![kind, left, 0, 0, 0, 0];
        rest.extend(list_hop().octets());
        extension(&rest)
    };
    let atomic = vec![0, 0, 0, 0, 0, 0, 0, 9];
    // Authentication counts in 4-byte units, less two.
    let authentication =
        vec![0, 4, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
    let pad = |kind| (kind, padding.clone());
    let chains: Vec<(&str, Vec<Extension>)> = vec![
        ("hop-by-hop padding", vec![pad(HOP_BY_HOP)]),
        ("hop-by-hop router alert", vec![(HOP_BY_HOP, alert)]),
        ("hop-by-hop unknown, skip", vec![(HOP_BY_HOP, unknown(0x1e))]),
        ("hop-by-hop unknown, drop", vec![(HOP_BY_HOP, unknown(0x5e))]),
        ("hop-by-hop unknown, answer", vec![(HOP_BY_HOP, unknown(0x9e))]),
        ("destination options padding", vec![pad(DESTINATION_OPTIONS)]),
        ("destination options unknown, drop", vec![(DESTINATION_OPTIONS, unknown(0x5e))]),
        ("destination options unknown, answer", vec![(DESTINATION_OPTIONS, unknown(0x9e))]),
        ("routing header type 0, passed", vec![(ROUTING, hops(0, 0))]),
        ("routing header type 0, ahead", vec![(ROUTING, hops(0, 1))]),
        ("routing header type 2, passed", vec![(ROUTING, hops(2, 0))]),
        ("routing header of unknown type, ahead", vec![(ROUTING, hops(200, 1))]),
        ("atomic fragment", vec![(FRAGMENT, atomic)]),
        ("authentication header", vec![(AUTHENTICATION, authentication)]),
        (
            "hop-by-hop, destination options, routing header",
            vec![pad(HOP_BY_HOP), pad(DESTINATION_OPTIONS), (ROUTING, hops(0, 0))],
        ),
        ("nine destination options", vec![pad(DESTINATION_OPTIONS); 9]),
        (
            "broken: hop-by-hop behind another header",
            vec![pad(DESTINATION_OPTIONS), pad(HOP_BY_HOP)],
        ),
    ];
    for (name, headers) in chains {
        let flow = Flow::next(list, true);
        let packet = behind(&flow, &headers, UDP, &flow.datagram(&payload(33)));
        list.add(&format!("ipv6 {name}"), vec![packet]);
    }
    let flow = Flow::next(list, true);
    let syn = flow.segment(flag::SYN).bytes(&[]);
    let packet = behind(&flow, &[pad(HOP_BY_HOP), pad(DESTINATION_OPTIONS)], TCP, &syn);
    list.add("ipv6 tcp syn behind two headers", vec![packet]);
    let flow = Flow::next(list, true);
    let packet = behind(&flow, &[pad(HOP_BY_HOP)], NO_NEXT_HEADER, &[]);
    list.add("ipv6 no next header", vec![packet]);
    let flow = Flow::next(list, true);
    let mut packet = behind(&flow, &[pad(DESTINATION_OPTIONS)], UDP, &flow.datagram(&[]));
    packet[41] = 200;
    list.add("ipv6 broken: an extension header beyond the packet", vec![packet]);
    let flow = Flow::next(list, true);
    let longest = payload(1460 - 40 - 8 - 8);
    let packet = behind(&flow, &[pad(DESTINATION_OPTIONS)], UDP, &flow.datagram(&longest));
    list.add("ipv6 destination options, longest packet that fits", vec![packet]);
}

/// A hop that routing headers name; nobody is there.
fn list_hop() -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 9)
}

fn fragments(list: &mut List) {
    let pieces = |list: &List, alter: &dyn Fn(&mut Ipv6), length: usize, step: usize| {
        let flow = Flow::next(list, true);
        let mut header = flow.ipv6(UDP);
        alter(&mut header);
        header.fragments(&flow.datagram(&payload(length)), step, flow.source.port().into())
    };
    let plain = |_: &mut Ipv6| {};
    for (name, places) in [
        ("fragments", &[0usize, 1, 2][..]),
        ("fragments, last first", &[2, 1, 0]),
        ("fragments, first last", &[1, 2, 0]),
        ("fragments, each twice", &[0, 0, 1, 1, 2, 2]),
        ("first fragment alone", &[0]),
        ("middle fragment alone", &[1]),
        ("last fragment alone", &[2]),
    ] {
        let all = pieces(list, &plain, 1400, 560);
        let packets = places.iter().map(|&index| all[index].clone()).collect();
        list.add(&format!("ipv6 {name}"), packets);
    }
    let packets = pieces(list, &plain, 2800, 1408);
    list.add("ipv6 fragments that just fit", packets);
    let packets = pieces(list, &plain, 2900, 1448);
    list.add("ipv6 fragments that do not fit", packets);
    let packets = pieces(list, &plain, 80, 40);
    list.add("ipv6 fragments of 40 bytes", packets);
    let packets = pieces(list, &|header| header.class = 46 << 2 | 2, 1400, 560);
    list.add("ipv6 fragments, dscp ef, ecn ect(0)", packets);
    let packets = pieces(list, &|header| header.hop_limit = 1, 1400, 560);
    list.add("ipv6 fragments with hop limit 1", packets);
    let flow = Flow::next(list, true);
    let syn = flow.segment(flag::SYN).bytes(&payload(40));
    let packets = flow.ipv6(TCP).fragments(&syn, 8, flow.source.port().into());
    list.add("ipv6 tcp syn in fragments of 8 bytes", packets);
}
