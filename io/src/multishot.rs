//! Receiving by READ_MULTISHOT: one request that fills slots of a buffer ring until it is ended.

use io_uring::{cqueue, opcode, squeue, types};
use nix::errno::Errno;

use super::buffer_ring::{BUFFER_GROUP, BufferRing};
use super::engine::Receive;
use super::engine_error::EngineError;
use super::exchange::{Exchange, RESERVE};
use super::handler::Handler;
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
    fn lend_free_slots(&mut self, exchange: &mut Exchange) {
        let mut lent_any = false;
        while exchange.pool.free_count() > RESERVE {
            let Some(slot) = exchange.pool.take() else { break };
            self.buffers.lend(&mut exchange.pool, slot);
            lent_any = true;
        }
        if lent_any {
            self.buffers.publish();
        }
    }

    fn arm(&mut self, exchange: &mut Exchange) -> Result<(), EngineError> {
        // Length 0: as long as the buffer. The crate overwrites the flag that it sets for a fixed
        // file (io-uring 0.7.15), so it is set again here.
        let entry = opcode::ReadMulti::new(types::Fixed(0), 0, BUFFER_GROUP)
            .build()
            .flags(squeue::Flags::FIXED_FILE | squeue::Flags::BUFFER_SELECT)
            .user_data(Kind::TapRead.user_data(0, 0));
        // SAFETY: the kernel writes to lent slots only, which nobody touches before their
        // completion, and whose memory outlives the ring (`Engine::drop`).
        unsafe { exchange.ring.push(&entry) }?;
        self.armed = true;
        exchange.counters.armed += 1;
        Ok(())
    }
}

impl Receive for Multishot {
    fn start(&mut self, exchange: &mut Exchange) -> Result<(), EngineError> {
        self.lend_free_slots(exchange);
        self.arm(exchange)
    }

    fn completion(
        &mut self,
        exchange: &mut Exchange,
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
                    .take_back(&mut exchange.pool, id)
                    .ok_or(EngineError::Corrupt("a read into a buffer that was not lent"))?;
                exchange.receive(slot, length as usize);
                Ok(())
            }
            Err(Errno::ENOBUFS) => {
                exchange.counters.out_of_slots += 1;
                Ok(())
            }
            // Armed again in `continues`, or ended by `stop`.
            Err(Errno::ECANCELED | Errno::EAGAIN | Errno::EINTR) => Ok(()),
            Err(errno) => Err(EngineError::TapGone(errno)),
        }
    }

    fn continues(
        &mut self,
        exchange: &mut Exchange,
        handler: &mut impl Handler,
    ) -> Result<bool, EngineError> {
        exchange.deliver_received(handler)?;
        self.lend_free_slots(exchange);
        if !self.armed && !exchange.stopping && self.buffers.lent() > 0 {
            self.arm(exchange)?;
        }
        Ok(false)
    }

    fn stop(&mut self, exchange: &mut Exchange) -> Result<(), EngineError> {
        let read = Kind::TapRead.user_data(0, 0);
        let entry = opcode::AsyncCancel::new(read).build().user_data(Kind::Cancel.user_data(0, 0));
        // SAFETY: a cancellation points to no memory.
        unsafe { exchange.ring.push(&entry) }
    }

    fn is_quiet(&self) -> bool {
        !self.armed
    }
}
