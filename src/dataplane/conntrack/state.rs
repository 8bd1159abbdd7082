//! How a flow earns its place: the classes, and what each segment of the client does to them.
//!
//! Only the client's half is seen (direct return), so a class rests on what the client sends and
//! on the acknowledgements it could only know from the server.

use std::time::Duration;

use crate::dataplane::time::Time;

/// Sixteenths of a second since boot, or as a span. 32 bits of them last 8.5 years of uptime, so
/// nothing wraps; what is later saturates. A flow lives at least its timeout, and at most one tick
/// longer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticks(pub u32);

/// Nanoseconds in a tick.
const TICK_NANOS: u64 = 1_000_000_000 / 16;

impl Ticks {
    /// The tick that `time` lies in.
    pub fn at(time: Time) -> Self {
        Self(u32::try_from(time.0 / TICK_NANOS).unwrap_or(u32::MAX))
    }

    /// A span, rounded up.
    pub fn span(duration: Duration) -> Self {
        let ticks = duration.as_nanos().div_ceil(u128::from(TICK_NANOS));
        Self(u32::try_from(ticks).unwrap_or(u32::MAX))
    }

    /// As a duration (a span) or as the time since boot (a moment).
    pub fn to_duration(self) -> Duration {
        Duration::from_nanos(u64::from(self.0) * TICK_NANOS)
    }

    /// Span since `earlier`; zero when that lies in the future.
    pub const fn since(self, earlier: Self) -> Self {
        Self(self.0.saturating_sub(earlier.0))
    }
}

/// Idle timeouts of a service's flows. The defaults are made for databases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Only a SYN was seen.
    pub half_open: Ticks,
    /// Not yet established.
    pub unproven: Ticks,
    /// Established TCP. RFC 5382 §5 asks for at least 2 h 4 min; Linux sends its first keepalive
    /// after 2 h.
    pub established: Ticks,
    /// After the client's FIN.
    pub fin: Ticks,
    /// After the client's RST.
    pub rst: Ticks,
    /// Established UDP (RFC 4787 §4.3 recommends 5 min).
    pub udp: Ticks,
}

impl Default for Timeouts {
    fn default() -> Self {
        let seconds = |seconds| Ticks::span(Duration::from_secs(seconds));
        Self {
            half_open: seconds(30),
            unproven: seconds(60),
            established: seconds(2 * 3600 + 15 * 60),
            fin: seconds(120),
            rst: seconds(10),
            udp: seconds(300),
        }
    }
}

/// How far a flow has come. The numbers are part of the region's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Class {
    /// Only a SYN was seen.
    HalfOpen = 1,
    /// An acknowledgement was seen, or the flow was met in its middle.
    Unproven = 2,
    /// Proved itself; never evicted by others.
    Established = 3,
    /// The client has finished sending.
    ClosingFin = 4,
    /// The client has reset.
    ClosingRst = 5,
}

impl Class {
    /// Every class, in the order of their numbers.
    pub const ALL: [Self; 5] =
        [Self::HalfOpen, Self::Unproven, Self::Established, Self::ClosingFin, Self::ClosingRst];

    /// The class of a number, if there is one.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::HalfOpen),
            2 => Some(Self::Unproven),
            3 => Some(Self::Established),
            4 => Some(Self::ClosingFin),
            5 => Some(Self::ClosingRst),
            _ => None,
        }
    }

    /// The word shown to users.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HalfOpen => "half-open",
            Self::Unproven => "unproven",
            Self::Established => "established",
            Self::ClosingFin => "closing-fin",
            Self::ClosingRst => "closing-rst",
        }
    }

    /// Whether IPVS users would count the flow as active (`ActiveConn`).
    pub const fn is_active(self) -> bool {
        matches!(self, Self::Established)
    }
}

/// What the flow table needs to know of a TCP segment from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpSegment {
    /// Sequence number of the first byte.
    pub sequence: u32,
    /// Acknowledgement number; read only when `ack` is set.
    pub acknowledgement: u32,
    /// Bytes of payload.
    pub payload: u32,
    /// SYN flag.
    pub syn: bool,
    /// ACK flag.
    pub ack: bool,
    /// FIN flag.
    pub fin: bool,
    /// RST flag.
    pub rst: bool,
}

impl TcpSegment {
    /// Sequence number behind the segment (SYN and FIN take one each, RFC 9293 §3.4).
    pub fn end(&self) -> u32 {
        self.sequence
            .wrapping_add(self.payload)
            .wrapping_add(u32::from(self.syn))
            .wrapping_add(u32::from(self.fin))
    }
}

/// What was seen of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observation {
    /// A TCP segment.
    Tcp(TcpSegment),
    /// A datagram of any other protocol.
    Datagram,
}

/// What an observation did to a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Observed {
    /// Same class as before.
    Same,
    /// The flow moved to another class.
    Moved {
        /// Class before.
        from: Class,
        /// Class now.
        to: Class,
    },
    /// A SYN on a closing flow begins a new one: choose a real server and insert it (that replaces
    /// the old entry, which is untouched so far).
    Restart,
}

/// A segment further than this from the last sequence end is not believed. 1 MiB is more than what
/// is usually lost or reordered at once, and leaves a blind guess one chance in 2048.
const SEQUENCE_WINDOW: u32 = 1 << 20;
/// Segments that establish a flow: a handshake's two and one with data.
const PROOF_SEGMENTS: u8 = 3;
/// Time over which they must come: a spoofed burst is shorter. One tick more than a second, because
/// both ends are rounded down.
const PROOF_SPAN: Ticks = Ticks(17);

/// The part of a flow that changes with its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// How far the flow has come.
    pub class: Class,
    /// Was established once, so that eviction takes it after those that never were.
    pub proven: bool,
    /// `acknowledgement` holds a value.
    pub acknowledged: bool,
    /// Plausible segments so far; saturates.
    pub segments: u8,
    /// When the flow began.
    pub created: Ticks,
    /// When its last packet came.
    pub last_seen: Ticks,
    /// Idle time after which it is absent.
    pub idle_limit: Ticks,
    /// Behind the client's last sequence number.
    pub sequence_end: u32,
    /// The client's last acknowledgement.
    pub acknowledgement: u32,
}

impl Progress {
    /// The state of a flow that begins with `observation`.
    pub fn begin(now: Time, timeouts: &Timeouts, observation: &Observation) -> Self {
        let now = Ticks::at(now);
        let mut progress = Self {
            class: Class::Unproven,
            proven: false,
            acknowledged: false,
            segments: 1,
            created: now,
            last_seen: now,
            idle_limit: Ticks(0),
            sequence_end: 0,
            acknowledgement: 0,
        };
        let mut udp = true;
        if let Observation::Tcp(segment) = observation {
            udp = false;
            progress.sequence_end = segment.end();
            if segment.rst {
                progress.class = Class::ClosingRst;
            } else if segment.syn {
                progress.class = Class::HalfOpen;
            } else if segment.fin {
                progress.class = Class::ClosingFin;
            }
            if segment.ack {
                progress.acknowledged = true;
                progress.acknowledgement = segment.acknowledgement;
            }
        }
        progress.idle_limit = progress.limit(timeouts, udp);
        progress
    }

    /// Whether the flow is absent at `now`.
    pub fn is_expired(&self, now: Ticks) -> bool {
        now.since(self.last_seen) > self.idle_limit
    }

    /// Applies what was seen.
    #[inline]
    pub fn observe(
        &mut self,
        now: Time,
        timeouts: &Timeouts,
        observation: &Observation,
    ) -> Observed {
        let now = Ticks::at(now);
        let from = self.class;
        let udp = match observation {
            Observation::Datagram => {
                self.last_seen = now;
                self.count();
                self.establish(now);
                true
            }
            Observation::Tcp(segment) => {
                let believed = if segment.rst {
                    self.reset(segment)
                } else if segment.syn {
                    if matches!(from, Class::ClosingFin | Class::ClosingRst) {
                        return Observed::Restart;
                    }
                    self.synchronise(segment)
                } else if segment.fin {
                    self.finish(segment)
                } else {
                    self.advance(now, segment)
                };
                if !believed {
                    return Observed::Same;
                }
                self.last_seen = now;
                false
            }
        };
        self.idle_limit = self.limit(timeouts, udp);
        if from == self.class { Observed::Same } else { Observed::Moved { from, to: self.class } }
    }

    /// A RST is believed only when it is exactly where the client's next byte would be (RFC 5961
    /// §3.2 asks the same of the server).
    fn reset(&mut self, segment: &TcpSegment) -> bool {
        let exact = segment.sequence == self.sequence_end;
        if exact {
            self.class = Class::ClosingRst;
        }
        exact
    }

    /// A SYN on a flow that is neither closing nor established. It can be a retransmission, or a
    /// second attempt with another initial sequence number; one cannot know which SYN the server
    /// took, so the newest counts until the flow has shown more than a handshake.
    fn synchronise(&mut self, segment: &TcpSegment) -> bool {
        if self.class == Class::Established {
            return false;
        }
        let retransmitted = segment.end() == self.sequence_end;
        if !retransmitted && self.segments < PROOF_SEGMENTS {
            self.sequence_end = segment.end();
            self.segments = 1;
            self.acknowledged = false;
        }
        true
    }

    fn finish(&mut self, segment: &TcpSegment) -> bool {
        if !self.is_near(segment) {
            return false;
        }
        self.follow(segment);
        self.class = Class::ClosingFin;
        true
    }

    /// An ordinary segment. It always keeps the flow alive: a flow whose sequence was lost sight of
    /// (another director had it for a while) is still somebody's session.
    fn advance(&mut self, now: Ticks, segment: &TcpSegment) -> bool {
        if !segment.ack || !self.is_near(segment) {
            return true;
        }
        let fresh = self.is_fresh(segment);
        let steady = self.follow(segment);
        match self.class {
            Class::HalfOpen => self.class = Class::Unproven,
            Class::Unproven if steady => self.establish(now),
            // The FIN or RST was not the client's: it goes on behind it.
            Class::ClosingFin if fresh && segment.payload > 0 => self.reopen(),
            Class::ClosingRst if fresh => self.reopen(),
            Class::Unproven | Class::Established | Class::ClosingFin | Class::ClosingRst => {}
        }
        true
    }

    fn reopen(&mut self) {
        self.class = if self.proven { Class::Established } else { Class::Unproven };
    }

    fn establish(&mut self, now: Ticks) {
        if self.class == Class::Unproven
            && self.segments >= PROOF_SEGMENTS
            && now.since(self.created) >= PROOF_SPAN
        {
            self.class = Class::Established;
            self.proven = true;
        }
    }

    fn is_near(&self, segment: &TcpSegment) -> bool {
        signed_distance(self.sequence_end, segment.sequence).unsigned_abs() <= SEQUENCE_WINDOW
    }

    /// Carries something that was not sent before: bytes, or a higher acknowledgement.
    fn is_fresh(&self, segment: &TcpSegment) -> bool {
        let bytes = signed_distance(self.sequence_end, segment.end()) > 0;
        let acknowledges = self.acknowledged
            && segment.sequence == self.sequence_end
            && signed_distance(self.acknowledgement, segment.acknowledgement) > 0;
        bytes || acknowledges
    }

    /// Moves sequence end and acknowledgement forward; counts the segment unless its
    /// acknowledgement falls back, which no sender's does but by reordering. True if it counted.
    fn follow(&mut self, segment: &TcpSegment) -> bool {
        if signed_distance(self.sequence_end, segment.end()) > 0 {
            self.sequence_end = segment.end();
        }
        if !segment.ack {
            return false;
        }
        let steady = !self.acknowledged
            || signed_distance(self.acknowledgement, segment.acknowledgement) >= 0;
        if steady {
            self.acknowledged = true;
            self.acknowledgement = segment.acknowledgement;
            self.count();
        }
        steady
    }

    fn count(&mut self) {
        self.segments = self.segments.saturating_add(1);
    }

    /// Idle time the flow is granted in its class.
    ///
    /// A session that was opened with three or more segments within its first second and then idles
    /// (a connection pool does that) stays evictable as unproven, but is not forgotten after a
    /// minute: it has no second guess when the scheduler is not a hash.
    fn limit(&self, timeouts: &Timeouts, udp: bool) -> Ticks {
        match self.class {
            Class::HalfOpen => timeouts.half_open,
            // A client of datagrams may well be silent for minutes. What is unproven can be evicted.
            Class::Unproven | Class::Established if udp => timeouts.udp,
            Class::Unproven if self.segments >= PROOF_SEGMENTS => timeouts.established,
            Class::Unproven => timeouts.unproven,
            Class::Established => timeouts.established,
            Class::ClosingFin => timeouts.fin,
            Class::ClosingRst => timeouts.rst,
        }
    }
}

/// How far `to` lies behind `from` in the sequence space, negative when before it (RFC 9293 §3.4).
const fn signed_distance(from: u32, to: u32) -> i32 {
    to.wrapping_sub(from).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    /// Segments and the milliseconds at which they come.
    type Steps = Vec<(u64, TcpSegment)>;
    /// The client's initial sequence number in these tests: the sequence wraps early.
    const ISN: u32 = u32::MAX - 10;

    fn segment(offset: u32, payload: u32, acknowledgement: u32) -> TcpSegment {
        TcpSegment {
            sequence: ISN.wrapping_add(offset),
            acknowledgement,
            payload,
            syn: false,
            ack: true,
            fin: false,
            rst: false,
        }
    }

    fn syn() -> TcpSegment {
        TcpSegment { syn: true, ack: false, ..segment(0, 0, 0) }
    }

    fn fin(offset: u32) -> TcpSegment {
        TcpSegment { fin: true, ..segment(offset, 0, 500) }
    }

    fn rst(offset: u32) -> TcpSegment {
        TcpSegment { rst: true, ack: false, ..segment(offset, 0, 0) }
    }

    /// A flow after the segments at these milliseconds.
    fn flow(steps: &[(u64, TcpSegment)]) -> (Progress, Observed) {
        let timeouts = Timeouts::default();
        let at = |milliseconds: u64| Time(milliseconds * SECOND / 1000);
        let (first, rest) = steps.split_first().unwrap();
        let mut progress = Progress::begin(at(first.0), &timeouts, &Observation::Tcp(first.1));
        let mut observed = Observed::Same;
        for (milliseconds, segment) in rest {
            observed = progress.observe(at(*milliseconds), &timeouts, &Observation::Tcp(*segment));
        }
        (progress, observed)
    }

    fn established() -> Vec<(u64, TcpSegment)> {
        vec![(0, syn()), (10, segment(1, 0, 500)), (1200, segment(1, 99, 500))]
    }

    #[test]
    fn classes_follow_the_segments() {
        use Class::{ClosingFin, ClosingRst, Established, HalfOpen, Unproven};
        let timeouts = Timeouts::default();
        let handshake = [(0, syn()), (10, segment(1, 0, 500))];
        let then = |start: &[(u64, TcpSegment)], more: &[(u64, TcpSegment)]| [start, more].concat();
        let idle = |class| match class {
            HalfOpen => timeouts.half_open,
            Unproven => timeouts.unproven,
            Established => timeouts.established,
            ClosingFin => timeouts.fin,
            ClosingRst => timeouts.rst,
        };
        let table: &[(&str, Steps, Class)] = &[
            ("a SYN", vec![(0, syn())], HalfOpen),
            ("a SYN again", vec![(0, syn()), (1000, syn())], HalfOpen),
            ("a handshake", handshake.to_vec(), Unproven),
            (
                "an ACK far from the SYN proves nothing",
                vec![(0, syn()), (10, segment(SEQUENCE_WINDOW + 2, 0, 500))],
                HalfOpen,
            ),
            ("met in its middle", vec![(0, segment(1, 10, 500))], Unproven),
            ("three segments over a second", established(), Established),
            ("two segments over a second", vec![(0, syn()), (2000, segment(1, 0, 500))], Unproven),
            ("acknowledgement falls", then(&handshake, &[(1200, segment(1, 9, 499))]), Unproven),
            (
                "sequence jumps",
                then(&handshake, &[(1200, segment(2 + SEQUENCE_WINDOW, 9, 500))]),
                Unproven,
            ),
            ("FIN", then(&established(), &[(2000, fin(100))]), ClosingFin),
            ("FIN of an unproven flow", then(&handshake, &[(20, fin(1))]), ClosingFin),
            ("RST", then(&established(), &[(2000, rst(100))]), ClosingRst),
            (
                "RST behind FIN",
                then(&established(), &[(2000, fin(100)), (2001, rst(101))]),
                ClosingRst,
            ),
            (
                "ACK behind FIN",
                then(&established(), &[(2000, fin(100)), (2001, segment(101, 0, 900))]),
                ClosingFin,
            ),
            (
                "data behind a FIN: it was forged",
                then(&established(), &[(2000, fin(60)), (2001, segment(100, 50, 500))]),
                Established,
            ),
            (
                "data behind a RST: it was forged",
                then(&established(), &[(2000, rst(100)), (2001, segment(100, 50, 500))]),
                Established,
            ),
            (
                "a late copy behind a RST is no life",
                then(&established(), &[(2000, rst(100)), (2001, segment(1, 99, 500))]),
                ClosingRst,
            ),
        ];
        for (what, steps, class) in table {
            let (progress, _) = flow(steps);
            assert_eq!(progress.class, *class, "{what}");
            assert_eq!(progress.idle_limit, idle(*class), "{what}");
        }
    }

    #[test]
    fn what_is_forged_changes_nothing() {
        let (before, _) = flow(&established());
        let off = SEQUENCE_WINDOW + 101;
        for (what, forged) in [
            ("SYN", syn()),
            ("SYN elsewhere", TcpSegment { sequence: 77, ..syn() }),
            ("RST one off", rst(101)),
            ("RST one before", rst(99)),
            ("RST far off", rst(0x8000_0000)),
            ("FIN before the window", fin(0_u32.wrapping_sub(off))),
            ("FIN behind the window", fin(off)),
        ] {
            let (after, observed) = flow(&[established(), vec![(9000, forged)]].concat());
            assert_eq!(after, before, "{what}");
            assert_eq!(observed, Observed::Same, "{what}");
        }
    }

    #[test]
    fn a_syn_on_a_closing_flow_asks_for_a_new_one() {
        for closing in [fin(100), rst(100)] {
            let steps = [established(), vec![(2000, closing)]].concat();
            let (before, _) = flow(&steps);
            let (after, observed) = flow(&[steps, vec![(2500, syn())]].concat());
            assert_eq!(observed, Observed::Restart);
            assert_eq!(after, before);
        }
    }

    #[test]
    fn a_second_attempt_with_another_sequence_is_followed() {
        let again = TcpSegment { sequence: 5000, ..syn() };
        let data = |offset: u32, payload| TcpSegment {
            sequence: 5001 + offset,
            ..segment(0, payload, 700)
        };
        let (progress, _) =
            flow(&[(0, syn()), (3000, again), (3010, data(0, 0)), (3020, data(0, 9))]);
        assert_eq!(progress.class, Class::Established);
        assert_eq!(progress.sequence_end, 5010);
    }

    #[test]
    fn a_pooled_session_that_idles_early_is_not_forgotten_after_a_minute() {
        let (progress, _) =
            flow(&[(0, syn()), (10, segment(1, 0, 500)), (20, segment(1, 99, 500))]);
        assert_eq!(progress.class, Class::Unproven);
        assert_eq!(progress.idle_limit, Timeouts::default().established);
    }

    #[test]
    fn datagrams_establish_a_flow_too() {
        let timeouts = Timeouts::default();
        let see = |milliseconds: &[u64]| {
            let mut progress = Progress::begin(Time::ZERO, &timeouts, &Observation::Datagram);
            for milliseconds in milliseconds {
                let now = Time(milliseconds * SECOND / 1000);
                let _ = progress.observe(now, &timeouts, &Observation::Datagram);
            }
            (progress.class, progress.idle_limit)
        };
        assert_eq!(see(&[]), (Class::Unproven, timeouts.udp));
        assert_eq!(see(&[1, 2, 3]), (Class::Unproven, timeouts.udp));
        assert_eq!(see(&[2000]), (Class::Unproven, timeouts.udp));
        assert_eq!(see(&[1, 1100]), (Class::Established, timeouts.udp));
    }

    #[test]
    fn no_flow_is_established_in_less_than_a_second() {
        let timeouts = Timeouts::default();
        for begin in 0..70 {
            let at = |milliseconds: u64| Time((begin + milliseconds) * SECOND / 1000);
            let class_after = |milliseconds| {
                let mut progress = Progress::begin(at(0), &timeouts, &Observation::Datagram);
                for milliseconds in [1, 2, milliseconds] {
                    let _ = progress.observe(at(milliseconds), &timeouts, &Observation::Datagram);
                }
                progress.class
            };
            assert_eq!(class_after(999), Class::Unproven, "begun at {begin} ms");
            assert_eq!(class_after(1125), Class::Established, "begun at {begin} ms");
        }
    }

    #[test]
    fn ticks_last_for_years_and_saturate() {
        let year = 365 * 24 * 3600;
        assert_eq!(Ticks::at(Time(8 * year * SECOND)), Ticks(8 * 365 * 24 * 3600 * 16));
        assert_eq!(Ticks::at(Time(u64::MAX)), Ticks(u32::MAX));
        assert_eq!(Ticks::span(Duration::from_millis(1)), Ticks(1));
        assert_eq!(Ticks::span(Duration::from_secs(30)), Ticks(480));
        assert_eq!(Ticks::span(Duration::MAX), Ticks(u32::MAX));
    }

    #[test]
    fn a_flow_lives_its_timeout_and_at_most_a_tick_longer() {
        let timeouts = Timeouts::default();
        for start in [0, 1, 61_999_999, 62_500_000, 123_456_789] {
            let progress = Progress::begin(Time(start), &timeouts, &Observation::Tcp(syn()));
            let at = |nanos| progress.is_expired(Ticks::at(Time(start + nanos)));
            assert!(!at(30 * SECOND));
            assert!(at(30 * SECOND + 2 * TICK_NANOS));
        }
    }
}
