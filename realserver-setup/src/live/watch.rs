//! Notes what of the packets that pass by belongs to probes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::evidence::{Evidence, Seen};
use super::packet::{Ip, Segment, arp_reply, flag, ip};
use super::talk::{Heard, Way, What};

/// Inner hop limit of a probe, at least: 255 at its host, and one less behind a director that lowers it.
const PROBE_HOP_LIMIT: u8 = 254;
/// Payload that only a bulk segment has: all else that is said in the exchange is a short line.
const BULK: usize = 256;
/// Connections that are followed: each probe makes three, and tries again once a second.
const FOLLOWED: usize = 4096;
/// Answers' segments that are remembered: some ninety of one exchange, on each interface they pass.
const REMEMBERED: usize = 65_536;
/// Senders that are named which are no directors.
const NAMED: usize = 8;

/// Where a packet was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// On an interface to a network.
    Network,
    /// On a device that has unwrapped it, or wraps it.
    Tunnel,
}

/// A packet that passes an interface.
#[derive(Clone, Copy, Debug)]
pub struct Passing<'a> {
    /// Number of the interface.
    pub interface: usize,
    /// What kind it is of.
    pub medium: Medium,
    /// Whether it leaves.
    pub leaves: bool,
    /// Whether it is ARP's, else IP's.
    pub is_arp: bool,
    /// From its ARP or IP header on, as far as it was captured.
    pub bytes: &'a [u8],
}

/// Who connects to what.
type Ends = (SocketAddr, SocketAddr);

/// What was noted up to now.
#[derive(Debug)]
pub struct Watch {
    evidence: Evidence,
    directors: BTreeSet<IpAddr>,
    gue_port: u16,
    port: u16,
    /// Connections that probes have begun, and whether they came in a director's tunnel packet.
    probes: BTreeMap<Ends, bool>,
    /// Segments of answers that have left: interface, connection, sequence number.
    sent: BTreeSet<(usize, Ends, u32)>,
}

impl Watch {
    /// Nothing was seen of these VIPs yet. `port` is where this host listens for a director.
    #[must_use]
    pub fn new(
        vips: &BTreeSet<IpAddr>,
        directors: &BTreeSet<IpAddr>,
        gue_port: u16,
        port: u16,
    ) -> Self {
        let vips = vips.iter().map(|&vip| (vip, Seen::default())).collect();
        Self {
            evidence: Evidence { vips, ..Evidence::default() },
            directors: directors.clone(),
            gue_port,
            port,
            probes: BTreeMap::new(),
            sent: BTreeSet::new(),
        }
    }

    /// What was seen.
    #[must_use]
    pub fn evidence(&self) -> &Evidence {
        &self.evidence
    }

    /// Whether all there is to see was seen, and good.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.evidence.vips.values().all(|seen| seen.is_whole(self.port))
    }

    /// Whether this connection may ask for bytes: it is a director's, or came through its tunnel.
    #[must_use]
    pub fn may_ask(&self, from: SocketAddr, to: SocketAddr) -> bool {
        let through_tunnel = || self.probes.get(&(from, to)).copied().unwrap_or(false);
        self.directors.contains(&from.ip()) || through_tunnel()
    }

    /// Packets that were not looked at.
    pub fn missed(&mut self, packets: u64) {
        self.evidence.missed = packets;
    }

    /// Packets that the reverse-path filter has dropped since the beginning.
    pub fn reverse_path_drops(&mut self, packets: u64) {
        self.evidence.reverse_path_drops = packets;
    }

    /// News of an exchange.
    pub fn heard(&mut self, heard: Heard) {
        let Some(seen) = self.evidence.vips.get_mut(&heard.vip) else { return };
        let carried = match heard.way {
            Way::Download => &mut seen.download,
            Way::Upload => &mut seen.upload,
        };
        match heard.what {
            What::Asked => carried.asked += 1,
            What::Done => carried.done += 1,
        }
    }

    /// Looks at a packet.
    pub fn passes(&mut self, passing: &Passing<'_>) {
        if passing.is_arp {
            let claimed = arp_reply(passing.bytes).filter(|_| passing.leaves);
            if let Some(seen) = claimed.and_then(|vip| self.evidence.vips.get_mut(&vip)) {
                seen.arp_replies += 1;
            }
            return;
        }
        let Some(ip) = ip(passing.bytes) else { return };
        match (passing.medium, passing.leaves) {
            (Medium::Network, false) => self.arrives(&ip),
            (Medium::Tunnel, false) => self.comes_out(&ip),
            (Medium::Network, true) => self.leaves(passing.interface, &ip),
            (Medium::Tunnel, true) => {}
        }
    }

    /// A packet from a network, perhaps a tunnel's.
    fn arrives(&mut self, outer: &Ip<'_>) {
        let Some(inner) = outer.inner(self.gue_port) else { return };
        let Some(seen) = self.evidence.vips.get_mut(&inner.destination) else { return };
        let is_probe = is_probe(&inner);
        let is_directors = self.directors.contains(&outer.source);
        match (is_directors, is_probe) {
            (true, true) => seen.arrived += 1,
            (true, false) => seen.others += 1,
            (false, true) if seen.strangers.len() < NAMED => {
                seen.strangers.insert(outer.source);
            }
            (false, _) => {}
        }
        if is_probe && let Some(segment) = inner.segment() {
            self.follow(&inner, &segment, is_directors);
        }
    }

    /// A packet that was unwrapped.
    fn comes_out(&mut self, inner: &Ip<'_>) {
        if !is_probe(inner) {
            return;
        }
        let Some(segment) = inner.segment() else { return };
        // Perhaps unseen before: what was encrypted does not pass by as a tunnel packet.
        self.follow(inner, &segment, false);
        let Some(seen) = self.evidence.vips.get_mut(&inner.destination) else { return };
        seen.unwrapped += 1;
        let port = seen.ports.entry(segment.destination_port).or_default();
        if segment.has(flag::SYN, flag::SYN | flag::ACK | flag::RST) {
            port.asked += 1;
        } else if segment.has(flag::ACK, flag::SYN | flag::ACK | flag::RST) {
            port.opened += 1;
        }
    }

    fn follow(&mut self, ip: &Ip<'_>, segment: &Segment, is_directors: bool) {
        let opens = segment.has(flag::SYN, flag::SYN | flag::ACK | flag::RST);
        if opens && self.probes.len() < FOLLOWED {
            let ends = (
                SocketAddr::new(ip.source, segment.source_port),
                SocketAddr::new(ip.destination, segment.destination_port),
            );
            *self.probes.entry(ends).or_default() |= is_directors;
        }
    }

    /// A packet to a network, perhaps an answer.
    fn leaves(&mut self, interface: usize, ip: &Ip<'_>) {
        if let Some(inner) = ip.refused().and_then(|outer| outer.inner(self.gue_port)) {
            if let Some(seen) = self.evidence.vips.get_mut(&inner.destination) {
                seen.refused += 1;
            }
            return;
        }
        let Some(segment) = ip.segment() else { return };
        let ends = (
            SocketAddr::new(ip.destination, segment.destination_port),
            SocketAddr::new(ip.source, segment.source_port),
        );
        if !self.probes.contains_key(&ends) {
            return;
        }
        let Some(seen) = self.evidence.vips.get_mut(&ip.source) else { return };
        let port = seen.ports.entry(segment.source_port).or_default();
        if segment.has(flag::SYN | flag::ACK, flag::SYN | flag::ACK | flag::RST) {
            port.accepted += 1;
            port.announced = port.announced.max(segment.largest);
        } else if segment.has(flag::RST, flag::SYN | flag::RST) {
            port.refused += 1;
        } else if segment.payload > BULK && segment.source_port == self.port {
            let is_new = self.sent.len() >= REMEMBERED
                || self.sent.insert((interface, ends, segment.sequence));
            seen.repeated += u64::from(!is_new);
        }
    }
}

fn is_probe(ip: &Ip<'_>) -> bool {
    ip.protocol == super::packet::TCP && ip.hop_limit >= PROBE_HOP_LIMIT
}

#[cfg(test)]
mod tests {
    use super::super::evidence::Connecting;
    use super::super::packet::{TCP, build};
    use super::*;

    const DIRECTOR: &str = "10.0.0.5";
    const REAL: &str = "10.20.0.11";
    const VIP: &str = "198.51.100.10";

    fn watch() -> Watch {
        let one = |address: &str| [address.parse().unwrap()].into();
        Watch::new(&one(VIP), &one(DIRECTOR), 6080, super::super::PORT)
    }

    fn seen(watch: &Watch) -> &Seen {
        watch.evidence().vips.values().next().unwrap()
    }

    fn pass(watch: &mut Watch, interface: usize, medium: Medium, leaves: bool, bytes: &[u8]) {
        watch.passes(&Passing { interface, medium, leaves, is_arp: false, bytes });
    }

    fn probe(port: u16, flags: u8, hop_limit: u8) -> Vec<u8> {
        build::ip(DIRECTOR, VIP, hop_limit, TCP, &build::tcp((61_000, port), flags, 1, 0))
    }

    fn answer(port: u16, flags: u8, sequence: u32, payload: usize) -> Vec<u8> {
        let segment = build::tcp((port, 61_000), flags, sequence, payload);
        build::ip(VIP, DIRECTOR, 64, TCP, &segment)
    }

    fn arrives(watch: &mut Watch, from: &str, inner: &[u8]) {
        let outer = build::ip(from, REAL, 64, 4, inner);
        pass(watch, 2, Medium::Network, false, &outer);
    }

    #[test]
    fn a_handshake_is_noted_step_by_step() {
        let mut watch = watch();
        let syn = probe(5432, flag::SYN, 255);
        arrives(&mut watch, DIRECTOR, &syn);
        assert_eq!((seen(&watch).arrived, seen(&watch).unwrapped), (1, 0));
        pass(&mut watch, 3, Medium::Tunnel, false, &syn);
        pass(&mut watch, 2, Medium::Network, true, &answer(5432, flag::SYN | flag::ACK, 8, 0));
        let port = |watch: &Watch| seen(watch).ports[&5432];
        let half =
            Connecting { asked: 1, accepted: 1, announced: Some(1440), ..Connecting::default() };
        assert_eq!(port(&watch), half);
        pass(&mut watch, 3, Medium::Tunnel, false, &probe(5432, flag::ACK, 254));
        assert_eq!(port(&watch), Connecting { opened: 1, ..half });
        // It closes by a reset, which opens nothing.
        pass(&mut watch, 3, Medium::Tunnel, false, &probe(5432, flag::RST | flag::ACK, 254));
        assert_eq!(port(&watch), Connecting { opened: 1, ..half });
    }

    #[test]
    fn clients_and_strangers_are_told_from_probes_of_directors() {
        let mut watch = watch();
        arrives(&mut watch, DIRECTOR, &probe(5432, flag::SYN, 63));
        arrives(&mut watch, "10.9.9.9", &probe(5432, flag::SYN, 63));
        assert_eq!((seen(&watch).others, seen(&watch).arrived), (1, 0));
        pass(&mut watch, 3, Medium::Tunnel, false, &probe(5432, flag::SYN, 63));
        // An answer to a client is none to a probe.
        pass(&mut watch, 2, Medium::Network, true, &answer(5432, flag::SYN | flag::ACK, 8, 0));
        assert!(seen(&watch).ports.is_empty() && seen(&watch).strangers.is_empty());
        arrives(&mut watch, "10.9.9.9", &probe(5432, flag::SYN, 254));
        assert_eq!(seen(&watch).strangers, ["10.9.9.9".parse().unwrap()].into());
    }

    #[test]
    fn only_directors_and_who_comes_through_their_tunnels_may_ask() {
        let mut watch = watch();
        // Not an address of `directors`, as where VIP and tunnel are of two IP versions.
        let inside = |last: u16| {
            let segment = build::tcp((61_000 + last, super::super::PORT), flag::SYN, 1, 0);
            build::ip("10.9.9.8", VIP, 255, TCP, &segment)
        };
        arrives(&mut watch, DIRECTOR, &inside(0));
        arrives(&mut watch, "10.9.9.9", &inside(1));
        for last in [0, 1, 2] {
            pass(&mut watch, 3, Medium::Tunnel, false, &inside(last));
        }
        let to = SocketAddr::new(VIP.parse().unwrap(), super::super::PORT);
        let may = |from: &str| watch.may_ask(from.parse().unwrap(), to);
        let from = ["10.9.9.8:61000", "10.9.9.8:61001", "10.9.9.8:61002", "10.0.0.5:1"];
        assert_eq!(from.map(may), [true, false, false, true]);
    }

    #[test]
    fn resets_refusals_repetitions_and_arp_replies_are_counted() {
        let mut watch = watch();
        let syn = probe(super::super::PORT, flag::SYN, 255);
        arrives(&mut watch, DIRECTOR, &syn);
        let quoted = build::ip(DIRECTOR, REAL, 64, 4, &syn);
        let message = [&[3, 3, 0, 0, 0, 0, 0, 0], &quoted[..]].concat();
        let refusal = build::ip(REAL, DIRECTOR, 64, 1, &message);
        pass(&mut watch, 2, Medium::Network, true, &refusal);
        assert_eq!(seen(&watch).refused, 1);
        pass(&mut watch, 2, Medium::Network, true, &answer(7706, flag::RST | flag::ACK, 1, 0));
        assert_eq!(seen(&watch).ports[&7706].refused, 1);
        // The same segment on a bond and on its port is sent once.
        for (interface, sequence, payload, repeated) in [
            (2, 100, 1400, 0),
            (4, 100, 1400, 0),
            (2, 1500, 1400, 0),
            (2, 100, 1400, 1),
            (2, 50, 18, 1),
            (2, 50, 18, 1),
        ] {
            let segment = answer(7706, flag::ACK, sequence, payload);
            pass(&mut watch, interface, Medium::Network, true, &segment);
            assert_eq!(seen(&watch).repeated, repeated, "{interface} {sequence}");
        }
        let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 2, 2, 0, 0, 0, 0, 1, 198, 51, 100, 10];
        arp.extend([0; 10]);
        for leaves in [false, true] {
            let (medium, bytes) = (Medium::Network, &arp[..]);
            watch.passes(&Passing { interface: 2, medium, leaves, is_arp: true, bytes });
        }
        assert_eq!(seen(&watch).arp_replies, 1, "that of somebody else is not this host's");
    }
}
