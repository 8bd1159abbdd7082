//! What health checks know of real servers.

use super::families::{Families, Label};
use crate::control::admin::api::{FailuresView, HealthView, RealView};
use std::fmt;
use std::time::Duration;

/// Every real server that is checked, with its labels. Those that are not have no series.
pub(super) fn encode<'s>(
    each: impl Iterator<Item = ([Label<'s>; 6], &'s RealView)> + Clone,
    families: &mut Families<'_>,
) -> fmt::Result {
    let checked =
        || each.clone().filter_map(|(labels, real)| Some((labels, real.health.as_ref()?)));
    families.gauge(
        "adit_check_up",
        "Whether a real server that is checked takes new flows as far as checks know: 1 if so.",
        checked().map(|(labels, health)| (labels, u64::from(health.state == "up"))),
    )?;
    families.info(
        "adit_check_info",
        "What is tried, the state that follows, and how the last check ended: ok, or the step at which \
         it failed.",
        checked().map(|(labels, health)| {
            let HealthView { check, state, last, .. } = health;
            let [service, vip, port, protocol, real, tunnel] = labels;
            let last = last.as_deref().unwrap_or_default();
            let words = [("check", check.as_str()), ("state", state), ("last", last)];
            let [check, state, last] = words;
            [service, vip, port, protocol, real, tunnel, check, state, last]
        }),
    )?;
    families.gauge(
        "adit_check_state_seconds",
        "Time since the state that follows from checks is what it is.",
        checked().map(|(labels, health)| (labels, health.since_seconds)),
    )?;
    families.gauge(
        "adit_check_latency_seconds",
        "Time from SYN to SYN-ACK in the last check, where it succeeded.",
        checked().filter_map(|(labels, health)| {
            Some((labels, Duration::from_micros(health.latency_us?).as_secs_f64()))
        }),
    )?;
    families.gauge(
        "adit_check_age_seconds",
        "Time since the last check ended.",
        checked().filter_map(|(labels, health)| Some((labels, health.age_seconds?))),
    )?;
    families.counter(
        "adit_check_successes_total",
        "Checks that succeeded.",
        checked().map(|(labels, health)| (labels, health.passed)),
    )?;
    let failures = checked().flat_map(|(labels, health)| {
        let FailuresView { local, no_route, refused, unreachable, timeout } = health.failures;
        let [service, vip, port, protocol, real, tunnel] = labels;
        [
            ("local", local),
            ("no-route", no_route),
            ("refused", refused),
            ("unreachable", unreachable),
            ("timeout", timeout),
        ]
        .map(|(step, count)| ([service, vip, port, protocol, real, tunnel, ("step", step)], count))
    });
    families.counter(
        "adit_check_failures_total",
        "Checks that failed, by step: local (could not leave this host), no-route, refused (reset), \
         unreachable (an ICMP error) or timeout.",
        failures,
    )
}
