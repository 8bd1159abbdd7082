//! Receiving by poll and non-blocking reads: for kernels without READ_MULTISHOT.
//!
//! The poll is one-shot and armed only when the TAP was empty. So it works on 5.15, and under load
//! neither the producer nor the worker pays for wake-ups.

use super::engine::{Core, EngineError, Handler, Receive, Source};
use super::ring::{BATCH, Completion};

/// Frames read in one go, before their sends are submitted.
const READ_BUDGET: usize = BATCH / 2;

#[derive(Debug, Default)]
pub(super) struct Poll {
    /// Told readable, and not yet read until EAGAIN.
    readable: bool,
}

impl Receive for Poll {
    fn start(&mut self, core: &mut Core) -> Result<(), EngineError> {
        core.arm_tap_poll()
    }

    fn completion(
        &mut self,
        _: &mut Core,
        _: &mut impl Handler,
        completion: Completion,
    ) -> Result<(), EngineError> {
        completion.outcome().map_err(EngineError::TapGone)?;
        self.readable = true;
        Ok(())
    }

    fn continues(
        &mut self,
        core: &mut Core,
        handler: &mut impl Handler,
    ) -> Result<bool, EngineError> {
        if !self.readable || core.stopping {
            return Ok(false);
        }
        for _ in 0..READ_BUDGET {
            let Some(slot) = core.pool.take() else {
                core.counters.out_of_slots += 1;
                return Ok(false); // all in flight: a send will complete and lead here again
            };
            match core.read_tap(&slot) {
                Ok(Some(length)) => {
                    core.counters.tap_frames += 1;
                    core.deliver(handler, Source::Tap, slot, length)?;
                }
                Ok(None) => {
                    core.pool.release(slot);
                    self.readable = false;
                    core.arm_tap_poll()?;
                    return Ok(false);
                }
                Err(errno) => {
                    core.pool.release(slot);
                    return Err(EngineError::TapGone(errno));
                }
            }
        }
        Ok(true)
    }

    fn stop(&mut self, _: &mut Core) -> Result<(), EngineError> {
        Ok(())
    }

    /// A poll in flight touches no memory, and the ring cancels it when it closes.
    fn is_quiet(&self) -> bool {
        true
    }
}
