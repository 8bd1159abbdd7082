//! A hash index of fixed size: from a key's hash to its slot in one cache line.
//!
//! It knows neither keys nor slots; the hash comes from a seeded hasher, so that nobody outside can
//! make keys collide.

/// Entries of a bucket: what fits into a cache line beside the overflow count.
const ENTRIES: usize = 10;
/// Fewest slots per bucket: with it, between 40 % and 80 % of the entries are used at a full
/// table, so that about one lookup in ten needs a second line.
const SLOTS_PER_BUCKET: usize = 8;
/// A tag that marks a free entry.
const FREE: u16 = 0;

/// Ten entries in one cache line: the tag in front, so that the slot is touched only on a likely
/// match (a wrong touch once in 6500 lookups).
#[derive(Clone, Debug)]
#[repr(C, align(64))]
struct Bucket {
    slots: [u32; ENTRIES],
    tags: [u16; ENTRIES],
    /// Entries that found this bucket full and went on to the next.
    overflow: u32,
}

const _: () = assert!(size_of::<Bucket>() == 64);

impl Bucket {
    const EMPTY: Self = Self { slots: [0; ENTRIES], tags: [FREE; ENTRIES], overflow: 0 };

    /// Bit n is set when entry n has the tag.
    #[inline]
    fn matches(&self, tag: u16) -> u32 {
        let mut mask = 0;
        for (number, &entry) in self.tags.iter().enumerate() {
            mask |= u32::from(entry == tag) << number;
        }
        mask
    }
}

/// Hash index over a fixed number of slots.
#[derive(Debug)]
pub(super) struct SlotIndex {
    buckets: Vec<Bucket>,
    mask: usize,
}

impl SlotIndex {
    pub(super) fn new(capacity: usize) -> Self {
        let buckets = buckets_for(capacity);
        Self { buckets: vec![Bucket::EMPTY; buckets], mask: buckets - 1 }
    }

    /// Bytes an index over `capacity` slots takes.
    pub(super) fn memory_for(capacity: usize) -> usize {
        buckets_for(capacity) * size_of::<Bucket>()
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the low bits choose the bucket")]
    fn home(&self, hash: u64) -> usize {
        hash as usize & self.mask
    }

    /// A slot that may have this hash, from its home bucket alone: enough to bring both into the
    /// cache.
    #[inline]
    pub(super) fn likely(&self, hash: u64) -> Option<u32> {
        let bucket = &self.buckets[self.home(hash)];
        let matches = bucket.matches(tag(hash));
        (matches != 0).then(|| bucket.slots[matches.trailing_zeros() as usize])
    }

    /// The slot with this hash for which `is_it` says yes.
    #[inline]
    pub(super) fn find(&self, hash: u64, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let tag = tag(hash);
        let mut number = self.home(hash);
        for _ in 0..self.buckets.len() {
            let bucket = &self.buckets[number];
            let mut matches = bucket.matches(tag);
            while matches != 0 {
                let slot = bucket.slots[matches.trailing_zeros() as usize];
                if is_it(slot) {
                    return Some(slot);
                }
                matches &= matches - 1;
            }
            if bucket.overflow == 0 {
                return None;
            }
            number = (number + 1) & self.mask;
        }
        None
    }

    /// Enters a slot that is not in yet. There is room: the table has fewer slots than entries.
    pub(super) fn insert(&mut self, hash: u64, slot: u32) {
        let mut number = self.home(hash);
        loop {
            let bucket = &mut self.buckets[number];
            let free = bucket.matches(FREE);
            if free != 0 {
                let entry = free.trailing_zeros() as usize;
                bucket.tags[entry] = tag(hash);
                bucket.slots[entry] = slot;
                return;
            }
            bucket.overflow += 1;
            number = (number + 1) & self.mask;
        }
    }

    /// Takes a slot out. False when it was not in.
    pub(super) fn remove(&mut self, hash: u64, slot: u32) -> bool {
        let tag = tag(hash);
        let home = self.home(hash);
        let mut number = home;
        for _ in 0..self.buckets.len() {
            let bucket = &mut self.buckets[number];
            let entry = (0..ENTRIES).find(|&n| bucket.tags[n] == tag && bucket.slots[n] == slot);
            if let Some(entry) = entry {
                bucket.tags[entry] = FREE;
                self.undo_overflow(home, number);
                return true;
            }
            if bucket.overflow == 0 {
                return false;
            }
            number = (number + 1) & self.mask;
        }
        false
    }

    fn undo_overflow(&mut self, home: usize, end: usize) {
        let mut number = home;
        while number != end {
            self.buckets[number].overflow -= 1;
            number = (number + 1) & self.mask;
        }
    }
}

fn buckets_for(capacity: usize) -> usize {
    capacity.div_ceil(SLOTS_PER_BUCKET).max(1).next_power_of_two()
}

/// The high bits: independent of those that choose the bucket.
#[inline]
fn tag(hash: u64) -> u16 {
    let [.., low, high] = hash.to_le_bytes();
    u16::from_le_bytes([low, high]).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        /// Hashes from a handful of values: buckets overflow, tags collide.
        #[test]
        fn behaves_like_a_map(steps in prop::collection::vec((any::<bool>(), 0_u32..64, 0_u64..6), 1..400)) {
            let mut index = SlotIndex::new(64);
            let mut model: HashMap<u32, u64> = HashMap::new();
            for (add, slot, spread) in steps {
                let hash = (spread % 3) | ((spread / 3) << 48);
                if add {
                    model.entry(slot).or_insert_with(|| { index.insert(hash, slot); hash });
                } else {
                    let known = model.remove(&slot);
                    prop_assert_eq!(index.remove(known.unwrap_or(hash), slot), known.is_some());
                }
                for (&slot, &hash) in &model {
                    prop_assert_eq!(index.find(hash, |found| found == slot), Some(slot));
                }
                for slot in (0..64).filter(|slot| !model.contains_key(slot)) {
                    prop_assert_eq!(index.find(hash, |found| found == slot), None);
                }
            }
            for (slot, hash) in model {
                prop_assert!(index.remove(hash, slot));
            }
            for bucket in &index.buckets {
                prop_assert!(bucket.overflow == 0 && bucket.tags == [FREE; ENTRIES]);
            }
        }
    }

    #[test]
    fn there_is_room_for_every_slot() {
        for capacity in [1, 7, 8, 9, 1000, 1 << 20] {
            assert!(buckets_for(capacity) * ENTRIES > capacity, "{capacity}");
        }
    }
}
