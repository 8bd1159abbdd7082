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

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

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
#[derive(Debug, Default)]
struct Bucket {
    full_at: AtomicU64,
}

/// What is in a bucket: when it is full again.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Level {
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
    /// Whether the bucket has a token left; `full_at` is its state.
    #[inline]
    fn has_token(full_at: u64, now: Time, pace: Pace) -> bool {
        Level { full_at }.take(now, pace).is_some()
    }

    fn full_at(&self) -> u64 {
        self.full_at.load(Relaxed)
    }

    /// Takes a token. Where another worker has just taken the last one the bucket goes into debt,
    /// which it pays back: in the long run the rate holds exactly.
    fn take(&self, now: Time, pace: Pace) {
        let taken = |full_at: u64| Some(full_at.max(now.0).saturating_add(pace.interval));
        // Relaxed: a bucket guards no other memory. It cannot fail, since there is always a value.
        let _ = self.full_at.fetch_update(Relaxed, Relaxed, taken);
    }
}

impl Level {
    /// What it becomes when a token is taken; `None` when there is none.
    #[inline]
    pub(super) fn take(self, now: Time, pace: Pace) -> Option<Self> {
        let from = self.full_at.max(now.0);
        let full_at = from.checked_add(pace.interval)?;
        (from - now.0 <= pace.depth).then_some(Self { full_at })
    }
}

/// The bucket of one client prefix. A tag of zero marks a free one.
#[derive(Debug, Default)]
struct ClientBucket {
    tag: AtomicU64,
    bucket: Bucket,
}

/// Decides whether Adit may emit. A clone has the same buckets: workers share them, so that limits
/// hold for all together. Two that take at the same moment may both have the last token; and where
/// they replace the same idle prefix, one of the new ones may begin with a bucket that is not full.
#[derive(Clone)]
pub struct RateLimiter {
    shared: Arc<Shared>,
}

struct Shared {
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
        let shared = Shared {
            total: (limits.total.into(), Bucket::default()),
            kinds: (limits.kind.into(), Default::default()),
            client: limits.client.into(),
            sets: (0..sets).map(|_| Default::default()).collect(),
            hasher: RandomState::with_seeds(seed[0], seed[1], seed[2], seed[3]),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Whether one packet may be sent to `client` now; takes a token for it if so. Nothing is
    /// taken from anybody unless everybody has one left.
    pub fn allow(&self, now: Time, kind: Emission, client: &Address) -> bool {
        let Shared { total, kinds, client: pace, sets, .. } = &*self.shared;
        let (set, way, tag) = self.shared.client_bucket(client);
        let found = &sets[set][way];
        let is_known = found.tag.load(Relaxed) == tag;
        let before = if is_known { found.bucket.full_at() } else { 0 };
        let of_kind = &kinds.1[kind as usize];
        let allowed = Bucket::has_token(before, now, *pace)
            && Bucket::has_token(of_kind.full_at(), now, kinds.0)
            && Bucket::has_token(total.1.full_at(), now, total.0);
        if allowed {
            if !is_known {
                found.bucket.full_at.store(0, Relaxed);
                found.tag.store(tag, Relaxed);
            }
            found.bucket.take(now, *pace);
            of_kind.take(now, kinds.0);
            total.1.take(now, total.0);
        }
        allowed
    }
}

impl Shared {
    /// Where the bucket of a client is, or would be: its set, its way, its tag.
    fn client_bucket(&self, client: &Address) -> (usize, usize, u64) {
        let prefix = ClientPrefix::new(ip_addr(client), IPV4_PREFIX, IPV6_PREFIX);
        let hash = self.hasher.hash_one(prefix.octets());
        // The low bits choose the set, all bits are the tag: 2^-64 that two share a bucket.
        #[allow(clippy::cast_possible_truncation)]
        let set = hash as usize & (self.sets.len() - 1);
        let tag = hash.max(1);
        let ways = &self.sets[set];
        let tag_of = |way: &ClientBucket| way.tag.load(Relaxed);
        let way = ways.iter().position(|way| tag_of(way) == tag).unwrap_or_else(|| {
            let idle =
                (0..WAYS).min_by_key(|&way| (tag_of(&ways[way]) != 0, ways[way].bucket.full_at()));
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
    fn workers_that_share_it_get_no_more_together() {
        let rate = Rate { per_second: 1_000, burst: 40 };
        for limits in [limits(rate, WIDE, WIDE), limits(WIDE, rate, WIDE), limits(WIDE, WIDE, rate)]
        {
            let limiter = RateLimiter::new(&limits, [1; 4]);
            let count = |mut limiter: RateLimiter| {
                let tries = (0..10_000).map(|step| at(step / 10));
                tries.filter(|now| allowed(&mut limiter, *now, client(1), 1) == 1).count()
            };
            let counts: Vec<usize> = std::thread::scope(|scope| {
                let workers = [0; 4].map(|_| scope.spawn(|| count(limiter.clone())));
                workers.map(|worker| worker.join().unwrap()).to_vec()
            });
            // A second's rate and the burst; each worker may once have had a token too many, and
            // those that are behind in time find the debt of the one that is ahead.
            let sum: usize = counts.iter().sum();
            assert!(sum <= 1_040 + 4, "{counts:?}");
            assert!(sum >= 900, "{counts:?}");
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
