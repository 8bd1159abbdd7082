//! `max_connections` and `min_connections` of a real server from IPVS's upper and lower threshold.

use super::address::number;
use super::choices::Said;
use super::ledger::Ledger;
use super::remarks::not_a_number;
use super::report::Remark;
use crate::control::config::THRESHOLD;

/// Bounds of a real server's connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Thresholds {
    pub(super) max_connections: Option<u32>,
    /// Never without the other, and never above it.
    pub(super) min_connections: Option<u32>,
}

/// What the thresholds say: in IPVS 0 sets none, and without an upper one there is no lower one.
pub(super) fn read(
    upper: Option<&Said<'_, '_>>,
    lower: Option<&Said<'_, '_>>,
    ledger: &mut Ledger,
) -> Thresholds {
    let max_connections = upper.and_then(|said| bound(said, ledger));
    let Some(said) = lower else { return Thresholds { max_connections, min_connections: None } };
    let mut min_connections = bound(said, ledger);
    let remark = match (max_connections, min_connections) {
        (_, None) => None,
        (None, Some(_)) => Some(Remark::left_out(
            "a lower threshold without an upper one decides nothing, in IPVS too",
            "leave it out",
        )),
        (Some(max), Some(min)) => (min > max).then(|| {
            Remark::changed(
                "IPVS refuses a lower threshold above the upper one; three quarters of the upper \
                 one are taken",
                "give `min_connections` in the configuration if that is not what was meant",
            )
        }),
    };
    if let Some(remark) = remark {
        ledger.report(said.words(), remark);
        min_connections = None;
    }
    Thresholds { max_connections, min_connections }
}

/// One threshold, in the range of the configuration.
fn bound(said: &Said<'_, '_>, ledger: &mut Ledger) -> Option<u32> {
    let Some(asked) = number::<u32>(said.value()) else {
        ledger.report(said.words(), not_a_number());
        return None;
    };
    ledger.used(said.words());
    if asked == 0 {
        return None;
    }
    let most = *THRESHOLD.end();
    if asked > most {
        let why =
            format!("{asked} connections are more than any flow table holds; {most} is taken");
        ledger.report(said.words(), Remark::changed(why, "leave it out, as nothing reaches it"));
    }
    Some(asked.min(most))
}
