//! Waking a worker from another thread, and pinning it to a core.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::Pid;

use super::errno::errno_of;

/// Wakes the worker that owns the other end: it looks at its snapshot and inbox at once instead of
/// at the next frame or tick. Cheap to clone, usable from any thread.
#[derive(Debug, Clone)]
pub struct Waker {
    event: Arc<EventFd>,
}

impl Waker {
    /// A new, silent waker.
    ///
    /// # Errors
    /// `EMFILE` or `ENFILE` when there are no descriptors left.
    pub fn new() -> Result<Self, Errno> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        Ok(Self { event: Arc::new(EventFd::from_value_and_flags(0, flags)?) })
    }

    /// Wakes the worker. Several calls before it looks count as one.
    pub fn wake(&self) {
        // The only possible error is EAGAIN, at 2^64 - 2 unread wake-ups: the worker is awake then.
        let _ = self.event.write(1);
    }

    /// Takes what was signalled, so that the descriptor is quiet again.
    pub(super) fn drain(&self) {
        // EAGAIN: nothing was signalled since; that is the state asked for.
        let _ = self.event.read();
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// Binds the calling thread to one core.
///
/// # Errors
/// `EINVAL` when the core does not exist or is not in the process's cpuset.
pub fn pin_current_thread(core: usize) -> Result<(), Errno> {
    let mut cores = CpuSet::new();
    cores.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &cores)
}

/// Duplicates a descriptor, close-on-exec.
pub(super) fn duplicate(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    fd.try_clone_to_owned().map_err(|error| errno_of(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_is_seen_once() {
        let waker = Waker::new().unwrap();
        let other = waker.clone();
        std::thread::spawn(move || {
            other.wake();
            other.wake();
        })
        .join()
        .unwrap();
        assert_eq!(waker.event.read().unwrap(), 2);
        waker.wake();
        waker.drain();
        assert_eq!(waker.event.read(), Err(Errno::EAGAIN));
    }

    #[test]
    fn pins_to_an_existing_core_and_refuses_another() {
        std::thread::spawn(|| {
            pin_current_thread(0).unwrap();
            assert_eq!(pin_current_thread(1000), Err(Errno::EINVAL));
        })
        .join()
        .unwrap();
    }
}
