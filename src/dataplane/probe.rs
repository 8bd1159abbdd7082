//! Packets of the director's own health checks, each pinned to one real server.
//!
//! A check is a connection of this host to the VIP, from one of its own addresses and a source port
//! that says which real server it is about: a range of ports is divided into blocks, one for each
//! real server that is checked at a VIP and port. So the whole way is tried (TAP, tunnel, VIP,
//! service, direct reply) and nothing has to be registered for a check.
//!
//! What proves that a packet is the host's own is its hop limit of 255 (as in RFC 5082): one that
//! came over a router, this host included, has been lowered. A packet from such an address and port
//! without it is nothing but a client's, and is treated as one. But for resets: those that answer a
//! segment of a connection that is gone the kernel sends with the hop limit of any packet. They end
//! half-open connections that a check has left, where they find them, and get no answer; one that is
//! forged has to guess a sequence number, as everywhere.

use ahash::AHashMap;

use super::{
    conntrack::FlowKey,
    ids::{DestinationId, VipId},
    packet::{Address, protocol},
};

/// Hop limit (TTL) of a check's packets, the largest there is: whoever routes one lowers it.
pub const HOP_LIMIT: u8 = 255;

/// Which packets are checks, and whose. Built by control, never changed.
#[derive(Debug, Default)]
pub struct Probes {
    /// First port of all blocks.
    first: u16,
    /// Ports in all blocks; 0 where nothing is checked.
    count: u16,
    /// Ports in one block, at least 1 where there are any.
    each: u16,
    /// Addresses of this host that checks come from: one for each way to real servers, so few.
    sources: Box<[Address]>,
    /// By VIP and port: the destination of each block, `None` where nobody has it.
    blocks: AHashMap<(VipId, u16), Box<[Option<DestinationId>]>>,
}

/// What a packet is, as far as checks are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pinned {
    /// None of ours.
    No,
    /// A check of this destination.
    To(DestinationId),
    /// A check whose destination is not checked any more.
    Stale,
}

impl Probes {
    /// Checks from `sources` and the ports from `first` on, `each` of them for a destination.
    /// `blocks` names by VIP and port who has which block.
    pub fn new(
        (first, each): (u16, u16),
        sources: Vec<Address>,
        blocks: impl IntoIterator<Item = ((VipId, u16), Vec<Option<DestinationId>>)>,
    ) -> Self {
        let blocks: AHashMap<_, Box<[_]>> =
            blocks.into_iter().map(|(at, list)| (at, list.into())).collect();
        let most = blocks.values().map(|list| list.len()).max().unwrap_or(0);
        let room = usize::from(u16::MAX - first) + 1;
        let count = most.saturating_mul(usize::from(each)).min(room);
        let count = u16::try_from(count).unwrap_or(u16::MAX);
        Self { first, count, each: each.max(1), sources: sources.into(), blocks }
    }

    /// Whether a packet from this port can be a check. All that other packets have to do with checks.
    #[inline]
    pub fn has_port(&self, port: u16) -> bool {
        port.wrapping_sub(self.first) < self.count
    }

    /// Whether a packet with these ends can be a check, or have been one: nobody else has the addresses.
    pub fn can_be(&self, key: &FlowKey) -> bool {
        key.protocol == protocol::TCP
            && self.has_port(key.client_port)
            && self.sources.contains(&key.client)
    }

    /// What a packet is that is from such a port.
    pub fn pinned(&self, key: &FlowKey, hop_limit: u8, is_reset: bool) -> Pinned {
        let proven = hop_limit == HOP_LIMIT;
        if !((proven || is_reset) && self.can_be(key)) {
            return Pinned::No;
        }
        match self.destination(key) {
            Some(destination) => Pinned::To(destination),
            None if proven => Pinned::Stale,
            None => Pinned::No,
        }
    }

    /// Whose check an answer to one belongs to, which an ICMP error quotes. The quote proves nothing of
    /// its sender, and need not: the error goes to where the quoted answer says that it comes from, and
    /// the end of that connection looks at it as at any client's.
    #[cold]
    pub fn answered_by(&self, key: &FlowKey) -> Option<DestinationId> {
        if self.can_be(key) { self.destination(key) } else { None }
    }

    /// Who has the block of a port that is a check's.
    fn destination(&self, key: &FlowKey) -> Option<DestinationId> {
        let block = usize::from((key.client_port - self.first) / self.each);
        *self.blocks.get(&(key.vip, key.vip_port))?.get(block)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::packet::address;

    const VIP: VipId = VipId(3);

    fn probes() -> Probes {
        let blocks = vec![Some(DestinationId(7)), None, Some(DestinationId(9))];
        let source = address("10.0.0.5".parse().unwrap());
        Probes::new((61_000, 4), vec![source], [((VIP, 5432), blocks)])
    }

    fn key(client: &str, client_port: u16, vip_port: u16) -> FlowKey {
        let client = address(client.parse().unwrap());
        FlowKey { client, client_port, vip: VIP, vip_port, protocol: protocol::TCP }
    }

    #[test]
    fn each_block_is_one_destinations() {
        let probes = probes();
        let of = |port| probes.pinned(&key("10.0.0.5", port, 5432), 255, false);
        for (port, expected) in [
            (60_999, Pinned::No),
            (61_000, Pinned::To(DestinationId(7))),
            (61_003, Pinned::To(DestinationId(7))),
            (61_004, Pinned::Stale),
            (61_008, Pinned::To(DestinationId(9))),
            (61_011, Pinned::To(DestinationId(9))),
            (61_012, Pinned::No),
        ] {
            assert_eq!(of(port), expected, "{port}");
        }
        assert_eq!(probes.pinned(&key("10.0.0.5", 61_000, 80), 255, false), Pinned::Stale);
    }

    #[test]
    fn what_another_host_can_send_is_none() {
        let probes = probes();
        let of = |client, hop_limit| probes.pinned(&key(client, 61_000, 5432), hop_limit, false);
        assert_eq!(of("10.0.0.5", 254), Pinned::No, "it was routed");
        assert_eq!(of("10.0.0.6", 255), Pinned::No);
        let udp = FlowKey { protocol: protocol::UDP, ..key("10.0.0.5", 61_000, 5432) };
        assert_eq!(probes.pinned(&udp, 255, false), Pinned::No);
    }

    #[test]
    fn resets_need_no_proof_and_only_what_is_pinned_gets_them() {
        let probes = probes();
        let of = |client, port| probes.pinned(&key(client, port, 5432), 64, true);
        assert_eq!(of("10.0.0.5", 61_003), Pinned::To(DestinationId(7)));
        assert_eq!(of("10.0.0.5", 61_004), Pinned::No);
        assert_eq!(of("10.0.0.6", 61_003), Pinned::No);
    }

    #[test]
    fn errors_about_answers_find_whose_they_are() {
        let probes = probes();
        let of = |client, port| probes.answered_by(&key(client, port, 5432));
        assert_eq!(of("10.0.0.5", 61_003), Some(DestinationId(7)));
        assert_eq!(of("10.0.0.5", 61_008), Some(DestinationId(9)));
        for (client, port) in [("10.0.0.5", 61_004), ("10.0.0.5", 61_012), ("10.0.0.6", 61_003)] {
            assert_eq!(of(client, port), None, "{client} {port}");
        }
        assert_eq!(probes.answered_by(&key("10.0.0.5", 61_003, 80)), None);
        let udp = FlowKey { protocol: protocol::UDP, ..key("10.0.0.5", 61_003, 5432) };
        assert_eq!(probes.answered_by(&udp), None);
    }

    #[test]
    fn without_checks_no_port_is_theirs_and_the_last_ports_can_be() {
        assert!((0..=u16::MAX).all(|port| !Probes::default().has_port(port)));
        let blocks = vec![Some(DestinationId(1)); 2];
        let last = Probes::new((65_532, 2), Vec::new(), [((VIP, 1), blocks)]);
        assert!(last.has_port(65_535) && !last.has_port(65_531) && !last.has_port(0));
    }
}
