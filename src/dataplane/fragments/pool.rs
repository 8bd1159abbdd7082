//! Memory for fragments that wait for their first one: a fixed number of slots of one size, chained
//! by datagram in order of arrival.

/// End of a chain.
const NONE: u32 = u32::MAX;

/// The fragments of one datagram, in order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    first: u32,
    last: u32,
    /// How many.
    pub(super) length: u32,
}

impl Chain {
    pub(super) const EMPTY: Self = Self { first: NONE, last: NONE, length: 0 };
}

#[derive(Clone, Copy, Debug)]
struct Held {
    next: u32,
    length: usize,
}

/// The slots.
#[derive(Debug)]
pub(super) struct Pool {
    bytes: Vec<u8>,
    slot_bytes: usize,
    held: Vec<Held>,
    free: Chain,
}

impl Pool {
    pub(super) fn new(slots: u32, slot_bytes: usize) -> Self {
        let mut pool = Self {
            bytes: vec![0; slots as usize * slot_bytes],
            slot_bytes,
            held: vec![Held { next: NONE, length: 0 }; slots as usize],
            free: Chain::EMPTY,
        };
        for slot in 0..slots {
            let mut free = pool.free;
            pool.append(&mut free, slot);
            pool.free = free;
        }
        pool
    }

    pub(super) const fn slot_bytes(&self) -> usize {
        self.slot_bytes
    }

    pub(super) const fn free(&self) -> u32 {
        self.free.length
    }

    fn append(&mut self, chain: &mut Chain, slot: u32) {
        self.held[slot as usize].next = NONE;
        if chain.length == 0 {
            chain.first = slot;
        } else {
            self.held[chain.last as usize].next = slot;
        }
        chain.last = slot;
        chain.length += 1;
    }

    fn take_first(&mut self, chain: &mut Chain) -> Option<u32> {
        if chain.length == 0 {
            return None;
        }
        let slot = chain.first;
        chain.first = self.held[slot as usize].next;
        chain.length -= 1;
        Some(slot)
    }

    /// Copies a fragment to the end of a chain. False when no slot is free or it is too long.
    pub(super) fn hold(&mut self, chain: &mut Chain, packet: &[u8]) -> bool {
        if packet.len() > self.slot_bytes {
            return false;
        }
        let mut free = self.free;
        let Some(slot) = self.take_first(&mut free) else { return false };
        self.free = free;
        let start = slot as usize * self.slot_bytes;
        self.bytes[start..start + packet.len()].copy_from_slice(packet);
        self.held[slot as usize].length = packet.len();
        self.append(chain, slot);
        true
    }

    /// Takes the first fragment off a chain. Its slot is free from now on; the bytes stay until the
    /// next [`hold`](Self::hold), which the borrow keeps away.
    pub(super) fn release(&mut self, chain: &mut Chain) -> Option<&[u8]> {
        let slot = self.take_first(chain)?;
        let mut free = self.free;
        self.append(&mut free, slot);
        self.free = free;
        let start = slot as usize * self.slot_bytes;
        Some(&self.bytes[start..start + self.held[slot as usize].length])
    }
}
