//! Anonymous memory that is shared with the kernel: page-aligned, prefaulted, never moved.

use std::ptr::NonNull;

use nix::errno::Errno;

/// Huge pages of x86-64 and arm64 (4 kB granule): a mapping of at least this is rounded up to it, so
/// that the kernel may back it with huge pages and the slots cost few TLB entries.
const HUGE_PAGE: usize = 2 << 20;
/// The smallest page of the supported architectures.
const PAGE: usize = 4096;

/// A private anonymous mapping. It hands out addresses only; who may touch what is the business of
/// [`super::slots`] and [`super::buffer_ring`].
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: a mapping is plain memory of the process, valid on each thread; this type gives no access
// to its bytes, so moving it moves only the duty to unmap.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps at least `length` zeroed bytes and faults them in.
    ///
    /// # Errors
    /// `ENOMEM` when there is no memory, or the memory cgroup or RLIMIT_AS says so.
    pub(super) fn new(length: usize) -> Result<Self, Errno> {
        let unit = if length >= HUGE_PAGE { HUGE_PAGE } else { PAGE };
        let length = length.max(1).next_multiple_of(unit);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice overlaps nothing.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or(Errno::ENOMEM)?;
        let mapping = Self { base, length };
        mapping.fault_in();
        Ok(mapping)
    }

    fn fault_in(&self) {
        // SAFETY: the range is exactly this mapping. Both calls are advice: a kernel that lacks one
        // (MADV_POPULATE_WRITE is 5.14) leaves the memory as it is, and it is faulted in below.
        unsafe {
            libc::madvise(self.base.as_ptr().cast(), self.length, libc::MADV_HUGEPAGE);
            libc::madvise(self.base.as_ptr().cast(), self.length, libc::MADV_POPULATE_WRITE);
        }
        for offset in (0..self.length).step_by(PAGE) {
            // SAFETY: `offset` is inside the mapping, which nobody else knows yet.
            unsafe { self.base.as_ptr().add(offset).write_volatile(0) };
        }
    }

    /// Address of byte `offset`.
    ///
    /// # Panics
    /// When `offset` is not inside.
    pub(super) fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset < self.length, "{offset} is outside a mapping of {}", self.length);
        // SAFETY: just checked to be inside the mapping.
        unsafe { self.base.add(offset) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the range that `new` mapped. Owners that share it with a ring make sure
        // that no request is in flight before they drop it (`Exchange::drop` leaks it otherwise).
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_zeroed_writable_and_rounded() {
        for (asked, got) in [(1, PAGE), (PAGE + 1, 2 * PAGE), (HUGE_PAGE + 1, 2 * HUGE_PAGE)] {
            let mapping = Mapping::new(asked).unwrap();
            assert_eq!(mapping.length, got);
            let last = mapping.at(got - 1);
            // SAFETY: inside the mapping, which only this test knows.
            unsafe {
                assert_eq!(last.read(), 0);
                last.write(7);
                assert_eq!(last.read(), 7);
            }
        }
    }

    #[test]
    #[should_panic(expected = "outside")]
    fn refuses_an_address_outside() {
        Mapping::new(1).unwrap().at(PAGE);
    }
}
