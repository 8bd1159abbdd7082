//! The placement table: slots filled by members, by address, configured weight and hash key.
//!
//! A Maglev table (Eisenbud et al., NSDI 2016, §3.4) with another population. There, members
//! claim slots in turns, each taking the next free one of its permutation. That keeps quotas
//! exact, but a member that is lucky early is held back and one that is not pushes on, which
//! moves up to 1.15 % of all slots beyond the necessary ones when one of 300..655 members with
//! mixed weights goes. Here members *probe* in turns instead:
//!
//! 1. *Quotas* come first: slots × weight / total, by largest remainder (ties to the lower
//!    address), so that every weight is honoured to within one slot.
//! 2. Each member has a pseudo-random probe sequence of its own, seeded by the hash key and its
//!    address, and probes at a pace proportional to its weight. A probe that finds its slot
//!    free claims it. A member whose quota is full stops. Who gets a slot depends on who comes
//!    first in time, and time does not depend on the luck of others; so removing a member hands
//!    over its slots and disturbs little else. Measured beyond the necessary: at most 0.72 %.
//! 3. Finding the last free slots by probing would take half of all the time (the coupon
//!    collector's tail). When 1 of 256 slots is still free, probes look at 64 slots at once and
//!    claim the first free one from where they hit. Those slots are too few to matter for (2).
//!
//! The order in which members are given is irrelevant: they are sorted by address first.
//! Everything is integer arithmetic, so all machines build the same table.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{Arc, Weak},
};

use super::Member;
use crate::dataplane::hash::{HashKey, canonical_octets, mix64};

/// Table sizes, all prime; a service takes the first that gives 100 slots to each member, so
/// that one slot is at most one percent of an average share.
pub const TABLE_SIZES: [u32; 5] = [65_537, 131_101, 262_147, 524_309, 1_048_583];

/// Slots a table has at least for each member.
const SLOTS_PER_MEMBER: usize = 100;

/// Members a table can hold at most. They fit a `u16` slot.
pub const MEMBERS_MAX: usize = 10_485;

/// The last 1 / 256 of the slots is claimed by words of 64 (step 3 of the module's comment): a
/// lower share costs time, a higher one moves more slots when a member goes.
const TAIL_DIVISOR: u32 = 256;

/// Probes an average member makes at a stretch: enough that the branch predictor and the cache
/// work for it, few beside the hundreds it makes in all, so that nobody is ahead for long.
const PROBES_PER_ROUND: u64 = 8;

/// Why no table can be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// The largest table has fewer than 100 slots for each.
    #[error("{members} real servers in one service, at most {MEMBERS_MAX} fit its table")]
    TooManyMembers {
        /// How many there are.
        members: usize,
    },
    /// An address is a member's identity.
    #[error("real server {address} is listed twice in one service")]
    DuplicateMember {
        /// Listed twice.
        address: IpAddr,
    },
}

/// The size of the table of a service with so many members.
///
/// # Errors
/// [`TableError::TooManyMembers`] beyond [`MEMBERS_MAX`].
pub fn table_size(members: usize) -> Result<u32, TableError> {
    TABLE_SIZES
        .into_iter()
        .find(|&size| members * SLOTS_PER_MEMBER <= size as usize)
        .ok_or(TableError::TooManyMembers { members })
}

/// A member as the table knows it: rank in the order of addresses is what slots hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Placed {
    octets: [u8; 16],
    address: IpAddr,
    weight: u32,
}

/// A filled table. Slots hold ranks in the order of canonical addresses.
pub struct Table {
    size: u32,
    placed: Box<[Placed]>,
    /// Empty when no member has weight.
    slots: Box<[u16]>,
}

impl Table {
    /// Builds the table for the configured addresses and weights of `members`.
    ///
    /// # Errors
    /// [`TableError`] for too many members or an address that appears twice.
    pub fn build(members: &[Member], key: &HashKey) -> Result<Self, TableError> {
        Self::fill(sorted(members)?, key)
    }

    fn fill(placed: Box<[Placed]>, key: &HashKey) -> Result<Self, TableError> {
        let size = table_size(placed.len())?;
        Ok(Self { size, slots: Population::new(&placed, size, key).run(), placed })
    }

    /// Number of slots.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Bytes of the slots.
    pub fn memory(&self) -> usize {
        std::mem::size_of_val(&*self.slots)
    }

    /// Rank of the member in `slot`, or `None` when no member has weight.
    #[inline]
    pub fn rank(&self, slot: u32) -> Option<u16> {
        self.slots.get(slot as usize).copied()
    }

    /// Address of the member in `slot`, or `None` when no member has weight.
    pub fn address(&self, slot: u32) -> Option<IpAddr> {
        self.rank(slot).map(|rank| self.placed[usize::from(rank)].address)
    }

    /// For each rank, the position of its member in `members`, the slice this was built for.
    pub(super) fn positions(&self, members: &[Member]) -> Box<[u16]> {
        let mut positions: Vec<(u16, [u8; 16])> =
            (0..).zip(members.iter().map(|member| canonical_octets(member.address))).collect();
        positions.sort_unstable_by_key(|&(_, octets)| octets);
        positions.into_iter().map(|(position, _)| position).collect()
    }
}

fn sorted(members: &[Member]) -> Result<Box<[Placed]>, TableError> {
    let mut placed: Box<[Placed]> = members
        .iter()
        .map(|&Member { address, weight, .. }| Placed {
            octets: canonical_octets(address),
            address,
            weight,
        })
        .collect();
    placed.sort_unstable_by_key(|member| member.octets);
    match placed.windows(2).find(|pair| pair[0].octets == pair[1].octets) {
        Some(pair) => Err(TableError::DuplicateMember { address: pair[0].address }),
        None => Ok(placed),
    }
}

/// Slots each weight is due: largest remainder, ties to the earlier. Sums up to `size` unless
/// all weights are zero.
fn quotas(weights: impl Iterator<Item = u32> + Clone, size: u32) -> Vec<u32> {
    let total: u64 = weights.clone().map(u64::from).sum();
    if total == 0 {
        return vec![0; weights.count()];
    }
    // size < 2^21 and weight < 2^32: the products fit 53 bits. A quotient is at most `size`.
    let due = |weight: u32| u64::from(size) * u64::from(weight);
    #[allow(clippy::cast_possible_truncation)]
    let mut quotas: Vec<u32> = weights.clone().map(|weight| (due(weight) / total) as u32).collect();
    let mut remainders: Vec<(u64, usize)> =
        weights.enumerate().map(|(rank, weight)| (due(weight) % total, rank)).collect();
    remainders.sort_unstable_by_key(|&(remainder, rank)| (std::cmp::Reverse(remainder), rank));
    let left = size - quotas.iter().sum::<u32>();
    for &(_, rank) in remainders.iter().take(left as usize) {
        quotas[rank] += 1;
    }
    quotas
}

/// A member while the table is being filled: 32 bytes, so that a thousand stay in the cache.
struct Claimant {
    /// State of its probe sequence.
    state: u64,
    /// Virtual time saved up; a probe costs [`Population::quantum`].
    saved: u64,
    /// Virtual time earned per round, its weight scaled.
    pace: u64,
    /// Slots it may still claim.
    left: u32,
    rank: u16,
}

impl Claimant {
    /// The next slot of the probe sequence: the top half of a 64-bit linear congruential
    /// generator (multiplier of Knuth's MMIX), scaled by multiply-shift.
    #[inline]
    fn probe(&mut self, size: u32) -> usize {
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        // Below `size`.
        #[allow(clippy::cast_possible_truncation)]
        let slot = (((self.state >> 32) * u64::from(size)) >> 32) as usize;
        slot
    }
}

/// A table being filled.
struct Population {
    size: u32,
    slots: Box<[u16]>,
    /// A set bit is a free slot.
    free: Vec<u64>,
    free_count: u32,
    claimants: Vec<Claimant>,
    /// What a probe costs: the power of two below the average weight.
    quantum: u64,
}

impl Population {
    fn new(placed: &[Placed], size: u32, key: &HashKey) -> Self {
        let quotas = quotas(placed.iter().map(|member| member.weight), size);
        let claimants: Vec<Claimant> = (0..)
            .zip(placed)
            .zip(quotas)
            .filter(|(_, quota)| *quota > 0)
            .map(|((rank, member), left)| Claimant {
                state: key.server_seed(member.address),
                saved: 0,
                pace: u64::from(member.weight) * PROBES_PER_ROUND,
                left,
                rank,
            })
            .collect();
        let pace: u64 = claimants.iter().map(|claimant| claimant.pace).sum();
        let average = pace / PROBES_PER_ROUND / (claimants.len() as u64).max(1);
        let slots = if claimants.is_empty() { 0 } else { size as usize };
        let words = slots.div_ceil(64);
        let mut free = vec![u64::MAX; words];
        if let Some(last) = free.last_mut() {
            *last = u64::MAX >> (64 * words - slots);
        }
        Self {
            size,
            slots: vec![0; slots].into_boxed_slice(),
            free,
            free_count: if slots == 0 { 0 } else { size },
            claimants,
            quantum: 1 << average.max(1).ilog2(),
        }
    }

    fn run(mut self) -> Box<[u16]> {
        let tail = self.size / TAIL_DIVISOR;
        while self.free_count > tail {
            if self.round_of_slots() {
                self.retire();
            }
        }
        while self.free_count > 0 {
            if self.round_of_words() {
                self.retire();
            }
        }
        self.slots
    }

    /// Each claimant makes the probes it has saved up for; tells whether a quota got full.
    fn round_of_slots(&mut self) -> bool {
        let Self { size, slots, free, free_count, claimants, quantum } = self;
        let mut full = false;
        for claimant in claimants {
            claimant.saved += claimant.pace;
            // The quantum is a power of two: a shift and a mask.
            let probes = claimant.saved >> quantum.trailing_zeros();
            claimant.saved &= *quantum - 1;
            for _ in 0..probes {
                let slot = claimant.probe(*size);
                let bit = 1 << (slot % 64);
                if free[slot / 64] & bit == 0 || claimant.left == 0 {
                    continue;
                }
                free[slot / 64] &= !bit;
                slots[slot] = claimant.rank;
                *free_count -= 1;
                claimant.left -= 1;
                full |= claimant.left == 0;
            }
        }
        full
    }

    /// Each claimant makes one probe of a word of 64 slots; tells whether a quota got full.
    fn round_of_words(&mut self) -> bool {
        let Self { size, slots, free, free_count, claimants, .. } = self;
        let mut full = false;
        for claimant in claimants {
            let hit = claimant.probe(*size);
            let word = &mut free[hit / 64];
            if *word == 0 {
                continue;
            }
            // The first free slot from where the probe hit, around the word.
            #[allow(clippy::cast_possible_truncation)] // below 64
            let from = (hit % 64) as u32;
            let lane = (word.rotate_right(from).trailing_zeros() + from) % 64;
            *word &= !(1 << lane);
            slots[hit / 64 * 64 + lane as usize] = claimant.rank;
            *free_count -= 1;
            claimant.left -= 1;
            full |= claimant.left == 0;
        }
        full
    }

    /// Lets claimants with full quotas go. When only light ones are left, virtual time runs
    /// faster by a power of two, for all alike, so that rounds do not pass without a probe.
    fn retire(&mut self) {
        self.claimants.retain(|claimant| claimant.left > 0);
        let count = self.claimants.len() as u64;
        let pace: u64 = self.claimants.iter().map(|claimant| claimant.pace).sum();
        let usual = self.quantum * PROBES_PER_ROUND * count;
        if pace == 0 || pace >= usual / 2 {
            return;
        }
        let speed = (usual / pace).ilog2();
        for claimant in &mut self.claimants {
            claimant.pace <<= speed;
        }
    }
}

/// Tables by members, so that services with the same members and weights share one.
pub struct TableCache {
    key: HashKey,
    tables: HashMap<u64, Vec<Weak<Table>>>,
}

impl TableCache {
    /// An empty cache of tables under `key`.
    pub fn new(key: HashKey) -> Self {
        Self { key, tables: HashMap::new() }
    }

    /// The hash key of all tables in here.
    pub fn key(&self) -> &HashKey {
        &self.key
    }

    /// The table for `members`: an existing one that is still in use, or a new one.
    ///
    /// # Errors
    /// As [`Table::build`].
    pub fn table(&mut self, members: &[Member]) -> Result<Arc<Table>, TableError> {
        let placed = sorted(members)?;
        let digest = placed.iter().fold(0, |digest, member| {
            mix64(digest ^ self.key.server_seed(member.address)).wrapping_add(member.weight.into())
        });
        self.tables.retain(|_, tables| {
            tables.retain(|table| table.strong_count() > 0);
            !tables.is_empty()
        });
        let alike = self.tables.entry(digest).or_default();
        let existing = alike.iter().filter_map(Weak::upgrade).find(|table| table.placed == placed);
        if let Some(table) = existing {
            return Ok(table);
        }
        let table = Arc::new(Table::fill(placed, &self.key)?);
        alike.push(Arc::downgrade(&table));
        Ok(table)
    }

    /// Distinct tables in use, and the bytes of their slots.
    pub fn in_use(&self) -> (usize, usize) {
        let tables: Vec<Arc<Table>> =
            self.tables.values().flatten().filter_map(Weak::upgrade).collect();
        let distinct: HashSet<*const Table> = tables.iter().map(Arc::as_ptr).collect();
        (distinct.len(), tables.iter().map(|table| table.memory()).sum())
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // test data is cut to size on purpose
#[path = "table_tests.rs"]
mod tests;
