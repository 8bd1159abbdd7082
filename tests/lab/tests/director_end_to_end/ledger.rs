//! Every packet that a client sent is somewhere in the counters, and at a real server if they say so.

use std::collections::BTreeMap;
use std::time::Duration;

use adit_lab::packet::{IPIP, datagram, echo_request};
use adit_lab::topology::{VIP, vip};
use adit_lab::{Director, Frame, Host, RawSender, Service, Sniffer, wait_until};

use crate::rig::Rig;

/// Discard (RFC 863): nobody answers, so nothing but the burst is on the way.
const PORT: u16 = 9;
/// A port without a service.
const NO_PORT: u16 = 10;

const BURST: usize = 20_000;
/// Packets that have not arrived yet, at most. What does not fit into a queue on the way to the
/// director is lost before anybody can count it. The shortest is that of packets whose neighbour is
/// still being resolved (`unres_qlen_bytes`, some 90 of these), and a guest may take its time to
/// answer.
const ON_THE_WAY: usize = 48;
/// Packets that are sent between two looks at how many have arrived.
const STEP: usize = 16;
const STRAY: usize = 300;
const PINGS: usize = 50;
const SOON: Duration = Duration::from_secs(30);

/// Everything that the director counts, drops as `drop:REASON`.
fn counters(director: &Director) -> BTreeMap<String, u64> {
    let mut counters = director.totals().unwrap();
    let drops = director.drops().unwrap();
    counters.extend(drops.into_iter().map(|(reason, count)| (format!("drop:{reason}"), count)));
    counters
}

/// One sniffer a real server, for wrapped packets.
fn in_front_of_the_servers(rig: &Rig) -> Vec<Sniffer> {
    let wrapped =
        |frame: &Frame| !frame.outgoing && frame.ip().is_some_and(|ip| ip.protocol == IPIP);
    let reals = &rig.lab().reals;
    let machines = reals.iter().map(|real| real.machine().namespace());
    machines.map(|machine| Sniffer::start(machine, "eth0", wrapped).unwrap()).collect()
}

pub(crate) fn every_packet_of_a_burst_is_accounted_for(rig: &Rig) {
    let lab = rig.lab();
    let service = Service::udp("discard", vip(PORT)).reals(rig.reals());
    let director = rig.start(&rig.config(service));
    let sender = RawSender::new(&rig.client).unwrap();
    // At the last router: other clients may have something to say too.
    let sent = Sniffer::start(&lab.r0, "edge", |frame| {
        frame.outgoing && frame.ip().is_some_and(|ip| ip.destination == VIP)
    })
    .unwrap();
    let arrived = in_front_of_the_servers(rig);
    let count = || arrived.iter().map(Sniffer::count).sum::<usize>();
    let sources = rig.sources(100);

    let before = counters(&director);
    for number in 0..BURST {
        let source = sources[number % sources.len()];
        sender.send(&datagram(source, vip(PORT), &number.to_be_bytes())).unwrap();
        if number % STEP == 0 {
            let what = format!("{number} packets of the burst, {} arrived", count());
            wait_until(SOON, &what, || count() + ON_THE_WAY > number + STEP).unwrap();
        }
    }
    let now = || -> BTreeMap<String, u64> {
        let after = counters(&director);
        after.into_iter().map(|(name, count)| (name.clone(), count - before[&name])).collect()
    };
    // What comes from the neighbour socket, and the host's own multicast on the TAP, are frames too,
    // but none of a client's.
    let taken = |delta: &BTreeMap<String, u64>| {
        let not_clients = ["passed", "neighbour_answers"].map(|name| delta[name]);
        delta["received"] - not_clients.iter().sum::<u64>()
    };
    let received =
        |what: &str, count: usize| wait_until(SOON, what, || taken(&now()) >= count as u64);
    for number in 0..STRAY {
        let source = sources[number % sources.len()];
        sender.send(&datagram(source, vip(NO_PORT), b"nobody")).unwrap();
        if number < PINGS {
            sender.send(&echo_request(sources[0].ip(), VIP, 7, &number.to_be_bytes())).unwrap();
        }
        if number % STEP == 0 {
            // Nobody sees them arrive but the director.
            let sent = BURST + number + PINGS.min(number);
            received("the strays to arrive", sent).unwrap_or_else(|error| {
                panic!("{error}: {} sent, {:?}", sent, now());
            });
        }
    }
    let all = BURST + STRAY + PINGS;
    let settled = received("all that was sent in the counters", all);
    let delta = now();
    settled.unwrap_or_else(|error| panic!("{error}: {} sent, {delta:?}", sent.count()));

    assert_eq!((sent.count(), taken(&delta)), (all, all as u64), "sent, received: {delta:?}");
    assert_eq!(count(), BURST, "seen in front of the real servers");
    assert_eq!(delta["forwarded"], BURST as u64, "{delta:?}");
    assert_eq!(delta["drop:no_service"], STRAY as u64, "{delta:?}");
    // Answers of Adit's own have a rate limit.
    assert_eq!(delta["echo_answers"] + delta["drop:emit_rate_limited"], PINGS as u64, "{delta:?}");

    let after = counters(&director);
    let dropped: u64 =
        after.iter().filter(|(name, _)| name.starts_with("drop:")).map(|(_, count)| count).sum();
    let sum = ["forwarded", "replied", "passed", "held", "in_flight"].map(|name| after[name]);
    assert_eq!(after["received"], sum.iter().sum::<u64>() + dropped, "{after:?}");

    for real in rig.reals() {
        let shown = director.real("discard", real.address(false)).unwrap().unwrap();
        let at = lab.reals.iter().position(|other| other.name() == real.name()).unwrap();
        assert_eq!(shown["counters"]["packets"], arrived[at].count(), "{shown}");
        assert!(arrived[at].count() > 0, "{} got none of 100 flows", real.name());
    }
}
