//! The commit word: how a record in the region is written so that a process that dies in the middle
//! leaves the old record, a free place or the new record, and never a mixture.
//!
//! The word holds a format number (8 bits, 0: free), a generation (8 bits) and check bits over the
//! record's identity (48 bits). It is taken back before the identity changes and set after it. All
//! words are atomics, which costs nothing on the machines we run on and makes reading from another
//! thread or process sound.

use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Multiplier of the check bits: 2⁶⁴ divided by the golden ratio. Part of the format.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// Format number in a commit word; 0 when the place is free.
pub(in crate::dataplane) const fn format_of(commit: u64) -> u8 {
    commit.to_le_bytes()[0]
}

const fn generation_of(commit: u64) -> u8 {
    commit.to_le_bytes()[1]
}

/// The commit word of a free place; keeps the generation, so that a reader notices a record that
/// was freed and written again under its eyes.
pub(in crate::dataplane) const fn taken_back(commit: u64) -> u64 {
    commit & 0xff00
}

/// The commit word that follows `before` when `identity` is written in `format`.
pub(in crate::dataplane) fn next(before: u64, format: u8, identity: &[u64]) -> u64 {
    word(format, generation_of(before).wrapping_add(1), identity)
}

/// Whether a commit word belongs to this identity.
pub(in crate::dataplane) fn fits(commit: u64, identity: &[u64]) -> bool {
    commit == word(format_of(commit), generation_of(commit), identity)
}

/// Check bits by chained multiply-and-fold: they tell torn from whole, not friend from foe; the
/// file is root's own.
fn word(format: u8, generation: u8, identity: &[u64]) -> u64 {
    let fold = |sum: u64, word: u64| {
        let product = u128::from(sum ^ word) * u128::from(MULTIPLIER);
        #[expect(clippy::cast_possible_truncation, reason = "folds the halves")]
        let (high, low) = ((product >> 64) as u64, product as u64);
        (high ^ low).rotate_left(23)
    };
    let low = u64::from(generation) << 8 | u64::from(format);
    let sum = identity.iter().fold(fold(MULTIPLIER, low), |sum, &word| fold(sum, word));
    sum & !0xffff | low
}

/// Reads `words`, the first of which is the commit word, while their owner may be writing them.
/// `None` when the place is free or just changing.
pub(in crate::dataplane) fn read<const N: usize>(words: &[AtomicU64; N]) -> Option<[u64; N]> {
    let commit = words[0].load(Ordering::Acquire);
    let read = std::array::from_fn(|number| words[number].load(Ordering::Relaxed));
    fence(Ordering::Acquire);
    let same = words[0].load(Ordering::Relaxed) == commit && read[0] == commit;
    (same && format_of(commit) != 0).then_some(read)
}

/// Carries out stores of (word number, value) that begin by taking the commit word back and end by
/// setting it.
pub(in crate::dataplane) fn publish<const N: usize, const M: usize>(
    words: &[AtomicU64; N],
    stores: [(usize, u64); M],
) {
    for (place, (number, value)) in stores.into_iter().enumerate() {
        if place == M - 1 {
            words[number].store(value, Ordering::Release);
        } else {
            words[number].store(value, Ordering::Relaxed);
        }
        if place == 0 {
            // The old identity is gone before the first word of the new one is stored.
            fence(Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded<const N: usize>(words: &[AtomicU64; N]) -> [u64; N] {
        std::array::from_fn(|number| words[number].load(Ordering::Relaxed))
    }

    #[test]
    fn every_store_is_carried_out_the_last_one_last() {
        let words: [AtomicU64; 4] = Default::default();
        publish(&words, [(0, 5), (1, 6), (2, 7), (1, 8)]);
        assert_eq!(loaded(&words), [5, 8, 7, 0]);
    }

    #[test]
    fn generations_follow_each_other_and_wrap() {
        let mut commit = 0;
        for generation in 1..=300_u32 {
            commit = next(taken_back(commit), 3, &[1, 2]);
            assert_eq!(
                (format_of(commit), u32::from(generation_of(commit))),
                (3, generation % 256)
            );
            assert!(fits(commit, &[1, 2]) && !fits(commit, &[2, 1]) && !fits(commit, &[1, 2, 0]));
        }
        assert_eq!(format_of(taken_back(commit)), 0);
    }

    /// A reader beside a writer sees one record or the other or none, whole.
    #[test]
    fn a_reader_never_sees_a_mixture() {
        let words: [AtomicU64; 4] = Default::default();
        let write = |value: u64| {
            let before = words[0].load(Ordering::Relaxed);
            let commit = next(before, 1, &[value; 3]);
            let stores = [(0, taken_back(before)), (1, value), (2, value), (3, value), (0, commit)];
            publish(&words, stores);
        };
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                (0..200_000).for_each(write);
                done.store(true, Ordering::Release);
            });
            while !done.load(Ordering::Acquire) {
                if let Some([commit, a, b, c]) = read(&words) {
                    assert!(a == b && b == c && fits(commit, &[a; 3]));
                }
            }
        });
        assert_eq!(read(&words).map(|read| read[1]), Some(199_999));
    }
}
