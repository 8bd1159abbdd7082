//! Counters: written by one worker, read by control at any time.
//!
//! Each is stored on its own event and never computed from others, so that the ledger
//! *received + taken over = forwarded + replied + passed + handed over + Σ dropped + held + in
//! flight* can be checked, for each worker.
//!
//! What belongs to a connection rather than to a packet (the gauges of each destination) is shared
//! by all workers: schedulers and thresholds look at the whole, and it changes a few times in a
//! connection's life, which is seldom enough for a locked instruction.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::conntrack::Class;
use super::ids::DestinationId;
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

/// A counter or gauge that all workers write.
#[derive(Debug, Default)]
pub struct SharedCounter(AtomicU64);

impl SharedCounter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        // Relaxed: it guards no other memory.
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Takes `n` off a gauge.
    pub fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Ordering::Relaxed);
    }

    /// Present value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($(#[$doc:meta])* $name:ident, $view:ident of $counter:ident { $($(#[$field_doc:meta])* $field:ident,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $counter,)+
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

        impl std::ops::AddAssign for $view {
            /// Field by field: several workers' readings together.
            fn add_assign(&mut self, other: Self) {
                $(self.$field = self.$field.wrapping_add(other.$field);)+
            }
        }
    };
}

counters! {
    /// One worker's totals. The first group is the ledger, in input packets.
    WorkerCounters, WorkerReading of Counter {
        /// Frames handed to the core.
        received,
        /// Frames that other workers had received and handed over to this one.
        taken_over,
        /// Packets whose send to a real server completed.
        forwarded,
        /// Packets answered by Adit itself, send completed.
        replied,
        /// Frames left to the kernel.
        passed,
        /// Frames handed over to the worker that has their flow.
        handed_over,
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
        /// Packets of the director's own health checks that were sent to the real server they are about.
        probe_packets,
        /// Events for control that found the queue full.
        events_lost,
    }
}

impl WorkerReading {
    /// Whether the ledger balances with `dropped` packets in all: what came in, from outside and
    /// from other workers, is what became of it. Meaningful between calls into the core.
    pub const fn balances(&self, dropped: u64) -> bool {
        let came = self.received + self.taken_over;
        let went = self.forwarded + self.replied + self.passed + self.handed_over + dropped;
        came == went + self.held + self.in_flight
    }
}

counters! {
    /// The connections of one destination (a real server in a service), of all workers.
    DestinationCounters, DestinationGauges of SharedCounter {
        /// Flows begun.
        connections,
        /// Gauge: established flows.
        active,
        /// Gauge: half-open, unproven and closing flows.
        inactive,
    }
}

counters! {
    /// What one worker forwarded to one destination.
    TrafficCounters, TrafficReading of Counter {
        /// Packets forwarded.
        packets,
        /// Bytes of inner packets forwarded.
        bytes,
    }
}

/// One destination's totals, of all workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DestinationReading {
    /// Flows begun.
    pub connections: u64,
    /// Established flows.
    pub active: u64,
    /// Half-open, unproven and closing flows.
    pub inactive: u64,
    /// Packets forwarded.
    pub packets: u64,
    /// Bytes of inner packets forwarded.
    pub bytes: u64,
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
    /// Connections by [`DestinationId`], of all workers.
    pub destinations: Arc<[DestinationCounters]>,
    /// What this worker forwarded, by [`DestinationId`].
    pub traffic: Box<[TrafficCounters]>,
}

impl Counters {
    /// Flows in the table to a destination, of whatever class.
    pub fn flows_to(&self, id: DestinationId) -> u64 {
        self.destinations.get(id.index()).map_or(0, |c| c.active.get() + c.inactive.get())
    }

    /// Counters of the only worker, for up to `destinations` destinations, all zero.
    pub fn new(destinations: usize) -> Self {
        Self::sharing((0..destinations).map(|_| DestinationCounters::default()).collect())
    }

    /// Counters of one more worker, all zero but for the connections, which are those of all.
    pub fn sharing(destinations: Arc<[DestinationCounters]>) -> Self {
        Self {
            worker: WorkerCounters::default(),
            dropped: std::array::from_fn(|_| Counter::default()),
            flows: std::array::from_fn(|_| Counter::default()),
            traffic: destinations.iter().map(|_| TrafficCounters::default()).collect(),
            destinations,
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

    /// Packets dropped for whatever reason.
    pub fn dropped_in_all(&self) -> u64 {
        self.dropped.iter().map(Counter::get).sum()
    }

    /// Checks the ledger. Meaningful between calls into the core.
    pub fn ledger_balances(&self) -> bool {
        self.worker.read().balances(self.dropped_in_all())
    }
}

/// The counters of all workers, for those who read them as one.
#[derive(Clone, Debug)]
pub struct AllCounters {
    workers: Arc<[Arc<Counters>]>,
}

impl AllCounters {
    /// Counters of so many workers (one at least), for up to `destinations` destinations, all zero.
    pub fn new(destinations: usize, workers: u16) -> Self {
        let first = Arc::new(Counters::new(destinations));
        let others =
            (1..workers).map(|_| Arc::new(Counters::sharing(Arc::clone(&first.destinations))));
        let others: Vec<_> = others.collect();
        Self { workers: std::iter::once(first).chain(others).collect() }
    }

    /// Those of each worker, by its number.
    pub fn workers(&self) -> &[Arc<Counters>] {
        &self.workers
    }

    /// Connections by [`DestinationId`].
    pub fn destinations(&self) -> &[DestinationCounters] {
        self.workers.first().map_or(&[], |worker| &worker.destinations)
    }

    /// A destination's totals; `None` beyond the last one that is counted.
    pub fn destination(&self, id: DestinationId) -> Option<DestinationReading> {
        let DestinationGauges { connections, active, inactive } =
            self.destinations().get(id.index())?.read();
        let mut traffic = TrafficReading::default();
        for worker in self.workers.iter() {
            traffic += worker.traffic.get(id.index())?.read();
        }
        let TrafficReading { packets, bytes } = traffic;
        Some(DestinationReading { connections, active, inactive, packets, bytes })
    }

    /// Flows to a destination, of whatever class.
    pub fn flows_to(&self, id: DestinationId) -> u64 {
        self.workers.first().map_or(0, |worker| worker.flows_to(id))
    }

    /// Totals of all workers.
    pub fn totals(&self) -> WorkerReading {
        let mut totals = WorkerReading::default();
        self.workers.iter().for_each(|worker| totals += worker.worker.read());
        totals
    }

    /// Packets dropped for one reason, by whichever worker.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.workers.iter().map(|worker| worker.dropped(reason).get()).sum()
    }

    /// Packets dropped for whatever reason, by whichever worker.
    pub fn dropped_in_all(&self) -> u64 {
        self.workers.iter().map(|worker| worker.dropped_in_all()).sum()
    }

    /// Flows of one class in all tables.
    pub fn flows(&self, class: Class) -> u64 {
        self.workers.iter().map(|worker| worker.flows(class).get()).sum()
    }

    /// Whether every worker's ledger balances.
    pub fn ledger_balances(&self) -> bool {
        self.workers.iter().all(|worker| worker.ledger_balances())
    }
}
