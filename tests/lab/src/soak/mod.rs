//! Everything at once, for as long as one likes: sessions whose bytes are compared, floods, and an
//! operator who changes, drains, kills and restarts; and all the while the director's books, memory
//! and descriptors are looked at.
//!
//! What is done follows from a seed; when each step meets which packet does not.

mod dice;
mod floods;
mod ledger;
mod operator;
mod resources;
mod tally;
mod traffic;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub use resources::{Grown, Usage};
pub use tally::Summary;

use crate::director::Director;
use crate::error::Result;
use crate::topology::{Lab, LabSpec};
use crate::wait::pause;
use dice::Dice;
use ledger::Books;
use operator::{Fleet, Operator};
use resources::Resources;
use tally::Tally;

/// Real servers in each data centre.
const REALS: [usize; 2] = [2, 2];

/// Time between two looks at the director.
const LOOK: Duration = Duration::from_secs(1);

/// Time between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(10);

/// How long nobody may answer on the admin socket while no restart is under way.
const SILENCE: Duration = Duration::from_secs(15);

/// How long the director may take to be done with what it has been sent.
const SETTLE: Duration = Duration::from_secs(60);

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long the load lasts.
    pub time: Duration,
    /// Where the sequence of steps and bytes starts.
    pub seed: u64,
}

/// What all parts of a soak share.
#[derive(Debug)]
struct Shared {
    start: Instant,
    /// Set once: every part ends at its next step.
    stop: AtomicBool,
    tally: Tally,
}

impl Shared {
    /// The load goes on.
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Seconds since the load began.
    fn seconds(&self) -> u64 {
        self.start.elapsed().as_secs()
    }

    /// Lets time pass, in steps after each of which the load may have ended.
    fn pace(&self, time: Duration) {
        let step = Duration::from_millis(100);
        let mut left = time;
        while self.goes_on() && !left.is_zero() {
            pause(left.min(step));
            left = left.saturating_sub(step);
        }
    }
}

/// Builds a lab, and loads its director for the time that is asked for, or until `interrupted`.
/// `progress` gets lines for people.
///
/// # Errors
/// When the lab or its director does not come up; what the director does wrong later is among the
/// summary's violations.
#[allow(clippy::disallowed_methods, reason = "a load has a beginning")]
pub fn run(
    options: Options,
    interrupted: &AtomicBool,
    progress: &mut dyn FnMut(&str),
) -> Result<Summary> {
    progress(&format!("seed {}; building the networks and {} real servers", options.seed, 4));
    let spec = LabSpec { reals: REALS, postgres: false, clamp_mtu: 1500, ..LabSpec::default() };
    let lab = Lab::build(spec)?;
    floods::prepare(&lab)?;
    let fleet = Fleet::new(&lab);
    let director = Director::start(lab.director(), &fleet.config())?;
    progress(&format!("run {}: the load begins", lab.run().prefix()));
    let shared =
        Shared { start: Instant::now(), stop: AtomicBool::new(false), tally: Tally::default() };
    let operator = Operator::new(director, fleet, Dice::new(options.seed));
    let mut watch = Watch::new(&lab, options);
    std::thread::scope(|scope| {
        traffic::start(scope, &lab, &shared, options.seed);
        floods::start(scope, &lab, &shared, options.seed);
        let (shared, operator) = (&shared, &operator);
        scope.spawn(move || operator.work(shared, options.time / 2));
        let mut next_line = PROGRESS;
        while shared.start.elapsed() < options.time && !interrupted.load(Ordering::Relaxed) {
            watch.look(shared, operator);
            if shared.start.elapsed() >= next_line {
                next_line += PROGRESS;
                progress(&watch.line(shared, operator));
            }
            shared.pace(LOOK);
        }
        shared.stop.store(true, Ordering::Relaxed);
    });
    let was_interrupted = interrupted.load(Ordering::Relaxed);
    if !was_interrupted {
        watch.settle(&shared);
        operator.finish(&shared);
    }
    Ok(shared.tally.summary(options, was_interrupted, watch.books, watch.resources))
}

/// What is looked at every second.
struct Watch {
    books: Books,
    resources: Resources,
    answered: Instant,
}

impl Watch {
    #[allow(clippy::disallowed_methods, reason = "silence is time")]
    fn new(lab: &Lab, options: Options) -> Self {
        let socket = lab.director().namespace().dir().join("adit.sock");
        Self {
            books: Books::new(socket),
            resources: Resources::new(options.time),
            answered: Instant::now(),
        }
    }

    #[allow(clippy::disallowed_methods, reason = "silence is time")]
    fn look(&mut self, shared: &Shared, operator: &Operator) {
        // While a restart is under way nobody answers, and that is nobody's fault.
        if operator.is_restarting() {
            self.answered = Instant::now();
            return;
        }
        match self.books.look() {
            Ok(pid) => {
                self.answered = Instant::now();
                if let Some(usage) = Usage::of(pid) {
                    self.resources.take_in(pid, shared.start.elapsed(), usage);
                }
            }
            Err(error) if self.answered.elapsed() > SILENCE => {
                self.books.violation(format!("the director does not answer: {error}"));
                self.answered = Instant::now();
            }
            // One that has begun since.
            Err(_) if operator.is_restarting() => {}
            Err(_) => self.books.unanswered += 1,
        }
    }

    fn line(&self, shared: &Shared, operator: &Operator) -> String {
        format!(
            "{:>5} s  {}  {}  {}  {}",
            shared.seconds(),
            shared.tally.line(),
            operator.line(),
            self.books.line(),
            self.resources.line()
        )
    }

    /// With no load any more, the books must balance to the packet.
    fn settle(&mut self, shared: &Shared) {
        if let Err(error) = self.books.settle(SETTLE) {
            let what = format!("at the end ({} s): {error}", shared.seconds());
            self.books.violation(what);
        }
    }
}
