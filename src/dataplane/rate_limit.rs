//! Limits on what Adit itself emits: in total, per kind, and per client prefix.
//!
//! What is emitted answers packets whose source address nobody has checked, so without limits
//! the director could be used to flood a third party. Every bucket is one number, the time at
//! which it would be full again (the generic cell rate algorithm, ITU-T I.371, a token bucket
//! without a timer).
//!
//! Client buckets live in a fixed table of sets. A prefix that finds its set full takes the
//! place of the one that has been idle for longest, which at worst gives a busy prefix a fresh
//! burst; the total holds regardless. The table's hash is seeded, so that nobody can choose
//! addresses that share a set with a victim's.

use ahash::RandomState;

use super::{
    hash::ClientPrefix,
    packet::{Address, ip_addr},
    time::Time,
};

/// Ways of a set: with one, two busy clients could cut each other off; four fill a cache line.
const WAYS: usize = 4;

/// Client prefixes are cut as networks are handed out: one customer is not worth more tokens
/// for having more addresses.
const IPV4_PREFIX: u8 = 24;
const IPV6_PREFIX: u8 = 64;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// What Adit emits of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Emission {
    /// Answer to an ICMP echo request.
    EchoReply,
    /// ICMP error: too big, time exceeded, unreachable.
    IcmpError,
    /// TCP reset.
    Reset,
}

impl Emission {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::EchoReply, Self::IcmpError, Self::Reset];
}

/// A token bucket's rate and depth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens per second.
    pub per_second: u32,
    /// Tokens a full bucket holds.
    pub burst: u32,
}

/// The limits in force. The defaults leave room for every legitimate use of a large site and
/// keep the worst abuse below ten megabit per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimits {
    /// Everything together.
    pub total: Rate,
    /// Each kind by itself, so that a flood of one leaves the others alive.
    pub kind: Rate,
    /// Everything to one client prefix (/24, /64).
    pub client: Rate,
    /// Client prefixes remembered, rounded up to a power of two.
    pub clients: usize,
}

impl Default for RateLimits {
    fn default() -> Self {
        Self {
            total: Rate { per_second: 10_000, burst: 1_000 },
            kind: Rate { per_second: 5_000, burst: 500 },
            client: Rate { per_second: 100, burst: 50 },
            clients: 16_384,
        }
    }
}

/// A token bucket: the time at which it is full again, in nanoseconds since boot.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bucket {
    pub(super) full_at: u64,
}

/// A [`Rate`] in the units of a [`Bucket`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    interval: u64,
    /// The deepest a bucket may be in debt for a token to be left.
    depth: u64,
}

impl From<Rate> for Pace {
    fn from(rate: Rate) -> Self {
        // A rate or a burst of zero never gives a token: no time is that far off.
        let interval = match rate.per_second {
            0 => u64::MAX,
            _ if rate.burst == 0 => u64::MAX,
            per_second => NANOS_PER_SECOND / u64::from(per_second),
        };
        let depth = interval.saturating_mul(u64::from(rate.burst.saturating_sub(1)));
        Self { interval, depth }
    }
}

impl Bucket {
    /// What the bucket becomes when a token is taken; `None` when it has none.
    #[inline]
    pub(super) fn take(self, now: Time, pace: Pace) -> Option<Self> {
        let from = self.full_at.max(now.0);
        let full_at = from.checked_add(pace.interval)?;
        (from - now.0 <= pace.depth).then_some(Self { full_at })
    }
}

/// The bucket of one client prefix. A tag of zero marks a free one.
#[derive(Clone, Copy, Debug, Default)]
struct ClientBucket {
    tag: u64,
    bucket: Bucket,
}

/// Decides whether Adit may emit. One per worker.
pub struct RateLimiter {
    total: (Pace, Bucket),
    kinds: (Pace, [Bucket; Emission::ALL.len()]),
    client: Pace,
    sets: Box<[[ClientBucket; WAYS]]>,
    hasher: RandomState,
}

impl RateLimiter {
    /// A limiter whose buckets are full. `seed` is random and secret. All memory is taken here.
    pub fn new(limits: &RateLimits, seed: [u64; 4]) -> Self {
        let sets = limits.clients.div_ceil(WAYS).max(1).next_power_of_two();
        Self {
            total: (limits.total.into(), Bucket::default()),
            kinds: (limits.kind.into(), Default::default()),
            client: limits.client.into(),
            sets: vec![Default::default(); sets].into_boxed_slice(),
            hasher: RandomState::with_seeds(seed[0], seed[1], seed[2], seed[3]),
        }
    }

    /// Whether one packet may be sent to `client` now; takes a token for it if so. Nothing is
    /// taken from anybody unless everybody has one left.
    pub fn allow(&mut self, now: Time, kind: Emission, client: &Address) -> bool {
        self.take(now, kind, client).is_some()
    }

    fn take(&mut self, now: Time, kind: Emission, client: &Address) -> Option<()> {
        let (set, way, tag) = self.client_bucket(client);
        let found = self.sets[set][way];
        let before = if found.tag == tag { found.bucket } else { Bucket::default() };
        let of_client = before.take(now, self.client)?;
        let of_kind = self.kinds.1[kind as usize].take(now, self.kinds.0)?;
        let total = self.total.1.take(now, self.total.0)?;
        self.sets[set][way] = ClientBucket { tag, bucket: of_client };
        self.kinds.1[kind as usize] = of_kind;
        self.total.1 = total;
        Some(())
    }

    /// Where the bucket of a client is, or would be: its set, its way, its tag.
    fn client_bucket(&self, client: &Address) -> (usize, usize, u64) {
        let prefix = ClientPrefix::new(ip_addr(client), IPV4_PREFIX, IPV6_PREFIX);
        let hash = self.hasher.hash_one(prefix.octets());
        // The low bits choose the set, all bits are the tag: 2^-64 that two share a bucket.
        #[allow(clippy::cast_possible_truncation)]
        let set = hash as usize & (self.sets.len() - 1);
        let tag = hash.max(1);
        let ways = &self.sets[set];
        let way = ways.iter().position(|way| way.tag == tag).unwrap_or_else(|| {
            let idle = (0..WAYS).min_by_key(|&way| (ways[way].tag != 0, ways[way].bucket.full_at));
            idle.unwrap_or(0)
        });
        (set, way, tag)
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // test data is cut to size on purpose
mod tests {
    use std::{net::IpAddr, time::Duration};

    use super::*;
    use crate::dataplane::packet::address;

    const WIDE: Rate = Rate { per_second: 1_000_000_000, burst: 1_000_000 };

    fn limits(total: Rate, kind: Rate, client: Rate) -> RateLimits {
        RateLimits { total, kind, client, clients: 64 }
    }

    fn client(last: u8) -> IpAddr {
        IpAddr::from([192, 0, last, 1])
    }

    fn at(milliseconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(100) + Duration::from_millis(milliseconds)
    }

    fn allows(limiter: &mut RateLimiter, now: Time, kind: Emission, client: IpAddr) -> bool {
        limiter.allow(now, kind, &address(client))
    }

    /// Emissions allowed of `tries` at one moment.
    fn allowed(limiter: &mut RateLimiter, now: Time, client: IpAddr, tries: usize) -> usize {
        (0..tries).filter(|_| allows(limiter, now, Emission::EchoReply, client)).count()
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let rate = Rate { per_second: 100, burst: 5 };
        let mut limiter = RateLimiter::new(&limits(WIDE, WIDE, rate), [1; 4]);
        assert_eq!(allowed(&mut limiter, at(0), client(1), 20), 5);
        assert_eq!(allowed(&mut limiter, at(9), client(1), 20), 0);
        assert_eq!(allowed(&mut limiter, at(10), client(1), 20), 1);
        assert_eq!(allowed(&mut limiter, at(40), client(1), 20), 3);
        // Idle for an hour: full, not more.
        assert_eq!(allowed(&mut limiter, at(3_600_000), client(1), 20), 5);
        // Over ten seconds of constant demand: the rate.
        let mut count = 0;
        for millisecond in 0..10_000 {
            count += allowed(&mut limiter, at(7_200_000 + millisecond), client(1), 2);
        }
        assert!((1_000..=1_005).contains(&count), "{count}");
    }

    #[test]
    fn each_limit_holds_for_what_it_is_about() {
        let narrow = Rate { per_second: 1, burst: 3 };
        // Limits; whether another client, another kind still has tokens when they are reached.
        let cases = [
            (limits(WIDE, WIDE, narrow), true, false),
            (limits(WIDE, narrow, WIDE), false, true),
            (limits(narrow, WIDE, WIDE), false, false),
        ];
        for (limits, other_client, other_kind) in cases {
            let mut limiter = RateLimiter::new(&limits, [1; 4]);
            assert_eq!(allowed(&mut limiter, at(0), client(1), 9), 3);
            let mut tries = |kind, last| allows(&mut limiter, at(0), kind, client(last));
            assert_eq!(tries(Emission::EchoReply, 2), other_client, "{limits:?}");
            assert_eq!(tries(Emission::Reset, 1), other_kind, "{limits:?}");
        }
    }

    #[test]
    fn a_refusal_costs_the_others_nothing() {
        let total = Rate { per_second: 1, burst: 10 };
        let client_rate = Rate { per_second: 1, burst: 2 };
        let mut limiter = RateLimiter::new(&limits(total, WIDE, client_rate), [1; 4]);
        assert_eq!(allowed(&mut limiter, at(0), client(1), 1_000), 2);
        for last in 2..6 {
            assert_eq!(allowed(&mut limiter, at(0), client(last), 1_000), 2);
        }
        // The total is used up. Nobody's own tokens are.
        assert_eq!(allowed(&mut limiter, at(0), client(7), 5), 0);
        assert_eq!(allowed(&mut limiter, at(1_000), client(7), 5), 1);
    }

    #[test]
    fn a_network_counts_as_one_client() {
        let rate = Rate { per_second: 1, burst: 3 };
        let mut limiter = RateLimiter::new(&limits(WIDE, WIDE, rate), [1; 4]);
        let mut sum = 0;
        for host in 0..=255 {
            sum += allowed(&mut limiter, at(0), IpAddr::from([203, 0, 113, host]), 1);
        }
        assert_eq!(sum, 3);
        let v6 = |text: &str| -> IpAddr { text.parse().unwrap() };
        assert_eq!(allowed(&mut limiter, at(0), v6("2001:db8::1"), 5), 3);
        assert_eq!(allowed(&mut limiter, at(0), v6("2001:db8::ffff:0:0:1"), 5), 0);
        assert_eq!(allowed(&mut limiter, at(0), v6("2001:db8:0:1::1"), 5), 3);
    }

    #[test]
    fn the_busy_keep_their_buckets_when_many_pass_by() {
        let rate = Rate { per_second: 1, burst: 2 };
        let mut limiter = RateLimiter::new(&limits(WIDE, WIDE, rate), [3; 4]);
        assert_eq!(allowed(&mut limiter, at(0), client(1), 9), 2);
        // Thousands of prefixes, each once: they replace each other, idle ones first.
        let mut fresh = 0;
        for number in 0..5_000u32 {
            let [_, _, high, low] = number.to_be_bytes();
            fresh += allowed(&mut limiter, at(0), IpAddr::from([10, high, low, 1]), 1);
        }
        assert_eq!(fresh, 5_000);
        assert_eq!(allowed(&mut limiter, at(0), client(1), 1), 0);
    }

    #[test]
    fn a_rate_or_burst_of_zero_allows_nothing() {
        for (per_second, burst) in [(0, 0), (0, 5), (5, 0)] {
            let none = Rate { per_second, burst };
            let mut limiter = RateLimiter::new(&limits(WIDE, WIDE, none), [1; 4]);
            assert_eq!(allowed(&mut limiter, at(0), client(1), 9), 0, "{none:?}");
        }
    }
}
