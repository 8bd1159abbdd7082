//! The workers: how they are started, and what control keeps of them.

use super::start::{StartError, rate_limits, seed};
use super::state::State;
use super::{LATELY_TICKS, SILENT_TICKS, now};
use crate::control::admin::api::{FlowsView, WorkerView};
use crate::control::cores;
use crate::control::host::BY_THE_KERNEL;
use crate::dataplane::conntrack::{FlowTable, Slot};
use crate::dataplane::counters::AllCounters;
use crate::dataplane::director::{Director, Parts, Team};
use crate::dataplane::fragments::Fragments;
use crate::dataplane::hash::HashKey;
use crate::dataplane::packet;
use crate::dataplane::path_mtu::PathMtus;
use crate::dataplane::rate_limit::RateLimiter;
use crate::dataplane::region::REAL_CAPACITY;
use crate::dataplane::steering::{self, Steering, Tuple};
use crate::dataplane::time::Time;
use crate::dataplane::verdict::{DropReason, EgressId, Event};
use crate::io::{
    Engine, EngineConfig, EngineError, EngineKind, Errno, IoCounters, NeighbourSockets,
    OuterErrorSockets, SteeringProgram, SteeringRule, Tap, Waker,
};
use crate::worker::capture::{self, CaptureControl};
use crate::worker::link::{self, ControlEnd, Update, WorkerEnd};
use crate::worker::peers::Peers;
use crate::worker::{self, Worker};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::RecvError;

/// The flow table of each worker.
pub(super) type FlowTables = Vec<FlowTable<&'static [Slot]>>;

/// How a worker's packet loop ended; an error where its thread is gone without a word.
pub(super) type End = Result<Result<IoCounters, EngineError>, RecvError>;

/// The workers as control sees them, by their numbers.
pub(super) struct Workers {
    links: Box<[ControlEnd]>,
    counters: AllCounters,
    /// How the kernel agreed to run their rings.
    pub(super) ring: &'static str,
    pub(super) capture: CaptureControl,
    /// How packets are shared out among them, for `list` and metrics.
    pub(super) steering: String,
}

/// The workers' threads, as long as they run.
pub(super) struct Threads {
    threads: Vec<JoinHandle<()>>,
    ended: Vec<oneshot::Receiver<Result<IoCounters, EngineError>>>,
}

/// The rule by which the region's workers share packets out: the same after each restart with as
/// many workers.
pub(super) fn steering(workers: u16, region_secret: [u8; 16]) -> Steering {
    let [_, _, _, _, seed @ ..] = HashKey(region_secret).draw_seed().to_be_bytes();
    Steering::new(workers, u32::from_be_bytes(seed))
}

/// Builds the packet loops with their sockets, and starts them with the first snapshot.
pub(super) fn start(
    state: &mut State,
    flows: FlowTables,
    steering: Steering,
    key: HashKey,
    (tap, kind): (&Tap, EngineKind),
    counters: &AllCounters,
) -> Result<(Workers, Threads), StartError> {
    let wakers: Vec<Waker> =
        flows.iter().map(|_| Waker::new()).collect::<Result<_, _>>().map_err(StartError::Waker)?;
    let mut engines = Vec::new();
    for (queue, waker) in wakers.iter().enumerate() {
        let mut config = EngineConfig { queue, ..EngineConfig::new(kind, waker.clone()) };
        // What does not come through the TAP is rare: the first worker hears it for all.
        if queue == 0 {
            if state.client_mac.is_some() {
                config.neighbours.push(NeighbourSockets::open(state.client_index)?);
            }
            config.outer_errors = Some(OuterErrorSockets::open()?);
        }
        engines.push(Engine::build(tap, config)?);
    }
    let ring = engines.first().map_or("", Engine::setup);
    tracing::info!(ring, workers = engines.len(), "the workers' rings");
    let steered_by = steer(tap, steering);

    let planned = super::update::plan(state, key, tap, counters)?;
    state.snapshot = Arc::clone(&planned.snapshot);
    state.paths.commit(planned.paths);
    state.incomplete = planned.incomplete;
    state.health.told(&planned.pins, now());
    state.in_change = false;
    let (capture, capture_tap) = capture::capture();
    let mtu = usize::try_from(tap.mtu()).unwrap_or(usize::MAX);
    // Ethernet and one VLAN tag in front of the network layer's MTU.
    let peers = Peers::of(&wakers, mtu.saturating_add(14 + 4));
    let emit_limits = RateLimiter::new(&rate_limits(&state.config), seed()?);
    let path_mtus = PathMtus::for_workers(REAL_CAPACITY as usize, steering.workers());
    let (links, ends): (Vec<ControlEnd>, Vec<WorkerEnd>) =
        wakers.into_iter().map(link::link).unzip();
    // They wait in the queues until each worker's first batch, which precedes its first frame.
    for (link, update) in links.iter().zip(planned.updates) {
        if link.publish(update).is_err() {
            unreachable!("a new queue has room");
        }
    }
    let mut threads = Threads { threads: Vec::new(), ended: Vec::new() };
    let cores = cores::of_workers(steering.workers());
    let places = (0..).zip(engines).zip(cores);
    let parts = flows.into_iter().zip(ends).zip(peers).zip(path_mtus);
    for (((number, engine), core), (((flows, end), peers), path_mtus)) in places.zip(parts) {
        let director = Director::new(Parts {
            flows,
            fragments: Fragments::new(mtu, seed()?),
            path_mtus,
            emit_limits: emit_limits.clone(),
            persistence: state.persistence.index(),
            counters: Arc::clone(&counters.workers()[usize::from(number)]),
            team: Team::new(steering, number, mtu, seed()?),
        });
        let snapshot = Arc::clone(&state.snapshot);
        let tap = capture_tap.clone();
        let worker = Worker::new(director, snapshot, planned.client_egress, end, tap, peers);
        let name = if steering.is_shared() {
            format!("adit-worker{number}")
        } else {
            "adit-worker".to_owned()
        };
        let (tell, ended) = oneshot::channel();
        let thread = worker::spawn(name, worker, engine, core, move |result| {
            // Nobody listens any more when the process is ending anyway.
            let _ = tell.send(result);
        })
        .map_err(StartError::Thread)?;
        threads.threads.push(thread);
        threads.ended.push(ended);
    }
    let counters = counters.clone();
    Ok((Workers { links: links.into(), counters, ring, capture, steering: steered_by }, threads))
}

/// Tells the kernel how to share packets out. Where it does not take that, it does so by its own
/// rule, and workers hand over what is not theirs: everything works, slower. What was agreed, in
/// words.
fn steer(tap: &Tap, steering: Steering) -> String {
    if !steering.is_shared() {
        return "one worker".to_owned();
    }
    match install(tap, steering) {
        Ok(()) => {
            tracing::info!(workers = steering.workers(), "the kernel steers packets by their flow");
            "by flow".to_owned()
        }
        Err(why) => {
            tracing::warn!(
                why,
                "the kernel spreads packets by its own rule, and workers hand over what is not \
                 theirs: give the director CAP_BPF"
            );
            format!("{BY_THE_KERNEL} ({why})")
        }
    }
}

fn install(tap: &Tap, steering: Steering) -> Result<(), String> {
    let program = SteeringProgram::load(&SteeringRule {
        workers: steering.workers(),
        seed: steering.seed(),
        multiplier: steering::MULTIPLIER,
        fold: steering::FOLD,
    })
    .map_err(|error| error.to_string())?;
    // Where the kernel cannot be asked, strays are handed over as ever.
    if let Ok(false) = agrees(&program, steering) {
        return Err("its program decides otherwise than the director".to_owned());
    }
    program.attach(tap).map_err(|error| error.to_string())
}

/// Whether the kernel's program and the core's rule put a few packets to the same workers.
fn agrees(program: &SteeringProgram, steering: Steering) -> Result<bool, Errno> {
    for last in 1..=16 {
        let (client, vip) = ([192, 0, 2, last], [198, 51, 100, 10]);
        let frame = segment(client, vip, 40_000 + u16::from(last), 5432);
        let (client, vip) = (packet::address(client.into()), packet::address(vip.into()));
        let owner = steering.owner(&Tuple {
            client: &client,
            client_port: 40_000 + u16::from(last),
            vip: &vip,
            vip_port: 5432,
            protocol: packet::protocol::TCP,
        });
        if program.queue_of(&frame)? != u32::from(owner) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A frame with as much of a TCP segment as steering looks at.
fn segment(client: [u8; 4], vip: [u8; 4], client_port: u16, vip_port: u16) -> [u8; 54] {
    let mut frame = [0; 54];
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    frame[14] = 0x45;
    frame[17] = 40;
    frame[22] = 64;
    frame[23] = packet::protocol::TCP;
    frame[26..30].copy_from_slice(&client);
    frame[30..34].copy_from_slice(&vip);
    frame[34..36].copy_from_slice(&client_port.to_be_bytes());
    frame[36..38].copy_from_slice(&vip_port.to_be_bytes());
    frame
}

impl Workers {
    /// Publishes an update to each, or to none where one does not take it: its number.
    pub(super) fn publish(&self, updates: Vec<Update>) -> Result<(), usize> {
        if let Some(busy) = self.links.iter().position(|link| !link.has_room()) {
            return Err(busy);
        }
        for (number, (link, update)) in self.links.iter().zip(updates).enumerate() {
            link.publish(update).map_err(|_| number)?;
        }
        Ok(())
    }

    /// Frees snapshots that none of them looks at any more.
    pub(super) fn collect_retired(&self) {
        self.links.iter().for_each(ControlEnd::collect_retired);
    }

    /// A path that one of them could not install.
    pub(super) fn next_failed_install(&self) -> Option<(EgressId, Errno)> {
        self.links.iter().find_map(ControlEnd::next_failed_install)
    }

    /// The next event of each in turn, `most` of each at most.
    pub(super) fn events(&self, most: usize) -> impl Iterator<Item = Event> {
        self.links.iter().flat_map(move |link| std::iter::from_fn(|| link.next_event()).take(most))
    }

    /// Asks all of them to end.
    pub(super) fn stop(&self) {
        self.links.iter().for_each(ControlEnd::stop);
    }

    /// How the worker of a number is called where people read it.
    pub(super) fn name(&self, number: usize) -> String {
        if self.links.len() == 1 { "the worker".to_owned() } else { format!("worker {number}") }
    }

    /// What each of them shows.
    pub(super) fn views(&self) -> Vec<WorkerView> {
        let view = |((number, link), counters): ((usize, &ControlEnd), &Arc<_>)| {
            let counters: &crate::dataplane::counters::Counters = counters;
            let silence = link.silence(now()).as_millis();
            let dropped =
                |reason: &DropReason| (reason.name().to_owned(), counters.dropped(*reason).get());
            WorkerView {
                worker: number,
                totals: counters.worker.read(),
                dropped: DropReason::ALL.iter().map(dropped).collect(),
                flows: FlowsView::of(|class| counters.flows(class).get()),
                io: link.io_counters(),
                last_send_error: link.last_send_error().map(|errno| errno.to_string()),
                silence_ms: u64::try_from(silence).unwrap_or(u64::MAX),
            }
        };
        self.links.iter().enumerate().zip(self.counters.workers()).map(view).collect()
    }
}

/// Since when each worker was not heard.
pub(super) struct Heard(Vec<(Time, u32)>);

impl Heard {
    pub(super) fn new(workers: &Workers) -> Self {
        Heard(vec![(Time::ZERO, 0); workers.links.len()])
    }

    /// Listens once more; the first that is stuck, and since when.
    pub(super) fn listen(&mut self, workers: &Workers) -> Option<(usize, Duration)> {
        for ((last, ticks), link) in self.0.iter_mut().zip(&workers.links) {
            let beat = link.last_beat();
            *ticks = if beat == *last { *ticks + 1 } else { 0 };
            *last = beat;
        }
        let stuck = self.0.iter().position(|(_, ticks)| *ticks > SILENT_TICKS)?;
        Some((stuck, workers.links[stuck].silence(now())))
    }

    /// Whether each of them was heard a moment ago.
    pub(super) fn all_lately(&self) -> bool {
        self.0.iter().all(|(_, ticks)| *ticks <= LATELY_TICKS)
    }
}

impl Threads {
    /// Waits for the first worker that ends.
    pub(super) async fn first_end(&mut self) -> (usize, End) {
        poll_fn(|context| {
            for (number, ended) in self.ended.iter_mut().enumerate() {
                if let Poll::Ready(end) = Pin::new(ended).poll(context) {
                    return Poll::Ready((number, end));
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Waits until all have ended, which they were asked to.
    pub(super) async fn end(self, within: Duration) {
        let Threads { threads, ended } = self;
        let all = async {
            for ended in ended {
                // One that panicked says so when it is joined.
                let _ = ended.await;
            }
        };
        if tokio::time::timeout(within, all).await.is_err() {
            tracing::error!("a worker does not end; leaving it");
            return;
        }
        for (number, thread) in threads.into_iter().enumerate() {
            // It has said that it ended, so this does not wait.
            if thread.join().is_err() {
                tracing::error!(worker = number, "a worker panicked");
            }
        }
    }
}
