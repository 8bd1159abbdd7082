//! The director's books: *received = forwarded + replied + passed + Σ dropped + held + in flight*.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::error::{Context, LabError, Result};
use crate::wait::{pause, wait_for};

/// Looks until one must balance. The counters of a look are read one after the other, while packets
/// come in: some looks fall between two. A packet that is never accounted for is missing in all.
const TRIES: u32 = 100;

/// Time between two of them, so that another packet is looked at.
const BETWEEN: Duration = Duration::from_millis(3);

/// Limit for one answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Lines that tell of the same thing are worth no more than this many.
const VIOLATIONS: usize = 20;

/// One look at the ledger, in input packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ledger {
    pub(super) received: u64,
    pub(super) forwarded: u64,
    pub(super) replied: u64,
    pub(super) passed: u64,
    pub(super) held: u64,
    pub(super) in_flight: u64,
    /// Sum over all reasons.
    pub(super) dropped: u64,
}

impl Ledger {
    /// Of the answer to `GET /v1/status`.
    fn of(status: &Value) -> Option<Self> {
        let total = |name: &str| status["totals"][name].as_u64();
        Some(Self {
            received: total("received")?,
            forwarded: total("forwarded")?,
            replied: total("replied")?,
            passed: total("passed")?,
            held: total("held")?,
            in_flight: total("in_flight")?,
            dropped: status["dropped"].as_u64()?,
        })
    }

    /// Packets that came in and are nowhere, or are somewhere and did not come in.
    pub(super) fn difference(&self) -> i128 {
        let accounted =
            [self.forwarded, self.replied, self.passed, self.held, self.in_flight, self.dropped];
        i128::from(self.received) - accounted.map(i128::from).iter().sum::<i128>()
    }
}

/// The sum of all reasons that `GET /v1/drops` tells.
fn by_reason(drops: &Value) -> Option<u64> {
    drops["drops"].as_array()?.iter().map(|drop| drop["count"].as_u64()).sum()
}

/// The books of all processes of a soak's director.
#[derive(Debug)]
pub(super) struct Books {
    socket: PathBuf,
    /// The last look, and whose it was.
    last: Option<(u32, Ledger)>,
    /// Of the processes before that one.
    before: Ledger,
    /// Seconds in which the books were found to balance.
    pub(super) balanced: u64,
    /// The most looks that were needed until one balanced.
    pub(super) most_tries: u32,
    /// Seconds in which nobody answered.
    pub(super) unanswered: u64,
    pub(super) violations: Vec<String>,
}

impl Books {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            last: None,
            before: Ledger::default(),
            balanced: 0,
            most_tries: 0,
            unanswered: 0,
            violations: Vec::new(),
        }
    }

    pub(super) fn violation(&mut self, what: String) {
        if self.violations.len() < VIOLATIONS {
            self.violations.push(what);
        }
    }

    /// Looks until the books balance; returns the director's process.
    ///
    /// # Errors
    /// When nobody answers.
    pub(super) fn look(&mut self) -> Result<u32> {
        let mut tries = 1;
        let (pid, ledger) = loop {
            let (pid, ledger) = self.ask()?;
            if ledger.difference() == 0 {
                self.balanced += 1;
                self.most_tries = self.most_tries.max(tries);
                break (pid, ledger);
            }
            if tries == TRIES {
                let by = ledger.difference();
                self.violation(format!("the ledger is off by {by} in {TRIES} looks: {ledger:?}"));
                break (pid, ledger);
            }
            tries += 1;
            pause(BETWEEN);
        };
        self.take_in(pid, ledger);
        Ok(pid)
    }

    fn take_in(&mut self, pid: u32, ledger: Ledger) {
        match self.last {
            Some((known, last)) if known == pid && ledger.received < last.received => {
                self.violation(format!("counters went back: {last:?}, then {ledger:?}"));
            }
            Some((known, last)) if known != pid => {
                self.before.received += last.received;
                self.before.forwarded += last.forwarded;
                self.before.dropped += last.dropped;
            }
            _ => {}
        }
        self.last = Some((pid, ledger));
    }

    /// Received, forwarded and dropped by all processes, as far as looks saw.
    pub(super) fn totals(&self) -> [u64; 3] {
        let last = self.last.map_or(Ledger::default(), |(_, ledger)| ledger);
        [
            self.before.received + last.received,
            self.before.forwarded + last.forwarded,
            self.before.dropped + last.dropped,
        ]
    }

    pub(super) fn line(&self) -> String {
        let [received, forwarded, dropped] = self.totals();
        format!(
            "packets {received} in, {forwarded} out, {dropped} dropped; ledger right in {} looks",
            self.balanced
        )
    }

    /// Waits until nothing comes in any more, and nothing is on its way out; then the books must
    /// balance in one look.
    ///
    /// # Errors
    /// When that is not so.
    pub(super) fn settle(&mut self, limit: Duration) -> Result<()> {
        let mut before = None;
        let (pid, ledger) = wait_for(limit, "the director to be done", || {
            let (pid, ledger) = self.ask().ok()?;
            let done = ledger.in_flight == 0 && before == Some(ledger);
            before = Some(ledger);
            done.then_some((pid, ledger))
        })?;
        self.take_in(pid, ledger);
        let by_reason = by_reason(&self.get("/v1/drops")?);
        if by_reason != Some(ledger.dropped) {
            let what = format!("{by_reason:?} by reason, {} in the status", ledger.dropped);
            return Err(LabError::failed("agree on drops", what));
        }
        match ledger.difference() {
            0 => Ok(()),
            by => Err(LabError::failed("balance the ledger", format!("off by {by}: {ledger:?}"))),
        }
    }

    fn ask(&self) -> Result<(u32, Ledger)> {
        let status = self.get("/v1/status")?;
        let pid = status["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        let read = pid.zip(Ledger::of(&status));
        read.ok_or_else(|| LabError::failed("read the ledger", status.to_string()))
    }

    /// Asks the admin socket itself: a process per look would be most of the load.
    fn get(&self, target: &str) -> Result<Value> {
        let what = || format!("ask for {target}");
        let mut stream = UnixStream::connect(&self.socket).context(what)?;
        stream.set_read_timeout(Some(ANSWER)).context(what)?;
        let request = format!("GET {target} HTTP/1.1\r\nHost: adit\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).context(what)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).context(what)?;
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body);
        let body = body.ok_or_else(|| LabError::failed(what(), answer.clone()))?;
        serde_json::from_str(body).context(what)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn books() -> Books {
        Books::new(PathBuf::from("/nonexistent"))
    }

    fn ledger(received: u64, dropped: u64) -> Ledger {
        Ledger { received, forwarded: received - dropped, dropped, ..Ledger::default() }
    }

    #[test]
    fn every_term_is_in_the_sum() {
        let totals = json!({
            "received": 63, "forwarded": 1, "replied": 2, "passed": 4, "held": 8, "in_flight": 16
        });
        let right = json!({ "totals": totals, "dropped": 32 });
        assert_eq!(Ledger::of(&right).unwrap().difference(), 0);
        let forgotten = json!({ "totals": totals, "dropped": 31 });
        assert_eq!(Ledger::of(&forgotten).unwrap().difference(), 1);
        assert_eq!(Ledger::of(&json!({ "totals": {}, "dropped": 1 })), None);
        assert_eq!(by_reason(&json!({ "drops": [{ "count": 30 }, { "count": 2 }] })), Some(32));
        assert_eq!(by_reason(&json!({ "drops": [{ "count": "many" }] })), None);
    }

    #[test]
    fn another_process_begins_anew_and_the_same_one_does_not() {
        let mut books = books();
        books.take_in(1, ledger(100, 10));
        books.take_in(2, ledger(5, 1));
        books.take_in(2, ledger(7, 1));
        assert_eq!(books.totals(), [107, 96, 11]);
        assert!(books.violations.is_empty());
        books.take_in(2, ledger(6, 1));
        assert_eq!(books.violations.len(), 1, "its counters went back");
    }

    #[test]
    fn nobody_is_an_error_and_complaints_are_bounded() {
        let mut books = books();
        assert!(books.look().is_err());
        for _ in 0..100 {
            books.violation("again".to_owned());
        }
        assert_eq!(books.violations.len(), VIOLATIONS);
    }
}
