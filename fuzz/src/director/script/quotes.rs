//! ICMP errors and what they quote. A few flows of every kind are opened; then each step of sixteen
//! bytes is one error, or one for every length its quote can be cut to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use adit::dataplane::conntrack::Ticks;
use adit::dataplane::packet::protocol;
use adit::dataplane::path_mtu::{MTU_FLOOR_V4, MTU_FLOOR_V6};
use adit::dataplane::verdict::{DropReason, Event, Source, Verdict};
use etherparse::{IpNumber, TcpHeader};

use super::super::checks::{Flows, flows};
use super::super::claims::{self, Answer, Claim};
use super::super::frames::{self, Ip};
use super::super::headers;
use super::super::world::{DIRECTOR_4, DIRECTOR_6, REALS, VIPS};
use super::{Player, client_port, ends};

/// Errors of one sequence, not counting those that differ in the length of their quote alone.
const MAX_ERRORS: usize = 48;
/// Steps of a sequence that cut a quote at every length: each is some hundred errors.
const MAX_SWEEPS: usize = 2;
/// Longest quote of such a step, beyond where the headers of any plain packet end.
const MAX_SWEPT: usize = 160;
/// Clients whose flows are opened: one sets DF, one does not.
const TALKERS: u8 = 2;
/// Types of ICMP messages that steps choose from: errors first, then what is none.
const TYPES_V4: [u8; 8] = [3, 11, 12, 4, 5, 0, 8, 40];
const TYPES_V6: [u8; 8] = [2, 1, 3, 4, 100, 137, 129, 128];

/// Who writes the errors.
const ROUTER_4: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1));
const ROUTER_6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xbeef, 0, 0, 0, 0, 1));

/// What a step of sixteen bytes says.
struct Step {
    about: u8,
    which: u8,
    kind: u8,
    code: u8,
    /// The second half of the ICMP header: MTU, pointer or length.
    rest: [u8; 4],
    /// Options or extension headers of the quoted packet.
    quoted_headers: u8,
    /// The same of the message's own packet.
    own_headers: u8,
    /// Protocol that the quoted packet says it has; 0 leaves it.
    protocol: u8,
    cut: usize,
    spoil_at: usize,
    spoil: u8,
    flags: Flags,
}

struct Flags(u8);

impl Flags {
    const fn has(&self, bit: u8) -> bool {
        self.0 >> bit & 1 != 0
    }

    /// To a VIP instead of the director, or the other way.
    const fn elsewhere(&self) -> bool {
        self.has(0)
    }

    /// The quote is as short as the step says.
    const fn cut(&self) -> bool {
        self.has(1)
    }

    const fn wrong_checksum(&self) -> bool {
        self.has(2)
    }

    /// To another VIP than the quoted one.
    const fn astray(&self) -> bool {
        self.has(3)
    }

    /// A piece of a message.
    const fn fragment(&self) -> bool {
        self.has(4)
    }

    /// A minute later, when wrong cookies are forgotten.
    const fn later(&self) -> bool {
        self.has(5)
    }

    /// Once with each length of the quote.
    const fn every_length(&self) -> bool {
        self.has(6)
    }

    /// All sends have completed.
    const fn complete(&self) -> bool {
        self.has(7)
    }
}

impl Step {
    fn read(bytes: &[u8; 16]) -> Self {
        let &[about, which, kind, code, a, b, c, d, quoted_headers, own_headers, protocol, ..] =
            bytes;
        let &[.., high, low, spoil_at, spoil, flags] = bytes;
        Self {
            about,
            which,
            kind,
            code,
            rest: [a, b, c, d],
            quoted_headers,
            own_headers,
            protocol,
            cut: u16::from_be_bytes([high, low]).into(),
            spoil_at: spoil_at.into(),
            spoil,
            flags: Flags(flags),
        }
    }

    /// Of the message itself: its last one, where a step says so.
    const fn hop_limit(&self) -> u8 {
        if self.own_headers >> 4 == 0x0f { 1 } else { 60 }
    }

    /// Of the message itself.
    const fn dont_fragment(&self) -> bool {
        self.about & 0x40 != 0
    }

    /// Bytes of a quoted answer, so that the message fits every path, or does not.
    const fn payload(&self) -> usize {
        if self.about & 0x80 == 0 { 64 } else { 1200 }
    }

    /// Whether the quote is as the packet was, but for its length.
    const fn is_honest(&self) -> bool {
        self.spoil == 0 && self.protocol == 0 && self.quoted_headers & 0x0f == 0
    }
}

/// A quoted packet, and to whom an error about it is sent.
struct Quoted {
    packet: Vec<u8>,
    to: Addressee,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Addressee {
    Director,
    Vip(IpAddr),
}

impl Player {
    /// Opens flows, then plays the errors that the bytes describe.
    pub(in super::super) fn play_quotes(&mut self, bytes: &[u8]) {
        let samples = self.open_flows();
        let mut sweeps = 0;
        let steps = bytes.as_chunks::<16>().0.iter().map(Step::read).take(MAX_ERRORS);
        for step in steps {
            if step.flags.later() {
                self.now = self.now + Duration::from_secs(61);
                self.tick();
            }
            let Some(mut quoted) = self.quoted(&step, &samples) else { continue };
            if let Addressee::Vip(vip) = quoted.to
                && step.flags.astray()
            {
                quoted.to = Addressee::Vip(other_vip(vip));
            }
            self.spoil(&step, &mut quoted.packet);
            let len = quoted.packet.len();
            if step.flags.every_length() && sweeps < MAX_SWEEPS {
                sweeps += 1;
                for cut in 0..=len.min(MAX_SWEPT) {
                    self.quoting(&step, quoted.to, &quoted.packet[..cut]);
                }
            } else {
                let cut = if step.flags.cut() { step.cut % (len + 1) } else { len };
                self.quoting(&step, quoted.to, &quoted.packet[..cut]);
            }
            if step.flags.complete() {
                self.complete(usize::MAX, 0);
                self.hear_events();
            }
        }
    }

    /// Established flows of the TCP services, datagrams to the others; the outer packets of all.
    fn open_flows(&mut self) -> Vec<Vec<u8>> {
        const SYN: u8 = 2;
        const ACK: u8 = 16;
        let mut samples = Vec::new();
        for client in 0..TALKERS {
            for service in [0, 2, 3] {
                self.tcp([client, service, SYN, 0, 0, 0, client]);
            }
        }
        for _ in 0..3 {
            self.now = self.now + Duration::from_millis(600);
            for client in 0..TALKERS {
                for service in [0, 2, 3] {
                    self.tcp([client, service, ACK, 4, 0, 1, client]);
                    samples.extend(self.outer.front().cloned());
                }
            }
        }
        for client in 0..TALKERS {
            for service in [1, 4] {
                self.udp([client, service, 0, 32, 0, 0, client]);
                samples.extend(self.outer.front().cloned());
            }
        }
        self.complete(usize::MAX, 0);
        self.hear_events();
        samples
    }

    /// The packet that a step quotes, whole and as it was.
    fn quoted(&self, step: &Step, samples: &[Vec<u8>]) -> Option<Quoted> {
        let outer = || samples.get(usize::from(step.which) % samples.len().max(1)).cloned();
        let (ip, port, _) = ends(step.which, step.which >> 4, 0);
        let own_port = client_port(step.which);
        let answer = Ip { source: ip.destination, destination: ip.source, ..ip };
        let answered = |protocol, payload: &[u8]| Quoted {
            packet: frames::ip_packet(answer, protocol, None, payload),
            to: Addressee::Vip(ip.destination),
        };
        Some(match step.about % 8 {
            0 | 1 => Quoted { packet: outer()?, to: Addressee::Director },
            2 => {
                let header = TcpHeader::new(port, own_port, 5000, 64_000);
                answered(IpNumber::TCP, &frames::segment(&header, &vec![0x42; step.payload()]))
            }
            3 => answered(IpNumber::UDP, &frames::datagram(port, own_port, step.payload())),
            4 => {
                let header = TcpHeader::new(port, own_port, 5000, 64_000);
                let segment = frames::segment(&header, &[0x42; 32]);
                let inner = frames::ip_packet(answer, IpNumber::TCP, None, &segment);
                answered(tunnel_of(ip.source), &inner)
            }
            5 => {
                let (protocol, message) = unreachable(answer, ip, own_port, port);
                answered(protocol, &message)
            }
            6 => {
                let (protocol, message) = unreachable(ip, answer, port, own_port);
                let inner = frames::ip_packet(ip, protocol, None, &message);
                let packet = claims::wrapped_as(&outer()?, &inner)?;
                Quoted { packet, to: Addressee::Director }
            }
            _ => {
                let header = TcpHeader::new(own_port, port, 1000, 64_000);
                let segment = frames::segment(&header, &[0x42; 32]);
                let packet = frames::ip_packet(ip, IpNumber::TCP, None, &segment);
                Quoted { packet, to: Addressee::Vip(ip.destination) }
            }
        })
    }

    fn spoil(&self, step: &Step, quoted: &mut Vec<u8>) {
        headers::insert(quoted, step.quoted_headers);
        let field = if quoted[0] >> 4 == 4 { 9 } else { 6 };
        if step.protocol != 0 {
            quoted[field] = step.protocol;
        }
        if let Some(byte) = quoted.get_mut(step.spoil_at) {
            *byte ^= step.spoil;
        }
    }

    /// Sends one error with this quote, and looks at what comes of it.
    fn quoting(&mut self, step: &Step, to: Addressee, quote: &[u8]) {
        let to_director = (to == Addressee::Director) != step.flags.elsewhere();
        let ends = ends_of_error(to, to_director, quote);
        let ip = Ip { hop_limit: step.hop_limit(), dont_fragment: step.dont_fragment(), ..ends };
        let types = if ip.source.is_ipv4() { TYPES_V4 } else { TYPES_V6 };
        let kind = types[usize::from(step.kind % 8)];
        let (protocol, mut message) = frames::icmp(ip, kind, step.code, step.rest, quote);
        if step.flags.wrong_checksum() {
            message[2] ^= 1;
        }
        let place = step.flags.fragment().then_some((99, 0, true));
        let mut packet = frames::ip_packet(ip, protocol, place, &message);
        headers::insert(&mut packet, step.own_headers);

        let claim = Claim::new(kind, step.rest, quote, ip.destination);
        let before = self.effects();
        let mut alive = flows(&self.world);
        let full = alive.len() == self.world.slots.len();
        alive.retain(|_, flow| !flow.progress.is_expired(Ticks::at(self.now)));
        let events = self.shell.events.len();
        let verdict = if to_director {
            self.receive(Source::OuterError, &packet)
        } else {
            self.receive(Source::Tap, &frames::ethernet(&packet))
        };
        let effects = self.effects().since(before);

        let replied = matches!(verdict, Verdict::Reply { .. });
        assert!(!replied || !claim.is_error(), "an error was answered");
        let intact = !step.flags.wrong_checksum() && !step.flags.fragment();
        assert!(intact || effects == Effects::default(), "a broken message had an effect");
        let honest = intact && step.is_honest() && claim.is_known() && claim.is_whole();
        if to_director {
            assert_eq!(effects.forwarded, 0, "an error to the director went on");
            if effects.believed > 0 {
                claim.must_be_proven(&alive);
            }
            let right = honest && claim.has_right_cookie_alone();
            assert!(!right || verdict != Verdict::Drop(DropReason::ForgedError), "no forgery");
            self.paths_are_right(&claim, events);
        } else {
            assert_eq!(effects.believed, 0, "an error to a VIP changed a path");
            let honest = honest && step.own_headers & 0x0f == 0;
            self.client_error_is_right(
                &claim,
                &verdict,
                effects.forwarded > 0,
                honest,
                &alive,
                full,
            );
        }
    }

    /// What control was told of path MTUs since there were `told` events.
    fn paths_are_right(&self, claim: &Claim<'_>, told: usize) {
        for event in self.shell.events.iter().skip(told) {
            if let Event::PathMtu { real, mtu } = event {
                claim.must_be_about(*real);
                let v4 = REALS[real.index()].is_ipv4();
                assert!(*mtu >= if v4 { MTU_FLOOR_V4 } else { MTU_FLOOR_V6 }, "{mtu}");
            }
        }
    }

    /// An error that reached a VIP goes to who has the flow it quotes, and to nobody else.
    fn client_error_is_right(
        &self,
        claim: &Claim<'_>,
        verdict: &Verdict,
        forwarded: bool,
        honest: bool,
        alive: &Flows,
        full: bool,
    ) {
        let flow = match claim.answer() {
            Answer::Nobody => return assert!(!forwarded, "it quotes nobody's packet"),
            Answer::Unread => return,
            Answer::Of(flow) => flow,
        };
        let owned = alive.get(&flow);
        // Where flows go untracked the hash says who has them.
        let untracked = full || (flow.4 == protocol::UDP && self.world.one_packet());
        assert!(!forwarded || owned.is_some() || untracked, "it quotes no flow");
        assert!(forwarded || owned.is_none() || !honest, "{verdict:?} for a flow's error");
        if let (Some(flow), Verdict::Forward { .. } | Verdict::Fragmented) = (owned, verdict) {
            let real = self.outer.front().and_then(|outer| claims::real_of(outer));
            assert_eq!(real, Some(flow.real), "to another real server than the flow's");
        }
    }

    fn effects(&self) -> Effects {
        let worker = self.world.counters.worker.read();
        Effects {
            believed: worker.path_mtu_updates
                + worker.tunnel_unreachable
                + worker.tunnel_time_exceeded
                + worker.tunnel_parameter_problem,
            forwarded: worker.icmp_forwarded,
        }
    }
}

/// What errors have brought about.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Effects {
    /// Those about tunnels that were believed.
    believed: u64,
    /// Those about answers to clients that went to their real server.
    forwarded: u64,
}

impl Effects {
    fn since(self, before: Self) -> Self {
        Self {
            believed: self.believed - before.believed,
            forwarded: self.forwarded - before.forwarded,
        }
    }
}

/// The ends of an error: from a router to the director, or to a VIP.
fn ends_of_error(to: Addressee, to_director: bool, quote: &[u8]) -> Ip {
    let vip = match to {
        Addressee::Vip(vip) => vip,
        Addressee::Director if quote.first().is_some_and(|byte| byte >> 4 == 6) => VIPS[2],
        Addressee::Director => VIPS[0],
    };
    let (router, director) =
        if vip.is_ipv4() { (ROUTER_4, DIRECTOR_4) } else { (ROUTER_6, DIRECTOR_6) };
    let destination = if to_director { director } else { vip };
    Ip { source: router, destination, hop_limit: 60, dont_fragment: false }
}

/// The protocol of a packet of this family in a tunnel.
fn tunnel_of(inner: IpAddr) -> IpNumber {
    if inner.is_ipv4() { IpNumber::IPV4 } else { IpNumber::IPV6 }
}

/// An unreachable port, by `from`, about a packet of `about`.
fn unreachable(from: Ip, about: Ip, source_port: u16, port: u16) -> (IpNumber, Vec<u8>) {
    let quote = frames::datagram(source_port, port, 0);
    let quote = frames::ip_packet(about, IpNumber::UDP, None, &quote);
    let (kind, code) = if from.source.is_ipv4() { (3, 3) } else { (1, 4) };
    frames::icmp(from, kind, code, [0; 4], &quote)
}

fn other_vip(vip: IpAddr) -> IpAddr {
    if vip == VIPS[0] {
        VIPS[1]
    } else if vip == VIPS[1] {
        VIPS[0]
    } else {
        vip
    }
}
