//! Every default and every bound of the configuration, in one place, each with its reason.

use crate::dataplane::region::{REAL_CAPACITY, VIP_CAPACITY};
use std::ops::RangeInclusive;
use std::time::Duration;

/// Where `adit` looks for its configuration.
pub const DEFAULT_CONFIG_PATH: &str = "/etc/adit/adit.toml";
/// Where the flow region lives: a tmpfs that outlives the process and not the machine.
pub const DEFAULT_STATE_DIR: &str = "/run/adit";
/// Where the admin interface listens.
pub const DEFAULT_SOCKET: &str = "/run/adit/adit.sock";

/// Longest file that is read. A service takes about 300 bytes and a real server 50, so this holds
/// more than the table limits below allow.
pub(in crate::control) const MAX_CONFIG_BYTES: usize = 16 << 20;
/// More syntax errors than this are the same mistake seen again.
pub(super) const MAX_SYNTAX_ERRORS: usize = 10;

/// Services in one director. Flow slots name them by a 16-bit index; 4096 leaves room for those
/// that drain after they were removed, and keeps a snapshot in a few megabytes.
pub const MAX_SERVICES: usize = 4096;
/// Real servers in all: half of those the region can know, so that as many others can drain.
pub const MAX_REALS: usize = REAL_CAPACITY as usize / 2;
/// VIPs in all, likewise.
pub const MAX_VIPS: usize = VIP_CAPACITY as usize / 2;
/// Bits behind a prefix of VIPs: as many addresses as there may be VIPs in all.
pub(in crate::control) const MAX_VIP_HOST_BITS: u8 = 9;
const _: () = assert!(MAX_VIPS == 1 << MAX_VIP_HOST_BITS, "a prefix that can fit is allowed");
/// Ports in one list: a longer one is better written as a range.
pub(super) const MAX_PORT_LIST: usize = 256;
/// Outer sources of one family: as many as a receiver has queues, and each has an entry per real
/// server in the list that errors are looked up in.
pub(super) const MAX_SOURCES: usize = 64;
/// Longest service name: it is printed in tables and becomes a metric label.
pub(super) const MAX_NAME: usize = 63;
/// Longest Unix socket path (`sun_path` is 108 bytes with its terminator).
pub(super) const MAX_SOCKET_PATH: usize = 107;

/// The interface's name in the examples of LVS and of this project.
pub(in crate::control) const DEFAULT_TAP: &str = "adit0";
/// A million sessions, in 64 bytes each plus index: about 80 MiB.
pub(super) const DEFAULT_MAX_CONNECTIONS: u32 = 1_000_000;
/// Fewer than 1024 flows is a test; more than 2^27 is 8 GiB of slots.
pub(super) const MAX_CONNECTIONS: RangeInclusive<u32> = 1024..=1 << 27;
/// The kernel's own bound (`MAX_TAP_QUEUES`).
pub const MAX_WORKERS: u16 = 256;
/// Frames the kernel queues for the director: 4096 full frames are 6 MiB, a burst of 5 ms at
/// 10 Gbit/s.
pub(super) const DEFAULT_TAP_QUEUE: u32 = 4096;
/// Below 64 a single burst of one sender overflows; above 65536 the queue is latency, not burst.
pub(super) const TAP_QUEUE: RangeInclusive<u32> = 64..=65_536;
/// 1280 is the least IPv6 allows (RFC 8200 section 5); 9216 is the largest jumbo frame in use.
pub(super) const MTU: RangeInclusive<u16> = 1280..=9216;

/// How long a director that ends goes on forwarding after its VIPs were withdrawn.
pub(super) const WITHDRAW_WAIT: DurationBounds = DurationBounds {
    // OSPF waits up to a second before it calculates its routes anew, and a router takes a moment
    // to change its own table; BGP withdraws at once.
    default: seconds(2),
    least: Duration::ZERO,
    most: seconds(60),
    reason: "routers choose another way within seconds; systemd kills a service after 90 s",
};

/// Weights as IPVS takes them; 0 means drained.
pub(in crate::control) const WEIGHT: RangeInclusive<u16> = 0..=65_535;
/// The weight of a real server that names none. The same as in the examples, so that a list
/// where only some name a weight is still even.
pub(super) const DEFAULT_WEIGHT: u16 = 100;

/// Connections one real server may have: no more than the largest flow table holds. 0 would take none,
/// which is what weight 0 is for.
pub(in crate::control) const THRESHOLD: RangeInclusive<u32> = 1..=1 << 27;

/// New flows of a service a second, and at once. Ten million is more than any director forwards; a
/// bucket counts in nanoseconds, so that the rate is kept to a hundredth there still.
pub(super) const NEW_FLOWS: RangeInclusive<u32> = 1..=10_000_000;
/// Half-open flows of a service: no more than the largest flow table holds.
pub(super) const HALF_OPEN: RangeInclusive<u32> = 1..=1 << 27;

/// The outer packet starts afresh (RFC 2003 section 3.1); 64 is what IPVS and `ipip` use.
pub(super) const DEFAULT_TTL: u8 = 64;
/// 0 is dropped by the first router.
pub(super) const TTL: RangeInclusive<u8> = 1..=255;

/// A duration's default and the range that makes sense.
pub(in crate::control) struct DurationBounds {
    pub(in crate::control) default: Duration,
    pub(in crate::control) least: Duration,
    pub(in crate::control) most: Duration,
    /// Why the range ends where it ends.
    pub(in crate::control) reason: &'static str,
}

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub(super) const TCP_HALF_OPEN: DurationBounds = DurationBounds {
    default: seconds(30),
    least: seconds(3),
    most: seconds(300),
    reason: "a SYN is retransmitted after 1 s, 3 s, 7 s …; long ones let a flood fill the table",
};
pub(super) const TCP_UNPROVEN: DurationBounds = DurationBounds {
    default: seconds(60),
    least: seconds(3),
    most: seconds(600),
    reason: "a flow that never carries data does not earn a longer stay",
};
pub(in crate::control) const TCP_ESTABLISHED: DurationBounds = DurationBounds {
    // RFC 5382 REQ-5 asks for 2 h 4 min, Linux sends its first keepalive after 2 h.
    default: seconds(2 * 3600 + 15 * 60),
    least: seconds(60),
    most: seconds(7 * 86_400),
    reason: "idle database sessions live for hours; after a week without a packet nobody is there",
};
pub(in crate::control) const TCP_FIN: DurationBounds = DurationBounds {
    // Twice the maximum segment lifetime in use (RFC 9293 section 3.4.2 says 2 min, Linux 60 s).
    default: seconds(120),
    least: seconds(1),
    most: seconds(3600),
    reason: "a closed session only waits for late segments",
};
pub(super) const TCP_RST: DurationBounds = DurationBounds {
    default: seconds(10),
    least: seconds(1),
    most: seconds(600),
    reason: "a reset session only waits for late segments",
};
pub(in crate::control) const UDP: DurationBounds = DurationBounds {
    // RFC 4787 REQ-5 recommends five minutes.
    default: seconds(300),
    least: seconds(1),
    most: seconds(86_400),
    reason: "UDP has no end of its own, so an entry must not stay for days",
};
pub(in crate::control) const PERSISTENCE: DurationBounds = DurationBounds {
    // What IPVS takes by default (`ipvsadm -p`).
    default: seconds(300),
    least: seconds(1),
    most: seconds(30 * 86_400),
    reason: "entries live in memory of fixed size; a month is the longest that was ever useful",
};

/// Packets the director may send on its own account (ICMP errors, resets, echo replies), per
/// second, to one client prefix and to everybody: the defaults are the core's own. 0 would
/// silence path MTU discovery, and with it black-hole sessions.
pub(super) const EMITTED: RangeInclusive<u32> = 1..=1_000_000;

/// Source ports of checks: above Linux's default `ip_local_port_range`, which ends at 60999.
pub(super) const DEFAULT_PROBE_PORTS: (u16, u16) = (61_000, 65_535);
/// Source ports for one real server of a service. A check takes the next one each time, so that a
/// real server (or a firewall) that still remembers the last one does not take it for its
/// continuation; 4536 default ports hold 1134 real servers at a VIP and port.
pub const PROBE_PORTS: u16 = 4;

/// Checks of a streak: one that a single lost packet can break is 1, and more than 100 never ends.
pub(in crate::control) const CHECK_STREAK: RangeInclusive<u8> = 1..=100;
/// A real server that comes back has answered once more than by chance.
pub(super) const DEFAULT_RISE: u8 = 2;
/// Two lost packets in a row happen on a bad day.
pub(super) const DEFAULT_FALL: u8 = 3;

pub(in crate::control) const CHECK_INTERVAL: DurationBounds = DurationBounds {
    default: seconds(2),
    least: Duration::from_millis(100),
    most: seconds(3600),
    reason: "ten connections a second are a load of their own, and an hour is no check",
};
pub(in crate::control) const CHECK_TIMEOUT: DurationBounds = DurationBounds {
    // A SYN that is lost is sent again after a second; whoever waits longer waits for two.
    default: seconds(1),
    least: Duration::from_millis(10),
    most: seconds(60),
    reason: "an answer takes a round trip to the real server and back at least",
};
pub(in crate::control) const CHECK_DOWN_INTERVAL: DurationBounds = DurationBounds {
    default: seconds(5),
    least: Duration::from_millis(100),
    most: seconds(3600),
    reason: "it is also how long a real server may be back before anybody notices",
};
