//! systemd's watchdog: it hears that the director lives only while each worker does.

use super::notify;
use super::workers::Heard;
use crate::dataplane::time::Time;
use std::time::Duration;

/// What the service manager waits for (sd_watchdog_enabled(3)).
pub(super) struct Watchdog {
    /// Half of the time after which it gives the director up; `None` where nobody waits.
    every: Option<Duration>,
    due: Time,
}

impl Watchdog {
    /// As this process's environment asks for it.
    pub(super) fn asked_for() -> Self {
        let given = |name| std::env::var(name).ok();
        let (span, process) = (given("WATCHDOG_USEC"), given("WATCHDOG_PID"));
        let every = every(span.as_deref(), process.as_deref(), std::process::id());
        Watchdog { every, due: Time::ZERO }
    }

    /// Says that the director lives, when it is time to and every worker was heard lately. Else it is
    /// said as soon as they are.
    pub(super) fn tell(&mut self, heard: &Heard, now: Time) {
        if self.is_due(heard.all_lately(), now) {
            notify(&[sd_notify::NotifyState::Watchdog]);
        }
    }

    fn is_due(&mut self, alive: bool, now: Time) -> bool {
        let Some(every) = self.every else { return false };
        let is_due = alive && now >= self.due;
        if is_due {
            self.due = now + every;
        }
        is_due
    }
}

/// How often the process `own` is to be heard, where it is meant: a program that was started by
/// another service inherits its environment.
fn every(span: Option<&str>, process: Option<&str>, own: u32) -> Option<Duration> {
    let is_meant = process.is_none_or(|process| process.parse() == Ok(own));
    let span = span.filter(|_| is_meant)?.parse().ok().filter(|micros| *micros > 0)?;
    Some(Duration::from_micros(span) / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_time_passes_between_two_words() {
        let second = Some(Duration::from_secs(1));
        for (span, process, expected) in [
            (Some("2000000"), Some("7"), second),
            (Some("2000000"), None, second),
            (Some("2000000"), Some("8"), None),
            (Some("2000000"), Some("seven"), None),
            (Some("0"), Some("7"), None),
            (Some("soon"), Some("7"), None),
            (None, Some("7"), None),
            (None, None, None),
        ] {
            assert_eq!(every(span, process, 7), expected, "{span:?} {process:?}");
        }
    }

    #[test]
    fn what_is_not_said_while_a_worker_is_silent_is_said_once_it_is_heard() {
        let mut watchdog = Watchdog { every: Some(Duration::from_secs(1)), due: Time::ZERO };
        let mut said = Vec::new();
        for tenth in 0..50_u64 {
            let alive = !(15..30).contains(&tenth);
            if watchdog.is_due(alive, Time(tenth * 100_000_000)) {
                said.push(tenth);
            }
        }
        assert_eq!(said, [0, 10, 30, 40]);
        let mut nobody = Watchdog { every: None, due: Time::ZERO };
        assert!(!nobody.is_due(true, Time(1)));
    }
}
