//! Scheduler, persistence and timeouts of a service, as both inputs say them.

use super::address::{number, prefix_length};
use super::draft::{Persistence, Timeouts, bounded};
use super::ledger::{Ledger, Word};
use super::remarks::{
    bad_mask, mask_without_persistence, no_scheduler, not_a_number, one_packet_and_persistence,
    one_packet_of_tcp,
};
use super::schedulers::{self, Chosen};
use crate::control::config::{
    DurationBounds, PERSISTENCE, Protocol, TCP_ESTABLISHED, TCP_FIN, UDP,
};
use crate::dataplane::scheduler::{SchedulerFlag, SchedulerKind};
use std::borrow::Cow;
use std::time::Duration;

/// Seconds of a persistence that names none: six minutes, as keepalived.conf(5) has it and the
/// kernel prints it.
const DEFAULT_PERSISTENCE: u64 = 360;

/// Something the input says: all its words, and its value.
#[derive(Debug, Clone)]
pub(super) struct Said<'w, 't> {
    pub(super) words: Vec<&'w Word<'t>>,
    pub(super) value: Option<Cow<'w, str>>,
}

impl<'w, 't> Said<'w, 't> {
    pub(super) fn words(&self) -> impl Iterator<Item = &'w Word<'t>> {
        self.words.iter().copied()
    }

    pub(super) fn value(&self) -> &str {
        self.value.as_deref().unwrap_or_default()
    }
}

/// The scheduler of a service and its flags.
pub(super) fn scheduler(
    named: Option<&Said<'_, '_>>,
    flags: &[Said<'_, '_>],
    ledger: &mut Ledger,
) -> Chosen {
    let kind = named.and_then(|said| match schedulers::named(said.value()) {
        Some(kind) => {
            ledger.used(said.words());
            if let Some(remark) = schedulers::difference(kind) {
                ledger.report(said.words(), remark);
            }
            Some(kind)
        }
        None => {
            ledger.report(said.words(), no_scheduler(said.value()));
            None
        }
    });
    let kind = kind.unwrap_or(schedulers::DEFAULT);
    Chosen { kind, flags: self::flags(kind, flags, ledger) }
}

fn flags(kind: SchedulerKind, said: &[Said<'_, '_>], ledger: &mut Ledger) -> Vec<SchedulerFlag> {
    let mut taken = Vec::new();
    for said in said {
        ledger.used(said.words());
        // ipvsadm joins them with commas, and prints the option for a service that has none, too.
        for name in said.value().split(',').filter(|name| !name.is_empty()) {
            match schedulers::flag(kind, name) {
                Ok(flag) => taken.push(flag),
                Err(remark) => ledger.report(said.words(), remark),
            }
        }
    }
    taken.sort_unstable();
    taken.dedup();
    taken
}

/// Whether each datagram is scheduled anew, as `said` asks.
pub(super) fn one_packet(
    said: Option<&Said<'_, '_>>,
    protocol: Protocol,
    persistent: bool,
    ledger: &mut Ledger,
) -> bool {
    let Some(said) = said else { return false };
    let remark = match protocol {
        Protocol::Tcp => one_packet_of_tcp(),
        Protocol::Udp if persistent => one_packet_and_persistence(),
        Protocol::Udp => {
            ledger.used(said.words());
            return true;
        }
    };
    ledger.report(said.words(), remark);
    false
}

/// Whether and how clients come back to the same real server.
pub(super) fn persistence(
    timeout: Option<&Said<'_, '_>>,
    mask: Option<&Said<'_, '_>>,
    is_ipv4: bool,
    ledger: &mut Ledger,
) -> Option<Persistence> {
    let full = full_prefix(is_ipv4);
    let mut prefix = full;
    if let Some(mask) = mask {
        match prefix_length(mask.value(), is_ipv4) {
            _ if timeout.is_none() => ledger.report(mask.words(), mask_without_persistence()),
            Ok(length) => {
                prefix = length;
                ledger.used(mask.words());
            }
            Err(error) => ledger.report(mask.words(), bad_mask(error, full)),
        }
    }
    let said = timeout?;
    ledger.used(said.words());
    let seconds = match said.value.as_deref().map(number::<u64>) {
        None => DEFAULT_PERSISTENCE,
        Some(Some(seconds)) => seconds,
        Some(None) => {
            ledger.report(said.words(), not_a_number());
            DEFAULT_PERSISTENCE
        }
    };
    let (timeout, remark) = bounded(seconds, &PERSISTENCE);
    if let Some(remark) = remark {
        ledger.report(said.words(), remark);
    }
    Some(Persistence { timeout, prefix })
}

/// The prefix of a single client.
pub(super) fn full_prefix(is_ipv4: bool) -> u8 {
    if is_ipv4 { 32 } else { 128 }
}

/// The three numbers of `ipvsadm --set`: TCP, TCP after a FIN, UDP.
pub(super) fn timeouts<'w, 't: 'w>(
    timeouts: &mut Timeouts,
    words: &[&'w Word<'t>],
    ledger: &mut Ledger,
) {
    for (position, word) in words.iter().copied().enumerate() {
        timeout(timeouts, position, word, ledger);
    }
}

/// The number at `position` of these.
pub(super) fn timeout(
    timeouts: &mut Timeouts,
    position: usize,
    word: &Word<'_>,
    ledger: &mut Ledger,
) {
    let (bounds, field): (&DurationBounds, &mut Option<Duration>) = match position {
        0 => (&TCP_ESTABLISHED, &mut timeouts.tcp),
        1 => (&TCP_FIN, &mut timeouts.tcp_fin),
        _ => (&UDP, &mut timeouts.udp),
    };
    match number::<u64>(&word.text) {
        // 0 keeps what is in force, which here is the default.
        Some(0) => ledger.used([word]),
        Some(seconds) => {
            let (timeout, remark) = bounded(seconds, bounds);
            *field = Some(timeout);
            ledger.used([word]);
            if let Some(remark) = remark {
                ledger.report([word], remark);
            }
        }
        None => ledger.report([word], not_a_number()),
    }
}
