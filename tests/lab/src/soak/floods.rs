//! Traffic that nobody wants: frames that make no sense, and SYNs of clients that do not exist.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::thread::Scope;
use std::time::Duration;

use super::dice::Dice;
use super::{Shared, Tally};
use crate::error::Result;
use crate::io::packet::PacketSocket;
use crate::junk::Junk;
use crate::namespace::Namespace;
use crate::neighbour::{Mac, link_address, own};
use crate::packet::syn;
use crate::realserver::SERVE_PORT;
use crate::sniffer::RawSender;
use crate::topology::{CLIENT_DEVICE, Lab, TAP, vip};

/// Port of the service that is flooded: nobody listens there on real servers, so that it is the
/// director that has to cope, and not their queues of half-open connections.
pub(super) const FLOOD_PORT: u16 = SERVE_PORT + 1;

/// Frames of junk at a time, by each of the three ways.
const JUNK: u64 = 100;
/// SYNs at a time.
const SYNS: u64 = 100;
/// Time between two times: some thousand packets a second in all, which leaves two cores something
/// for the sessions.
const PACE: Duration = Duration::from_millis(100);

/// Answers to clients that do not exist end at the first router.
///
/// # Errors
/// When the router takes no route.
pub(super) fn prepare(lab: &Lab) -> Result<()> {
    lab.r0.ip("route add blackhole 10.9.0.0/16")
}

/// Starts the floods.
pub(super) fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
    lab: &'scope Lab,
    shared: &'scope Shared,
    seed: u64,
) {
    let flood = move |result: Result<()>| {
        if let Err(error) = result {
            shared.tally.violation(format!("a flood ended: {error}"));
        }
    };
    scope.spawn(move || flood(junk(lab, shared, seed)));
    scope.spawn(move || flood(syns(lab, shared, seed)));
}

/// A source of junk on a device that may not be there.
struct Spout<'a> {
    host: &'a Namespace,
    device: &'static str,
    junk: Junk,
    socket: Option<PacketSocket>,
}

impl<'a> Spout<'a> {
    fn new(host: &'a Namespace, device: &'static str, to: Mac, seed: u64) -> Self {
        Self { host, device, junk: Junk::new(seed, to), socket: None }
    }

    /// Sends some, if the device is there.
    fn send(&mut self, tally: &Tally) -> Result<()> {
        if self.socket.is_none() {
            // A director that is away has taken its TAP along.
            self.socket = self.host.enter(|| PacketSocket::open_to_send(self.device))?.ok();
        }
        let Some(socket) = &self.socket else { return Ok(()) };
        let mut frame = Vec::new();
        for _ in 0..JUNK {
            self.junk.next(&mut frame);
            match socket.send(&frame) {
                Ok(()) => tally.count(|tally| &tally.junk, 1),
                // A device that is gone: the next one has another number.
                Err(error)
                    if matches!(
                        error.raw_os_error(),
                        Some(libc::ENXIO | libc::ENODEV | libc::ENETDOWN)
                    ) =>
                {
                    self.socket = None;
                    return Ok(());
                }
                // A queue that is full loses the frame, as a wire does; one that is longer than
                // the device takes is none.
                Err(_) => {}
            }
        }
        Ok(())
    }
}

fn junk(lab: &Lab, shared: &Shared, seed: u64) -> Result<()> {
    let director = lab.director();
    let host = director.namespace();
    let (edge, _) = own(host, CLIENT_DEVICE, false)?;
    let (gateway, _) = own(&lab.r0, "clients", false)?;
    let tap = link_address(host, TAP)?;
    let mut spouts = [
        Spout::new(host, TAP, tap, seed ^ 1),
        Spout::new(&lab.r0, "edge", edge, seed ^ 2),
        Spout::new(&lab.client, "eth0", gateway, seed ^ 3),
    ];
    while shared.goes_on() {
        for spout in &mut spouts {
            spout.send(&shared.tally)?;
        }
        shared.pace(PACE);
    }
    Ok(())
}

fn syns(lab: &Lab, shared: &Shared, seed: u64) -> Result<()> {
    let sender = RawSender::new(&lab.client)?;
    let mut dice = Dice::new(seed ^ 4);
    while shared.goes_on() {
        for _ in 0..SYNS {
            let [high, low] = [dice.below(256), dice.below(256)].map(|n| n.to_le_bytes()[0]);
            let client = IpAddr::from(Ipv4Addr::new(10, 9, high, low));
            let port = u16::try_from(1024 + dice.below(60_000)).expect("a port");
            let segment = syn(SocketAddr::new(client, port), vip(FLOOD_PORT), dice.below(u32::MAX));
            // What the client's own queue does not take is no flood.
            if sender.send(&segment).is_ok() {
                shared.tally.count(|tally| &tally.syns, 1);
            }
        }
        shared.pace(PACE);
    }
    Ok(())
}
