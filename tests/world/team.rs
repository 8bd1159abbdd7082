//! Several workers over one snapshot, and a shell that carries frames between them. Frames are
//! taken one after the other, so that what happens is the same each time.

use std::{collections::VecDeque, ops::Range, sync::Arc, time::Duration};

use adit::dataplane::{
    conntrack::{FlowTable, Slot},
    counters::AllCounters,
    director::{Director, Parts, Team},
    path_mtu::PathMtus,
    persistence::PersistenceTable,
    region::Entry,
    snapshot::Snapshot,
    steering::Steering,
    time::Time,
    verdict::{Account, EgressId, Event, HEADROOM, HandOver, Outlet, SendResult, Source, Verdict},
};

use super::{Output, SLOT, TestShell, fragments, rate_limiter, slots};

/// Frames that may wait between workers, of all together.
const WAITING: usize = 256;

/// A frame on its way, in a buffer made beforehand.
struct Parcel {
    handed: HandOver,
    length: usize,
    buffer: Vec<u8>,
}

/// The shell of all workers: what it keeps is in the order in which it was sent.
struct Shell {
    aux: TestShell,
    ring: VecDeque<Parcel>,
    free: Vec<Vec<u8>>,
}

impl Outlet for Shell {
    type Scratch = usize;

    fn acquire(&mut self) -> Option<usize> {
        self.aux.acquire()
    }

    fn bytes(&mut self, scratch: &usize) -> &mut [u8] {
        self.aux.bytes(scratch)
    }

    fn send(&mut self, scratch: usize, egress: EgressId, range: Range<usize>, account: Account) {
        self.aux.send(scratch, egress, range, account);
    }

    fn release(&mut self, scratch: usize) {
        self.aux.release(scratch);
    }

    fn event(&mut self, event: Event) -> bool {
        self.aux.event(event)
    }

    fn hand_over(&mut self, handed: HandOver, frame: &[u8]) -> bool {
        let Some(mut buffer) = self.free.pop() else { return false };
        buffer[HEADROOM..HEADROOM + frame.len()].copy_from_slice(frame);
        self.ring.push_back(Parcel { handed, length: frame.len(), buffer });
        true
    }
}

/// Several directors that are one.
pub struct Workers {
    directors: Vec<Director<Vec<Slot>>>,
    shell: Shell,
    pub counters: AllCounters,
    pub snapshot: Snapshot,
    pub steering: Steering,
    pub now: Time,
    slot: Vec<u8>,
    /// How often the last frame was handed over.
    pub hops: usize,
}

impl Workers {
    /// So many workers with room for `connections` flows each.
    pub fn new(workers: u16, snapshot: Snapshot, connections: usize) -> Self {
        let counters = AllCounters::new(snapshot.destinations.len(), workers);
        let steering = Steering::new(workers, 0x0dd_5eed);
        let now = Time(3_600_000_000_000);
        let places = (0..64).map(|_| Entry::default()).collect::<Vec<_>>();
        let (persistence, _) = PersistenceTable::adopt(places, [5, 6, 7, 8], now, |_| true);
        let limiter = rate_limiter();
        let path_mtus = PathMtus::for_workers(64, workers);
        let parts = (0..).zip(path_mtus).zip(counters.workers());
        let directors = parts.map(|((number, path_mtus), counters)| {
            Director::new(Parts {
                flows: FlowTable::new(slots(connections), [1, 2, 3, 4]),
                fragments: fragments(),
                path_mtus,
                emit_limits: limiter.clone(),
                persistence: persistence.index(),
                counters: Arc::clone(counters),
                team: Team::new(steering, number, 1500, [4, 3, 2, 1]),
            })
        });
        let directors = directors.collect();
        let shell = Shell {
            aux: TestShell::new(),
            ring: VecDeque::with_capacity(WAITING),
            free: vec![vec![0; SLOT]; WAITING],
        };
        let slot = vec![0; SLOT];
        Self { directors, shell, counters, snapshot, steering, now, slot, hops: 0 }
    }

    /// Keeps nothing that is sent: where nothing may be allocated.
    pub fn forget(&mut self) {
        self.shell.aux.keep = false;
    }

    /// Gives all rings away but `left` places.
    pub fn narrow(&mut self, left: usize) {
        self.shell.free.truncate(left);
    }

    /// Gives a frame to one worker, lets the others take what it hands over, and completes what is
    /// sent. Returns what it became at the worker that kept it.
    pub fn pass(&mut self, worker: usize, source: Source, frame: &[u8]) -> Verdict {
        let range = HEADROOM..HEADROOM + frame.len();
        let mut slot = std::mem::take(&mut self.slot);
        slot[range.clone()].copy_from_slice(frame);
        let Self { directors, shell, snapshot, now, .. } = self;
        let mut verdict = directors[worker].handle(*now, snapshot, source, &mut slot, range, shell);
        self.settle(worker, &verdict, &slot);
        self.slot = slot;
        self.hops = 0;
        while let Some(mut parcel) = self.shell.ring.pop_front() {
            let Parcel { handed, length, buffer } = &mut parcel;
            let (worker, frame) = (usize::from(handed.to), HEADROOM..HEADROOM + *length);
            let Self { directors, shell, snapshot, now, .. } = self;
            verdict = directors[worker].take_over(*now, snapshot, *handed, buffer, frame, shell);
            self.settle(worker, &verdict, &parcel.buffer);
            self.shell.free.push(parcel.buffer);
            self.hops += 1;
        }
        verdict
    }

    /// Keeps and completes what a verdict and auxiliary slots send.
    fn settle(&mut self, worker: usize, verdict: &Verdict, slot: &[u8]) {
        let sent = match verdict {
            Verdict::Forward { egress, range } => Some((*egress, range, Account::Forward)),
            Verdict::Reply { range, .. } => Some((EgressId::TAP, range, Account::Reply)),
            Verdict::Fragmented
            | Verdict::Pass
            | Verdict::HandedOver
            | Verdict::Hold
            | Verdict::Drop(_) => None,
        };
        let director = &mut self.directors[worker];
        if let Some((egress, range, account)) = sent {
            director.sent(account, SendResult::Sent);
            if self.shell.aux.keep {
                let bytes = slot[range.clone()].to_vec();
                // Before what waited for it.
                let aux = self.shell.aux.pending.len();
                let place = self.shell.aux.sent.len() - aux;
                self.shell.aux.sent.insert(place, Output { egress, bytes, account });
            }
        }
        for account in self.shell.aux.pending.drain(..) {
            director.sent(account, SendResult::Sent);
        }
    }

    /// As [`Self::pass`], with what was sent, in order.
    pub fn receive(
        &mut self,
        worker: usize,
        source: Source,
        frame: &[u8],
    ) -> (Verdict, Vec<Output>) {
        let verdict = self.pass(worker, source, frame);
        (verdict, self.shell.aux.sent.drain(..).collect())
    }

    /// What was told to control since the last call.
    pub fn events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.shell.aux.events)
    }

    /// Time passes, and timers run.
    pub fn advance(&mut self, duration: Duration) {
        self.now = self.now + duration;
        self.directors.iter_mut().for_each(|director| director.tick(self.now));
    }
}
