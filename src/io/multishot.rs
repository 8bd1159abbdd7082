//! Receiving by READ_MULTISHOT: one request that fills slots of a buffer ring until it is ended.

use io_uring::{cqueue, opcode, squeue, types};
use nix::errno::Errno;

use super::buffer_ring::{BUFFER_GROUP, BufferRing};
use super::engine::{Core, EngineError, Handler, RESERVE, Receive, Source};
use super::ring::{Completion, Kind, Ring};

pub(super) struct Multishot {
    buffers: BufferRing,
    armed: bool,
}

impl Multishot {
    pub(super) fn new(ring: &Ring, slots: usize) -> Result<Self, EngineError> {
        let buffers = BufferRing::register(ring, slots)
            .map_err(|errno| EngineError::NoMultishot(format!("buffer ring: {errno}")))?;
        Ok(Self { buffers, armed: false })
    }

    /// Lends the kernel all free slots but the reserve.
    fn lend_free_slots(&mut self, core: &mut Core) {
        let mut lent_any = false;
        while core.pool.free_count() > RESERVE {
            let Some(slot) = core.pool.take() else { break };
            self.buffers.lend(&mut core.pool, slot);
            lent_any = true;
        }
        if lent_any {
            self.buffers.publish();
        }
    }

    fn arm(&mut self, core: &mut Core) -> Result<(), EngineError> {
        // Length 0: as long as the buffer. The crate overwrites the flag that it sets for a fixed
        // file (io-uring 0.7.15), so it is set again here.
        let entry = opcode::ReadMulti::new(types::Fixed(0), 0, BUFFER_GROUP)
            .build()
            .flags(squeue::Flags::FIXED_FILE | squeue::Flags::BUFFER_SELECT)
            .user_data(Kind::TapRead.user_data(0, 0));
        // SAFETY: the kernel writes to lent slots only, which nobody touches before their
        // completion, and whose memory outlives the ring (`Engine::drop`).
        unsafe { core.ring.push(&entry) }?;
        self.armed = true;
        core.counters.armed += 1;
        Ok(())
    }
}

impl Receive for Multishot {
    fn start(&mut self, core: &mut Core) -> Result<(), EngineError> {
        self.lend_free_slots(core);
        self.arm(core)
    }

    fn completion(
        &mut self,
        core: &mut Core,
        handler: &mut impl Handler,
        completion: Completion,
    ) -> Result<(), EngineError> {
        if !cqueue::more(completion.flags) {
            self.armed = false;
        }
        match completion.outcome() {
            Ok(length) => {
                let id = cqueue::buffer_select(completion.flags)
                    .ok_or(EngineError::Corrupt("a read that names no buffer"))?;
                let slot = self
                    .buffers
                    .take_back(&mut core.pool, id)
                    .ok_or(EngineError::Corrupt("a read into a buffer that was not lent"))?;
                core.counters.tap_frames += 1;
                core.deliver(handler, Source::Tap, slot, length as usize)
            }
            Err(Errno::ENOBUFS) => {
                core.counters.out_of_slots += 1;
                Ok(())
            }
            // Armed again in `continues`, or ended by `stop`.
            Err(Errno::ECANCELED | Errno::EAGAIN | Errno::EINTR) => Ok(()),
            Err(errno) => Err(EngineError::TapGone(errno)),
        }
    }

    fn continues(&mut self, core: &mut Core, _: &mut impl Handler) -> Result<bool, EngineError> {
        self.lend_free_slots(core);
        if !self.armed && !core.stopping && self.buffers.lent() > 0 {
            self.arm(core)?;
        }
        Ok(false)
    }

    fn stop(&mut self, core: &mut Core) -> Result<(), EngineError> {
        let read = Kind::TapRead.user_data(0, 0);
        let entry = opcode::AsyncCancel::new(read).build().user_data(Kind::Cancel.user_data(0, 0));
        // SAFETY: a cancellation points to no memory.
        unsafe { core.ring.push(&entry) }
    }

    fn is_quiet(&self) -> bool {
        !self.armed
    }
}
