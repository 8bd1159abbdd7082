//! Somebody who never leaves the director alone.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use super::Shared;
use super::dice::Dice;
use super::floods::FLOOD_PORT;
use crate::director::{Config, Director, Service};
use crate::error::{LabError, Result};
use crate::realserver::SERVE_PORT;
use crate::topology::{Lab, vip, vip6};
use nix::sys::signal::Signal;

/// Weights that a real server gets.
const WEIGHTS: [u32; 5] = [1, 10, 50, 100, 200];

/// Real servers that take new sessions, at least.
const TAKING: usize = 2;

/// Flows that fit the table: fewer than the SYN flood makes in half a minute, so that it is full.
const FLOWS: &str = "20_000";

/// Questions that an operator asks meanwhile.
const QUESTIONS: [&[&str]; 6] = [
    &["list", "--stats"],
    &["connections"],
    &["drops"],
    &["metrics"],
    &["reload", "--dry-run"],
    &["explain", "10.1.0.10:9999", "198.51.100.10:7000"],
];

/// A real server as the operator sees it.
#[derive(Clone, Debug)]
struct Member {
    addresses: [IpAddr; 2],
    configured: bool,
    weight: u32,
}

/// The configuration, as it changes.
#[derive(Clone, Debug)]
pub(super) struct Fleet(Vec<Member>);

impl Fleet {
    pub(super) fn new(lab: &Lab) -> Self {
        let member = |real: &crate::RealServer| Member {
            addresses: [real.address(false), real.address(true)],
            configured: true,
            weight: 100,
        };
        Self(lab.reals.iter().map(member).collect())
    }

    /// Members other than `but` that get new sessions.
    fn taking(&self, but: usize) -> usize {
        let others = self.0.iter().enumerate().filter(|(index, _)| *index != but);
        others.filter(|(_, member)| member.configured && member.weight > 0).count()
    }

    /// The file for it: byte services by both IP versions, of two schedulers, and one that nobody
    /// listens behind.
    pub(super) fn config(&self) -> Config {
        let services = [
            Service::tcp("tcp4", vip(SERVE_PORT)),
            Service::tcp("tcp6", vip6(SERVE_PORT)).scheduler("wlc"),
            Service::udp("udp4", vip(SERVE_PORT)),
            Service::udp("udp6", vip6(SERVE_PORT)).scheduler("wrr"),
            Service::tcp("flooded", vip(FLOOD_PORT)),
        ];
        let configured = || self.0.iter().filter(|member| member.configured);
        let mut config = Config::new().set("max_connections", FLOWS);
        for mut service in services {
            let version = usize::from(service.is_ipv6());
            for member in configured() {
                service = service.address(member.addresses[version], member.weight);
            }
            config = config.service(service);
        }
        config
    }
}

/// A step of the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Weigh,
    Drain,
    Undrain,
    TakeOut,
    PutIn,
    Mistake,
    Hangup,
    Ask,
    Terminate,
    Kill,
}

impl Step {
    /// All but those that end the process.
    const OTHERS: [Step; 10] = [
        Step::Weigh,
        Step::Drain,
        Step::Undrain,
        Step::TakeOut,
        Step::PutIn,
        Step::Mistake,
        Step::Hangup,
        Step::Ask,
        Step::Ask,
        Step::Ask,
    ];

    fn name(self) -> &'static str {
        match self {
            Step::Weigh => "weigh",
            Step::Drain => "drain",
            Step::Undrain => "undrain",
            Step::TakeOut => "take out",
            Step::PutIn => "put in",
            Step::Mistake => "mistake",
            Step::Hangup => "SIGHUP",
            Step::Ask => "ask",
            Step::Terminate => "SIGTERM",
            Step::Kill => "SIGKILL",
        }
    }
}

/// The next steps. While the process may be ended, both ways to do so are among the first four.
fn deck(dice: &mut Dice, restarts: bool) -> Vec<Step> {
    let mut others = Step::OTHERS;
    dice.shuffle(&mut others);
    let (first, rest) = others.split_at(2);
    let mut steps = first.to_vec();
    if restarts {
        steps.extend([Step::Terminate, Step::Kill]);
        dice.shuffle(&mut steps);
    }
    steps.extend(rest);
    steps
}

/// What the operator holds in hands.
#[derive(Debug)]
struct Hands {
    fleet: Fleet,
    dice: Dice,
}

/// Somebody who never leaves the director alone.
pub(super) struct Operator {
    director: Mutex<Director>,
    /// The process is being replaced.
    restarting: AtomicBool,
    hands: Mutex<Hands>,
    last: Mutex<&'static str>,
}

impl Operator {
    pub(super) fn new(director: Director, fleet: Fleet, dice: Dice) -> Self {
        let hands = Mutex::new(Hands { fleet, dice });
        Self {
            director: Mutex::new(director),
            restarting: AtomicBool::new(false),
            hands,
            last: Mutex::new("nothing yet"),
        }
    }

    /// Whether the process is being replaced, so that nobody answers.
    pub(super) fn is_restarting(&self) -> bool {
        self.restarting.load(Ordering::SeqCst)
    }

    pub(super) fn line(&self) -> String {
        format!("last step: {}", self.last.lock().expect("no panic while it is held"))
    }

    /// Works until the load ends. After `restarts` the process is not ended any more, so that the
    /// last one lives long enough to show what it keeps.
    pub(super) fn work(&self, shared: &Shared, restarts: Duration) {
        let mut hands = self.hands.lock().expect("nobody else has it");
        while shared.goes_on() {
            let may_restart = shared.start.elapsed() < restarts;
            for step in deck(&mut hands.dice, may_restart) {
                let rest = Duration::from_millis(300 + u64::from(hands.dice.below(1500)));
                shared.pace(rest);
                if !shared.goes_on() {
                    return;
                }
                *self.last.lock().expect("no panic while it is held") = step.name();
                let done = self.step(step, &mut hands, shared);
                if let Err(error) = done {
                    let seconds = shared.seconds();
                    shared.tally.violation(format!("{} at {seconds} s: {error}", step.name()));
                    // A director that is gone is the end of it all.
                    shared.pace(Duration::from_secs(1));
                }
            }
        }
    }

    fn step(&self, step: Step, hands: &mut Hands, shared: &Shared) -> Result<()> {
        let count = u32::try_from(hands.fleet.0.len()).expect("a handful");
        let which = hands.dice.below(count) as usize;
        let detail = hands.fleet.0[which].addresses[0].to_string();
        let enough = hands.fleet.taking(which) >= TAKING;
        let weight = hands.dice.pick(&WEIGHTS);
        let member = &mut hands.fleet.0[which];
        match step {
            Step::Weigh if member.weight > 0 => member.weight = weight,
            Step::Drain if enough => member.weight = 0,
            Step::Undrain => member.weight = 100,
            Step::TakeOut if enough => member.configured = false,
            Step::PutIn => {
                // Rather one that is out, so that all come back.
                let out = hands.fleet.0.iter().position(|member| !member.configured);
                hands.fleet.0[out.unwrap_or(which)].configured = true;
            }
            Step::Weigh | Step::Drain | Step::TakeOut => return Ok(()),
            Step::Mistake => {
                shared.tally.step(step.name(), "", shared.seconds());
                return self.mistake(&hands.fleet);
            }
            Step::Hangup => {
                shared.tally.step(step.name(), "", shared.seconds());
                return self.director().signal(Signal::SIGHUP);
            }
            Step::Ask => {
                let question = hands.dice.pick(&QUESTIONS);
                shared.tally.step(step.name(), question[0], shared.seconds());
                return expect(self.director().adit(question)?.success, "a question", question[0]);
            }
            Step::Terminate | Step::Kill => {
                shared.tally.step(step.name(), "", shared.seconds());
                self.restarting.store(true, Ordering::SeqCst);
                let restarted = self.restart(step == Step::Kill);
                self.restarting.store(false, Ordering::SeqCst);
                return restarted;
            }
        }
        shared.tally.step(step.name(), &detail, shared.seconds());
        let said = self.director().reload(&hands.fleet.config())?;
        expect(said.success, "reload", &said.text)
    }

    fn restart(&self, kill: bool) -> Result<()> {
        let mut director = self.director();
        if kill {
            director.kill()?;
        } else {
            let status = director.terminate()?;
            expect(status.success(), "end in order", &status.to_string())?;
        }
        director.start_again()
    }

    fn director(&self) -> MutexGuard<'_, Director> {
        self.director.lock().expect("no panic while it is held")
    }

    /// A file with a mistake must be refused; the right one is put back.
    fn mistake(&self, fleet: &Fleet) -> Result<()> {
        let director = self.director();
        let said = director.reload(&fleet.config().set("colour", "1"))?;
        expect(!said.success, "refuse a file with a mistake", &said.text)?;
        let said = director.reload(&fleet.config())?;
        expect(said.success, "reload the right file", &said.text)
    }

    /// Ends the director in order, with nothing to do any more.
    pub(super) fn finish(&self, shared: &Shared) {
        let ended = self.director().terminate();
        let wrong = match ended {
            Ok(status) if status.success() => return,
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        shared.tally.violation(format!("the director's end: {wrong}"));
    }
}

fn expect(holds: bool, what: &str, detail: &str) -> Result<()> {
    if holds { Ok(()) } else { Err(LabError::failed(what, detail)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decks_have_every_step_and_restarts_first_or_never() {
        for seed in 0..50 {
            let mut dice = Dice::new(seed);
            let with = deck(&mut dice, true);
            let restarts = |steps: &[Step]| {
                let ends = |step: &&Step| matches!(step, Step::Terminate | Step::Kill);
                steps.iter().filter(ends).count()
            };
            assert_eq!((with.len(), restarts(&with[..4])), (12, 2));
            let without = deck(&mut dice, false);
            assert_eq!((without.len(), restarts(&without)), (10, 0));
            assert!(Step::OTHERS.iter().all(|step| without.contains(step)));
        }
    }
}
