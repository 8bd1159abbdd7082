//! A fingerprint of what a configuration means, for people and peers to compare.
//!
//! The hash is over the effective values, so comments, order and defaults written out make no
//! difference. It is SipHash-1-3 with a fixed key over canonical JSON: it guards against
//! confusion, not against an adversary.

use super::types::{Config, Service};
use serde::Serialize;
use siphasher::sip::SipHasher13;
use std::fmt;
use std::hash::Hasher;

/// 64 bits, shown as 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConfigHash(pub u64);

/// Raised when the meaning of a hashed field changes, so that two versions never seem to agree.
const FORMAT: u64 = 1;

/// Hash of the whole effective configuration: tells whether a file is the one in force.
#[must_use]
pub fn config_hash(config: &Config) -> ConfigHash {
    digest(config)
}

/// Hash of the services alone, which directors of one group must share whatever their devices are.
#[must_use]
pub fn services_hash(services: &[Service]) -> ConfigHash {
    digest(&services)
}

fn digest<T: Serialize>(value: &T) -> ConfigHash {
    // Structs serialise in field order and hold no maps, so the text is canonical.
    let text = serde_json::to_vec(value)
        .expect("configuration types have string keys and serialise without I/O");
    let mut hasher = SipHasher13::new_with_keys(0, FORMAT);
    hasher.write(&text);
    ConfigHash(hasher.finish())
}

impl fmt::Display for ConfigHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Serialize for ConfigHash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
