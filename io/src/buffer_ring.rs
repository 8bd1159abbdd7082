//! The ring of provided buffers that READ_MULTISHOT takes slots from.

use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;
use nix::errno::Errno;

use super::errno::errno_of;
use super::mapping::Mapping;
use super::ring::Ring;
use super::slots::{HEADROOM, Owner, Slot, SlotPool};

/// The only buffer group of a worker's ring.
pub(super) const BUFFER_GROUP: u16 = 0;

/// Limit of the kernel (`io_register_pbuf_ring`).
const MAX_ENTRIES: usize = 1 << 15;

/// Slots lent to the kernel for received frames, and how many of them it has left.
#[derive(Debug)]
pub(super) struct BufferRing {
    memory: Mapping,
    mask: u16,
    /// Written by us only; published to the kernel by [`BufferRing::publish`].
    tail: u16,
    lent: usize,
}

impl BufferRing {
    /// Registers an empty ring for up to `entries` slots.
    ///
    /// # Errors
    /// `EINVAL` on kernels before 5.19 and for more than 32768 entries.
    pub(super) fn register(ring: &Ring, entries: usize) -> Result<Self, Errno> {
        let entries = entries.next_power_of_two();
        let count =
            u16::try_from(entries).ok().filter(|_| entries <= MAX_ENTRIES).ok_or(Errno::EINVAL)?;
        let memory = Mapping::new(entries * size_of::<BufRingEntry>())?;
        let address = memory.at(0).as_ptr() as u64;
        // SAFETY: the mapping is page-aligned, has room for `count` entries, and lives as long as
        // this value, which the engine drops after the ring (field order in `Engine`).
        let registered = unsafe {
            ring.uring().submitter().register_buf_ring_with_flags(address, count, BUFFER_GROUP, 0)
        };
        registered.map_err(|error| errno_of(&error))?;
        Ok(Self { memory, mask: count - 1, tail: 0, lent: 0 })
    }

    /// Slots the kernel has, published or not.
    pub(super) fn lent(&self) -> usize {
        self.lent
    }

    /// Lends a slot behind its headroom. Seen by the kernel after [`BufferRing::publish`].
    #[expect(
        clippy::cast_possible_truncation,
        reason = "slots are far below 4 GiB; `register` bounds their number by 2^15 + RESERVE"
    )]
    pub(super) fn lend(&mut self, pool: &mut SlotPool, slot: Slot) {
        debug_assert!(self.lent <= usize::from(self.mask));
        let index = pool.hand_over(slot, Owner::Receive);
        let place = usize::from(self.tail & self.mask) * size_of::<BufRingEntry>();
        let entry = self.memory.at(place).as_ptr().cast::<BufRingEntry>();
        // SAFETY: the entry is inside the mapping and aligned (16 bytes from a page start). The
        // kernel reads entries between its head and the published tail only; this one is at the
        // unpublished tail, and at most mask + 1 slots are lent, so it is not one of those. The
        // tail word shares the place of an entry's reserved field, which the setters leave alone.
        let entry = unsafe { &mut *entry };
        entry.set_addr(pool.address(index, HEADROOM) as u64);
        entry.set_len((pool.slot_len() - HEADROOM) as u32);
        entry.set_bid(index as u16);
        self.tail = self.tail.wrapping_add(1);
        self.lent += 1;
    }

    /// The kernel has consumed buffer `id`: its slot is the worker's again.
    pub(super) fn take_back(&mut self, pool: &mut SlotPool, id: u16) -> Option<Slot> {
        let slot = pool.reclaim(u32::from(id), Owner::Receive)?;
        self.lent -= 1;
        Some(slot)
    }

    /// Shows the kernel all slots lent so far.
    pub(super) fn publish(&self) {
        let base = self.memory.at(0).as_ptr().cast::<BufRingEntry>();
        // SAFETY: `base` is the first entry of the registered ring, whose reserved field is the tail
        // by the kernel's ABI (`struct io_uring_buf_ring`). It is 2-aligned, and only this thread
        // writes it; the kernel reads it with acquire, which pairs with the release here.
        unsafe {
            let tail = BufRingEntry::tail(base).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }
}
