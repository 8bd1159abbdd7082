//! Bulk data through the VIP, both ways, every byte compared.

use adit_lab::packet::TCP;
use adit_lab::topology::{VIP, vip};
use adit_lab::{Caller, SERVE_PORT, Service, Sniffer};

use crate::rig::Rig;

const HUNDRED_MB: u64 = 100_000_000;

pub(crate) fn a_hundred_megabytes_arrive_byte_for_byte(rig: &Rig) {
    let service = Service::tcp("bytes", vip(SERVE_PORT)).reals(rig.reals());
    let director = rig.start(&rig.config(service));
    let replies = Sniffer::start(director.host().namespace(), "eth0", |frame| {
        frame.ip().is_some_and(|ip| ip.source == VIP && ip.protocol == TCP)
    })
    .unwrap();
    let source = rig.sources(2);
    let caller = Caller::new(&rig.client, vip(SERVE_PORT));
    caller.from(source[0]).upload(HUNDRED_MB, 1).unwrap();
    let forwarded = director.totals().unwrap()["forwarded"];
    // Segments of 1420 bytes, from a client whose offloads are off.
    assert!(forwarded >= HUNDRED_MB / 1448, "{forwarded} packets went through the director");
    caller.from(source[1]).download(HUNDRED_MB, 2).unwrap();
    assert_eq!(replies.packets(), [], "replies went through the director");
}
