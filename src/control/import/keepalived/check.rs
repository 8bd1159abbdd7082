//! `TCP_CHECK` of real servers, as the `check` of their service.
//!
//! keepalived checks each real server by itself, as often as it is told; here a service checks all of
//! its own alike. So the first real server that is checked speaks for all, and what others say
//! otherwise is reported.

use super::super::address::number;
use super::super::ledger::{Ledger, Word};
use super::super::remarks::not_a_number;
use super::super::report::Remark;
use super::options::{CHECK_OPTIONS, CheckOption, Meaning, TCP_CHECK, UNUSED_CHECK};
use super::tree::Statement;
use super::virtual_server::{Last, meaning};
use super::{extra_words, report, single};
use crate::control::config::{
    CHECK_INTERVAL, CHECK_STREAK, CHECK_TIMEOUT, Check, CheckKind, DurationBounds, Initial,
};
use std::time::Duration;

/// What keepalived takes where a file says nothing.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(60);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_RETRIES: u32 = 1;
const DEFAULT_RETRY_DELAY: Duration = Duration::from_secs(1);
/// One check that succeeds brings a real server back.
const RISE: u8 = 1;

/// The options about checks that stand at one place: of a virtual server, of a real server, or in a
/// `TCP_CHECK`. The inner ones go before the outer ones.
#[derive(Default)]
pub(super) struct Said<'s, 't> {
    options: Vec<(CheckOption, Last<'s, 't>)>,
}

impl<'s, 't> Said<'s, 't> {
    pub(super) fn add(
        &mut self,
        option: CheckOption,
        statement: &'s Statement<'t>,
        ledger: &mut Ledger,
    ) {
        match self.options.iter_mut().find(|(known, _)| *known == option) {
            Some((_, last)) => last.set(statement, ledger),
            None => self.options.push((option, Last(Some(statement)))),
        }
    }

    fn statements(&self) -> impl Iterator<Item = (CheckOption, &'s Statement<'t>)> {
        self.options.iter().filter_map(|(option, last)| Some((*option, last.0?)))
    }

    fn unused(&self, ledger: &mut Ledger) {
        for (_, statement) in self.statements() {
            report(statement, CHECK_OPTIONS.remark(), ledger);
        }
    }

    fn values(&self, ledger: &mut Ledger) -> Values {
        let mut values = Values::default();
        for (option, statement) in self.statements() {
            match option {
                CheckOption::Port => values.port = port(statement, ledger),
                CheckOption::Interval => values.interval = timer(statement, ledger),
                CheckOption::Timeout => values.timeout = timer(statement, ledger),
                CheckOption::Retries => values.retries = retries(statement, ledger),
                CheckOption::RetryDelay => values.retry_delay = timer(statement, ledger),
                CheckOption::Alpha => values.alpha = flag(statement, ledger),
            }
        }
        values
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Values {
    port: Option<u16>,
    interval: Option<Duration>,
    timeout: Option<Duration>,
    retries: Option<u32>,
    retry_delay: Option<Duration>,
    alpha: Option<bool>,
}

impl Values {
    fn or(self, outer: Values) -> Values {
        Values {
            port: self.port.or(outer.port),
            interval: self.interval.or(outer.interval),
            timeout: self.timeout.or(outer.timeout),
            retries: self.retries.or(outer.retries),
            retry_delay: self.retry_delay.or(outer.retry_delay),
            alpha: self.alpha.or(outer.alpha),
        }
    }
}

/// A real server and what it says of checks.
pub(super) struct Checked<'s, 't> {
    pub(super) statement: &'s Statement<'t>,
    /// Its own port, 0 where it names none.
    pub(super) port: u16,
    /// Whether it became a real server of the configuration, or a comment in it.
    pub(super) is_imported: bool,
    pub(super) said: Said<'s, 't>,
    /// Its `TCP_CHECK`s.
    pub(super) blocks: Vec<&'s Statement<'t>>,
}

/// What a file asks of a service's checks, in keepalived's terms, defaults filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Asked {
    /// `connect_port`.
    port: Option<u16>,
    interval: Duration,
    timeout: Duration,
    retries: u32,
    retry_delay: Duration,
    alpha: bool,
}

/// The check of a service, but for its port, which the VIP's may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Template {
    port: Option<u16>,
    /// The real server's, for VIPs of every port.
    own_port: Option<u16>,
    check: Check,
}

impl Template {
    /// The check of the service of `port`, `None` for every port. `None` when there is no port to
    /// connect to.
    pub(super) fn of_port(&self, port: Option<u16>) -> Option<Check> {
        let port = self.port.or(port).or(self.own_port)?;
        Some(Check { port, ..self.check })
    }
}

/// What the real servers' checks become, and the report of what they say beyond that.
pub(super) fn template(
    outer: &Said<'_, '_>,
    reals: &[Checked<'_, '_>],
    ledger: &mut Ledger,
) -> Option<Template> {
    for real in reals.iter().filter(|real| !real.is_imported) {
        real.said.unused(ledger);
        for block in &real.blocks {
            report(block, UNUSED_CHECK.remark(), ledger);
        }
    }
    let imported = || reals.iter().filter(|real| real.is_imported);
    let Some(speaker) = imported().find(|real| !real.blocks.is_empty()) else {
        outer.unused(ledger);
        imported().for_each(|real| real.said.unused(ledger));
        return None;
    };
    let outer = outer.values(ledger);
    let mut taken: Option<(Asked, &Statement<'_>)> = None;
    for real in imported() {
        let Some((block, more)) = real.blocks.split_first() else {
            real.said.unused(ledger);
            let why = format!(
                "it has no TCP_CHECK; here a service checks all of its real servers alike, as the one \
                 in line {} says",
                speaker.statement.line()
            );
            let remark = Remark::changed(why, "see that it answers to checks at the VIP");
            ledger.report(&real.statement.words, remark);
            continue;
        };
        for block in more {
            let remark = Remark::left_out(
                "a service has one check here: the first of a real server's counts",
                "choose the one that tells most",
            );
            report(block, remark, ledger);
        }
        ledger.used(&block.words[..1]);
        extra_words(&block.words[1..], ledger);
        let values = in_block(block, ledger).or(real.said.values(ledger)).or(outer);
        let asked = Asked {
            port: values.port,
            interval: values.interval.unwrap_or(DEFAULT_INTERVAL),
            timeout: values.timeout.unwrap_or(DEFAULT_TIMEOUT),
            retries: values.retries.unwrap_or(DEFAULT_RETRIES),
            retry_delay: values.retry_delay.unwrap_or(DEFAULT_RETRY_DELAY),
            alpha: values.alpha.unwrap_or(false),
        };
        match taken {
            None => taken = Some((asked, block)),
            Some((first, at)) if first != asked => {
                let why = format!(
                    "a service checks all of its real servers alike here, and the one in line {} says \
                     it otherwise",
                    at.line()
                );
                let remark = Remark::changed(why, "choose in `check` of the service");
                ledger.report(&block.words[..1], remark);
            }
            Some(_) => {}
        }
    }
    let (asked, block) = taken?;
    let own_port = (speaker.port != 0).then_some(speaker.port);
    let words = &block.words[..1];
    Some(Template { port: asked.port, own_port, check: check(&asked, words, ledger) })
}

/// A check as the configuration takes it, with what it does otherwise said of `words`.
fn check(asked: &Asked, words: &[Word<'_>], ledger: &mut Ledger) -> Check {
    let mut bounded = |asked: Duration, what: &str, bounds: &DurationBounds, most: Duration| {
        let milliseconds =
            Duration::from_millis(u64::try_from(asked.as_millis()).unwrap_or(u64::MAX));
        let taken = milliseconds.clamp(bounds.least, bounds.most.min(most));
        if taken != asked {
            let why = format!("{what} of {asked:?} is not possible here; {taken:?} is taken");
            let reason =
                if taken == most { "no check outlasts its interval" } else { bounds.reason };
            ledger.report(words, Remark::changed(why, reason));
        }
        taken
    };
    let interval = bounded(asked.interval, "an interval", &CHECK_INTERVAL, Duration::MAX);
    let timeout = bounded(asked.timeout, "a timeout", &CHECK_TIMEOUT, interval);
    let most = u32::from(*CHECK_STREAK.end());
    let wanted = asked.retries.saturating_add(1);
    let fall = u8::try_from(wanted.min(most)).unwrap_or(*CHECK_STREAK.end());
    if u32::from(fall) != wanted {
        let why = format!("{} retries are out of range; `fall` = {fall} is taken", asked.retries);
        ledger.report(words, Remark::changed(why, "nothing: it is never reached"));
    }
    if asked.retries > 0 && asked.retry_delay != interval {
        let compared = if asked.retry_delay < interval { "longer" } else { "less long" };
        let why = format!(
            "a failed check is repeated after the interval of {interval:?} here, not after {:?}: it \
             takes {compared} until a real server is taken out",
            asked.retry_delay
        );
        let remark = Remark::changed(why, "choose `interval` and `fall` of `check` together");
        ledger.report(words, remark);
    }
    Check {
        kind: CheckKind::Tcp,
        // The service's takes its place.
        port: 0,
        interval,
        timeout,
        down_interval: interval,
        rise: RISE,
        fall,
        initial: if asked.alpha { Initial::Down } else { Initial::Up },
    }
}

/// The options in a `TCP_CHECK`.
fn in_block(block: &Statement<'_>, ledger: &mut Ledger) -> Values {
    let mut said = Said::default();
    for option in block.options() {
        if let Some(Meaning::Check(check)) = meaning(option, TCP_CHECK, ledger) {
            said.add(check, option, ledger);
        }
    }
    said.values(ledger)
}

fn port(option: &Statement<'_>, ledger: &mut Ledger) -> Option<u16> {
    let word = single(option, ledger)?;
    let port = number(&word.text).filter(|port| *port != 0);
    refused_without(port, word, ledger)
}

fn retries(option: &Statement<'_>, ledger: &mut Ledger) -> Option<u32> {
    let word = single(option, ledger)?;
    refused_without(number(&word.text), word, ledger)
}

/// Seconds with a fraction of up to six digits, as keepalived takes them.
fn timer(option: &Statement<'_>, ledger: &mut Ledger) -> Option<Duration> {
    let word = single(option, ledger)?;
    refused_without(seconds(&word.text), word, ledger)
}

fn seconds(text: &str) -> Option<Duration> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let whole: u32 = if whole.is_empty() { 0 } else { number(whole)? };
    if fraction.len() > 6 {
        return None;
    }
    let micros: u32 = number(&format!("{fraction:0<6}"))?;
    Some(Duration::new(whole.into(), micros * 1000))
}

/// `on`, `true`, `yes`, their opposites, or nothing, which is `on`.
fn flag(option: &Statement<'_>, ledger: &mut Ledger) -> Option<bool> {
    if option.words.len() == 1 {
        ledger.used(&option.words);
        return Some(true);
    }
    let word = single(option, ledger)?;
    let flag = match word.text.to_ascii_lowercase().as_str() {
        "on" | "true" | "yes" => Some(true),
        "off" | "false" | "no" => Some(false),
        _ => None,
    };
    if flag.is_none() {
        let remark = Remark::unknown("it is neither on nor off; the default is taken", "write on");
        ledger.report([word], remark);
    }
    flag
}

fn refused_without<T>(value: Option<T>, word: &Word<'_>, ledger: &mut Ledger) -> Option<T> {
    if value.is_none() {
        ledger.report([word], not_a_number());
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers() {
        let cases = [
            ("3", Some(3_000_000)),
            ("2.5", Some(2_500_000)),
            ("0.000001", Some(1)),
            (".25", Some(250_000)),
            ("4.", Some(4_000_000)),
            ("1.0000001", None),
            ("-1", None),
            ("1e3", None),
            ("1.+5", None),
            ("99999999999", None),
        ];
        for (text, micros) in cases {
            assert_eq!(seconds(text), micros.map(Duration::from_micros), "{text}");
        }
    }
}
