//! Which slot expires first: a binary heap that knows where each slot is in it, so that a
//! deadline can move. Entries of different services have different timeouts, so the order of
//! use does not tell.

use crate::dataplane::time::Time;

const ABSENT: u32 = u32::MAX;

/// Deadlines of slots; nothing is allocated after construction.
pub(super) struct Deadlines {
    heap: Vec<(Time, u32)>,
    /// Position in the heap by slot, or [`ABSENT`].
    position: Vec<u32>,
}

impl Deadlines {
    pub(super) fn new(capacity: usize) -> Self {
        Self { heap: Vec::with_capacity(capacity), position: vec![ABSENT; capacity] }
    }

    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }

    /// The earliest deadline and its slot.
    pub(super) fn first(&self) -> Option<(Time, u32)> {
        self.heap.first().copied()
    }

    /// Gives `slot` a deadline, or another one.
    pub(super) fn set(&mut self, slot: u32, deadline: Time) {
        let at = match self.position[slot as usize] {
            ABSENT => {
                self.heap.push((deadline, slot));
                self.heap.len() - 1
            }
            at => {
                self.heap[at as usize].0 = deadline;
                at as usize
            }
        };
        self.settle(at);
    }

    /// Takes the deadline of `slot` away, if it has one.
    pub(super) fn remove(&mut self, slot: u32) {
        let at = self.position[slot as usize];
        if at == ABSENT {
            return;
        }
        self.position[slot as usize] = ABSENT;
        self.heap.swap_remove(at as usize);
        if (at as usize) < self.heap.len() {
            self.settle(at as usize);
        }
    }

    /// Moves the element at `at` up or down to where it belongs.
    fn settle(&mut self, mut at: usize) {
        while at > 0 && self.heap[at] < self.heap[(at - 1) / 2] {
            self.swap(at, (at - 1) / 2);
            at = (at - 1) / 2;
        }
        loop {
            let children = 2 * at + 1..(2 * at + 3).min(self.heap.len());
            match children.min_by_key(|&child| self.heap[child]) {
                Some(least) if self.heap[least] < self.heap[at] => {
                    self.swap(at, least);
                    at = least;
                }
                _ => break,
            }
        }
        self.place(at);
    }

    fn swap(&mut self, one: usize, other: usize) {
        self.heap.swap(one, other);
        self.place(one);
        self.place(other);
    }

    fn place(&mut self, at: usize) {
        let slot = self.heap[at].1;
        // Positions are below the capacity, whose slots are numbered by u32.
        self.position[slot as usize] = u32::try_from(at).unwrap_or(ABSENT);
    }
}
