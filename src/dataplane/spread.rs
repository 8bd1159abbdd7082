//! A number per flow by which outer headers differ: it chooses among source addresses and fills
//! GUE's source port, so that network cards and routers spread flows over queues and paths.
//!
//! It is the same for all packets of a flow, in every process: a flow is never reordered, not by a
//! restart either. It need not withstand an adversary, who gains no more from it than from his
//! choice of ports.

use super::packet::{Datagram, protocol};

/// Constants of `SplitMix64`'s finaliser (Steele, Lea, Flood, OOPSLA 2014).
const MIX: [u64; 2] = [0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb];

/// The number of the flow that `packet` belongs to. Fragments have no ports but in the first piece:
/// all of them take the number of their two addresses. Out of line: most real servers need it not.
#[inline(never)]
pub fn spread(datagram: &Datagram, packet: &[u8]) -> u32 {
    let mut hash = u64::from(datagram.protocol);
    for address in [&datagram.source, &datagram.destination] {
        for word in address.as_chunks().0 {
            hash = mix(hash ^ u64::from_be_bytes(*word));
        }
    }
    if datagram.fragment.is_none()
        && matches!(datagram.protocol, protocol::TCP | protocol::UDP)
        && let Some((ports, _)) =
            packet.get(datagram.header_len..).and_then(|rest| rest.split_first_chunk::<4>())
    {
        hash = mix(hash ^ u64::from(u32::from_be_bytes(*ports)));
    }
    // The upper half is the better mixed one.
    u32::try_from(hash >> 32).unwrap_or(u32::MAX)
}

const fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ hash >> 30).wrapping_mul(MIX[0]);
    hash = (hash ^ hash >> 27).wrapping_mul(MIX[1]);
    hash ^ hash >> 31
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::sample_packets::{tcp, udp};
    use std::collections::BTreeMap;
    use std::net::SocketAddr;

    fn of(packet: &[u8]) -> u32 {
        spread(&Datagram::parse(packet).unwrap(), packet)
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_flow_has_one_number_and_flows_differ() {
        let vip = at("198.51.100.10:5432");
        let segment = |client, sequence| of(&tcp(at(client), vip, sequence, 7, b"x"));
        let first = segment("192.0.2.1:40000", 1);
        assert_eq!(first, segment("192.0.2.1:40000", 99_999));
        assert_ne!(first, segment("192.0.2.1:40001", 1));
        assert_ne!(first, segment("192.0.2.2:40000", 1));
        let datagram = of(&udp(at("192.0.2.1:40000"), vip, b"x"));
        assert_ne!(first, datagram);
        // Written down once: other versions and processes must agree.
        assert_eq!(first, GOLDEN);
    }

    const GOLDEN: u32 = 1_055_425_371;

    #[test]
    fn flows_spread_evenly() {
        let vip = at("[2001:db8::10]:5432");
        let mut parts = BTreeMap::new();
        for port in 1024..9216_u16 {
            let client = SocketAddr::new("2001:db8:1::7".parse().unwrap(), port);
            let number = u64::from(of(&tcp(client, vip, 1, 7, b"")));
            *parts.entry((number * 3) >> 32).or_insert(0_u32) += 1;
        }
        // 8192 by three, within 5 %: three standard deviations of a binomial.
        assert_eq!(parts.len(), 3);
        assert!(parts.values().all(|n| (2594..=2867).contains(n)), "{parts:?}");
    }
}
