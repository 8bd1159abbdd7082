//! What identifies a flow, and its seeded local hash.

use std::hash::{BuildHasher, Hasher};

use ahash::RandomState;

use crate::dataplane::ids::VipId;

/// First 12 bytes of an IPv4-mapped address (RFC 4291 §2.5.5.2).
const MAPPED_PREFIX: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// Identity of a flow: the client's half of a connection to a VIP.
///
/// The VIP travels as its id in the region's directory, which is shorter than its address and
/// survives the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Client address, IPv4 as IPv4-mapped.
    pub client: [u8; 16],
    /// Client port (0 for protocols without ports).
    pub client_port: u16,
    /// The virtual address.
    pub vip: VipId,
    /// Port at the virtual address.
    pub vip_port: u16,
    /// IP protocol number.
    pub protocol: u8,
}

impl FlowKey {
    /// Whether the flow is IPv6.
    pub fn is_ipv6(&self) -> bool {
        self.client[..12] != MAPPED_PREFIX
    }

    /// The key as a slot stores it: address (2 words), ports and VIP (1 word).
    pub(super) fn words(&self) -> [u64; 3] {
        let [a, b, c, d, e, f, g, h, low @ ..] = self.client;
        let high = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        let ports = u64::from(self.client_port) | u64::from(self.vip_port) << 16;
        [high, u64::from_be_bytes(low), ports | u64::from(self.vip.0) << 32]
    }

    pub(super) fn from_words(words: [u64; 3], protocol: u8) -> Self {
        let mut client = [0; 16];
        client[..8].copy_from_slice(&words[0].to_be_bytes());
        client[8..].copy_from_slice(&words[1].to_be_bytes());
        let [port_low, port_high, vip_low, vip_high, a, b, c, d] = words[2].to_le_bytes();
        Self {
            client,
            client_port: u16::from_le_bytes([port_low, port_high]),
            vip_port: u16::from_le_bytes([vip_low, vip_high]),
            vip: VipId(u32::from_le_bytes([a, b, c, d])),
            protocol,
        }
    }
}

/// Keyed hash of the private index. Whoever does not know the seed cannot make keys collide, so
/// the seed is drawn at random once per process. Its output is never stored nor sent.
#[derive(Clone)]
pub struct FlowHasher(RandomState);

impl FlowHasher {
    /// A hasher from 256 bits the caller drew at random.
    pub fn new(seed: [u64; 4]) -> Self {
        Self(RandomState::with_seeds(seed[0], seed[1], seed[2], seed[3]))
    }

    pub(super) fn hash(&self, words: [u64; 3], protocol: u8) -> u64 {
        let mut hasher = self.0.build_hasher();
        hasher.write_u64(words[0]);
        hasher.write_u64(words[1]);
        hasher.write_u64(words[2]);
        hasher.write_u8(protocol);
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_key_survives_its_words(
            client: [u8; 16], client_port: u16, vip: u32, vip_port: u16, protocol: u8,
        ) {
            let key = FlowKey { client, client_port, vip: VipId(vip), vip_port, protocol };
            prop_assert_eq!(FlowKey::from_words(key.words(), protocol), key);
        }
    }

    #[test]
    fn every_field_reaches_the_hash() {
        let hasher = FlowHasher::new([1, 2, 3, 4]);
        let hash = |key: FlowKey| hasher.hash(key.words(), key.protocol);
        let key =
            FlowKey { client: [7; 16], client_port: 1, vip: VipId(2), vip_port: 3, protocol: 6 };
        for other in [
            FlowKey { client: [8; 16], ..key },
            FlowKey { client_port: 9, ..key },
            FlowKey { vip: VipId(9), ..key },
            FlowKey { vip_port: 9, ..key },
            FlowKey { protocol: 17, ..key },
        ] {
            assert_ne!(hash(key), hash(other));
        }
    }
}
