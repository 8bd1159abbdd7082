//! Which worker a packet belongs to, where there are several.
//!
//! Each worker has a flow table of its own, so all packets of a flow must come to one: its *owner*,
//! by a hash of the client's address and port, the VIP and its port, and the protocol. Only the
//! first fragment of a datagram has ports; all of its fragments *meet* at one worker, by a hash of
//! the addresses alone, which sends them on to the owner.
//!
//! The kernel spreads by the same rule, if it takes our program (`crate::io::Steering`): the hash is
//! made of what both can do cheaply. It is part of the flow region's format: a region whose workers
//! are as many is used as it is, each worker with its part.
//!
//! The hash is seeded, with a secret of the region, so that nobody outside can aim at one worker; it
//! is not a cryptographic one, and who measured which of his flows are slow could learn something
//! of it.

use super::packet::{Address, Family};

/// Multiplier of each step: 2³² divided by the golden ratio.
pub const MULTIPLIER: u32 = 0x9e37_79b9;
/// How far the upper bits, where a multiplication collects what it mixed, are folded onto the lower.
pub const FOLD: u32 = 15;

/// The rule by which packets are shared out. The same for all workers, and for as long as they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steering {
    workers: u16,
    seed: u32,
}

/// What identifies a flow to the rule: the client's half of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple<'a> {
    /// Client address.
    pub client: &'a Address,
    /// Client port.
    pub client_port: u16,
    /// The virtual address.
    pub vip: &'a Address,
    /// Port at the virtual address.
    pub vip_port: u16,
    /// IP protocol number.
    pub protocol: u8,
}

impl Steering {
    /// There is one worker, which owns everything.
    pub const ALONE: Self = Self { workers: 1, seed: 0 };

    /// Shares out among `workers` (one at least), by a secret seed.
    pub const fn new(workers: u16, seed: u32) -> Self {
        Self { workers: if workers == 0 { 1 } else { workers }, seed }
    }

    /// How many workers there are.
    pub const fn workers(self) -> u16 {
        self.workers
    }

    /// The secret.
    pub const fn seed(self) -> u32 {
        self.seed
    }

    /// Whether there is more than one worker, and so anything to decide.
    #[inline]
    pub const fn is_shared(self) -> bool {
        self.workers > 1
    }

    /// The worker that has the flow.
    pub fn owner(self, tuple: &Tuple<'_>) -> u16 {
        let ports = u32::from(tuple.client_port) << 16 | u32::from(tuple.vip_port);
        let hash = step(self.of_addresses(tuple.client, tuple.vip), ports);
        self.worker(step(hash, u32::from(tuple.protocol)))
    }

    /// The worker at which the fragments of a datagram meet.
    pub fn meeting(self, source: &Address, destination: &Address) -> u16 {
        // One step more, lest the upper bits of the last word be lost.
        self.worker(step(self.of_addresses(source, destination), 0))
    }

    fn of_addresses(self, client: &Address, vip: &Address) -> u32 {
        words(client).chain(words(vip)).fold(self.seed, step)
    }

    /// The part of the range of hashes that a hash lies in.
    #[expect(clippy::cast_possible_truncation, reason = "below `workers`, which is 16 bits wide")]
    const fn worker(self, hash: u32) -> u16 {
        ((hash as u64 * self.workers as u64) >> 32) as u16
    }
}

/// Takes one more word into the hash.
const fn step(hash: u32, word: u32) -> u32 {
    let hash = (hash ^ word).wrapping_mul(MULTIPLIER);
    hash ^ hash >> FOLD
}

/// An address as the packet has it: one word of IPv4, four of IPv6.
fn words(address: &Address) -> impl Iterator<Item = u32> {
    let skipped = match Family::of(address) {
        Family::V4 => 3,
        Family::V6 => 0,
    };
    address.as_chunks().0.iter().skip(skipped).map(|word| u32::from_be_bytes(*word))
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "test data is cut to size on purpose")]
mod tests {
    use super::*;
    use crate::dataplane::packet::address;
    use std::net::IpAddr;

    fn tuple<'a>(client: &'a Address, port: u16, vip: &'a Address) -> Tuple<'a> {
        Tuple { client, client_port: port, vip, vip_port: 5432, protocol: 6 }
    }

    /// The largest share of `owners` that one of `workers` has, against a fair one.
    fn worst(workers: u16, owners: impl Iterator<Item = u16>) -> f64 {
        let mut tally = vec![0_u32; usize::from(workers)];
        owners.for_each(|owner| tally[usize::from(owner)] += 1);
        let total: u32 = tally.iter().sum();
        let worst = tally.iter().copied().max().unwrap_or(0);
        f64::from(worst) * f64::from(workers) / f64::from(total)
    }

    #[test]
    fn what_clients_have_in_common_does_not_put_them_together() {
        let v4 = address("198.51.100.10".parse::<IpAddr>().unwrap());
        let v6 = address("2001:db8::10".parse::<IpAddr>().unwrap());
        for workers in [2, 3, 4, 8, 16] {
            for seed in [0, 1, 0x5eed_5eed, u32::MAX] {
                let steering = Steering::new(workers, seed);
                let client = address("192.0.2.7".parse::<IpAddr>().unwrap());
                let ports = (0..20_000).map(|port| steering.owner(&tuple(&client, port, &v4)));
                let hosts = (0..20_000_u32).map(|n| {
                    let client = address(IpAddr::from((0x0a00_0000 + n).to_be_bytes()));
                    steering.owner(&tuple(&client, 40_000, &v4))
                });
                let networks = (0..20_000_u32).map(|n| {
                    let client = address(IpAddr::from(((n << 12) + 1).to_be_bytes()));
                    steering.meeting(&client, &v4)
                });
                let v6_networks = (0..20_000_u128).map(|n| {
                    let client =
                        address(IpAddr::from(((0x2001_0db8 << 96) + (n << 64) + 1).to_be_bytes()));
                    steering.owner(&tuple(&client, 40_000, &v6))
                });
                let shares = [
                    worst(workers, ports),
                    worst(workers, hosts),
                    worst(workers, networks),
                    worst(workers, v6_networks),
                ];
                assert!(shares.iter().all(|share| *share < 1.25), "{workers} {seed:x}: {shares:?}");
            }
        }
    }

    #[test]
    fn every_field_counts_and_one_worker_owns_all() {
        let (a, b) = ([1; 16], [2; 16]);
        let steering = Steering::new(u16::MAX, 7);
        let base = tuple(&a, 40_000, &b);
        let owner = steering.owner(&base);
        for other in [
            Tuple { client: &b, ..base },
            Tuple { vip: &a, ..base },
            Tuple { client_port: 40_001, ..base },
            Tuple { vip_port: 5433, ..base },
            Tuple { protocol: 17, ..base },
        ] {
            assert_ne!(steering.owner(&other), owner, "{other:?}");
        }
        assert_ne!(Steering::new(u16::MAX, 8).owner(&base), owner);
        assert_eq!(Steering::ALONE.owner(&base), 0);
        assert!(!Steering::new(0, 7).is_shared());
    }
}
