//! Slots: equal pieces of one mapping, each owned by exactly one of worker, kernel or flight.
//!
//! A slot is [`HEADROOM`] bytes and then room for a frame. The right to touch one is a token that can
//! be neither copied nor made outside this file; the kernel gets a slot by giving up the token, and
//! a completion makes the token again, once. So two `&mut` to one slot cannot be written.

use std::ops::Range;

use nix::errno::Errno;

use super::egress::EgressId;
use super::mapping::Mapping;

/// Bytes in front of a received frame, for outer headers that are prepended in place.
///
/// The largest outer header today is Ethernet + IPv6 + UDP + GUE, 14 + 40 + 8 + 16 = 78 bytes, where
/// the inner Ethernet header already gives 14. 128 is the next size that keeps frames on a cache
/// line boundary.
pub const HEADROOM: usize = 128;

/// Slots start on cache lines.
const CACHE_LINE: usize = 64;

/// Slot indices travel in 24 bits of `user_data`.
const MAX_SLOTS: usize = 1 << 24;

/// Who may touch a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// Nobody: on the free list.
    Free,
    /// The holder of its token.
    Worker,
    /// The kernel, which may write a received frame into it.
    Receive,
    /// The kernel, which reads from it until the send completes.
    Flight,
}

/// The right to touch one slot. Dropping it leaks the slot, so it is given back by name.
#[derive(Debug)]
#[must_use = "a dropped slot is leaked; release or send it"]
pub(super) struct Slot(u32);

/// A pool of equal slots.
#[derive(Debug)]
pub(super) struct SlotPool {
    memory: Mapping,
    stride: usize,
    owners: Box<[Owner]>,
    free: Vec<u32>,
}

impl SlotPool {
    /// `count` slots that hold frames of up to `frame_capacity` bytes.
    ///
    /// # Errors
    /// `ENOMEM`; `EINVAL` for more slots than `user_data` can name.
    pub(super) fn new(count: usize, frame_capacity: usize) -> Result<Self, Errno> {
        let last = u32::try_from(count).ok().filter(|_| count <= MAX_SLOTS).ok_or(Errno::EINVAL)?;
        let stride = stride_for(frame_capacity);
        let memory = Mapping::new(count * stride)?;
        // Reversed, so that the lowest (first prefaulted) slots are used first.
        let free = (0..last).rev().collect();
        Ok(Self { memory, stride, owners: vec![Owner::Free; count].into(), free })
    }

    /// Bytes of a slot, headroom included.
    pub(super) fn slot_len(&self) -> usize {
        self.stride
    }

    pub(super) fn free_count(&self) -> usize {
        self.free.len()
    }

    pub(super) fn count(&self) -> usize {
        self.owners.len()
    }

    /// Takes a free slot.
    pub(super) fn take(&mut self) -> Option<Slot> {
        let index = self.free.pop()?;
        self.owners[index as usize] = Owner::Worker;
        Some(Slot(index))
    }

    /// Gives a slot back.
    pub(super) fn release(&mut self, slot: Slot) {
        self.owners[slot.0 as usize] = Owner::Free;
        self.free.push(slot.0);
    }

    /// Gives the slot to the kernel and returns its index, the only trace of it until
    /// [`SlotPool::reclaim`].
    pub(super) fn hand_over(&mut self, slot: Slot, to: Owner) -> u32 {
        self.owners[slot.0 as usize] = to;
        slot.0
    }

    /// Takes a slot back from the kernel, which named it in a completion. `None` if the kernel did
    /// not have it as `from`: a defect of kernel or engine that must end the worker.
    pub(super) fn reclaim(&mut self, index: u32, from: Owner) -> Option<Slot> {
        let owner = self.owners.get_mut(index as usize)?;
        if *owner != from || !matches!(from, Owner::Receive | Owner::Flight) {
            return None;
        }
        *owner = Owner::Worker;
        Some(Slot(index))
    }

    /// The whole slot, headroom first.
    ///
    /// # Panics
    /// When the token is of another pool and this pool's slot of that number is not the worker's.
    pub(super) fn bytes_mut(&mut self, slot: &Slot) -> &mut [u8] {
        let index = slot.0 as usize;
        assert!(self.owners[index] == Owner::Worker, "slot {index} is not the worker's");
        let start = self.memory.at(index * self.stride);
        // SAFETY: `owners` has one entry per slot, so the slot lies inside the mapping. It is marked
        // as the worker's, so the kernel has no request on it, and `&mut self` excludes any other
        // reference into this pool.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), self.stride) }
    }

    /// Address of byte `offset` of a slot, for a request to the kernel.
    ///
    /// # Panics
    /// When it is not inside the slot.
    pub(super) fn address(&self, index: u32, offset: usize) -> *mut u8 {
        assert!(offset < self.stride && (index as usize) < self.owners.len());
        self.memory.at(index as usize * self.stride + offset).as_ptr()
    }

    /// Slots that are not on the free list, by owner: for the test that none leaks.
    #[cfg(test)]
    pub(super) fn owned_by(&self, owner: Owner) -> usize {
        self.owners.iter().filter(|&&is| is == owner).count()
    }
}

/// Bytes from slot to slot: an *odd* number of cache lines. With a power of two the first lines of
/// all slots, which are the ones touched, would fall into a few sets of the L1 and L2 caches.
fn stride_for(frame_capacity: usize) -> usize {
    let lines = (HEADROOM + frame_capacity).div_ceil(CACHE_LINE);
    (lines | 1) * CACHE_LINE
}

/// The right to touch one auxiliary slot. Return it with [`AuxSlots::release`] or
/// [`AuxSlots::send`].
#[derive(Debug)]
#[must_use = "a dropped slot is leaked; release or send it"]
pub struct AuxSlot(Slot);

impl AuxSlot {
    /// Its number, below [`AuxSlots::count`], for tables beside the pool.
    pub fn index(&self) -> usize {
        self.0.0 as usize
    }
}

/// A send that a handler asked for, from an auxiliary slot.
#[derive(Debug)]
pub(super) struct PendingSend {
    pub(super) slot: Slot,
    pub(super) egress: EgressId,
    pub(super) range: Range<usize>,
    pub(super) token: u32,
}

/// The auxiliary pool: slots that a handler keeps (held fragments) or fills itself (fragments it
/// makes, frames of its own). Same size and headroom as received slots.
#[derive(Debug)]
pub struct AuxSlots {
    pub(super) pool: SlotPool,
    pub(super) pending: Vec<PendingSend>,
}

impl AuxSlots {
    pub(super) fn new(count: usize, frame_capacity: usize) -> Result<Self, Errno> {
        // One slot can be in one send at most, so `pending` never grows past `count`.
        Ok(Self { pool: SlotPool::new(count, frame_capacity)?, pending: Vec::with_capacity(count) })
    }

    /// Takes a slot; `None` when all are held or in flight, which is the handler's drop reason.
    pub fn take(&mut self) -> Option<AuxSlot> {
        self.pool.take().map(AuxSlot)
    }

    /// The whole slot: [`HEADROOM`] bytes, then room for a frame.
    pub fn bytes_mut(&mut self, slot: &AuxSlot) -> &mut [u8] {
        self.pool.bytes_mut(&slot.0)
    }

    /// Gives a slot back.
    pub fn release(&mut self, slot: AuxSlot) {
        self.pool.release(slot.0);
    }

    /// Sends `range` of the slot. It goes out after the call of the handler returns, in the order of
    /// the calls; the slot comes back by itself after [`super::Handler::sent`] was told.
    pub fn send(&mut self, slot: AuxSlot, egress: EgressId, range: Range<usize>, token: u32) {
        self.pending.push(PendingSend { slot: slot.0, egress, range, token });
    }

    /// Slots that can be taken now.
    pub fn free_count(&self) -> usize {
        self.pool.free_count()
    }

    /// Slots in all.
    pub fn count(&self) -> usize {
        self.pool.count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_hold_the_frame_and_are_odd_lines() {
        for capacity in [0, 1, 64, 1518, 1920, 9018, 65535] {
            let stride = stride_for(capacity);
            assert!(stride >= HEADROOM + capacity);
            assert_eq!(stride / CACHE_LINE % 2, 1, "{capacity}");
            assert_eq!(stride % CACHE_LINE, 0);
        }
    }

    #[test]
    fn slots_do_not_overlap_and_come_back() {
        let mut pool = SlotPool::new(3, 100).unwrap();
        let slots: Vec<Slot> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(slots.len(), 3);
        for (fill, slot) in (1u8..).zip(&slots) {
            pool.bytes_mut(slot).fill(fill);
        }
        for (fill, slot) in (1u8..).zip(&slots) {
            assert!(pool.bytes_mut(slot).iter().all(|&byte| byte == fill));
        }
        for slot in slots {
            pool.release(slot);
        }
        assert_eq!(pool.free_count(), 3);
    }

    #[test]
    fn a_completion_gives_a_slot_back_once() {
        let mut pool = SlotPool::new(2, 100).unwrap();
        let slot = pool.take().unwrap();
        let index = pool.hand_over(slot, Owner::Flight);
        assert!(pool.reclaim(index, Owner::Receive).is_none(), "it is in flight, not receiving");
        let slot = pool.reclaim(index, Owner::Flight).unwrap();
        assert!(pool.reclaim(index, Owner::Flight).is_none(), "only once");
        assert!(pool.reclaim(7, Owner::Flight).is_none(), "no such slot");
        assert!(pool.reclaim(1, Owner::Free).is_none(), "free slots are taken, not reclaimed");
        pool.release(slot);
        assert_eq!(pool.owned_by(Owner::Free), 2);
    }

    #[test]
    #[should_panic(expected = "not the worker's")]
    fn a_token_of_another_pool_gives_no_access() {
        let mut pool = SlotPool::new(1, 100).unwrap();
        let mut other = SlotPool::new(1, 100).unwrap();
        let foreign = other.take().unwrap();
        pool.bytes_mut(&foreign);
    }

    #[test]
    fn more_slots_than_user_data_can_name_are_refused() {
        assert_eq!(SlotPool::new(MAX_SLOTS + 1, 64).unwrap_err(), Errno::EINVAL);
    }
}
