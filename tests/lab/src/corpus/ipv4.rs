//! What is special in an IPv4 header: class, TTL, flags, options, fragments.

use std::net::Ipv4Addr;

use super::List;
use super::build::{Ipv4, flag, payload};
use super::transport::Flow;

const TCP: u8 = 6;
const UDP: u8 = 17;

pub(super) fn add(list: &mut List) {
    fields(list);
    options(list);
    broken(list);
    fragments(list);
}

/// A datagram of a new flow under a header that `alter` has changed.
fn with(list: &mut List, name: &str, alter: impl FnOnce(&mut Ipv4)) {
    let flow = Flow::next(list, false);
    let mut header = flow.ipv4(UDP);
    alter(&mut header);
    let packet = header.packet(&flow.datagram(&payload(33)));
    list.add(&format!("ipv4 {name}"), vec![packet]);
}

fn fields(list: &mut List) {
    for (name, ecn) in [("not-ect", 0), ("ect(1)", 1), ("ect(0)", 2), ("ce", 3)] {
        with(list, &format!("ecn {name}"), |header| header.class = ecn);
        with(list, &format!("dscp ef, ecn {name}"), |header| header.class = 46 << 2 | ecn);
    }
    for dscp in [8, 10, 48, 63] {
        with(list, &format!("dscp {dscp}"), |header| header.class = dscp << 2);
    }
    for ttl in [0, 1, 2, 64, 255] {
        with(list, &format!("ttl {ttl}"), |header| header.ttl = ttl);
    }
    let flow = Flow::next(list, false);
    let segment = flow.segment(flag::SYN).bytes(&[]);
    let packet = Ipv4 { ttl: 1, ..flow.ipv4(TCP) }.packet(&segment);
    list.add("ipv4 tcp syn with ttl 1", vec![packet]);
    with(list, "df", |header| header.dont_fragment = true);
    with(list, "identification 0", |header| header.identification = 0);
    with(list, "identification 0 and df", |header| {
        (header.identification, header.dont_fragment) = (0, true);
    });
    for (name, source) in [
        ("loopback", Ipv4Addr::LOCALHOST),
        ("unspecified", Ipv4Addr::UNSPECIFIED),
        ("multicast", Ipv4Addr::new(224, 0, 0, 5)),
        ("broadcast", Ipv4Addr::BROADCAST),
        ("reserved", Ipv4Addr::new(240, 0, 0, 1)),
    ] {
        with(list, &format!("from a {name} address"), |header| header.source = source);
    }
    let vip = list.ends.vip4;
    with(list, "from the vip itself", |header| header.source = vip);
}

/// Options of RFC 791 §3.1, and one nobody knows.
fn options(list: &mut List) {
    let hop = [10, 9, 9, 9];
    let last = list.ends.vip4.octets();
    let route = |kind: u8, pointer: u8, hops: &[[u8; 4]]| {
        let length = u8::try_from(3 + hops.len() * 4).expect("at most 40 bytes");
        let mut option = vec![kind, length, pointer];
        option.extend(hops.iter().flatten());
        option.resize(option.len().next_multiple_of(4), 0);
        option
    };
    let kinds: Vec<(&str, Vec<u8>)> = vec![
        ("no-operations", vec![1, 1, 1, 1]),
        ("the end of the list at once", vec![0, 0, 0, 0]),
        ("record route, empty", route(7, 4, &[[0; 4]; 3])),
        ("record route, one slot left", route(7, 12, &[hop, hop, [0; 4]])),
        ("record route, full", route(7, 16, &[hop, hop, hop])),
        ("timestamps only", vec![68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("timestamps with addresses", vec![68, 12, 5, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("timestamps, full", vec![68, 8, 9, 0, 0, 0, 0, 0]),
        ("loose source route, passed", route(131, 8, &[last])),
        ("strict source route, passed", route(137, 8, &[last])),
        ("loose source route, ahead", route(131, 4, &[hop])),
        ("router alert", vec![148, 4, 0, 0]),
        ("security", vec![130, 11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("an unknown option", vec![0x9e, 4, 1, 2]),
        ("broken: an option of length 0", vec![7, 0, 4, 0]),
        ("broken: an option beyond the header", vec![7, 39, 4, 0]),
    ];
    for (name, options) in kinds {
        with(list, name, |header| header.options = options);
    }
    let flow = Flow::next(list, false);
    let header = Ipv4 { options: vec![1; 40], dont_fragment: true, ..flow.ipv4(UDP) };
    let packet = header.packet(&flow.datagram(&payload(1480 - 60 - 8)));
    list.add("ipv4 40 no-operations, longest packet that fits", vec![packet]);
    let flow = Flow::next(list, false);
    let header = Ipv4 { options: vec![148, 4, 0, 0], ..flow.ipv4(UDP) };
    let packet = header.packet(&flow.datagram(&payload(1500 - 24 - 8)));
    list.add("ipv4 router alert, packet of 1500", vec![packet]);
}

fn broken(list: &mut List) {
    with(list, "broken: wrong header checksum", |header| header.spoil = 0x0100);
    let mut altered = |name: &str, alter: fn(&mut Vec<u8>)| {
        let flow = Flow::next(list, false);
        let mut packet = flow.udp(&payload(33));
        alter(&mut packet);
        list.add(&format!("ipv4 {name}"), vec![packet]);
    };
    altered("broken: header length below 20", |packet| packet[0] = 0x44);
    altered("broken: total length below the header", |packet| packet[3] = 19);
    altered("broken: half a header", |packet| packet.truncate(12));
    altered("broken: the reserved flag", |packet| packet[6] |= 0x80);
}

fn fragments(list: &mut List) {
    let pieces = |list: &List, alter: &dyn Fn(&mut Ipv4), length: usize, step: usize| {
        let flow = Flow::next(list, false);
        let mut header = flow.ipv4(UDP);
        // One of its own for each datagram, so that no case's pieces meet another's.
        header.identification = flow.source.port();
        alter(&mut header);
        header.fragments(&flow.datagram(&payload(length)), step)
    };
    let plain = |_: &mut Ipv4| {};
    let three = |list: &List| pieces(list, &plain, 1400, 560);
    let order = |list: &List, order: &[usize]| {
        let all = three(list);
        order.iter().map(|&index| all[index].clone()).collect::<Vec<_>>()
    };
    for (name, places) in [
        ("fragments", &[0usize, 1, 2][..]),
        ("fragments, last first", &[2, 1, 0]),
        ("fragments, first last", &[1, 2, 0]),
        ("fragments, each twice", &[0, 0, 1, 1, 2, 2]),
        ("first fragment alone", &[0]),
        ("middle fragment alone", &[1]),
        ("last fragment alone", &[2]),
        ("fragments without the first", &[1, 2]),
        ("fragments without the last", &[0, 1]),
    ] {
        let packets = order(list, places);
        list.add(&format!("ipv4 {name}"), packets);
    }
    let packets = pieces(list, &plain, 2900, 1456);
    list.add("ipv4 fragments that just fit", packets);
    let packets = pieces(list, &plain, 2900, 1480);
    list.add("ipv4 fragments that do not fit", packets);
    let packets = pieces(list, &plain, 40, 8);
    list.add("ipv4 fragments of 8 bytes", packets);
    let packets = pieces(list, &|header| header.dont_fragment = true, 1400, 560);
    list.add("ipv4 fragments with df", packets);
    let packets = pieces(list, &|header| header.dont_fragment = true, 2900, 1480);
    list.add("ipv4 fragments with df that do not fit", packets);
    let packets = pieces(list, &|header| header.class = 46 << 2 | 2, 1400, 560);
    list.add("ipv4 fragments, dscp ef, ecn ect(0)", packets);
    let mut packets = pieces(list, &|header| header.class = 2, 1400, 560);
    // A router marked one of them: the whole has been marked (RFC 3168 §5.3).
    let flow = Flow::next(list, false);
    let mut marked = flow.ipv4(UDP);
    (marked.identification, marked.class) = (flow.source.port(), 3);
    packets[1] = marked.fragments(&flow.datagram(&payload(1400)), 560).remove(1);
    list.add("ipv4 fragments, one of them ce", packets);
    let packets = pieces(list, &|header| header.ttl = 1, 1400, 560);
    list.add("ipv4 fragments with ttl 1", packets);
    let packets = pieces(list, &|header| header.options = vec![148, 4, 0, 0], 1400, 560);
    list.add("ipv4 fragments with router alert", packets);

    let flow = Flow::next(list, false);
    let header = Ipv4 { identification: flow.source.port(), ..flow.ipv4(TCP) };
    let syn = flow.segment(flag::SYN).bytes(&payload(40));
    list.add("ipv4 tcp syn in fragments of 8 bytes", header.fragments(&syn, 8));
    let flow = Flow::next(list, false);
    let header = Ipv4 { identification: flow.source.port(), ..flow.ipv4(TCP) };
    let syn = flow.segment(flag::SYN).bytes(&payload(700));
    list.add("ipv4 tcp syn in two fragments", header.fragments(&syn, 400));
}
