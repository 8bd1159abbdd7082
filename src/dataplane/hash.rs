//! The keyed hash behind every placement, and its byte layouts.
//!
//! Everything here is stable for ever: two directors of different versions must place a key
//! alike, so a layout is never changed, only a new form (with a new first byte) added. That is
//! also why the hash is SipHash-2-4 with 128 bits of output and never `ahash`, whose output is
//! not stable. The committed golden files of the schedulers guard it.
//!
//! Byte layouts hashed under the [`HashKey`]; addresses are 16 bytes in network order, IPv4 as
//! `::ffff:a.b.c.d` (RFC 4291 §2.5.5.2), integers big-endian:
//!
//! | form | bytes |
//! |---|---|
//! | flow | `01`, client address 16, client port 2, virtual address 16, virtual port 2, protocol 1 |
//! | persistence | `02`, client prefix 16 (host bits zero), prefix length 1 (of 128), group 8 |
//! | server | `03`, address 16 |
//! | fingerprint | `04`, `adit hash key` |
//! | group name | `05`, name in UTF-8; always under [`HashKey::DEFAULT`] |
//! | group of a service | `06`, virtual address 16, port 2, protocol 1; under [`HashKey::DEFAULT`] |
//! | client | `07`, client address 16 |
//! | client and port | `08`, client address 16, client port 2 |
//! | VIP | `09`, virtual address 16 |
//! | draws | `0a`, `adit draws` |

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

use siphasher::sip128::SipHasher24;

const FORM_FLOW: u8 = 0x01;
const FORM_PERSISTENCE: u8 = 0x02;
const FORM_SERVER: u8 = 0x03;
const FORM_FINGERPRINT: u8 = 0x04;
const FORM_GROUP_NAME: u8 = 0x05;
const FORM_GROUP_SERVICE: u8 = 0x06;
const FORM_CLIENT: u8 = 0x07;
const FORM_CLIENT_AND_PORT: u8 = 0x08;
const FORM_VIP: u8 = 0x09;
const FORM_DRAWS: u8 = 0x0a;

/// 2^64 / golden ratio, the increment of `SplitMix64` (Steele, Lea, Flood, OOPSLA 2014).
const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The secret under which placements are hashed. Directors that share clients share it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HashKey(pub [u8; 16]);

impl HashKey {
    /// What a director without `hash_key_file` uses. Public knowledge: a client that knows it
    /// can choose ports that all land on one real server, which is why `check` warns.
    pub const DEFAULT: Self = Self(*b"Adit hash key v1");

    /// Eight bytes by which two directors can tell whether they hold the same key, without
    /// showing it.
    pub fn fingerprint(&self) -> KeyFingerprint {
        let mut bytes = [0; 14];
        bytes[0] = FORM_FINGERPRINT;
        bytes[1..].copy_from_slice(b"adit hash key");
        KeyFingerprint(self.hash(&bytes).0)
    }

    /// The seed of a real server's probe sequence in the Maglev table.
    pub(crate) fn server_seed(&self, address: IpAddr) -> u64 {
        let mut bytes = [0; 17];
        bytes[0] = FORM_SERVER;
        bytes[1..].copy_from_slice(&canonical_octets(address));
        self.hash(&bytes).0
    }

    /// The seed of what is drawn where a scheduler wants chance.
    pub(crate) fn draw_seed(&self) -> u64 {
        let mut bytes = [0; 11];
        bytes[0] = FORM_DRAWS;
        bytes[1..].copy_from_slice(b"adit draws");
        self.hash(&bytes).0
    }

    /// Both halves of the 128-bit SipHash-2-4 of `bytes`.
    pub(crate) fn hash(&self, bytes: &[u8]) -> (u64, u64) {
        let hash = SipHasher24::new_with_key(&self.0).hash(bytes);
        (hash.h1, hash.h2)
    }
}

/// Shows the fingerprint, never the key.
impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HashKey({})", self.fingerprint())
    }
}

/// Names a [`HashKey`] without revealing it; displayed as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyFingerprint(pub u64);

impl fmt::Display for KeyFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The five things that name a flow, from the client's half.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowTuple {
    /// The client's address (CIP).
    pub client: IpAddr,
    /// The client's port; 0 for protocols without ports.
    pub client_port: u16,
    /// The virtual address (VIP).
    pub vip: IpAddr,
    /// The port at the virtual address; 0 for protocols without ports.
    pub vip_port: u16,
    /// IP protocol number.
    pub protocol: u8,
}

/// Services whose clients stay together: one persistence entry serves the whole group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PersistenceGroup(pub u64);

impl PersistenceGroup {
    /// The group that the configuration names, equal on all directors.
    pub fn named(name: &str) -> Self {
        // Construction, not the packet path: the name's length is free.
        let mut bytes = Vec::with_capacity(1 + name.len());
        bytes.push(FORM_GROUP_NAME);
        bytes.extend_from_slice(name.as_bytes());
        Self(HashKey::DEFAULT.hash(&bytes).0)
    }

    /// The group of a service that names none. Services that say their ports in different ways may
    /// overlap, so `form` tells these apart: 0 one port, 1 a list, 2 a range, 3 any. `port` is the
    /// first of several, 0 for any.
    pub fn of_service(vip: IpAddr, form: u8, port: u16, protocol: u8) -> Self {
        let mut bytes = [0; 21];
        bytes[0] = FORM_GROUP_SERVICE;
        bytes[1..17].copy_from_slice(&canonical_octets(vip));
        bytes[17..19].copy_from_slice(&port.to_be_bytes());
        bytes[19] = protocol;
        bytes[20] = form;
        Self(HashKey::DEFAULT.hash(&bytes).0)
    }
}

/// A client's address cut to a prefix: the canonical octets with all host bits zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientPrefix {
    octets: [u8; 16],
    /// Of 128, so 96 more than the IPv4 length.
    length: u8,
}

impl ClientPrefix {
    /// Cuts `client` to `ipv4_length` (0..=32) or `ipv6_length` (0..=128) bits, by its family.
    /// Lengths beyond the family's are taken as the whole address.
    pub fn new(client: IpAddr, ipv4_length: u8, ipv6_length: u8) -> Self {
        let length = match client {
            IpAddr::V4(_) => 96 + ipv4_length.min(32),
            IpAddr::V6(_) => ipv6_length.min(128),
        };
        Self::from_octets(canonical_octets(client), length)
    }

    /// The prefix of `length` (0..=128) bits that holds `octets`.
    pub(crate) fn from_octets(octets: [u8; 16], length: u8) -> Self {
        let length = length.min(128);
        // A shift by 128 would overflow: length 0 keeps nothing.
        let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
        let octets = (u128::from_be_bytes(octets) & mask).to_be_bytes();
        Self { octets, length }
    }

    /// The canonical octets, host bits zero.
    pub const fn octets(&self) -> [u8; 16] {
        self.octets
    }

    /// Prefix length of 128; IPv4 lengths count from 96.
    pub const fn length(&self) -> u8 {
        self.length
    }
}

/// Shows the prefix as people write it: `192.0.2.0/24`, `2001:db8::/64`.
impl fmt::Display for ClientPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let v6 = Ipv6Addr::from(self.octets);
        match v6.to_ipv4_mapped() {
            Some(v4) if self.length >= 96 => write!(f, "{v4}/{}", self.length - 96),
            _ => write!(f, "{v6}/{}", self.length),
        }
    }
}

/// 128 bits that decide where a flow, or a client with persistence, is placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PlacementKey {
    slot_half: u64,
    acceptance_half: u64,
}

/// What probe number k of a key looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Chooses the slot: see [`Probe::slot`].
    pub slot_hash: u64,
    /// Uniform in 0..2^32; a candidate takes the key when this part of 2^32 lies below its
    /// share.
    pub acceptance: u32,
}

impl Probe {
    /// The slot in a table of `size` slots, by multiply-shift (Lemire 2019): the bias is below
    /// `size` / 2^64.
    #[inline]
    pub fn slot(&self, size: u32) -> u32 {
        // The product is below 2^96 and loses 64 bits: it fits.
        #[allow(clippy::cast_possible_truncation)]
        let slot = ((u128::from(self.slot_hash) * u128::from(size)) >> 64) as u32;
        slot
    }
}

impl PlacementKey {
    /// The key of one flow.
    pub fn of_flow(key: &HashKey, flow: &FlowTuple) -> Self {
        let mut bytes = [0; 38];
        bytes[0] = FORM_FLOW;
        bytes[1..17].copy_from_slice(&canonical_octets(flow.client));
        bytes[17..19].copy_from_slice(&flow.client_port.to_be_bytes());
        bytes[19..35].copy_from_slice(&canonical_octets(flow.vip));
        bytes[35..37].copy_from_slice(&flow.vip_port.to_be_bytes());
        bytes[37] = flow.protocol;
        Self::from_hash(key.hash(&bytes))
    }

    /// The key that all flows of a client's prefix share within a persistence group.
    pub fn of_client(key: &HashKey, client: &ClientPrefix, group: PersistenceGroup) -> Self {
        let mut bytes = [0; 26];
        bytes[0] = FORM_PERSISTENCE;
        bytes[1..17].copy_from_slice(&client.octets);
        bytes[17] = client.length;
        bytes[18..26].copy_from_slice(&group.0.to_be_bytes());
        Self::from_hash(key.hash(&bytes))
    }

    /// The key of all flows of one client address, to whatever VIP.
    pub fn of_address(key: &HashKey, client: IpAddr) -> Self {
        Self::from_hash(key.hash(&address_form(FORM_CLIENT, client)))
    }

    /// The key of all flows from one client address and port.
    pub fn of_endpoint(key: &HashKey, client: IpAddr, client_port: u16) -> Self {
        let mut bytes = [0; 19];
        bytes[..17].copy_from_slice(&address_form(FORM_CLIENT_AND_PORT, client));
        bytes[17..].copy_from_slice(&client_port.to_be_bytes());
        Self::from_hash(key.hash(&bytes))
    }

    /// The key of all flows to one VIP.
    pub fn of_vip(key: &HashKey, vip: IpAddr) -> Self {
        Self::from_hash(key.hash(&address_form(FORM_VIP, vip)))
    }

    fn from_hash((slot_half, acceptance_half): (u64, u64)) -> Self {
        Self { slot_half, acceptance_half }
    }

    /// Probe number `k`: the k-th outputs of two `SplitMix64` streams that start at the halves.
    #[inline]
    pub fn probe(&self, k: u32) -> Probe {
        let step = GOLDEN_GAMMA.wrapping_mul(u64::from(k) + 1);
        // The high half of a 64-bit word fits 32 bits.
        #[allow(clippy::cast_possible_truncation)]
        let acceptance = (mix64(self.acceptance_half.wrapping_add(step)) >> 32) as u32;
        Probe { slot_hash: mix64(self.slot_half.wrapping_add(step)), acceptance }
    }

    /// The key's hash with one server, for rendezvous hashing.
    #[inline]
    pub(crate) fn with_server(&self, address: IpAddr) -> u64 {
        let octets = u128::from_be_bytes(canonical_octets(address));
        // The two halves of the address.
        #[allow(clippy::cast_possible_truncation)]
        let (high, low) = ((octets >> 64) as u64, octets as u64);
        mix64(mix64(self.slot_half ^ high).wrapping_add(self.acceptance_half) ^ low)
    }
}

/// Shows all 128 bits, as `adit explain` prints them.
impl fmt::Display for PlacementKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}{:016x}", self.slot_half, self.acceptance_half)
    }
}

/// A form that holds one address.
fn address_form(form: u8, address: IpAddr) -> [u8; 17] {
    let mut bytes = [0; 17];
    bytes[0] = form;
    bytes[1..].copy_from_slice(&canonical_octets(address));
    bytes
}

/// Output number `number`, from 0, of the `SplitMix64` stream that starts at `seed`.
#[inline]
pub(crate) const fn stream(seed: u64, number: u64) -> u64 {
    mix64(seed.wrapping_add(GOLDEN_GAMMA.wrapping_mul(number.wrapping_add(1))))
}

/// The finalizer of `SplitMix64`: a bijection in which every input bit reaches every output bit.
#[inline]
pub(crate) const fn mix64(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// An address in 16 bytes, IPv4 mapped into IPv6.
#[inline]
pub(crate) const fn canonical_octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // test data is cut to size on purpose
mod tests {
    use super::*;

    fn flow(client: &str, client_port: u16, vip: &str, vip_port: u16, protocol: u8) -> FlowTuple {
        FlowTuple {
            client: client.parse().unwrap(),
            client_port,
            vip: vip.parse().unwrap(),
            vip_port,
            protocol,
        }
    }

    /// The published SipHash-2-4-128 vectors (reference implementation, `vectors_sip128`): key
    /// 00..0f, message 00, 01, .. of the given length.
    #[test]
    fn the_hash_is_siphash_2_4_with_128_bits() {
        let key = HashKey(std::array::from_fn(|i| i as u8));
        let vectors: [(&[u8], u128); 2] = [
            (&[], 0xa381_7f04_ba25_a8e6_6df6_7214_c755_0293),
            (&[0], 0xda87_c1d8_6b99_af44_3476_5911_9b22_fc45),
        ];
        for (message, expected) in vectors {
            let (h1, h2) = key.hash(message);
            let bytes = [h1.to_le_bytes(), h2.to_le_bytes()].concat();
            assert_eq!(bytes, expected.to_be_bytes(), "{message:?}");
        }
    }

    /// Values computed once and never to change: directors of all versions agree on them.
    #[test]
    fn keys_are_stable_for_ever() {
        let lines = [
            PlacementKey::of_flow(
                &HashKey::DEFAULT,
                &flow("192.0.2.7", 40000, "198.51.100.10", 5432, 6),
            )
            .to_string(),
            PlacementKey::of_flow(
                &HashKey([7; 16]),
                &flow("2001:db8::7", 1, "2001:db8:1::10", 3306, 17),
            )
            .to_string(),
            PlacementKey::of_client(
                &HashKey::DEFAULT,
                &ClientPrefix::new("192.0.2.7".parse().unwrap(), 24, 64),
                PersistenceGroup::named("orders"),
            )
            .to_string(),
            HashKey::DEFAULT.fingerprint().to_string(),
            format!(
                "{:016x}",
                PersistenceGroup::of_service("198.51.100.10".parse().unwrap(), 0, 5432, 6).0
            ),
        ];
        let key = PlacementKey::of_flow(
            &HashKey::DEFAULT,
            &flow("192.0.2.7", 40000, "198.51.100.10", 5432, 6),
        );
        let probes = [0, 1, 63].map(|k| {
            let probe = key.probe(k);
            format!("{k} {} {:08x}", probe.slot(65_537), probe.acceptance)
        });
        let with_server = format!("{:016x}", key.with_server("10.20.0.11".parse().unwrap()));
        let address = "192.0.2.7".parse().unwrap();
        let others = [
            PlacementKey::of_address(&HashKey::DEFAULT, address).to_string(),
            PlacementKey::of_endpoint(&HashKey::DEFAULT, address, 40000).to_string(),
            PlacementKey::of_vip(&HashKey::DEFAULT, address).to_string(),
            format!("{:016x}", HashKey::DEFAULT.draw_seed()),
        ];
        let lines = [lines.to_vec(), probes.to_vec(), vec![with_server], others.to_vec()].concat();
        assert_eq!(lines.join("\n"), include_str!("scheduler/golden/keys.txt").trim_end());
    }

    #[test]
    fn every_field_of_the_flow_reaches_the_key() {
        let base = flow("192.0.2.7", 40000, "198.51.100.10", 5432, 6);
        let others = [
            FlowTuple { client: "192.0.2.8".parse().unwrap(), ..base },
            FlowTuple { client_port: 40001, ..base },
            FlowTuple { vip: "198.51.100.11".parse().unwrap(), ..base },
            FlowTuple { vip_port: 5433, ..base },
            FlowTuple { protocol: 17, ..base },
        ];
        let key = PlacementKey::of_flow(&HashKey::DEFAULT, &base);
        for other in others {
            assert_ne!(PlacementKey::of_flow(&HashKey::DEFAULT, &other), key, "{other:?}");
        }
        assert_ne!(PlacementKey::of_flow(&HashKey([0; 16]), &base), key);
    }

    #[test]
    fn a_prefix_drops_its_host_bits_and_nothing_else() {
        let cases = [
            ("192.0.2.129", 24, 64, "192.0.2.0/24"),
            ("192.0.2.129", 32, 64, "192.0.2.129/32"),
            ("192.0.2.129", 0, 64, "0.0.0.0/0"),
            ("192.0.2.129", 99, 64, "192.0.2.129/32"),
            ("2001:db8:1:2:3::4", 24, 64, "2001:db8:1:2::/64"),
            ("2001:db8:1:2:3::4", 24, 128, "2001:db8:1:2:3::4/128"),
            ("2001:db8:1:2:3::4", 24, 0, "::/0"),
        ];
        for (client, v4, v6, expected) in cases {
            let prefix = ClientPrefix::new(client.parse().unwrap(), v4, v6);
            assert_eq!(prefix.to_string(), expected, "{client} {v4} {v6}");
        }
    }

    #[test]
    fn slots_stay_inside_the_table_and_fill_it_evenly() {
        let size = 97;
        let mut counts = vec![0u32; size as usize];
        for port in 0..9_700u16 {
            let key = PlacementKey::of_flow(
                &HashKey::DEFAULT,
                &flow("192.0.2.7", port, "198.51.100.10", 5432, 6),
            );
            for k in 0..10 {
                counts[key.probe(k).slot(size) as usize] += 1;
            }
        }
        // 1000 expected each, standard deviation 31: five of them.
        assert!(counts.iter().all(|&count| (840..1160).contains(&count)), "{counts:?}");
    }

    #[test]
    fn a_key_is_not_shown_by_debug() {
        let shown = format!("{:?}", HashKey::DEFAULT);
        assert!(!shown.contains("65, 100") && shown.contains("HashKey("), "{shown}");
    }
}
