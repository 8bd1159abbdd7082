//! Which slot is free, and which flow is the oldest of its list: linked lists over slot numbers,
//! so that eviction and allocation take the same few steps at any size.

/// End of a list.
const NONE: u32 = u32::MAX;

/// Lists a slot can be in. Established flows are in none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum List {
    /// Not in use.
    Free,
    /// Flows of which only a SYN was seen.
    HalfOpen,
    /// Flows that never were established.
    Unproven,
    /// Flows that were established and are closing.
    Closing,
}

/// In this order flows are evicted.
pub(super) const EVICTION_ORDER: [List; 3] = [List::HalfOpen, List::Unproven, List::Closing];

#[derive(Clone, Copy, Debug)]
struct Link {
    previous: u32,
    next: u32,
}

#[derive(Clone, Copy, Debug)]
struct Ends {
    oldest: u32,
    newest: u32,
}

/// The lists, oldest first.
#[derive(Debug)]
pub(super) struct Ages {
    links: Vec<Link>,
    ends: [Ends; 4],
}

impl Ages {
    /// Lists over `capacity` slots, none of which is in a list yet.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            links: vec![Link { previous: NONE, next: NONE }; capacity],
            ends: [Ends { oldest: NONE, newest: NONE }; 4],
        }
    }

    /// Bytes the lists over `capacity` slots take.
    pub(super) const fn memory_for(capacity: usize) -> usize {
        capacity * size_of::<Link>()
    }

    /// The oldest of a list.
    pub(super) fn oldest(&self, list: List) -> Option<u32> {
        let oldest = self.ends[list as usize].oldest;
        (oldest != NONE).then_some(oldest)
    }

    /// Puts a slot that is in no list at the new end.
    pub(super) fn push(&mut self, list: List, slot: u32) {
        let ends = &mut self.ends[list as usize];
        self.links[slot as usize] = Link { previous: ends.newest, next: NONE };
        if ends.newest == NONE {
            ends.oldest = slot;
        } else {
            self.links[ends.newest as usize].next = slot;
        }
        ends.newest = slot;
    }

    /// Puts a slot that is in no list at the old end. The free list grows there: the slot used last
    /// is the one most likely still in the cache.
    pub(super) fn push_oldest(&mut self, list: List, slot: u32) {
        let ends = &mut self.ends[list as usize];
        self.links[slot as usize] = Link { previous: NONE, next: ends.oldest };
        if ends.oldest == NONE {
            ends.newest = slot;
        } else {
            self.links[ends.oldest as usize].previous = slot;
        }
        ends.oldest = slot;
    }

    /// Takes a slot out of the list it is in.
    pub(super) fn unlink(&mut self, list: List, slot: u32) {
        let Link { previous, next } = self.links[slot as usize];
        let ends = &mut self.ends[list as usize];
        if previous == NONE {
            ends.oldest = next;
        } else {
            self.links[previous as usize].next = next;
        }
        if next == NONE {
            ends.newest = previous;
        } else {
            self.links[next as usize].previous = previous;
        }
    }
}
