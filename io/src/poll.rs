//! Receiving by poll and non-blocking reads: for kernels without READ_MULTISHOT.
//!
//! The poll is one-shot and armed only when the TAP was empty. So it works on 5.15, and under load
//! neither the producer nor the worker pays for wake-ups.

use super::engine::Receive;
use super::engine_error::EngineError;
use super::exchange::Exchange;
use super::handler::Handler;
use super::ring::{BATCH, Completion};

/// Frames read in one go, before their sends are submitted.
const READ_BUDGET: usize = BATCH / 2;

#[derive(Debug, Default)]
pub(super) struct Poll {
    /// Told readable, and not yet read until EAGAIN.
    readable: bool,
}

impl Poll {
    /// Reads until the TAP is empty or the budget is used up. `true` when there may be more.
    fn read(&mut self, exchange: &mut Exchange) -> Result<bool, EngineError> {
        if !self.readable || exchange.stopping {
            return Ok(false);
        }
        for _ in 0..READ_BUDGET {
            let Some(slot) = exchange.pool.take() else {
                exchange.counters.out_of_slots += 1;
                // All in flight: a send will complete and lead here again. Unless some wait to be
                // delivered, after which they may be free.
                return Ok(exchange.has_received());
            };
            match exchange.read_tap(&slot) {
                Ok(Some(length)) => exchange.receive(slot, length),
                Ok(None) => {
                    exchange.pool.release(slot);
                    self.readable = false;
                    exchange.arm_tap_poll()?;
                    return Ok(false);
                }
                Err(errno) => {
                    exchange.pool.release(slot);
                    return Err(EngineError::TapGone(errno));
                }
            }
        }
        Ok(true)
    }
}

impl Receive for Poll {
    fn start(&mut self, exchange: &mut Exchange) -> Result<(), EngineError> {
        exchange.arm_tap_poll()
    }

    fn completion(&mut self, _: &mut Exchange, completion: Completion) -> Result<(), EngineError> {
        completion.outcome().map_err(EngineError::TapGone)?;
        self.readable = true;
        Ok(())
    }

    fn continues(
        &mut self,
        exchange: &mut Exchange,
        handler: &mut impl Handler,
    ) -> Result<bool, EngineError> {
        let more = self.read(exchange)?;
        exchange.deliver_received(handler)?;
        Ok(more)
    }

    fn stop(&mut self, _: &mut Exchange) -> Result<(), EngineError> {
        Ok(())
    }

    /// A poll in flight touches no memory, and the ring cancels it when it closes.
    fn is_quiet(&self) -> bool {
        true
    }
}
