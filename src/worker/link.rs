//! What passes between control and a worker: bounded queues, nothing that blocks the worker.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use crossbeam_queue::ArrayQueue;

use crate::{
    dataplane::{
        snapshot::Snapshot,
        time::Time,
        verdict::{EgressId, Event},
    },
    io::{Errno, IoCounters, OpenEgress, Waker},
};

/// Events that may wait for control. Control looks ten times a second; this is 80,000 newly
/// established flows a second with persistence. What is lost only costs persistence entries.
const EVENTS: usize = 8192;
/// Updates that may wait for the worker, which takes them at its next batch.
const UPDATES: usize = 16;
/// Failed installs that are remembered for control: one per real server of a large update.
const MAX_INSTALLS: usize = 1024;

/// A change of the world, seen by the worker as one.
pub struct Update {
    /// Paths that the snapshot needs, installed before it is looked at.
    pub install: Vec<(EgressId, OpenEgress)>,
    /// The new snapshot.
    pub snapshot: Arc<Snapshot>,
    /// Paths that only the old snapshot needed.
    pub remove: Vec<EgressId>,
}

struct Shared {
    updates: ArrayQueue<Update>,
    retired: ArrayQueue<Arc<Snapshot>>,
    events: ArrayQueue<Event>,
    failed_installs: ArrayQueue<(EgressId, Errno)>,
    stop: AtomicBool,
    last_beat: AtomicU64,
    last_send_error: AtomicU64,
    io: Mutex<IoCounters>,
}

/// The worker's end.
pub struct WorkerEnd {
    shared: Arc<Shared>,
    now: Time,
}

/// Control's end.
pub struct ControlEnd {
    shared: Arc<Shared>,
    waker: Waker,
}

/// The worker does not take updates; here is the one that found no room.
#[derive(thiserror::Error)]
#[error("the worker does not take updates; it is stalled or overloaded")]
pub struct WorkerBusy(pub Update);

impl std::fmt::Debug for WorkerBusy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("WorkerBusy").field(&self.0.snapshot.generation).finish()
    }
}

/// Both ends of a link; `waker` is the one the worker's engine listens to.
pub fn link(waker: Waker) -> (ControlEnd, WorkerEnd) {
    let shared = Arc::new(Shared {
        updates: ArrayQueue::new(UPDATES),
        retired: ArrayQueue::new(UPDATES * 2),
        events: ArrayQueue::new(EVENTS),
        failed_installs: ArrayQueue::new(MAX_INSTALLS),
        stop: AtomicBool::new(false),
        last_beat: AtomicU64::new(0),
        last_send_error: AtomicU64::new(0),
        io: Mutex::new(IoCounters::default()),
    });
    let worker = WorkerEnd { shared: Arc::clone(&shared), now: Time::ZERO };
    (ControlEnd { shared, waker }, worker)
}

impl WorkerEnd {
    pub(super) fn next_update(&self) -> Option<Update> {
        self.shared.updates.pop()
    }

    pub(super) fn retire(&self, snapshot: Arc<Snapshot>) {
        // There is room: control collects before it publishes, and twice as many fit as may wait.
        let kept = self.shared.retired.push(snapshot);
        debug_assert!(kept.is_ok(), "more snapshots were retired than published");
    }

    pub(super) fn event(&self, event: Event) -> bool {
        self.shared.events.push(event).is_ok()
    }

    pub(super) fn install_failed(&self, id: EgressId, errno: Errno) {
        let _ = self.shared.failed_installs.push((id, errno));
    }

    pub(super) fn send_failed(&self, errno: Errno) {
        self.shared.last_send_error.store(errno as u64, Ordering::Relaxed);
    }

    pub(super) fn beat(&mut self, now_ns: u64, counters: &IoCounters) {
        self.now = Time(now_ns);
        self.shared.last_beat.store(now_ns, Ordering::Relaxed);
        // Control holds the lock for a copy at most; a beat that finds it held skips its turn.
        if let Ok(mut io) = self.shared.io.try_lock() {
            *io = *counters;
        }
    }

    pub(super) const fn now(&self) -> Time {
        self.now
    }

    pub(super) fn stop_requested(&self) -> bool {
        self.shared.stop.load(Ordering::Acquire)
    }
}

impl ControlEnd {
    /// Publishes a new snapshot with its egress paths.
    ///
    /// # Errors
    /// The worker's queue is full: it is stalled. The update is given back.
    pub fn publish(&self, update: Update) -> Result<(), WorkerBusy> {
        self.collect_retired();
        self.shared.updates.push(update).map_err(WorkerBusy)?;
        self.waker.wake();
        Ok(())
    }

    /// Whether the worker takes updates: one more has room. Only control fills the queue, so that
    /// it still has room after a look.
    pub fn has_room(&self) -> bool {
        !self.shared.updates.is_full()
    }

    /// The next event.
    pub fn next_event(&self) -> Option<Event> {
        self.shared.events.pop()
    }

    /// A path the worker could not install.
    pub fn next_failed_install(&self) -> Option<(EgressId, Errno)> {
        self.shared.failed_installs.pop()
    }

    /// The last error of a send other than a full queue, if there ever was one.
    pub fn last_send_error(&self) -> Option<Errno> {
        let raw = i32::try_from(self.shared.last_send_error.load(Ordering::Relaxed)).ok()?;
        (raw != 0).then(|| Errno::from_raw(raw))
    }

    /// When the worker last said that it is alive; it does so every [`TICK`](crate::io::TICK).
    pub fn last_beat(&self) -> Time {
        Time(self.shared.last_beat.load(Ordering::Relaxed))
    }

    /// Time since the worker last said that it is alive.
    pub fn silence(&self, now: Time) -> Duration {
        now.saturating_since(self.last_beat())
    }

    /// The engine's own counters.
    pub fn io_counters(&self) -> IoCounters {
        self.shared.io.lock().map_or_else(|poisoned| *poisoned.into_inner(), |io| *io)
    }

    /// Frees snapshots that the worker no longer looks at.
    pub fn collect_retired(&self) {
        while self.shared.retired.pop().is_some() {}
    }

    /// Asks the worker to end what is in flight and return.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
        self.waker.wake();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test panics on purpose")]

    use super::*;

    #[test]
    fn the_worker_never_frees_a_snapshot() {
        let (control, worker) = link(Waker::new().unwrap());
        let mut looked_at = Arc::new(Snapshot::default());
        // As many as can wait at once, again and again.
        for _ in 0..3 {
            let mut published = Vec::new();
            for _ in 0..UPDATES {
                let snapshot = Arc::new(Snapshot::default());
                published.push(Arc::downgrade(&snapshot));
                let update = Update { install: Vec::new(), snapshot, remove: Vec::new() };
                control.publish(update).unwrap();
            }
            while let Some(update) = worker.next_update() {
                worker.retire(std::mem::replace(&mut looked_at, update.snapshot));
            }
            assert!(published.iter().all(|snapshot| snapshot.strong_count() == 1));
            control.collect_retired();
            let (last, others) = published.split_last().unwrap();
            assert!(others.iter().all(|snapshot| snapshot.strong_count() == 0));
            assert_eq!(last.strong_count(), 1, "it is in force");
        }
    }

    #[test]
    fn a_worker_that_takes_nothing_is_busy_and_the_update_comes_back() {
        let (control, _worker) = link(Waker::new().unwrap());
        let update = |generation| Update {
            install: Vec::new(),
            snapshot: Arc::new(Snapshot { generation, ..Snapshot::default() }),
            remove: Vec::new(),
        };
        for _ in 0..UPDATES {
            control.publish(update(1)).unwrap();
        }
        let WorkerBusy(refused) = control.publish(update(2)).unwrap_err();
        assert_eq!(refused.snapshot.generation, 2);
    }
}
