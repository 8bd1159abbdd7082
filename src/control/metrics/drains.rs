//! Real servers that operators keep from new flows.

use super::families::{Families, Label};
use crate::control::admin::api::{DrainView, RealView, SessionsView};
use std::fmt;

/// Every real server that is drained, with its labels. Others have no series.
pub(super) fn encode<'s>(
    each: impl Iterator<Item = ([Label<'s>; 6], &'s RealView)> + Clone,
    families: &mut Families<'_>,
) -> fmt::Result {
    let drained = || each.clone().filter_map(|(labels, real)| Some((labels, real.drain.as_ref()?)));
    families.info(
        "adit_drain_info",
        "Real servers that are drained by `adit drain`: by whom, why, since when, and whether in all \
         services.",
        drained().map(|(labels, drain)| {
            let DrainView { owner, reason, since, all_services, .. } = drain;
            let [service, vip, port, protocol, real, tunnel] = labels;
            let reason = reason.as_deref().unwrap_or_default();
            let scope = if *all_services { "all" } else { "service" };
            let words =
                [("owner", owner.as_str()), ("reason", reason), ("since", since), ("scope", scope)];
            let [owner, reason, since, scope] = words;
            [service, vip, port, protocol, real, tunnel, owner, reason, since, scope]
        }),
    )?;
    families.gauge(
        "adit_drain_age_seconds",
        "Time since a real server was drained.",
        drained().map(|(labels, drain)| (labels, drain.age_seconds)),
    )?;
    families.gauge(
        "adit_drain_remaining_sessions",
        "Sessions of a drained real server that have not ended.",
        drained().filter_map(|(labels, drain)| Some((labels, drain.remaining?))),
    )?;
    let sessions = drained().filter_map(|(labels, drain)| Some((labels, drain.sessions.as_ref()?)));
    families.gauge(
        "adit_drain_sessions",
        "The same by class: established, unproven, half-open or closing (the client has sent FIN, and \
         was heard in the last five seconds).",
        sessions.flat_map(|(labels, sessions)| {
            let SessionsView { established, unproven, half_open, closing } = *sessions;
            let [service, vip, port, protocol, real, tunnel] = labels;
            [
                ("established", established),
                ("unproven", unproven),
                ("half-open", half_open),
                ("closing", closing),
            ]
            .map(|(class, count)| {
                ([service, vip, port, protocol, real, tunnel, ("class", class)], count)
            })
        }),
    )
}
