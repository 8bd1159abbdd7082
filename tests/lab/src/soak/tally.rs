//! What was done and what came of it.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use super::Options;
use super::ledger::Books;
use super::resources::{Grown, Resources};

/// Lines about sessions that broke: the first tell why, all others come from the same.
const LINES: usize = 50;

/// Written by all parts.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) long_opened: AtomicU64,
    pub(super) long_closed: AtomicU64,
    pub(super) echoed_bytes: AtomicU64,
    pub(super) short: AtomicU64,
    pub(super) datagrams: AtomicU64,
    pub(super) fragmented: AtomicU64,
    pub(super) datagrams_lost: AtomicU64,
    pub(super) junk: AtomicU64,
    pub(super) syns: AtomicU64,
    steps: Mutex<BTreeMap<&'static str, u64>>,
    last_step: Mutex<String>,
    broken: AtomicU64,
    /// The first of them.
    broken_lines: Mutex<Vec<String>>,
    violations: Mutex<Vec<String>>,
}

fn add(to: &AtomicU64, count: u64) {
    to.fetch_add(count, Ordering::Relaxed);
}

impl Tally {
    pub(super) fn count(&self, which: fn(&Self) -> &AtomicU64, count: u64) {
        add(which(self), count);
    }

    /// A step of the operator.
    pub(super) fn step(&self, name: &'static str, detail: &str, seconds: u64) {
        *self.steps.lock().expect("no panic while it is held").entry(name).or_default() += 1;
        let last = format!("{name} {detail} at {seconds} s");
        *self.last_step.lock().expect("no panic while it is held") = last;
    }

    /// A session that broke, or could not be opened.
    pub(super) fn broke(&self, what: &str, seconds: u64) {
        let last = self.last_step.lock().expect("no panic while it is held").clone();
        add(&self.broken, 1);
        let mut lines = self.broken_lines.lock().expect("no panic while it is held");
        if lines.len() < LINES {
            lines.push(format!("broken: {what} at {seconds} s; the last step was: {last}"));
        }
    }

    /// Something else that must not be.
    pub(super) fn violation(&self, what: String) {
        let mut violations = self.violations.lock().expect("no panic while it is held");
        if violations.len() < LINES {
            violations.push(what);
        }
    }

    pub(super) fn line(&self) -> String {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        format!(
            "sessions {} open, {} short, {} broken; {} kB echoed; datagrams {} ({} lost)",
            get(&self.long_opened) - get(&self.long_closed),
            get(&self.short),
            get(&self.broken),
            get(&self.echoed_bytes) / 1000,
            get(&self.datagrams),
            get(&self.datagrams_lost)
        )
    }

    pub(super) fn summary(
        self,
        options: Options,
        interrupted: bool,
        books: Books,
        resources: Resources,
    ) -> Summary {
        let inner = |list: Mutex<Vec<String>>| list.into_inner().expect("all parts have ended");
        let mut violations = inner(self.violations);
        violations.extend(inner(self.broken_lines));
        let [received, forwarded, dropped] = books.totals();
        let grown = resources.grown();
        violations.extend(resources.violations());
        let (balanced, most_tries, unanswered) =
            (books.balanced, books.most_tries, books.unanswered);
        violations.extend(books.violations);
        if !interrupted && balanced == 0 {
            violations.push("the ledger was never looked at".to_owned());
        }
        Summary {
            seed: options.seed,
            seconds: options.time.as_secs(),
            interrupted,
            sessions: self.long_opened.into_inner(),
            echoed_bytes: self.echoed_bytes.into_inner(),
            short_sessions: self.short.into_inner(),
            broken_sessions: self.broken.into_inner(),
            datagrams: self.datagrams.into_inner(),
            datagrams_fragmented: self.fragmented.into_inner(),
            datagrams_lost: self.datagrams_lost.into_inner(),
            junk_frames: self.junk.into_inner(),
            flood_syns: self.syns.into_inner(),
            steps: self.steps.into_inner().expect("all parts have ended"),
            received,
            forwarded,
            dropped,
            ledger_right: balanced,
            ledger_most_looks: most_tries,
            unanswered_looks: unanswered,
            grown,
            violations,
        }
    }
}

/// What a soak comes to.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// With which everything can be done again.
    pub seed: u64,
    /// How long the load was to last.
    pub seconds: u64,
    /// Ended before that by somebody.
    pub interrupted: bool,
    /// Long-lived sessions that were opened.
    pub sessions: u64,
    /// Bytes that went there and back on these, each compared.
    pub echoed_bytes: u64,
    /// Sessions for one exchange.
    pub short_sessions: u64,
    /// Sessions of both kinds that broke or could not be opened.
    pub broken_sessions: u64,
    /// Datagrams that were answered rightly.
    pub datagrams: u64,
    /// Of these, those that went as fragments.
    pub datagrams_fragmented: u64,
    /// Datagrams without an answer: while the director restarts, or a queue is full.
    pub datagrams_lost: u64,
    /// Frames of the junk flood.
    pub junk_frames: u64,
    /// Segments of the SYN flood.
    pub flood_syns: u64,
    /// How often the operator did what.
    pub steps: BTreeMap<&'static str, u64>,
    /// Packets that the director received.
    pub received: u64,
    /// Packets that it forwarded.
    pub forwarded: u64,
    /// Packets that it dropped.
    pub dropped: u64,
    /// Seconds in which the ledger was found to balance.
    pub ledger_right: u64,
    /// The most looks that it took within one second.
    pub ledger_most_looks: u32,
    /// Seconds in which the director did not answer, and no restart was under way.
    pub unanswered_looks: u64,
    /// Memory and descriptors.
    pub grown: Grown,
    /// What must not be.
    pub violations: Vec<String>,
}
