//! What becomes of a packet. Every packet gets exactly one verdict; every loss has a name.

use std::ops::Range;

use super::{
    ids::{DestinationId, RealId},
    packet::{Address, PacketError},
};

/// Where a frame came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The TAP device: traffic to VIPs, Ethernet frames.
    Tap,
    /// The neighbour socket of the client-facing interface: ARP and neighbour solicitations, Ethernet frames.
    Neighbour,
    /// The socket for ICMP errors about outer packets: IP packets without a link header.
    OuterError,
}

/// An egress path, by its place in the worker's egress table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EgressId(pub u16);

impl EgressId {
    /// Back into the TAP.
    pub const TAP: Self = Self(0);
}

/// Where a reply of Adit's own goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyTo {
    /// Back into the TAP; the host routes it to the client.
    Tap,
    /// Out of the client-facing interface, to the link neighbour that asked.
    ClientInterface,
}

/// What to do with one received frame. Ranges are positions in the slot that was passed in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send the slot's `range` on `egress`. The packet is in flight until
    /// [`super::director::Director::sent`] is told the result.
    Forward {
        /// Egress path of the real server.
        egress: EgressId,
        /// Bytes to send, link header included where the path wants one.
        range: Range<usize>,
    },
    /// The packet went into pieces of its own (outer fragments); the received slot is free.
    Fragmented,
    /// Send the slot's `range` back: the received packet became its own answer.
    Reply {
        /// Which way.
        to: ReplyTo,
        /// Bytes to send, link header included.
        range: Range<usize>,
    },
    /// Not for Adit to answer; the kernel handles its own copy.
    Pass,
    /// Handed over to the worker that has its flow, by [`Outlet::hand_over`]; the received slot is
    /// free.
    HandedOver,
    /// Held in a slot of the pool until its first fragment arrives; the received slot is free.
    Hold,
    /// Dropped, and counted under the reason.
    Drop(DropReason),
}

macro_rules! drop_reasons {
    ($($variant:ident, $name:literal, $meaning:literal;)+) => {
        /// Why a packet was not forwarded. Each has a counter, a name and a meaning.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason {
            $(#[doc = $meaning] $variant,)+
        }

        impl DropReason {
            /// Every reason, in the order of their counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Stable name, as in `adit drops`, JSON and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// One sentence that says what happened.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)+ }
            }
        }
    };
}

drop_reasons! {
    NotIp, "not_ip", "The frame is neither IPv4, IPv6 nor ARP.";
    Truncated, "truncated", "A header or the packet ends before its length says.";
    Malformed, "malformed", "A header contradicts itself: version, length field, extension chain, address family.";
    BadChecksum, "bad_checksum", "The IPv4 header checksum, or that of an ICMP message, is wrong.";
    NotVip, "not_vip", "The destination is not a virtual IP of this director.";
    BadSource, "bad_source", "The source is multicast, unspecified, loopback or a VIP: no client has it.";
    NoService, "no_service", "No service at that VIP, port and protocol.";
    NoRealServer, "no_real_server", "No real server of the service may get new flows.";
    TableFull, "table_full", "The flow table is full of established flows and the scheduler is not a hash.";
    ServiceLimited, "service_limited", "A new flow beyond what its service takes per second.";
    ClientLimited, "client_limited", "A new flow beyond what its service takes of one client prefix per second.";
    HalfOpenLimited, "half_open_limited", "A new flow of a service that has as many half-open ones as it may, of which none could give way.";
    NoFlow, "no_flow", "A segment of an unknown flow, where guessing its real server is impossible.";
    HopLimitExceeded, "hop_limit_exceeded", "TTL or hop limit ran out here.";
    PacketTooBig, "packet_too_big", "Too big for the tunnel's path, and no answer could be sent.";
    EmitRateLimited, "emit_rate_limited", "An answer of Adit's own was due, but its rate limit is used up.";
    TinyFragment, "tiny_fragment", "A first fragment without its transport header (RFC 1858, RFC 7112).";
    FragmentOverflow, "fragment_overflow", "The fragment pool or its table is full.";
    FragmentTimeout, "fragment_timeout", "A held fragment's first fragment did not arrive in time.";
    IcmpNoFlow, "icmp_no_flow", "An ICMP error that quotes no tracked flow.";
    IcmpUnsupported, "icmp_unsupported", "An ICMP message to a VIP that is neither echo request nor an error.";
    ForgedError, "forged_error", "An ICMP error about an outer packet whose cookie or quoted flow is wrong.";
    ErrorIgnored, "error_ignored", "An ICMP error about an outer packet while short quotes are ignored (too many wrong cookies).";
    StaleProbe, "stale_probe", "A packet of a health check of a real server that is not checked any more.";
    NoEgress, "no_egress", "There is no path to the real server now.";
    NoScratch, "no_scratch", "No auxiliary slot was free for the pieces of a packet.";
    EgressFull, "egress_full", "The egress queue was full (EAGAIN or ENOBUFS).";
    HandOverFull, "hand_over_full", "Another worker has the flow, and the ring of packets that wait for it was full.";
    EgressError, "egress_error", "The kernel refused the send with another error.";
}

impl From<PacketError> for DropReason {
    fn from(error: PacketError) -> Self {
        match error {
            PacketError::Truncated { .. } => Self::Truncated,
            PacketError::Checksum => Self::BadChecksum,
            PacketError::Version(_)
            | PacketError::Length { .. }
            | PacketError::ExtensionHeaders
            | PacketError::MappedAddress => Self::Malformed,
        }
    }
}

/// Number of drop reasons.
pub const DROP_REASONS: usize = DropReason::ALL.len();

/// Result of a send, as the core counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendResult {
    /// The kernel took it.
    Sent,
    /// The queue was full (EAGAIN, ENOBUFS).
    QueueFull,
    /// Any other error.
    Failed,
}

/// What the core tells control. The queue is bounded; overflow is counted, never waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A flow of a service with persistence became established: remember its real server.
    Established {
        /// Destination of the flow.
        destination: DestinationId,
        /// Client address of the flow.
        client: Address,
    },
    /// Another host on the link answers for a VIP.
    AddressConflict {
        /// The VIP.
        vip: Address,
        /// Who claims it.
        mac: [u8; 6],
    },
    /// The path MTU to a real server changed.
    PathMtu {
        /// The real server.
        real: RealId,
        /// New path MTU of the outer packet, bytes.
        mtu: u16,
    },
}

/// Bytes in front of a received frame that the core may write into: the outer header, the headers
/// of an ICMP error around a quote (48 bytes) and a link header fit with room to spare.
pub const HEADROOM: usize = 128;

/// How an auxiliary output is accounted for when its send completes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Account {
    /// Its completion makes one input packet forwarded, or dropped.
    Forward,
    /// Its completion makes one input packet replied, or dropped.
    Reply,
    /// One more output of an input packet that another output accounts for.
    Extra,
}

/// A frame on its way from one worker to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandOver {
    /// The worker that gets it, by its number.
    pub to: u16,
    /// Where it came in.
    pub source: Source,
    /// Whether `to` has its flow. Otherwise it is a fragment, and `to` the worker where those of its
    /// datagram meet.
    pub settled: bool,
}

/// What the core needs from its shell besides the received slot: auxiliary slots for outputs that
/// do not fit it, and the event queue. Nothing here blocks or allocates.
pub trait Outlet {
    /// An auxiliary slot. It is spent by sending or releasing it.
    type Scratch;
    /// Takes a free auxiliary slot, or `None` when all are in use.
    fn acquire(&mut self) -> Option<Self::Scratch>;
    /// The whole slot, headroom included.
    fn bytes(&mut self, scratch: &Self::Scratch) -> &mut [u8];
    /// Sends `range` of the slot on `egress`; the shell frees the slot when the send completes and
    /// then calls [`super::director::Director::sent`] with `account`.
    fn send(
        &mut self,
        scratch: Self::Scratch,
        egress: EgressId,
        range: Range<usize>,
        account: Account,
    );
    /// Gives a slot back unsent.
    fn release(&mut self, scratch: Self::Scratch);
    /// Queues an event for control; false when the queue is full.
    fn event(&mut self, event: Event) -> bool;
    /// Queues a copy of a frame for another worker, in order; false when there is no room. A shell
    /// with one worker has no others.
    fn hand_over(&mut self, _hand_over: HandOver, _frame: &[u8]) -> bool {
        false
    }
}
