//! What a service takes of new flows: so many a second in all, so many a second of one client prefix,
//! and so many half-open ones at a time.
//!
//! The limits are asked when a flow is about to begin (a SYN, a first datagram), and never for a packet
//! of a flow that is known, nor for a guess: what they bound cannot break a session. A client whose SYN
//! is refused sends it again after a second, so a burst is spread, and a flood is cut.
//!
//! Rates are state of the service, not of a worker: all workers take from the same buckets, and a
//! reload that leaves the limits as they are carries them over. Each bucket is one word (see
//! [`rate_limit`](super::rate_limit)). Client buckets live in a fixed table of sets, as there; since
//! several workers write it, an entry is two words whose exclusive or names the client, so that a torn
//! one is nobody's. What a race or a full set costs is a fresh burst for one client; the total holds
//! regardless.
//!
//! Half-open flows are a bound on memory, not a rate, and a plain cap would lock clients out for as long
//! as somebody floods. So beyond the bound the service's oldest half-open flow gives way to the new
//! one: a client answers the server's SYN within its round trip, and needs its entry no longer than
//! that, where a flood's never answer. Each worker has its share of the bound, since it can only look
//! at flows of its own, and flows are spread evenly over workers.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use ahash::RandomState;

use super::{
    hash::ClientPrefix,
    rate_limit::{Level, Pace, Rate},
    time::Time,
    verdict::DropReason,
};

/// Entries of a set: four of 16 bytes fill a cache line.
const WAYS: usize = 4;

/// Client prefixes that a service remembers. Those beyond take the places of the longest idle; at the
/// default burst one is idle within a second, so this follows 16 384 clients a second. 256 KiB a
/// service, taken only where there is a limit per client.
const CLIENTS: usize = 16_384;

/// Limits of one service, as configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdmissionPolicy {
    /// New flows of everybody.
    pub total: Option<Rate>,
    /// New flows of one client prefix.
    pub client: Option<ClientRate>,
    /// Half-open flows at a time, in one worker.
    pub half_open: Option<u32>,
}

/// A rate for each client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientRate {
    /// How many new flows.
    pub rate: Rate,
    /// Leading bits of an IPv4 client's address that make a client.
    pub ipv4_prefix: u8,
    /// Leading bits of an IPv6 client's address that make a client.
    pub ipv6_prefix: u8,
}

/// Limits of one service and how much of them is used, shared by all workers and snapshots.
pub struct Admission {
    policy: AdmissionPolicy,
    /// The bucket of everybody: when it is full again.
    total: AtomicU64,
    sets: Box<[[ClientBucket; WAYS]]>,
    hasher: RandomState,
}

/// The bucket of one client prefix.
#[derive(Debug, Default)]
struct ClientBucket {
    /// The client's tag, exclusive or with `full_at`.
    check: AtomicU64,
    full_at: AtomicU64,
}

impl ClientBucket {
    fn read(&self) -> (u64, Level) {
        let full_at = self.full_at.load(Relaxed);
        (self.check.load(Relaxed) ^ full_at, Level { full_at })
    }

    fn write(&self, tag: u64, bucket: Level) {
        self.check.store(tag ^ bucket.full_at, Relaxed);
        self.full_at.store(bucket.full_at, Relaxed);
    }
}

impl Admission {
    /// Limits none of which is used. `seed` is random and secret, so that nobody can choose addresses
    /// that share a set with a victim's. All memory is taken here.
    pub fn new(policy: AdmissionPolicy, seed: [u64; 4]) -> Self {
        let sets = if policy.client.is_some() { CLIENTS / WAYS } else { 0 };
        Self {
            policy,
            total: AtomicU64::new(0),
            sets: (0..sets).map(|_| Default::default()).collect(),
            hasher: RandomState::with_seeds(seed[0], seed[1], seed[2], seed[3]),
        }
    }

    /// The limits.
    pub const fn policy(&self) -> &AdmissionPolicy {
        &self.policy
    }

    /// Takes what a new flow of `client` costs.
    ///
    /// # Errors
    /// The limit that is used up; then nothing is taken of the others.
    pub fn admit(&self, now: Time, client: IpAddr) -> Result<(), DropReason> {
        let of_client = match &self.policy.client {
            Some(limit) => {
                let prefix = ClientPrefix::new(client, limit.ipv4_prefix, limit.ipv6_prefix);
                let (place, tag, before) = self.client_bucket(&prefix);
                let after = before.take(now, limit.rate.into());
                Some((place, tag, after.ok_or(DropReason::ClientLimited)?))
            }
            None => None,
        };
        if let Some(rate) = self.policy.total {
            let pace = Pace::from(rate);
            let take = |full_at| Level { full_at }.take(now, pace).map(|after| after.full_at);
            let taken = self.total.fetch_update(Relaxed, Relaxed, take);
            taken.map_err(|_| DropReason::ServiceLimited)?;
        }
        if let Some((place, tag, after)) = of_client {
            place.write(tag, after);
        }
        Ok(())
    }

    /// Where the bucket of a client is or may be made, the client's tag, and what is in the bucket.
    fn client_bucket(&self, prefix: &ClientPrefix) -> (&ClientBucket, u64, Level) {
        let hash = self.hasher.hash_one(prefix.octets());
        // The low bits choose the set, all bits are the tag: 2^-64 that two share a bucket.
        #[expect(clippy::cast_possible_truncation, reason = "only the low bits are looked at")]
        let set = &self.sets[hash as usize & (self.sets.len() - 1)];
        let tag = hash.max(1);
        let mut idlest = (&set[0], Level { full_at: u64::MAX });
        for place in set {
            let (owner, bucket) = place.read();
            if owner == tag {
                return (place, tag, bucket);
            }
            if bucket.full_at < idlest.1.full_at {
                idlest = (place, bucket);
            }
        }
        (idlest.0, tag, Level::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::Barrier, thread, time::Duration};

    const SEED: [u64; 4] = [1, 2, 3, 4];

    fn at(milliseconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(100) + Duration::from_millis(milliseconds)
    }

    fn rate(per_second: u32, burst: u32) -> Rate {
        Rate { per_second, burst }
    }

    fn client_rate(per_second: u32, burst: u32) -> Option<ClientRate> {
        Some(ClientRate { rate: rate(per_second, burst), ipv4_prefix: 24, ipv6_prefix: 64 })
    }

    fn admission(total: Option<Rate>, client: Option<ClientRate>) -> Admission {
        Admission::new(AdmissionPolicy { total, client, half_open: None }, SEED)
    }

    fn admitted(admission: &Admission, now: Time, client: [u8; 4], tries: usize) -> usize {
        (0..tries).filter(|_| admission.admit(now, client.into()).is_ok()).count()
    }

    #[test]
    fn a_service_has_its_burst_and_then_its_rate() {
        let admission = admission(Some(rate(100, 5)), None);
        assert_eq!(admitted(&admission, at(0), [10, 0, 0, 1], 9), 5);
        assert_eq!(admission.admit(at(9), [10, 0, 0, 2].into()), Err(DropReason::ServiceLimited));
        let admitted: usize =
            (10..10_010).map(|ms| admitted(&admission, at(ms), [10, 0, 0, 1], 3)).sum();
        assert!((995..=1005).contains(&admitted), "{admitted} in ten seconds of 100");
    }

    #[test]
    fn one_client_uses_up_what_is_its_own_only() {
        let admission = admission(Some(rate(1000, 10)), client_rate(10, 3));
        assert_eq!(admitted(&admission, at(0), [192, 0, 2, 1], 500), 3);
        // The same prefix; then another, and one of the other family.
        assert_eq!(admission.admit(at(0), [192, 0, 2, 9].into()), Err(DropReason::ClientLimited));
        assert_eq!(admitted(&admission, at(0), [192, 0, 3, 1], 500), 3);
        let v6: IpAddr = "2001:db8::1".parse().unwrap();
        assert_eq!((0..9).filter(|_| admission.admit(at(0), v6).is_ok()).count(), 3);
        // Nothing of the total went to those that were refused: one of ten is left.
        assert_eq!(admitted(&admission, at(0), [192, 0, 4, 1], 9), 1);
        assert_eq!(admission.admit(at(0), [192, 0, 5, 1].into()), Err(DropReason::ServiceLimited));
        // Nor anything of the client's own when the total refuses.
        assert_eq!(admitted(&admission, at(20), [192, 0, 5, 1], 9), 3);
    }

    #[test]
    fn a_busy_client_keeps_its_bucket_when_thousands_pass_by() {
        let admission = admission(None, client_rate(1, 2));
        assert_eq!(admitted(&admission, at(0), [192, 0, 2, 1], 9), 2);
        for number in 0..5_000_u32 {
            let [_, _, high, low] = number.to_be_bytes();
            assert_eq!(admission.admit(at(0), [10, high, low, 1].into()), Ok(()));
        }
        assert_eq!(admitted(&admission, at(0), [192, 0, 2, 1], 9), 0);
    }

    #[test]
    fn several_workers_share_one_limit() {
        const WORKERS: u8 = 4;
        let admission = admission(Some(rate(1, 1000)), client_rate(1, 900));
        let start = Barrier::new(WORKERS.into());
        let admitted: Vec<usize> = thread::scope(|scope| {
            let work = |last: u8| {
                let (admission, start) = (&admission, &start);
                move || {
                    start.wait();
                    admitted(admission, at(0), [10, 0, last, 1], 2000)
                }
            };
            let workers: Vec<_> = (0..WORKERS).map(|n| scope.spawn(work(n))).collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).collect()
        });
        assert_eq!(admitted.iter().sum::<usize>(), 1000, "{admitted:?}");
    }
}
