//! Limits on what Adit emits.

use super::{packet::Address, time::Time};

/// Token buckets, total and per client prefix.
#[derive(Debug, Default)]
pub struct RateLimiter;

impl RateLimiter {
    /// Whether something may be sent to `client` now.
    pub fn allow(&mut self, _now: Time, _client: &Address) -> bool {
        true
    }
}
