//! The director as a process: everything that `adit run` keeps going beside the worker.
//!
//! One thread, one runtime. The worker is told of the world by snapshots and never waits for
//! anything here; when it ends for whatever reason, so does the process, with an error.

mod announce;
mod checks;
mod drains;
mod host_entry;
mod host_upkeep;
mod probe;
mod start;
mod state;
mod update;
mod views;
mod watchdog;
mod workers;

pub use drains::DrainError;
pub use probe::{ProbeError, ProbeRequest};
pub use start::StartError;
pub use update::{ReloadError, ReloadRequest};
pub use views::{ConnectionFilter, PAGE};

use super::admin::server::Bound;
use super::build::PathTarget;
use super::config::{Config, LoadedKey};
use super::finding::Severity;
use super::firewall;
use super::host;
use super::metrics::listener;
use super::netlink::watch::{HostChange, HostWatch};
use super::netlink::{Netlink, NetlinkError};
use super::runtime;
use crate::dataplane::conntrack::Slot;
use crate::dataplane::counters::AllCounters;
use crate::dataplane::time::Time;
use crate::dataplane::verdict::EgressId;
use crate::io::{Choice, StateDirectory, Tap, clock};
use crate::worker::capture::CaptureControl;
use state::State;
use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, SystemTime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use watchdog::Watchdog;
use workers::{End, Heard, Threads, Workers};

/// How often events of the worker are taken and timers looked at. The worker's event queue holds
/// what comes in between.
const TICK: Duration = Duration::from_millis(100);
/// Changes on the host come in bursts (a link that goes down changes many routes); they are looked
/// at together.
const SETTLE: Duration = Duration::from_millis(100);
/// How often the host is looked at even when nothing was heard: news can be lost, and that of
/// firewall rules is not listened to.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// A worker says that it lives every 50 ms. After so many ticks of this thread without a word it is
/// stuck. Ticks, not time: a host that was suspended wakes both, in any order.
const SILENT_TICKS: u32 = 50;
/// A worker that was heard within so many ticks lives, as far as others are told.
const LATELY_TICKS: u32 = 10;
/// How long a change that is under way may take to end when the director stops. Its longest step is
/// `nft`, which is given less.
const CHANGE_ENDS: Duration = Duration::from_secs(25);
const _: () = assert!(CHANGE_ENDS.as_secs() > firewall::NFT_ENDS.as_secs());
/// How long the worker may take to end what is in flight.
const WORKER_ENDS: Duration = Duration::from_secs(5);

/// Why a director ended that should not have.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// It did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The packet loop ended.
    #[error("{worker} ended: {how}")]
    Worker {
        /// Which one.
        worker: String,
        /// By what.
        how: String,
    },
    /// The host cannot be watched any more.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// What looks after the host is gone.
    #[error(
        "the upkeep of the host, the health checks or the count of drained sessions has panicked"
    )]
    Upkeep,
    /// Signals cannot be received.
    #[error("cannot receive signals: {0}")]
    Signals(std::io::Error),
}

/// A running director.
pub struct Daemon {
    /// The file it was started with, read again on reload.
    config_path: PathBuf,
    key: LoadedKey,
    netlink: Netlink,
    tap: Tap,
    engine: Choice,
    counters: AllCounters,
    workers: Workers,
    /// Flow slots of each worker.
    flows: Vec<&'static [Slot]>,
    adopted: u64,
    started: Time,
    /// The same by the calendar, as it was then.
    started_at: SystemTime,
    state: RefCell<State>,
    /// Held while the world is changed: a change looks at the host and must not meet another.
    changing: tokio::sync::Mutex<()>,
    /// Held while routes of VIPs are changed or looked at: a withdrawal does not wait for all of a
    /// change.
    routing: tokio::sync::Mutex<()>,
    /// Told of each new snapshot.
    published: tokio::sync::Notify,
    /// Set when the director stops: then nothing is led here any more.
    stopping: Cell<bool>,
    /// Locked until the process ends.
    _state_directory: StateDirectory,
}

/// What the start hands over besides the daemon.
struct Started {
    daemon: Rc<Daemon>,
    threads: Threads,
    watch: HostWatch,
    admin: Vec<Bound>,
    metrics: Option<listener::Bound>,
}

/// Runs a director until it is told to stop.
///
/// # Errors
/// When it cannot start, or ends without having been told to.
pub async fn run(config_path: PathBuf, config: Config) -> Result<(), DaemonError> {
    let mut signals = Signals::listen().map_err(DaemonError::Signals)?;
    let started = start::start(config_path, config).await?;
    let daemon = Rc::clone(&started.daemon);
    let admin = started.admin.into_iter().map(|bound| bound.answer(Rc::clone(&daemon)));
    let admin: Vec<_> = admin.collect();
    let metrics = started.metrics.map(|bound| bound.answer(Rc::clone(&daemon)));
    notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!(pid = std::process::id(), "ready");
    runtime::spawn(look_at_host(Rc::clone(&daemon)));
    let Started { mut threads, watch, .. } = started;
    let keeping = host_upkeep::keep_in_step(Rc::clone(&daemon), watch);
    let checking = checks::check_real_servers(Rc::clone(&daemon));
    let counting = drains::count_sessions(Rc::clone(&daemon));
    // One task, so that none goes on without the others.
    let upkeep = runtime::spawn(async move {
        tokio::select! {
            end = keeping => end,
            () = checking => Ok(()),
            () = counting => Ok(()),
        }
    });
    runtime::spawn(announce::keep_announced(Rc::clone(&daemon)));
    let mut result = serve(&daemon, &mut signals, &mut threads, upkeep).await;
    notify(&[sd_notify::NotifyState::Stopping]);
    tracing::info!("stopping");
    // A worker that has ended forwards nothing meanwhile.
    if result.is_ok() {
        result = daemon.withdraw(&mut signals, &mut threads).await;
    }
    drop((admin, metrics));
    // First nothing more comes, then what has come is forwarded.
    daemon.stopping.set(true);
    let changing = tokio::time::timeout(CHANGE_ENDS, daemon.changing.lock()).await;
    if changing.is_err() {
        tracing::error!("a change of the host does not end; it may leave something behind");
    }
    daemon.leave_host().await;
    drop(changing);
    // A worker that has ended, or is stuck, is not waited for again.
    if result.is_ok() {
        daemon.workers.stop();
        threads.end(WORKER_ENDS).await;
        // What they have told at last: persistence outlives this process.
        daemon.tick();
    }
    // By name: closing it is not enough at once, since the kernel keeps what a ring refers to until
    // it has taken the ring down, some time after the process.
    if let Err(error) = daemon.netlink.delete_link(daemon.tap.index()).await {
        tracing::warn!(%error, "the TAP goes with the process");
    }
    result
}

/// The signals a director obeys.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// Obeys signals and hears the worker, until something ends it. Waits for nothing else.
async fn serve(
    daemon: &Rc<Daemon>,
    signals: &mut Signals,
    threads: &mut Threads,
    mut upkeep: JoinHandle<Result<(), NetlinkError>>,
) -> Result<(), DaemonError> {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut heard = Heard::new(&daemon.workers);
    let mut watchdog = Watchdog::asked_for();
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return Ok(()),
            _ = signals.interrupt.recv() => return Ok(()),
            _ = signals.hangup.recv() => {
                runtime::spawn(reload_by_signal(Rc::clone(daemon)));
            }
            (number, end) = threads.first_end() => {
                let worker = daemon.workers.name(number);
                return Err(DaemonError::Worker { worker, how: how_it_ended(end) });
            }
            end = &mut upkeep => match end {
                // It ends well only when the director stops.
                Ok(end) => return Ok(end?),
                Err(_) => return Err(DaemonError::Upkeep),
            },
            _ = tick.tick() => {
                daemon.tick_and_listen(&mut heard)?;
                watchdog.tell(&heard, now());
            }
        }
    }
}

fn how_it_ended(end: End) -> String {
    match end {
        Ok(Ok(_)) => "without having been told to".to_owned(),
        Ok(Err(error)) => error.to_string(),
        // The thread is gone without a word: it has panicked.
        Err(_) => "it panicked".to_owned(),
    }
}

/// Says what is wrong with the host. After the start, which it must neither delay nor stop: an
/// operator may be about to mend it, and known connections go on.
async fn look_at_host(daemon: Rc<Daemon>) {
    let config = daemon.state.borrow().config.clone();
    let facts = match host::observe(&config).await {
        Ok(facts) => facts,
        Err(error) => {
            tracing::warn!(%error, "the host's setup could not be looked at");
            return;
        }
    };
    let findings = host::judge(&config, &facts);
    for finding in &findings {
        let help = finding.help.lines().map(str::trim).collect::<Vec<_>>().join(" ");
        match finding.severity {
            Severity::Error => tracing::error!(help, "{}", finding.message),
            Severity::Warning => tracing::warn!(help, "{}", finding.message),
            Severity::Note => tracing::info!(help, "{}", finding.message),
        }
    }
    daemon.state.borrow_mut().findings.extend(findings);
}

async fn reload_by_signal(daemon: Rc<Daemon>) {
    let monotonic = sd_notify::NotifyState::monotonic_usec_now().ok();
    let mut states = vec![sd_notify::NotifyState::Reloading];
    states.extend(monotonic);
    notify(&states);
    match daemon.reload(update::ReloadRequest::default()).await {
        Ok(done) => tracing::info!(changes = done.changes.len(), hash = done.new_hash, "reloaded"),
        Err(error) => tracing::error!("reload refused, the old configuration stays: {error}"),
    }
    notify(&[sd_notify::NotifyState::Ready]);
}

/// Tells systemd. Where nobody listens there is nobody to miss it.
fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, states) {
        tracing::warn!(%error, "cannot tell systemd");
    }
}

/// The time the core works with.
pub(in crate::control) fn now() -> Time {
    Time(clock::boottime_ns())
}

impl Daemon {
    /// What `adit capture` reads.
    pub(in crate::control) fn capture(&self) -> &CaptureControl {
        &self.workers.capture
    }

    /// Whether what goes out on a path are frames, not packets.
    pub(in crate::control) fn is_direct(&self, path: EgressId) -> bool {
        matches!(self.state.borrow().paths.target(path), Some(PathTarget::Direct { .. }))
    }

    /// How soon a change on the host is to be looked at; `None` for one that cannot concern the way
    /// to a real server.
    fn look_within(&self, change: HostChange) -> Option<Duration> {
        match change {
            // Direct egress would go around it: not a moment is waited.
            HostChange::Policy => Some(Duration::ZERO),
            HostChange::Neighbour(key) => {
                self.state.borrow().survey.next_hops.contains(&key).then_some(SETTLE)
            }
            HostChange::VipRoute => None,
            HostChange::Device(_) | HostChange::Other => Some(SETTLE),
        }
    }

    /// Whether a change may have taken away what leads VIPs here.
    fn concerns_own(&self, change: HostChange) -> bool {
        match change {
            HostChange::VipRoute => true,
            HostChange::Device(index) => {
                index == self.tap.index() || index == self.state.borrow().client_index
            }
            HostChange::Policy | HostChange::Neighbour(_) | HostChange::Other => false,
        }
    }
}
