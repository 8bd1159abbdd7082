//! Path MTU of the tunnels, one per real server (RFC 1191, RFC 8201, RFC 2003 §5.1, RFC 2473 §7.1).
//!
//! It is learned from ICMP errors about outer packets. Anybody can write such a message, so it has
//! to prove that its author saw one of our packets:
//!
//! * Over IPv4 with DF, the identification of the outer header is a [`cookie`]. It is computed
//!   again from the quoted first 8 bytes behind the outer header, all that old routers quote
//!   (RFC 792).
//! * Where the quote reaches to the inner ports, and the quoted flow is in the flow table, it must be
//!   there on that real server, and for TCP the quoted sequence number must be near the flow's.
//! * Over IPv6 there is no such field; the quoted flow must be in the flow table.
//!
//! A forger who knows nothing but addresses has 16 guesses a minute at 16 bits with two secrets in
//! force: once in a day or so one real server's path MTU falls to its floor for 10 minutes. One who
//! has a flow of his own, and knows which real server it is on, has 256, since a router's honest
//! errors must not be shut out by a handful of packets.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{
    icmp::{self, ErrorKind, ErrorMessage, Message, Unreachable},
    ids::RealId,
    packet::{Address, Datagram, Family, Quote},
    snapshot::{RealServer, RealServers, Snapshot},
    time::Time,
    verdict::DropReason,
};

/// How long a learned path MTU holds before larger packets try again (RFC 1191 §6.3, RFC 8201 §4,
/// and Linux's `mtu_expires`).
pub const MTU_LIFETIME: Duration = Duration::from_secs(600);
/// The least path MTU believed over IPv4: Linux's `min_pmtu` (512 bytes of data, 40 of headers).
/// Less is claimed by attackers, who gain from many small packets, and by hardly any real link.
pub const MTU_FLOOR_V4: u16 = 552;
/// The least MTU of an IPv6 link (RFC 8200 §5).
pub const MTU_FLOOR_V6: u16 = 1280;
/// The least MTU of an IPv4 link (RFC 791 §3.2). A message that says less is nonsense.
const MTU_MIN_V4: u32 = 68;
/// Wrong cookies of a minute after which quotes without a flow are not believed any more.
const WRONG_COOKIES_MAX: u16 = 16;
/// The same for quotes with a flow that is tracked: few can write them.
const WRONG_COOKIES_MAX_WITH_FLOW: u16 = 256;
/// The minute.
const WRONG_COOKIES_WINDOW: Duration = Duration::from_secs(60);
/// From the first identification of a real server to that of the next: the golden ratio in each half,
/// so that multiples of it are spread evenly. It is odd: no two are alike.
const FAR_APART: u32 = 0x9e37_9e37;
/// What links there are, for routers that do not say their MTU (RFC 1191 §7.1), from the top.
const PLATEAUS: [u16; 10] = [65535, 32000, 17914, 8166, 4352, 2002, 1492, 1006, 508, 296];

/// Identification of an outer IPv4 packet with DF: the XOR-fold of the first 8 bytes behind the outer
/// header, and a secret. RFC 6864 §4.1 leaves the field free there; 0 is avoided, since some
/// middleboxes fill it in.
///
/// With IP in IP the bytes hold the inner length and identification (IPv4) or flow label (IPv6), with
/// GRE its header, with GUE ports, length and checksum of UDP: nothing that a router changes under
/// way.
pub fn cookie(payload: &[u8], secret: u16) -> u16 {
    let pairs = payload.as_chunks().0.iter().take(4);
    match pairs.fold(secret, |folded, pair| folded ^ u16::from_be_bytes(*pair)) {
        0 => 0xffff,
        cookie => cookie,
    }
}

/// The flow that a quoted inner packet belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InnerQuote {
    /// IP protocol.
    pub protocol: u8,
    /// Source address: the client.
    pub source: Address,
    /// Source port.
    pub source_port: u16,
    /// Destination address: the VIP.
    pub destination: Address,
    /// Destination port.
    pub destination_port: u16,
    /// Sequence number of a TCP segment.
    pub sequence: Option<u32>,
}

/// What the flow table says about a quoted flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowCheck {
    /// Not tracked.
    Unknown,
    /// A health check of this host, which no table tracks.
    OwnCheck,
    /// Tracked.
    Known {
        /// Real server that has it.
        real: RealId,
        /// Whether the quoted sequence number is near the client's last; true where there is none.
        sequence_plausible: bool,
    },
}

/// What a valid ICMP error about an outer packet says, when it does not change a path MTU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OuterNotice {
    /// Too big, but no smaller than known already.
    NoNews,
    /// The real server, or its network, is unreachable.
    Unreachable(Unreachable),
    /// The outer TTL ran out: a routing loop, or a hop limit set too low.
    TimeExceeded,
    /// A field of the outer header was not understood.
    ParameterProblem,
}

/// What became of an ICMP error that reached the director.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OuterError {
    /// Not about a tunnel packet of ours.
    NotOurs,
    /// About a health check of this host, and not to be proven: it teaches nothing, and is no
    /// attack, since routers say such things.
    OwnCheck,
    /// A path MTU became smaller.
    Updated {
        /// Real server at the end of the path.
        real: RealId,
        /// New path MTU, bytes of outer packet.
        mtu: u16,
    },
    /// True, and only to be counted.
    Counted {
        /// Real server at the end of the path.
        real: RealId,
        /// What it says.
        kind: OuterNotice,
    },
    /// Its cookie, flow or sequence number is wrong.
    Forged,
    /// Nothing in it can be checked, or not now (too many wrong cookies), or its MTU is absurd.
    Ignored,
    /// No valid message.
    Malformed(DropReason),
}

/// A path MTU in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LearnedMtu {
    /// Real server at the end of the path.
    pub real: RealId,
    /// Path MTU, bytes of outer packet.
    pub mtu: u16,
    /// When it is forgotten.
    pub expires: Time,
}

/// A number of 16 bits and a time in one word, so that both change at once. The time is kept to
/// 2¹⁶ ns (66 µs).
#[derive(Debug, Default)]
struct Dated(AtomicU64);

impl Dated {
    /// Bits that the number takes of the time's.
    const NUMBER: u64 = 0xffff;

    const fn split(word: u64) -> (u16, Time) {
        #[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
        let number = word as u16;
        (number, Time(word & !Self::NUMBER))
    }

    const fn joined(number: u16, time: Time) -> u64 {
        time.0 & !Self::NUMBER | number as u64
    }

    fn get(&self) -> (u16, Time) {
        // Relaxed: it guards no other memory.
        Self::split(self.0.load(Relaxed))
    }

    /// Puts `change` of what is there in its place, unless that is `None`; whether it was.
    fn update(&self, mut change: impl FnMut(u16, Time) -> Option<(u16, Time)>) -> bool {
        let change = |word| {
            let (number, time) = Self::split(word);
            change(number, time).map(|(number, time)| Self::joined(number, time))
        };
        self.0.fetch_update(Relaxed, Relaxed, change).is_ok()
    }
}

/// What all workers know of the path to a real server.
#[derive(Debug, Default)]
struct Path {
    /// Learned MTU, and until when it is in force.
    learned: Dated,
    /// Wrong cookies, and since when they are counted.
    wrong_cookies: Dated,
}

impl Path {
    fn learned(&self, now: Time) -> Option<u16> {
        let (mtu, expires) = self.learned.get();
        (now < expires).then_some(mtu)
    }

    fn count_wrong_cookie(&self, now: Time) {
        self.wrong_cookies.update(|count, window| {
            let ended = now.saturating_since(window) >= WRONG_COOKIES_WINDOW;
            Some(if ended { (1, now) } else { (count.saturating_add(1), window) })
        });
    }

    /// Whether so many cookies were wrong that one more guess may not be had.
    fn is_under_attack(&self, now: Time, limit: u16) -> bool {
        let (count, window) = self.wrong_cookies.get();
        count >= limit && now.saturating_since(window) < WRONG_COOKIES_WINDOW
    }

    /// Takes over an MTU if it is lower than the one in force, which is at most `link_mtu`.
    fn lower(&self, now: Time, link_mtu: u16, mtu: u16) -> bool {
        self.learned.update(|present, expires| {
            let present = if now < expires { present.min(link_mtu) } else { link_mtu };
            (mtu < present).then_some((mtu, now + MTU_LIFETIME))
        })
    }
}

/// An ICMP error about a packet in a tunnel, with what can be checked.
struct Claim<'a> {
    message: &'a ErrorMessage,
    /// The quote, from its outer header on.
    quoted: &'a [u8],
    /// The flow it belongs to, where the quote is long enough to say.
    inner: Option<InnerQuote>,
}

/// How far a claim could be checked.
enum Proof {
    Valid,
    Forged,
    Ignored,
    OwnCheck,
}

impl Claim<'_> {
    /// Whether the quoted outer packet has a cookie: IPv4 with DF.
    const fn has_cookie(&self) -> bool {
        matches!(self.message.quote.family, Family::V4) && self.message.quote.dont_fragment
    }

    fn cookie_is_right(&self, secrets: [u16; 2]) -> bool {
        let payload = &self.quoted[self.message.quote.header_len..];
        secrets.iter().any(|secret| cookie(payload, *secret) == self.message.quote.identification)
    }

    /// The MTU that is claimed, if it is one that can be: floored, and guessed where an old router
    /// does not say (RFC 1191 §5). A packet without DF cannot have been too big.
    fn mtu(&self, claimed: u32) -> Option<u16> {
        let quote = &self.message.quote;
        match quote.family {
            Family::V4 if !quote.dont_fragment => None,
            Family::V4 => {
                let mtu = match claimed {
                    0 => next_plateau(quote.total_len),
                    1..MTU_MIN_V4 => return None,
                    _ => saturating_u16(claimed),
                };
                Some(mtu.max(MTU_FLOOR_V4))
            }
            // RFC 8201 §4: such a message must be discarded.
            Family::V6 if claimed < u32::from(MTU_FLOOR_V6) => None,
            Family::V6 => Some(saturating_u16(claimed)),
        }
    }
}

/// The largest of [`PLATEAUS`] that is smaller than a packet which did not go through.
fn next_plateau(total_len: usize) -> u16 {
    let smaller = |plateau: &&u16| usize::from(**plateau) < total_len;
    PLATEAUS.iter().find(smaller).copied().unwrap_or(0)
}

fn saturating_u16(mtu: u32) -> u16 {
    u16::try_from(mtu).unwrap_or(u16::MAX)
}

/// The flow of the packet in the tunnel, if the quote reaches to its ports and it is no later
/// fragment. `between` bytes stand between it and the outer IP header.
fn inner_quote(outer: &Quote, quoted: &[u8], between: usize) -> Option<InnerQuote> {
    let bytes = quoted.get(outer.header_len + between..)?;
    let inner = Quote::parse(bytes).ok()?;
    let (source_port, destination_port) = inner.ports(bytes)?;
    Some(InnerQuote {
        protocol: inner.protocol,
        source: inner.source,
        source_port,
        destination: inner.destination,
        destination_port,
        sequence: inner.sequence(bytes),
    })
}

/// The flow that an ICMP error about an outer packet quotes, where it is whole enough to say: its
/// owner is the worker that can check the rest.
pub fn quoted_flow(packet: &[u8], reals: &RealServers) -> Option<InnerQuote> {
    let datagram = Datagram::parse(packet).ok()?;
    let Ok(Message::Error(message)) = icmp::classify(&datagram, packet) else { return None };
    let quote = &message.quote;
    let quoted = &packet[message.quote_range()];
    let mut servers = reals.of_tunnel(&quote.source, &quote.destination);
    servers.find_map(|(_, server)| inner_quote(quote, quoted, wrote(server, quote, quoted)?))
}

/// Bytes between the outer IP header and the inner packet, if a quoted packet is one that the tunnel
/// to `server` carries.
fn wrote(server: &RealServer, quote: &Quote, quoted: &[u8]) -> Option<usize> {
    let kind = server.outers.encapsulation()?;
    kind.wrote(quote.protocol, &quoted[quote.header_len..]).then(|| kind.len())
}

/// Path MTUs of all tunnels, which workers share, and one worker's identifications; by [`RealId`].
pub struct PathMtus {
    paths: Arc<[Path]>,
    /// Identification of the last packet without DF. IPv6 uses all of it for its fragments, which
    /// 16 bits would repeat within reassembly's 60 s (RFC 8200 §4.5); IPv4 has the lower half.
    identifications: Box<[u32]>,
    /// Identifications for ids beyond `paths`.
    spare_identification: u32,
    /// From one identification to the next: a power of two, so that those of two workers never
    /// meet, not even in their lower halves.
    stride: u32,
}

impl PathMtus {
    /// For real servers with ids below `capacity`. The others are used at their link's MTU.
    pub fn new(capacity: usize) -> Self {
        Self::worker((0..capacity).map(|_| Path::default()).collect(), 0, 1)
    }

    /// The same for each of so many workers: what one learns, all know.
    pub fn for_workers(capacity: usize, workers: u16) -> impl Iterator<Item = Self> {
        let paths: Arc<[Path]> = (0..capacity).map(|_| Path::default()).collect();
        let stride = u32::from(workers).next_power_of_two();
        (0..u32::from(workers)).map(move |first| Self::worker(Arc::clone(&paths), first, stride))
    }

    fn worker(paths: Arc<[Path]>, first: u32, stride: u32) -> Self {
        // Two kinds of tunnel to one address may share what a receiver puts fragments together by:
        // addresses and protocol. So real servers begin far from each other, in either half.
        let begin = |real: u32| real.wrapping_mul(FAR_APART).wrapping_mul(stride) | first;
        let identifications = (0..).take(paths.len()).map(begin).collect();
        Self { paths, identifications, spare_identification: first, stride }
    }

    /// Path MTU to a real server: what was learned in the last 10 minutes, at most the link's MTU.
    pub fn mtu(&self, now: Time, real: RealId, link_mtu: u16) -> u16 {
        let learned = self.paths.get(real.index()).and_then(|path| path.learned(now));
        learned.map_or(link_mtu, |mtu| mtu.min(link_mtu))
    }

    /// Identification for the next packet without DF to a real server; its lower half, which is
    /// IPv4's, is never 0.
    pub fn next_identification(&mut self, real: RealId) -> u32 {
        let last = match self.identifications.get_mut(real.index()) {
            Some(identification) => identification,
            None => &mut self.spare_identification,
        };
        *last = last.wrapping_add(self.stride);
        if last.trailing_zeros() >= u16::BITS {
            *last = last.wrapping_add(self.stride);
        }
        *last
    }

    /// What was learned and holds now.
    pub fn learned(&self, now: Time) -> impl Iterator<Item = LearnedMtu> {
        (0..).map(RealId).zip(self.paths.iter()).filter_map(move |(real, path)| {
            let (mtu, expires) = path.learned.get();
            (now < expires).then_some(LearnedMtu { real, mtu, expires })
        })
    }

    /// Takes in an ICMP error that the director's host received; `packet` starts at its IP header.
    /// `flow` asks the flow table about a quoted flow.
    pub fn outer_error(
        &mut self,
        now: Time,
        packet: &[u8],
        snapshot: &Snapshot,
        mut flow: impl FnMut(&InnerQuote) -> FlowCheck,
    ) -> OuterError {
        let datagram = match Datagram::parse(packet) {
            Ok(datagram) => datagram,
            Err(error) => return OuterError::Malformed(error.into()),
        };
        let message = match icmp::classify(&datagram, packet) {
            Ok(Message::Error(message)) => message,
            Ok(Message::EchoRequest | Message::Unsupported) => return OuterError::NotOurs,
            Err(reason) => return OuterError::Malformed(reason),
        };
        let quote = &message.quote;
        let mut outcome = OuterError::NotOurs;
        let quoted = &packet[message.quote_range()];
        // Two ids share a tunnel while one that was removed still has flows, and where one address
        // is reached by several kinds: what the packet is tells those apart.
        for (real, server) in snapshot.reals.of_tunnel(&quote.source, &quote.destination) {
            let Some(between) = wrote(server, quote, quoted) else { continue };
            // An error goes to who sent the packet it is about (RFC 1122 §3.2.2, RFC 4443 §2.2).
            if datagram.destination != quote.source {
                return OuterError::Malformed(DropReason::Malformed);
            }
            let inner = inner_quote(quote, quoted, between);
            let claim = Claim { message: &message, quoted, inner };
            outcome = match self.prove(now, real, server.cookie_secrets, &claim, &mut flow) {
                Proof::Valid => return self.believe(now, real, server.link_mtu, &claim),
                Proof::Forged => OuterError::Forged,
                Proof::Ignored => OuterError::Ignored,
                Proof::OwnCheck => OuterError::OwnCheck,
            };
        }
        outcome
    }

    fn prove(
        &mut self,
        now: Time,
        real: RealId,
        secrets: [u16; 2],
        claim: &Claim<'_>,
        flow: impl FnOnce(&InnerQuote) -> FlowCheck,
    ) -> Proof {
        let Some(path) = self.paths.get(real.index()) else {
            return Proof::Ignored;
        };
        let flow = claim.inner.as_ref().map(flow);
        if claim.has_cookie() {
            // A flow that is not tracked proves nothing: while the table is full there are such.
            let limit = match flow {
                Some(FlowCheck::Known { .. }) => WRONG_COOKIES_MAX_WITH_FLOW,
                Some(FlowCheck::Unknown | FlowCheck::OwnCheck) | None => WRONG_COOKIES_MAX,
            };
            if path.is_under_attack(now, limit) {
                return Proof::Ignored;
            }
            if !claim.cookie_is_right(secrets) {
                path.count_wrong_cookie(now);
                return Proof::Forged;
            }
        }
        match flow {
            Some(FlowCheck::Known { real: owner, sequence_plausible: true }) if owner == real => {
                Proof::Valid
            }
            Some(FlowCheck::Known { .. }) => Proof::Forged,
            Some(FlowCheck::Unknown | FlowCheck::OwnCheck) | None if claim.has_cookie() => {
                Proof::Valid
            }
            Some(FlowCheck::Unknown) => Proof::Forged,
            Some(FlowCheck::OwnCheck) => Proof::OwnCheck,
            None => Proof::Ignored,
        }
    }

    /// Takes over a claimed MTU if it is lower than the present one. A path that widens is found by
    /// expiry only: no message is believed that says so.
    fn lower(
        &mut self,
        now: Time,
        real: RealId,
        link_mtu: u16,
        claimed: Option<u16>,
    ) -> OuterError {
        match (claimed, self.paths.get(real.index())) {
            (Some(mtu), Some(path)) if path.lower(now, link_mtu, mtu) => {
                OuterError::Updated { real, mtu }
            }
            (Some(_), _) => OuterError::Counted { real, kind: OuterNotice::NoNews },
            (None, _) => OuterError::Ignored,
        }
    }

    fn believe(&mut self, now: Time, real: RealId, link_mtu: u16, claim: &Claim<'_>) -> OuterError {
        let kind = match claim.message.kind {
            ErrorKind::TooBig { mtu } => return self.lower(now, real, link_mtu, claim.mtu(mtu)),
            ErrorKind::Unreachable(why) => OuterNotice::Unreachable(why),
            ErrorKind::TimeExceeded => OuterNotice::TimeExceeded,
            ErrorKind::ParameterProblem => OuterNotice::ParameterProblem,
        };
        OuterError::Counted { real, kind }
    }
}

#[cfg(test)]
mod tests;
