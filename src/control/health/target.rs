//! What is known of one real server of one service: a state machine, time in, actions out.

use crate::control::config::{Check, Initial};
use crate::dataplane::time::Time;
use std::time::Duration;

/// The first check of a target comes within this time: soon, and not all in one moment.
const FIRST_WITHIN: Duration = Duration::from_millis(200);
/// A check comes early or late by up to this part of its interval, so that those of many targets, or
/// of many directors, do not keep step.
const JITTER_PART: u64 = 10;

/// How far a check came that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// It could not leave this host: that says nothing of the real server.
    Local,
    /// This host has no way to the real server.
    NoRoute,
    /// Somebody answered with a reset: nobody listens.
    Refused,
    /// A router, or the real server's host, said that it cannot be reached.
    Unreachable,
    /// Nobody answered.
    Timeout,
}

impl Step {
    /// Every step, in the order of [`Counts::failures`].
    pub const ALL: [Self; 5] =
        [Self::Local, Self::NoRoute, Self::Refused, Self::Unreachable, Self::Timeout];

    /// Stable name, as in JSON and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Step::Local => "local",
            Step::NoRoute => "no-route",
            Step::Refused => "refused",
            Step::Unreachable => "unreachable",
            Step::Timeout => "timeout",
        }
    }
}

/// Why a check failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// How far it came.
    pub step: Step,
    /// The same in words.
    pub what: String,
}

/// How a check ended: how long it took, or why it failed.
pub type Outcome = Result<Duration, Failure>;

/// Whether a real server takes new flows, as far as checks know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It was never checked, and takes none until it was. It is not known to be dead either.
    Unchecked,
    /// It does.
    Up,
    /// It does not.
    Down,
}

impl State {
    /// Stable name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            State::Unchecked => "unchecked",
            State::Up => "up",
            State::Down => "down",
        }
    }
}

/// What happens to a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The time of its next check has come.
    Due,
    /// Its check has ended.
    Finished(Outcome),
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    None,
    /// Begin a check.
    Start,
    /// The state is another.
    Changed(State),
}

/// Checks since the target is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// That succeeded.
    pub passed: u64,
    /// That failed, in the order of [`Step::ALL`].
    pub failures: [u64; Step::ALL.len()],
}

/// The last check that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Last {
    /// When it ended.
    pub at: Time,
    /// How.
    pub outcome: Outcome,
}

/// Whether a check is under way, and since when, or when the next one is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Due(Time),
    Running(Time),
    /// One is under way whose outcome says nothing any more.
    Void,
}

/// One real server of one service.
#[derive(Debug, Clone)]
pub struct Target {
    rules: Check,
    state: State,
    since: Time,
    /// Checks in a row whose outcome speaks against the state.
    streak: u8,
    last: Option<Last>,
    turn: Turn,
    /// State of the sequence that jitter is drawn from.
    jitter: u64,
    counts: Counts,
}

impl Target {
    /// A target that was never checked. `seed` makes its jitter another than that of others.
    #[must_use]
    pub fn new(rules: Check, now: Time, seed: u64) -> Self {
        let state = match rules.initial {
            Initial::Down => State::Unchecked,
            Initial::Up => State::Up,
        };
        let mut target = Target {
            rules,
            state,
            since: now,
            streak: 0,
            last: None,
            turn: Turn::Due(now),
            jitter: seed,
            counts: Counts::default(),
        };
        target.turn = Turn::Due(target.soon(now));
        target
    }

    /// When a first check begins.
    fn soon(&mut self, now: Time) -> Time {
        let spread = nanoseconds(FIRST_WITHIN.min(self.rules.interval));
        now + Duration::from_nanos(self.draw() % spread.max(1))
    }

    /// Takes an event. One check at a time is under way, however late it ends.
    pub fn on_event(&mut self, now: Time, event: Event) -> Action {
        match (event, self.turn) {
            (Event::Due, Turn::Due(due)) if due <= now => {
                self.turn = Turn::Running(now);
                Action::Start
            }
            (Event::Finished(outcome), Turn::Running(started)) => {
                let before = self.state;
                self.note(now, outcome);
                self.turn = Turn::Due(self.next(now, started));
                if self.state == before { Action::None } else { Action::Changed(self.state) }
            }
            (Event::Finished(_), Turn::Void) => {
                self.turn = Turn::Due(now);
                Action::None
            }
            (Event::Due | Event::Finished(_), Turn::Due(_) | Turn::Running(_) | Turn::Void) => {
                Action::None
            }
        }
    }

    /// Other rules hold. What is known stays.
    pub fn set_rules(&mut self, rules: Check) {
        if rules.port != self.rules.port {
            // Those in a row were of something else.
            self.streak = 0;
        }
        self.rules = rules;
        self.streak = self.streak.min(self.needed().saturating_sub(1));
    }

    /// It took new flows before anybody checked it, and goes on: it has to fail as often as what was
    /// seen up. Nothing to do where something is known.
    pub fn presume_up(&mut self, now: Time) {
        if self.state == State::Unchecked {
            self.state = State::Up;
            self.since = now;
        }
    }

    /// Checks go another way. Until one has, the state is what it was, and that one decides alone;
    /// what one finds that is under way by the old one is nobody's.
    pub fn go_another_way(&mut self, now: Time) {
        self.last = None;
        self.streak = self.needed().saturating_sub(1);
        if self.due().is_some() {
            self.turn = Turn::Due(self.soon(now));
        }
        self.drop_outcome();
    }

    /// What a check finds that is under way is nobody's.
    pub fn drop_outcome(&mut self) {
        if matches!(self.turn, Turn::Running(_)) {
            self.turn = Turn::Void;
        }
    }

    /// Puts the next check off until `at`, unless one is under way.
    pub fn put_off(&mut self, at: Time) {
        if let Turn::Due(due) = &mut self.turn {
            *due = (*due).max(at);
        }
    }

    /// When the next check is due; `None` while one is under way.
    #[must_use]
    pub fn due(&self) -> Option<Time> {
        match self.turn {
            Turn::Due(due) => Some(due),
            Turn::Running(_) | Turn::Void => None,
        }
    }

    fn note(&mut self, now: Time, outcome: Outcome) {
        match &outcome {
            Ok(_) => self.counts.passed += 1,
            Err(failure) => self.counts.failures[failure.step as usize] += 1,
        }
        let speaks_for = match &outcome {
            Ok(_) => Some(State::Up),
            // This host's own trouble is not the real server's.
            Err(Failure { step: Step::Local, .. }) => None,
            Err(_) => Some(State::Down),
        };
        self.last = Some(Last { at: now, outcome });
        let Some(found) = speaks_for else { return };
        if found == self.state {
            self.streak = 0;
            return;
        }
        self.streak = self.streak.saturating_add(1);
        if self.streak >= self.needed() {
            self.state = found;
            self.since = now;
            self.streak = 0;
        }
    }

    /// Outcomes in a row that change the state: the first one decides where nothing was known.
    const fn needed(&self) -> u8 {
        match self.state {
            State::Unchecked => 1,
            State::Up => self.rules.fall,
            State::Down => self.rules.rise,
        }
    }

    /// When the next check begins: an interval after this one began, or at once where it took longer.
    fn next(&mut self, now: Time, started: Time) -> Time {
        let failed = self.last.as_ref().is_some_and(|last| last.outcome.is_err());
        let slow = self.state == State::Down && failed;
        let interval = if slow { self.rules.down_interval } else { self.rules.interval };
        let part = nanoseconds(interval) / JITTER_PART;
        let jitter = self.draw() % (2 * part).max(1);
        let wait = Duration::from_nanos(nanoseconds(interval) - part + jitter);
        (started + wait).max(now)
    }

    /// The next number of splitmix64.
    fn draw(&mut self) -> u64 {
        self.jitter = self.jitter.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.jitter;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The rules in force.
    #[must_use]
    pub const fn rules(&self) -> &Check {
        &self.rules
    }

    /// The state.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// Since when it is that.
    #[must_use]
    pub const fn since(&self) -> Time {
        self.since
    }

    /// The last check that ended.
    #[must_use]
    pub const fn last(&self) -> Option<&Last> {
        self.last.as_ref()
    }

    /// Checks so far.
    #[must_use]
    pub const fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Why the state is what it is: `down: no SYN-ACK within 1s, 3 of 3`.
    #[must_use]
    pub fn reason(&self) -> String {
        let state = self.state.name();
        let Some(last) = &self.last else { return format!("{state}: not checked yet") };
        let what = match &last.outcome {
            Ok(latency) => format!("connected in {} us", latency.as_micros()),
            Err(failure) => failure.what.clone(),
        };
        let (rise, fall) = (self.rules.rise, self.rules.fall);
        match (self.state, &last.outcome) {
            (State::Up, Ok(_)) | (State::Unchecked, _) => format!("{state}: {what}"),
            (_, Err(Failure { step: Step::Local, .. })) => {
                format!("{state}: {what}, which says nothing of it")
            }
            (State::Up, Err(_)) => format!("{state}: {what}, {} of {fall}", self.streak),
            (State::Down, Err(_)) => format!("{state}: {what}, {fall} of {fall}"),
            (State::Down, Ok(_)) => format!("{state}: {what}, {} of {rise}", self.streak),
        }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::CheckKind;

    fn rules() -> Check {
        Check {
            kind: CheckKind::Tcp,
            port: 5432,
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            down_interval: Duration::from_secs(5),
            rise: 2,
            fall: 3,
            initial: Initial::Down,
        }
    }

    fn failure(step: Step) -> Outcome {
        Err(Failure { step, what: "no SYN-ACK within 1s".to_owned() })
    }

    /// Runs one check to its end, `took` after its beginning.
    fn check(target: &mut Target, outcome: Outcome, took: Duration) -> (Time, Action) {
        let start = target.due().expect("none is under way");
        assert_eq!(target.on_event(start, Event::Due), Action::Start);
        let action = target.on_event(start + took, Event::Finished(outcome));
        (start, action)
    }

    /// `+`, `t` (timeout), `r` (refused) and `l` (local) are outcomes; `U`, `D` changes.
    fn run(initial: Initial, outcomes: &str) -> String {
        let mut target = Target::new(Check { initial, ..rules() }, Time(7), 1);
        let mut said = String::new();
        for letter in outcomes.chars() {
            let outcome = match letter {
                '+' => Ok(Duration::from_millis(1)),
                't' => failure(Step::Timeout),
                'r' => failure(Step::Refused),
                _ => failure(Step::Local),
            };
            said.push(match check(&mut target, outcome, Duration::from_millis(1)).1 {
                Action::Changed(State::Up) => 'U',
                Action::Changed(State::Down) => 'D',
                Action::None => '.',
                other @ (Action::Start | Action::Changed(State::Unchecked)) => panic!("{other:?}"),
            });
        }
        said
    }

    #[test]
    fn rise_and_fall() {
        for (initial, outcomes, expected) in [
            // Where nothing was known the first check decides.
            (Initial::Down, "+", "U"),
            (Initial::Down, "t", "D"),
            (Initial::Down, "l+", ".U"),
            // What was presumed up has to fail as often as what was seen up.
            (Initial::Up, "ttt", "..D"),
            (Initial::Up, "t+ttt", "....D"),
            (Initial::Down, "+tt+ttr", "U.....D"),
            (Initial::Down, "+tttt+t++", "U..D....U"),
            (Initial::Down, "+tttt+t+", "U..D...."),
            // This host's own trouble neither counts nor begins the count anew.
            (Initial::Down, "+tlltll", "U......"),
            (Initial::Down, "+tltlt", "U....D"),
            (Initial::Down, "+tttlll", "U..D..."),
        ] {
            assert_eq!(run(initial, outcomes), expected, "{outcomes}");
        }
    }

    #[test]
    fn one_check_at_a_time_however_long_it_takes() {
        let mut target = Target::new(rules(), Time(0), 9);
        let start = target.due().unwrap();
        assert_eq!(target.on_event(Time(0), Event::Due), Action::None, "not yet");
        assert_eq!(target.on_event(start, Event::Due), Action::Start);
        for later in 1..100 {
            let now = start + Duration::from_secs(later);
            assert_eq!(target.on_event(now, Event::Due), Action::None, "one is under way");
            assert_eq!(target.due(), None);
        }
        let end = start + Duration::from_secs(100);
        assert_eq!(
            target.on_event(end, Event::Finished(Ok(Duration::ZERO))),
            Action::Changed(State::Up)
        );
        assert_eq!(target.due(), Some(end), "and the next at once");
        let stray = target.on_event(end, Event::Finished(failure(Step::Timeout)));
        assert_eq!((stray, target.counts().failures), (Action::None, [0; 5]), "nobody began it");
    }

    #[test]
    fn intervals_keep_their_mean_and_are_longer_while_it_is_down() {
        let mut target = Target::new(rules(), Time(0), 3);
        let between = |target: &mut Target, ok: bool| {
            let outcome = if ok { Ok(Duration::ZERO) } else { failure(Step::Timeout) };
            let (start, _) = check(target, outcome, Duration::from_millis(900));
            target.due().unwrap().saturating_since(start)
        };
        let mut sum = Duration::ZERO;
        for _ in 0..1000 {
            let wait = between(&mut target, true);
            assert!((1.8..=2.2).contains(&wait.as_secs_f64()), "{wait:?}");
            sum += wait;
        }
        assert!((1.98..2.02).contains(&(sum.as_secs_f64() / 1000.0)), "{sum:?}");
        for failed in 1..=10 {
            let wait = between(&mut target, false).as_secs_f64();
            // Not before it is taken out: until then every check counts.
            let expected = if failed < 3 { 1.8..=2.2 } else { 4.5..=5.5 };
            assert!(expected.contains(&wait), "{failed}: {wait}");
        }
        let wait = between(&mut target, true).as_secs_f64();
        assert!((1.8..=2.2).contains(&wait), "it comes back: {wait}");
    }

    #[test]
    fn it_is_taken_out_within_fall_intervals_and_a_timeout() {
        for seed in 0..1000 {
            let mut target = Target::new(rules(), Time(0), seed);
            let (last_good, _) = check(&mut target, Ok(Duration::ZERO), Duration::ZERO);
            let mut now = last_good;
            let stopped = last_good + Duration::from_nanos(1);
            while target.state() == State::Up {
                let (start, _) = check(&mut target, failure(Step::Timeout), rules().timeout);
                now = start + rules().timeout;
            }
            let took = now.saturating_since(stopped).as_secs_f64();
            // Three intervals with their jitter, and the last one's timeout.
            assert!(took <= 3.0 * 2.2 + 1.0, "{took}");
        }
    }

    #[test]
    fn reasons_say_what_was_seen_and_how_often() {
        let mut target = Target::new(rules(), Time(0), 1);
        assert_eq!(target.reason(), "unchecked: not checked yet");
        let millisecond = Duration::from_millis(1);
        let mut after = |outcome: Outcome| {
            check(&mut target, outcome, millisecond);
            target.reason()
        };
        assert_eq!(after(Ok(millisecond)), "up: connected in 1000 us");
        assert_eq!(after(failure(Step::Timeout)), "up: no SYN-ACK within 1s, 1 of 3");
        let local = after(failure(Step::Local));
        assert_eq!(local, "up: no SYN-ACK within 1s, which says nothing of it");
        after(failure(Step::Timeout));
        for _ in 0..3 {
            assert_eq!(after(failure(Step::Timeout)), "down: no SYN-ACK within 1s, 3 of 3");
        }
        assert_eq!(after(Ok(millisecond)), "down: connected in 1000 us, 1 of 2");
    }

    #[test]
    fn other_rules_keep_what_is_known() {
        let mut target = Target::new(rules(), Time(0), 1);
        check(&mut target, Ok(Duration::ZERO), Duration::ZERO);
        check(&mut target, failure(Step::Timeout), Duration::ZERO);
        check(&mut target, failure(Step::Timeout), Duration::ZERO);
        // What has happened already does not take it out when one less would have.
        target.set_rules(Check { fall: 2, ..rules() });
        assert_eq!(target.state(), State::Up);
        assert_eq!(check(&mut target, Ok(Duration::ZERO), Duration::ZERO).1, Action::None);
        check(&mut target, failure(Step::Timeout), Duration::ZERO);
        target.set_rules(Check { fall: 2, port: 80, ..rules() });
        let first = check(&mut target, failure(Step::Timeout), Duration::ZERO).1;
        assert_eq!(first, Action::None, "the other port's failures are not this one's");
    }
}
