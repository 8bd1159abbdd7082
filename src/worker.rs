//! One worker: a pinned thread that reaps a batch, asks the core, and submits what it decided.
//!
//! This is the only place where [`crate::io`] and [`crate::dataplane`] meet. It owns nothing that
//! outlives it: the flow table is in the region, the counters are shared with control.

pub mod capture;
pub mod link;
pub mod peers;

use std::{ops::Range, sync::Arc, thread};

use crate::{
    dataplane::{
        conntrack::Slot,
        director::Director,
        snapshot::Snapshot,
        time::Time,
        verdict::{
            Account, EgressId, Event, HandOver, Outlet, ReplyTo, SendResult, Source, Verdict,
        },
    },
    io::{
        self, AuxSlot, AuxSlots, Disposition, EgressControl, Engine, EngineError, Errno, Handler,
        IoCounters,
    },
};

use capture::{CaptureTap, Direction};
use link::WorkerEnd;
use peers::{Parcel, Peers};

/// Everything a worker's thread is given.
pub struct Worker<S> {
    director: Director<S>,
    snapshot: Arc<Snapshot>,
    /// Egress path of the client-facing interface, for ARP and neighbour answers.
    client_egress: Option<EgressId>,
    link: WorkerEnd,
    capture: CaptureTap,
    peers: Peers,
    now: Time,
}

impl<S: AsRef<[Slot]>> Worker<S> {
    /// A worker that starts with `snapshot`.
    pub const fn new(
        director: Director<S>,
        snapshot: Arc<Snapshot>,
        client_egress: Option<EgressId>,
        link: WorkerEnd,
        capture: CaptureTap,
        peers: Peers,
    ) -> Self {
        Self { director, snapshot, client_egress, link, capture, peers, now: Time::ZERO }
    }

    /// Takes a frame that another worker had received to its verdict. Its buffer is lent, so what is
    /// sent of it goes out from an auxiliary slot.
    fn take_over(&mut self, mut parcel: Parcel, aux: &mut AuxSlots) {
        let Parcel { handed, length, buffer } = &mut parcel;
        let frame = io::HEADROOM..io::HEADROOM + *length;
        let Self { director, snapshot, link, capture, peers, now, .. } = self;
        let mut outlet = Shell { aux, link, capture, peers };
        let verdict = director.take_over(*now, snapshot, *handed, buffer, frame, &mut outlet);
        if let Verdict::Forward { range, egress } = &verdict {
            self.capture.record_outer(*egress, self.now, &buffer[range.clone()]);
        }
        if let Disposition::Send { egress, range, token } = self.dispose(verdict) {
            let bytes = &buffer[range];
            match aux.take() {
                Some(slot) if bytes.len() <= aux.bytes_mut(&slot).len() => {
                    let end = bytes.len();
                    aux.bytes_mut(&slot)[..end].copy_from_slice(bytes);
                    aux.send(slot, egress, 0..end, token);
                }
                unfit => {
                    if let Some(slot) = unfit {
                        aux.release(slot);
                    }
                    self.director.sent(account(token), SendResult::QueueFull);
                }
            }
        }
        self.peers.give_back(parcel.buffer);
    }

    /// Takes over what control has published.
    fn serve(&mut self, egress: &mut EgressControl<'_>) {
        while let Some(update) = self.link.next_update() {
            for (id, path) in update.install {
                if let Err(errno) = egress.install(io::EgressId(id.0), path) {
                    self.link.install_failed(id, errno);
                }
            }
            // Freed by control, so that no big free stalls the loop.
            let old = std::mem::replace(&mut self.snapshot, update.snapshot);
            self.link.retire(old);
            for id in update.remove {
                // Removing a path that is not there is what was wanted.
                let _ = egress.remove(io::EgressId(id.0));
            }
        }
    }

    fn dispose(&self, verdict: Verdict) -> Disposition {
        match verdict {
            Verdict::Forward { egress, range } => {
                let egress = io::EgressId(egress.0);
                Disposition::Send { egress, range, token: token(Account::Forward) }
            }
            Verdict::Reply { to, range } => {
                let egress = match (to, self.client_egress) {
                    (ReplyTo::ClientInterface, Some(id)) => io::EgressId(id.0),
                    (ReplyTo::Tap, _) | (ReplyTo::ClientInterface, None) => io::EgressId::TAP,
                };
                Disposition::Send { egress, range, token: token(Account::Reply) }
            }
            Verdict::Fragmented
            | Verdict::Pass
            | Verdict::HandedOver
            | Verdict::Hold
            | Verdict::Drop(_) => Disposition::Release,
        }
    }
}

impl<S: AsRef<[Slot]>> Handler for Worker<S> {
    fn batch(&mut self, now_ns: u64, egress: &mut EgressControl<'_>) {
        self.now = Time(now_ns);
        self.director.batch(self.now);
        self.serve(egress);
        self.capture.look();
    }

    fn looks_ahead(&self) -> bool {
        self.director.looks_ahead()
    }

    fn ahead(&self, frame: &[u8]) {
        self.director.ahead(&self.snapshot, frame);
    }

    fn frame(
        &mut self,
        source: io::Source,
        slot: &mut [u8],
        frame: Range<usize>,
        aux: &mut AuxSlots,
    ) -> Disposition {
        let source = match source {
            io::Source::Tap => Source::Tap,
            io::Source::Neighbour { .. } => Source::Neighbour,
            io::Source::OuterError => Source::OuterError,
            // A director's engine has no such sockets.
            io::Source::Tunnel => return Disposition::Release,
        };
        let mut outlet =
            Shell { aux, link: &mut self.link, capture: &mut self.capture, peers: &mut self.peers };
        if source == Source::Tap {
            outlet.capture.record(Direction::Inner, self.now, &slot[frame.clone()]);
        }
        let verdict =
            self.director.handle(self.now, &self.snapshot, source, slot, frame, &mut outlet);
        if let Verdict::Forward { range, egress } = &verdict {
            self.capture.record_outer(*egress, self.now, &slot[range.clone()]);
        }
        self.dispose(verdict)
    }

    fn inbox(&mut self, aux: &mut AuxSlots) -> bool {
        self.peers.ring();
        for _ in 0..self.peers.open() {
            if aux.free_count() == 0 {
                break;
            }
            let Some(parcel) = self.peers.next() else { break };
            self.take_over(parcel, aux);
        }
        // What was taken may have led to more.
        self.peers.ring();
        self.peers.has_more()
    }

    fn sent(&mut self, token: u32, result: Result<(), Errno>) {
        let result = match result {
            Ok(()) => SendResult::Sent,
            Err(Errno::EAGAIN | Errno::ENOBUFS) => SendResult::QueueFull,
            Err(errno) => {
                self.link.send_failed(errno);
                SendResult::Failed
            }
        };
        self.director.sent(account(token), result);
    }

    fn tick(&mut self, now_ns: u64, _aux: &mut AuxSlots, counters: &IoCounters) {
        self.now = Time(now_ns);
        self.director.tick(self.now);
        self.link.beat(now_ns, counters);
    }

    fn stop_requested(&self) -> bool {
        self.link.stop_requested()
    }
}

/// The core's outlet: auxiliary slots of the engine and the event queue.
struct Shell<'a> {
    aux: &'a mut AuxSlots,
    link: &'a mut WorkerEnd,
    capture: &'a mut CaptureTap,
    peers: &'a mut Peers,
}

impl Outlet for Shell<'_> {
    type Scratch = AuxSlot;

    fn acquire(&mut self) -> Option<AuxSlot> {
        self.aux.take()
    }

    fn bytes(&mut self, scratch: &AuxSlot) -> &mut [u8] {
        self.aux.bytes_mut(scratch)
    }

    fn send(&mut self, scratch: AuxSlot, egress: EgressId, range: Range<usize>, account: Account) {
        let bytes = &self.aux.bytes_mut(&scratch)[range.clone()];
        self.capture.record_outer(egress, self.link.now(), bytes);
        self.aux.send(scratch, io::EgressId(egress.0), range, token(account));
    }

    fn release(&mut self, scratch: AuxSlot) {
        self.aux.release(scratch);
    }

    fn event(&mut self, event: Event) -> bool {
        self.link.event(event)
    }

    fn hand_over(&mut self, hand_over: HandOver, frame: &[u8]) -> bool {
        self.peers.hand_over(hand_over, frame)
    }
}

const fn token(account: Account) -> u32 {
    match account {
        Account::Forward => 0,
        Account::Reply => 1,
        Account::Extra => 2,
    }
}

const fn account(token: u32) -> Account {
    match token {
        0 => Account::Forward,
        1 => Account::Reply,
        _ => Account::Extra,
    }
}

/// Runs a worker on a thread of its own until it is told to stop, or its device is gone.
/// `on_end` is called on that thread when it ends, however it ends, so that no worker dies unseen.
/// `name` is at most 15 bytes, as the kernel shows it.
///
/// # Errors
/// The thread could not be started.
pub fn spawn<S: AsRef<[Slot]> + Send + 'static>(
    name: String,
    mut worker: Worker<S>,
    mut engine: Engine,
    core: Option<usize>,
    on_end: impl FnOnce(Result<IoCounters, EngineError>) + Send + 'static,
) -> std::io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().name(name).spawn(move || {
        if let Some(core) = core
            && let Err(errno) = io::pin_current_thread(core)
        {
            tracing::warn!(core, %errno, "worker is not pinned");
        }
        let result = engine.run(&mut worker);
        on_end(result);
    })
}
