//! Which block of source ports belongs to which target. A target keeps its block for as long as it is
//! configured, and after that until another needs it: what a check finds then that is under way is
//! dropped.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// Where blocks are counted: checks of two VIPs or ports differ by these, and can share ports.
pub type Place = (IpAddr, u16);

/// The blocks in use: by place, who has each.
#[derive(Debug, Default)]
pub struct Blocks(BTreeMap<Place, Vec<Option<u64>>>);

impl Blocks {
    /// Gives the first free block to `owner`; `None` where `most` are taken.
    pub fn take(&mut self, place: Place, owner: u64, most: usize) -> Option<usize> {
        let blocks = self.0.entry(place).or_default();
        let free = blocks.iter().position(Option::is_none).unwrap_or(blocks.len());
        if free >= most {
            return None;
        }
        if free == blocks.len() {
            blocks.push(None);
        }
        blocks[free] = Some(owner);
        Some(free)
    }

    /// Takes a block back.
    pub fn release(&mut self, place: Place, block: usize) {
        let Some(blocks) = self.0.get_mut(&place) else { return };
        if let Some(owner) = blocks.get_mut(block) {
            *owner = None;
        }
        while blocks.last() == Some(&None) {
            blocks.pop();
        }
        if blocks.is_empty() {
            self.0.remove(&place);
        }
    }

    /// Every place with the owners of its blocks.
    pub fn iter(&self) -> impl Iterator<Item = (Place, &[Option<u64>])> {
        self.0.iter().map(|(place, blocks)| (*place, blocks.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_stays_its_owners_and_is_given_anew_when_it_is_free() {
        let mut blocks = Blocks::default();
        let here: Place = ("192.0.2.1".parse().unwrap(), 5432);
        let there: Place = ("192.0.2.1".parse().unwrap(), 80);
        assert_eq!([1, 2, 3].map(|owner| blocks.take(here, owner, 3)), [Some(0), Some(1), Some(2)]);
        assert_eq!(blocks.take(here, 4, 3), None);
        assert_eq!(blocks.take(there, 4, 3), Some(0), "another port has blocks of its own");
        blocks.release(here, 1);
        assert_eq!(blocks.take(here, 5, 3), Some(1), "others stay where they are");
        [0, 1, 2].iter().for_each(|block| blocks.release(here, *block));
        blocks.release(there, 0);
        assert_eq!(blocks.iter().count(), 0);
    }
}
