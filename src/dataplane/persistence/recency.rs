//! Which slot was used last and which has not been used for longest: a doubly linked list over
//! slot numbers.

const END: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Link {
    /// Used before this one.
    older: u32,
    /// Used after this one.
    newer: u32,
    linked: bool,
}

/// Slots in the order of their use; nothing is allocated after construction.
pub(super) struct Recency {
    links: Vec<Link>,
    oldest: u32,
    latest: u32,
}

impl Recency {
    pub(super) fn new(capacity: usize) -> Self {
        let unlinked = Link { older: END, newer: END, linked: false };
        Self { links: vec![unlinked; capacity], oldest: END, latest: END }
    }

    /// The slot that has not been used for longest.
    pub(super) fn oldest(&self) -> Option<u32> {
        (self.oldest != END).then_some(self.oldest)
    }

    /// Slots from the one used last to the one not used for longest.
    pub(super) fn latest_first(&self) -> impl Iterator<Item = u32> + '_ {
        let next = |slot: u32| (slot != END).then_some(slot);
        std::iter::successors(next(self.latest), move |&slot| next(self.links[slot as usize].older))
    }

    /// Makes `slot` the one used last.
    pub(super) fn touch(&mut self, slot: u32) {
        self.remove(slot);
        let older = std::mem::replace(&mut self.latest, slot);
        self.links[slot as usize] = Link { older, newer: END, linked: true };
        match older {
            END => self.oldest = slot,
            older => self.links[older as usize].newer = slot,
        }
    }

    /// Takes `slot` out, if it is in.
    pub(super) fn remove(&mut self, slot: u32) {
        let Link { older, newer, linked } = self.links[slot as usize];
        if !linked {
            return;
        }
        self.links[slot as usize].linked = false;
        match older {
            END => self.oldest = newer,
            older => self.links[older as usize].newer = newer,
        }
        match newer {
            END => self.latest = older,
            newer => self.links[newer as usize].older = older,
        }
    }
}
