//! Counters: written by one worker, read by control at any time.
//!
//! Each is stored on its own event and never computed from others, so that the ledger
//! *received = forwarded + replied + passed + Σ dropped + held + in flight* can be checked.

use std::sync::atomic::{AtomicU64, Ordering};

use super::conntrack::Class;
use super::verdict::{DROP_REASONS, DropReason};

/// A counter or gauge with a single writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owning worker calls this: a plain load and store, no locked instruction.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Takes `n` off a gauge.
    pub fn sub(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_sub(n), Ordering::Relaxed);
    }

    /// Puts a gauge at `n`.
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// Present value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($(#[$doc:meta])* $name:ident, $view:ident { $($(#[$field_doc:meta])* $field:ident,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: Counter,)+
        }

        #[doc = concat!("A reading of [`", stringify!($name), "`].")]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub struct $view {
            $($(#[$field_doc])* pub $field: u64,)+
        }

        impl $name {
            /// Reads every counter.
            pub fn read(&self) -> $view {
                $view { $($field: self.$field.get(),)+ }
            }
        }
    };
}

counters! {
    /// One worker's totals. The first group is the ledger, in input packets.
    WorkerCounters, WorkerReading {
        /// Frames handed to the core.
        received,
        /// Packets whose send to a real server completed.
        forwarded,
        /// Packets answered by Adit itself, send completed.
        replied,
        /// Frames left to the kernel.
        passed,
        /// Gauge: fragments held for their first one.
        held,
        /// Gauge: packets whose send has not completed.
        in_flight,
        /// Bytes of IP packets received from clients for forwarding.
        received_bytes,
        /// Outer packets sent (a fragmented packet sends several).
        output_packets,
        /// Outer packets beyond the first of their input that could not be sent.
        output_failed,
        /// New flows scheduled.
        scheduled,
        /// Flows placed by persistence.
        persisted,
        /// Flows of unknown segments, given to their first configured candidate.
        rederived,
        /// Packets forwarded by hash without an entry, because the table was full of established flows.
        untracked,
        /// Half-open flows evicted for newer ones.
        evicted_half_open,
        /// Unproven flows evicted for newer ones.
        evicted_unproven,
        /// SYNs forwarded by hash without an entry, because their service had as many half-open flows
        /// as it may and none was found that could give way.
        untracked_half_open,
        /// Half-open flows that gave way to newer ones of a service that had as many as it may.
        gave_way,
        /// Resets sent to clients for segments of unknown flows.
        resets_sent,
        /// Packets that did not fit a tunnel and were fragmented outside.
        fragmented,
        /// Frag-needed and packet-too-big messages sent to clients.
        too_big_sent,
        /// ICMP errors about outer packets that changed a path MTU.
        path_mtu_updates,
        /// Authentic ICMP errors: a real server, or its network, cannot be reached.
        tunnel_unreachable,
        /// Authentic ICMP errors: the outer TTL ran out on the way to a real server.
        tunnel_time_exceeded,
        /// Authentic ICMP errors: a router did not understand an outer header.
        tunnel_parameter_problem,
        /// ICMP errors of the clients' paths given to the real server that owns the flow.
        icmp_forwarded,
        /// ARP requests and neighbour solicitations answered.
        neighbour_answers,
        /// Times that another host on the link answered for a VIP.
        address_conflicts,
        /// Echo requests answered.
        echo_answers,
        /// Events for control that found the queue full.
        events_lost,
    }
}

counters! {
    /// One destination's (a real server in a service) totals.
    DestinationCounters, DestinationReading {
        /// Flows begun.
        connections,
        /// Gauge: established flows.
        active,
        /// Gauge: half-open, unproven and closing flows.
        inactive,
        /// Packets forwarded.
        packets,
        /// Bytes of inner packets forwarded.
        bytes,
    }
}

/// All counters of one worker, shared with control.
#[derive(Debug)]
pub struct Counters {
    /// Totals and ledger.
    pub worker: WorkerCounters,
    /// Dropped packets by reason.
    pub dropped: [Counter; DROP_REASONS],
    /// Gauges: flows in the table by class, as of the last tick.
    flows: [Counter; Class::ALL.len()],
    /// By [`super::ids::DestinationId`].
    pub destinations: Box<[DestinationCounters]>,
}

impl Counters {
    /// Flows in the table to a destination, of whatever class.
    pub fn flows_to(&self, id: super::ids::DestinationId) -> u64 {
        self.destinations.get(id.index()).map_or(0, |c| c.active.get() + c.inactive.get())
    }

    /// Counters for up to `destinations` destinations, all zero.
    pub fn new(destinations: usize) -> Self {
        Self {
            worker: WorkerCounters::default(),
            dropped: std::array::from_fn(|_| Counter::default()),
            flows: std::array::from_fn(|_| Counter::default()),
            destinations: (0..destinations).map(|_| DestinationCounters::default()).collect(),
        }
    }

    /// The counter of one drop reason.
    pub fn dropped(&self, reason: DropReason) -> &Counter {
        &self.dropped[reason as usize]
    }

    /// The gauge of the flows of one class.
    pub fn flows(&self, class: Class) -> &Counter {
        &self.flows[class as usize - 1]
    }

    /// Checks the ledger. Meaningful between calls into the core.
    pub fn ledger_balances(&self) -> bool {
        let worker = self.worker.read();
        let dropped: u64 = self.dropped.iter().map(Counter::get).sum();
        worker.received
            == worker.forwarded
                + worker.replied
                + worker.passed
                + worker.held
                + worker.in_flight
                + dropped
    }
}
