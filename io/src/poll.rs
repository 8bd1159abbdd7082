//! Receiving by poll and non-blocking reads: for kernels without READ_MULTISHOT.
//!
//! The poll is one-shot and armed only when the input was empty. So it works on 5.15, and under load
//! neither the producer nor the worker pays for wake-ups.

use super::engine::Receive;
use super::engine_error::EngineError;
use super::exchange::Exchange;
use super::handler::Handler;
use super::ring::{BATCH, Completion};

/// Frames read in one go from all inputs, before their sends are submitted.
const READ_BUDGET: usize = BATCH / 2;

#[derive(Debug, Default)]
pub(super) struct Poll {
    /// For each input: told readable, and not yet read until EAGAIN.
    readable: Box<[bool]>,
}

impl Poll {
    pub(super) fn new(inputs: usize) -> Self {
        Self { readable: vec![false; inputs].into() }
    }

    /// Reads until the inputs are empty or the budget is used up. `true` when there may be more.
    fn read(&mut self, exchange: &mut Exchange) -> Result<bool, EngineError> {
        let mut more = false;
        for input in 0..self.readable.len() {
            if self.readable[input] && !exchange.stopping {
                more |= self.read_input(exchange, input)?;
            }
        }
        Ok(more)
    }

    fn read_input(&mut self, exchange: &mut Exchange, input: usize) -> Result<bool, EngineError> {
        for _ in 0..READ_BUDGET / self.readable.len() {
            let Some(slot) = exchange.pool.take() else {
                exchange.counters.out_of_slots += 1;
                // All in flight: a send will complete and lead here again. Unless some wait to be
                // delivered, after which they may be free.
                return Ok(exchange.has_received());
            };
            match exchange.read_input(input, &slot) {
                Ok(Some(length)) => exchange.receive(input, slot, length),
                Ok(None) => {
                    exchange.pool.release(slot);
                    self.readable[input] = false;
                    exchange.arm_input_poll(input)?;
                    return Ok(false);
                }
                Err(error) => {
                    exchange.pool.release(slot);
                    return Err(error);
                }
            }
        }
        Ok(true)
    }
}

impl Receive for Poll {
    fn start(&mut self, exchange: &mut Exchange) -> Result<(), EngineError> {
        (0..self.readable.len()).try_for_each(|input| exchange.arm_input_poll(input))
    }

    fn completion(
        &mut self,
        exchange: &mut Exchange,
        completion: Completion,
    ) -> Result<(), EngineError> {
        let input = completion.index as usize;
        let readable = self
            .readable
            .get_mut(input)
            .ok_or(EngineError::Corrupt("a poll of an input that is not there"))?;
        // What a failed poll means is seen by reading.
        *readable = true;
        completion.outcome().map(drop).or_else(|errno| exchange.input_error(input, errno))
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
