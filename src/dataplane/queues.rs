//! First-in-first-out queues over slot numbers: a slot is in one queue or in none, and each step
//! takes the same few instructions at any size.

/// End of a queue.
const NONE: u32 = u32::MAX;

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

/// Several queues over the same slots.
#[derive(Debug)]
pub(super) struct Queues {
    links: Vec<Link>,
    ends: Vec<Ends>,
}

impl Queues {
    /// Empty queues, numbered from 0, over `capacity` slots.
    pub(super) fn new(capacity: usize, queues: usize) -> Self {
        Self {
            links: vec![Link { previous: NONE, next: NONE }; capacity],
            ends: vec![Ends { oldest: NONE, newest: NONE }; queues],
        }
    }

    /// Bytes the links over `capacity` slots take.
    pub(super) const fn memory_for(capacity: usize) -> usize {
        capacity * size_of::<Link>()
    }

    /// The oldest of a queue.
    pub(super) fn oldest(&self, queue: usize) -> Option<u32> {
        let oldest = self.ends[queue].oldest;
        (oldest != NONE).then_some(oldest)
    }

    /// The one that came after `slot`, which is in a queue.
    pub(super) fn next(&self, slot: u32) -> Option<u32> {
        let next = self.links[slot as usize].next;
        (next != NONE).then_some(next)
    }

    /// Puts a slot that is in no queue at the new end.
    pub(super) fn push(&mut self, queue: usize, slot: u32) {
        let ends = &mut self.ends[queue];
        self.links[slot as usize] = Link { previous: ends.newest, next: NONE };
        if ends.newest == NONE {
            ends.oldest = slot;
        } else {
            self.links[ends.newest as usize].next = slot;
        }
        ends.newest = slot;
    }

    /// Puts a slot that is in no queue at the old end. Queues of free slots grow there: the slot
    /// used last is the one most likely still in the cache.
    pub(super) fn push_oldest(&mut self, queue: usize, slot: u32) {
        let ends = &mut self.ends[queue];
        self.links[slot as usize] = Link { previous: NONE, next: ends.oldest };
        if ends.oldest == NONE {
            ends.newest = slot;
        } else {
            self.links[ends.oldest as usize].previous = slot;
        }
        ends.oldest = slot;
    }

    /// Takes a slot out of the queue it is in.
    pub(super) fn unlink(&mut self, queue: usize, slot: u32) {
        let Link { previous, next } = self.links[slot as usize];
        let ends = &mut self.ends[queue];
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

    /// Takes the oldest out.
    pub(super) fn pop(&mut self, queue: usize) -> Option<u32> {
        let slot = self.oldest(queue)?;
        self.unlink(queue, slot);
        Some(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    const SLOTS: u32 = 12;
    const QUEUES: usize = 3;

    proptest! {
        #[test]
        fn behave_like_deques(steps in prop::collection::vec((0..SLOTS, 0..QUEUES, 0_u8..3), 1..200)) {
            let mut queues = Queues::new(SLOTS as usize, QUEUES);
            let mut model: [VecDeque<u32>; QUEUES] = Default::default();
            for (slot, queue, how) in steps {
                let held = model.iter().position(|model| model.contains(&slot));
                match (held, how) {
                    (Some(held), _) => {
                        queues.unlink(held, slot);
                        model[held].retain(|&other| other != slot);
                    }
                    (None, 0) => {
                        queues.push_oldest(queue, slot);
                        model[queue].push_front(slot);
                    }
                    (None, 1) => {
                        queues.push(queue, slot);
                        model[queue].push_back(slot);
                    }
                    (None, _) => prop_assert_eq!(queues.pop(queue), model[queue].pop_front()),
                }
                for (queue, model) in model.iter().enumerate() {
                    let walk = std::iter::successors(queues.oldest(queue), |&at| queues.next(at));
                    prop_assert!(model.iter().copied().eq(walk));
                }
            }
            for (queue, model) in model.iter().enumerate() {
                let rest: Vec<u32> = std::iter::from_fn(|| queues.pop(queue)).collect();
                prop_assert!(model.iter().eq(&rest));
            }
        }
    }
}
