//! Chance that a seed decides.

use crate::serve::Pattern;

/// A source of chance; the same seed gives the same.
#[derive(Clone, Debug)]
pub(super) struct Dice(Pattern);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        // Seeds that people choose differ in few bits, and the generator's first words with them.
        let mut pattern = Pattern::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        pattern.fill(&mut [0; 256]);
        Self(pattern)
    }

    /// A number below `limit`, which is not 0.
    pub(super) fn below(&mut self, limit: u32) -> u32 {
        let mut bytes = [0; 4];
        self.0.fill(&mut bytes);
        // What is lost to evenness by the remainder is less than a millionth for such limits.
        u32::from_le_bytes(bytes) % limit
    }

    /// One of these, of which there is at least one.
    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        let count = u32::try_from(from.len()).expect("a handful");
        from[self.below(count) as usize]
    }

    /// The same in another order.
    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let count = u32::try_from(last + 1).expect("a handful");
            items.swap(last, self.below(count) as usize);
        }
    }

    /// A seed for somebody else.
    pub(super) fn seed(&mut self) -> u64 {
        u64::from(self.below(u32::MAX)) << 32 | u64::from(self.below(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_everything() {
        let roll = |seed| {
            let mut dice = Dice::new(seed);
            let mut order: Vec<u32> = (0..20).collect();
            dice.shuffle(&mut order);
            (dice.below(1_000_000), dice.seed(), order)
        };
        assert_eq!(roll(1), roll(1));
        assert_ne!(roll(1), roll(2));
        let mut sorted = roll(3).2;
        sorted.sort_unstable();
        assert_eq!(sorted, (0..20).collect::<Vec<_>>());
    }
}
