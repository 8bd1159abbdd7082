//! Receiving by READ and RECVMSG with multishot: requests that fill slots of a buffer ring until they
//! are ended.

use io_uring::cqueue;
use nix::errno::Errno;

use super::buffer_ring::BufferRing;
use super::engine::Receive;
use super::engine_error::EngineError;
use super::exchange::{Exchange, RESERVE};
use super::handler::Handler;
use super::ring::{Completion, Ring};

pub(super) struct Multishot {
    buffers: BufferRing,
    /// For each input, whether its request is in the kernel's hands.
    armed: Box<[bool]>,
}

impl Multishot {
    pub(super) fn new(ring: &Ring, slots: usize, inputs: usize) -> Result<Self, EngineError> {
        let buffers = BufferRing::register(ring, slots)
            .map_err(|errno| EngineError::NoMultishot(format!("buffer ring: {errno}")))?;
        Ok(Self { buffers, armed: vec![false; inputs].into() })
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

    /// Arms what is not.
    fn arm(&mut self, exchange: &mut Exchange) -> Result<(), EngineError> {
        for (input, armed) in self.armed.iter_mut().enumerate() {
            if !*armed {
                exchange.arm_input_read(input)?;
                *armed = true;
            }
        }
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
        let input = completion.index as usize;
        let armed = self
            .armed
            .get_mut(input)
            .ok_or(EngineError::Corrupt("a read of an input that is not there"))?;
        if !cqueue::more(completion.flags) {
            *armed = false;
        }
        match completion.outcome() {
            Ok(length) => {
                let id = cqueue::buffer_select(completion.flags)
                    .ok_or(EngineError::Corrupt("a read that names no buffer"))?;
                let slot = self
                    .buffers
                    .take_back(&mut exchange.pool, id)
                    .ok_or(EngineError::Corrupt("a read into a buffer that was not lent"))?;
                exchange.receive(input, slot, length as usize);
                Ok(())
            }
            Err(Errno::ENOBUFS) => {
                exchange.counters.out_of_slots += 1;
                Ok(())
            }
            // Armed again in `continues`, or ended by `stop`.
            Err(Errno::ECANCELED | Errno::EAGAIN | Errno::EINTR) => Ok(()),
            Err(errno) => exchange.input_error(input, errno),
        }
    }

    fn continues(
        &mut self,
        exchange: &mut Exchange,
        handler: &mut impl Handler,
    ) -> Result<bool, EngineError> {
        exchange.deliver_received(handler)?;
        self.lend_free_slots(exchange);
        if !exchange.stopping && self.buffers.lent() > 0 {
            self.arm(exchange)?;
        }
        Ok(false)
    }

    fn stop(&mut self, exchange: &mut Exchange) -> Result<(), EngineError> {
        (0..self.armed.len()).try_for_each(|input| exchange.cancel_input_read(input))
    }

    fn is_quiet(&self) -> bool {
        !self.armed.contains(&true)
    }
}
