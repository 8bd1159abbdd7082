//! What is left at a drained real server.

use crate::control::admin::api::SessionsView;
use crate::dataplane::conntrack::{Class, FlowRecord, Ticks};
use crate::dataplane::time::Time;
use std::time::Duration;

/// A session whose client has sent its last may still be sent to; what has been silent for so long
/// behind its FIN has ended. The flow table keeps it for minutes, and thinks of it the same.
pub const ENDED: Duration = Duration::from_secs(5);

/// A flow as one session; `None` where it has ended: it has expired and waits to be swept, its client
/// has reset it, or has sent FIN and been silent for [`ENDED`].
#[must_use]
pub fn of(flow: &FlowRecord, now: Time) -> Option<SessionsView> {
    let progress = &flow.progress;
    let silent = Ticks::at(now).since(progress.last_seen);
    if silent > progress.idle_limit {
        return None;
    }
    let mut session = SessionsView::default();
    match progress.class {
        Class::HalfOpen => session.half_open = 1,
        Class::Unproven => session.unproven = 1,
        Class::Established => session.established = 1,
        Class::ClosingFin if silent.to_duration() < ENDED => session.closing = 1,
        Class::ClosingFin | Class::ClosingRst => return None,
    }
    Some(session)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::conntrack::{FlowKey, Progress};
    use crate::dataplane::ids::{DestinationId, RealId, VipId};

    #[test]
    fn what_has_not_ended_is_counted_by_how_far_it_has_come() {
        let one = SessionsView::default();
        let cases = [
            // Class, seconds of silence, what it counts as.
            (Class::HalfOpen, 0, Some(SessionsView { half_open: 1, ..one })),
            (Class::Unproven, 59, Some(SessionsView { unproven: 1, ..one })),
            (Class::Established, 60, Some(SessionsView { established: 1, ..one })),
            (Class::Established, 61, None),
            (Class::ClosingFin, 4, Some(SessionsView { closing: 1, ..one })),
            (Class::ClosingFin, 5, None),
            (Class::ClosingRst, 0, None),
        ];
        for (class, silent, expected) in cases {
            let ticks = |seconds| Ticks::span(Duration::from_secs(seconds));
            let flow = FlowRecord {
                key: FlowKey {
                    client: [0; 16],
                    client_port: 1,
                    vip: VipId(0),
                    vip_port: 2,
                    protocol: 6,
                },
                real: RealId(0),
                destination: DestinationId(0),
                rederived: false,
                progress: Progress {
                    class,
                    proven: false,
                    acknowledged: false,
                    segments: 1,
                    created: ticks(900),
                    last_seen: ticks(1000),
                    idle_limit: ticks(60),
                    sequence_end: 0,
                    acknowledgement: 0,
                },
            };
            let now = Time::ZERO + Duration::from_secs(1000 + silent);
            assert_eq!(of(&flow, now), expected, "{class:?} after {silent} s");
        }
    }
}
