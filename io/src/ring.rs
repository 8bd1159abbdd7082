//! A worker's io_uring: set-up with what the kernel has, and a queue that never loses an entry.

use std::time::Duration;

use io_uring::{IoUring, squeue, types};
use nix::errno::Errno;

use super::engine_error::EngineError;
use super::errno::errno_of;

/// Completions that are taken at once. Large enough that the `io_uring_enter` per batch is below 1 %
/// of the batch's work, small enough that a batch stays under about 0.5 ms, so that its one clock
/// reading is good for all of it.
pub(super) const BATCH: usize = 256;

/// Entries of the submission queue: a batch's sends and some re-arms. When it is full it is
/// submitted early.
const SUBMISSIONS: u32 = 512;

/// What a completion is about. Values are bits 56..64 of `user_data`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    InputRead = 1,
    InputPoll = 2,
    SourcePoll = 3,
    WakePoll = 4,
    Send = 5,
    AuxSend = 6,
    Cancel = 7,
}

impl Kind {
    fn from_bits(bits: u8) -> Option<Self> {
        [
            Self::InputRead,
            Self::InputPoll,
            Self::SourcePoll,
            Self::WakePoll,
            Self::Send,
            Self::AuxSend,
            Self::Cancel,
        ]
        .into_iter()
        .find(|&kind| kind as u8 == bits)
    }

    /// `user_data`: kind (8 bits), slot, input or source (24 bits), the handler's token (32 bits).
    pub(super) fn user_data(self, index: u32, token: u32) -> u64 {
        debug_assert!(index < 1 << 24);
        u64::from(self as u8) << 56 | u64::from(index) << 32 | u64::from(token)
    }
}

/// One completion, decoded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Completion {
    pub(super) kind: Kind,
    pub(super) index: u32,
    pub(super) token: u32,
    pub(super) result: i32,
    pub(super) flags: u32,
}

impl Completion {
    /// The value, or the error that the kernel returned.
    pub(super) fn outcome(&self) -> Result<u32, Errno> {
        u32::try_from(self.result).map_err(|_| Errno::from_raw(self.result.wrapping_neg()))
    }
}

/// The ring and its set-up flags.
pub(super) struct Ring {
    uring: IoUring,
    /// Named for log and list: what the kernel gave of the wished-for set-up.
    setup: &'static str,
}

impl Ring {
    /// A disabled ring: it can be built on one thread, and is enabled on the one that drives it
    /// (`SINGLE_ISSUER` belongs to the enabling thread).
    ///
    /// # Errors
    /// [`EngineError::RingRefused`] says which limit, sysctl or filter is in the way.
    pub(super) fn new(completions: u32) -> Result<Self, EngineError> {
        type SetUp = fn(&mut io_uring::Builder);
        // From the newest (6.1) to the oldest; EINVAL means that a flag is unknown.
        let variants: [(&'static str, SetUp); 3] = [
            ("single-issuer, deferred task work", |builder| {
                builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
                builder.setup_submit_all();
            }),
            ("cooperative task work", |builder| {
                builder.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
            }),
            ("plain", |_| {}),
        ];
        let mut last = Errno::EINVAL;
        for (setup, apply) in variants {
            let mut builder = IoUring::builder();
            builder
                .setup_r_disabled()
                .setup_cqsize(completions.max(SUBMISSIONS))
                .setup_clamp()
                .dontfork();
            apply(&mut builder);
            match builder.build(SUBMISSIONS) {
                Ok(uring) if uring.params().is_feature_ext_arg() => {
                    return Ok(Self { uring, setup });
                }
                Ok(_) => return Err(EngineError::KernelTooOld("waiting with a timeout (5.11)")),
                Err(error) => last = errno_of(&error),
            }
            if last != Errno::EINVAL {
                break;
            }
        }
        Err(EngineError::ring_refused(last))
    }

    pub(super) fn setup(&self) -> &'static str {
        self.setup
    }

    /// Binds the ring to the calling thread. To be called once, before anything is submitted.
    pub(super) fn enable(&mut self) -> Result<(), EngineError> {
        let submitter = self.uring.submitter();
        submitter.register_enable_rings().map_err(|error| EngineError::Ring {
            action: "enable the ring",
            errno: errno_of(&error),
        })?;
        // Saves the descriptor look-up in each io_uring_enter (5.18). A kernel without it does the
        // look-up; nothing else changes.
        let _ = self.uring.submitter().register_ring_fd();
        Ok(())
    }

    /// Registers `fds` as fixed files 0.., where -1 is an empty place.
    pub(super) fn register_files(&self, fds: &[i32]) -> Result<(), Errno> {
        self.uring.submitter().register_files(fds).map_err(|error| errno_of(&error))
    }

    /// Sets fixed file `index` to `fd`, or empties it with -1. The old file is closed when its last
    /// request has completed.
    pub(super) fn set_file(&self, index: u32, fd: i32) -> Result<(), Errno> {
        let updated = self.uring.submitter().register_files_update(index, &[fd]);
        updated.map(drop).map_err(|error| errno_of(&error))
    }

    pub(super) fn uring(&self) -> &IoUring {
        &self.uring
    }

    /// Queues an entry, submitting first when the queue is full.
    ///
    /// # Safety
    /// Memory that the entry points to must stay valid, and be untouched by others where the kernel
    /// writes, until its completion.
    pub(super) unsafe fn push(&mut self, entry: &squeue::Entry) -> Result<(), EngineError> {
        loop {
            // SAFETY: the caller's promise.
            if unsafe { self.uring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.submit(0, None)?;
        }
    }

    /// Submits what is queued and waits until `want` completions are there or `timeout` is over.
    pub(super) fn submit(
        &mut self,
        want: usize,
        timeout: Option<Duration>,
    ) -> Result<(), EngineError> {
        let result = match timeout.filter(|_| want > 0) {
            Some(timeout) => {
                let timespec = types::Timespec::from(timeout);
                let arguments = types::SubmitArgs::new().timespec(&timespec);
                self.uring.submitter().submit_with_args(want, &arguments)
            }
            None => self.uring.submit_and_wait(want),
        };
        match result.map_err(|error| errno_of(&error)) {
            // EBUSY and EAGAIN: the kernel wants completions to be taken first, which comes next.
            Ok(_) | Err(Errno::ETIME | Errno::EINTR | Errno::EBUSY | Errno::EAGAIN) => Ok(()),
            Err(errno) => Err(EngineError::Ring { action: "io_uring_enter", errno }),
        }
    }

    /// Takes up to [`BATCH`] completions into `batch`, which is emptied first.
    pub(super) fn reap(&mut self, batch: &mut Vec<Completion>) -> Result<(), EngineError> {
        batch.clear();
        for entry in self.uring.completion().take(BATCH) {
            let [kind, i2, i1, i0, t3, t2, t1, t0] = entry.user_data().to_be_bytes();
            let kind = Kind::from_bits(kind).ok_or(EngineError::Corrupt("unknown user_data"))?;
            batch.push(Completion {
                kind,
                index: u32::from_be_bytes([0, i2, i1, i0]),
                token: u32::from_be_bytes([t3, t2, t1, t0]),
                result: entry.result(),
                flags: entry.flags(),
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use io_uring::opcode;

    #[test]
    fn completions_come_back_with_what_was_packed() {
        let mut ring = Ring::new(64).unwrap();
        ring.enable().unwrap();
        let mut batch = Vec::with_capacity(BATCH);
        for kind in [Kind::InputRead, Kind::Send, Kind::Cancel] {
            let data = kind.user_data(0x00ab_cdef, 0xfedc_ba98);
            let entry = opcode::Nop::new().build().user_data(data);
            // SAFETY: a NOP points to no memory.
            unsafe { ring.push(&entry) }.unwrap();
            ring.submit(1, None).unwrap();
            ring.reap(&mut batch).unwrap();
            let [got] = batch[..] else { panic!("{batch:?}") };
            assert_eq!((got.kind, got.index, got.token), (kind, 0x00ab_cdef, 0xfedc_ba98));
            assert_eq!(got.outcome(), Ok(0));
        }
    }

    #[test]
    fn a_full_queue_is_submitted_and_nothing_lost() {
        let mut ring = Ring::new(4096).unwrap();
        ring.enable().unwrap();
        let total = SUBMISSIONS * 3;
        for token in 0..total {
            let entry = opcode::Nop::new().build().user_data(Kind::Send.user_data(0, token));
            // SAFETY: a NOP points to no memory.
            unsafe { ring.push(&entry) }.unwrap();
        }
        ring.submit(0, None).unwrap();
        let mut batch = Vec::with_capacity(BATCH);
        let mut seen = Vec::new();
        while seen.len() < total as usize {
            ring.reap(&mut batch).unwrap();
            assert!(!batch.is_empty() && batch.len() <= BATCH);
            seen.extend(batch.iter().map(|completion| completion.token));
        }
        assert_eq!(seen, (0..total).collect::<Vec<_>>());
    }

    #[test]
    fn waiting_ends_by_time() {
        let mut ring = Ring::new(64).unwrap();
        ring.enable().unwrap();
        let before = crate::clock::boottime_ns();
        ring.submit(1, Some(Duration::from_millis(20))).unwrap();
        let waited = crate::clock::boottime_ns() - before;
        assert!(waited >= 19_000_000, "{waited} ns");
    }
}
