//! What schedulers that look at load know: the connections of each member, as its gauges say.

use crate::dataplane::{counters::DestinationCounters, ids::DestinationId};

/// Connections of one member, as IPVS tells them apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Load {
    /// Established connections.
    pub active: u64,
    /// Half-open, unproven and closing ones.
    pub inactive: u64,
}

impl Load {
    /// IPVS's measure (`ip_vs_dest_conn_overhead`): an active connection weighs as much as 256
    /// inactive ones.
    #[inline]
    pub const fn overhead(self) -> u64 {
        (self.active << 8).saturating_add(self.inactive)
    }

    /// Connections of either kind, which is what thresholds count.
    #[inline]
    pub const fn total(self) -> u64 {
        self.active.saturating_add(self.inactive)
    }
}

/// The loads of a service's members: a view of the gauges that the workers keep anyway.
#[derive(Clone, Copy, Debug)]
pub struct Loads<'a> {
    destinations: &'a [DestinationId],
    counters: &'a [DestinationCounters],
}

impl<'a> Loads<'a> {
    /// Nobody has a connection: what there is to say without a running director.
    pub const NONE: Loads<'static> = Loads { destinations: &[], counters: &[] };

    /// The view of `destinations`, in the order of the members.
    pub const fn new(
        destinations: &'a [DestinationId],
        counters: &'a [DestinationCounters],
    ) -> Self {
        Self { destinations, counters }
    }

    /// Load of the member at a position.
    #[inline]
    pub fn of(&self, position: usize) -> Load {
        let counters = self.destinations.get(position).and_then(|id| self.counters.get(id.index()));
        counters.map_or(Load::default(), |counters| Load {
            active: counters.active.get(),
            inactive: counters.inactive.get(),
        })
    }
}
