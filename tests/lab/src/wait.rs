//! Waiting for conditions, with a deadline: the only place of the lab that sleeps.

use std::time::{Duration, Instant};

use crate::error::{LabError, Result};

/// Time between two looks at a condition: short beside what is waited for (an ARP answer takes
/// about a millisecond, a boot seconds), long beside the cost of a look.
const PAUSE: Duration = Duration::from_millis(2);

/// Waits until `condition` holds.
///
/// # Errors
/// [`LabError::Timeout`] with `what` when it does not hold within `limit`.
pub fn wait_until(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    wait_for(limit, what, || condition().then_some(()))
}

/// Waits until `look` returns something, and returns it.
///
/// # Errors
/// [`LabError::Timeout`] with `what` when there is nothing within `limit`.
#[allow(clippy::disallowed_methods, reason = "this is the poll loop that the rule asks for")]
pub fn wait_for<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if start.elapsed() >= limit {
            return Err(LabError::Timeout { what: what.to_owned(), after: limit });
        }
        std::thread::sleep(PAUSE);
    }
}

/// Lets time pass between two steps of a load, which is to have a pace; nobody waits for anything.
#[allow(clippy::disallowed_methods, reason = "a load's pace is time itself")]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}
