//! From bytes to a sequence. A step takes eight bytes, so that a mutation changes one step and
//! leaves the others where they are: the first says what happens, the others how.

mod quotes;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use adit::dataplane::packet::ip_addr;
use adit::dataplane::persistence::PersistenceEvent;
use adit::dataplane::scheduler::Member;
use adit::dataplane::time::Time;
use adit::dataplane::verdict::{Account, EgressId, Event, HEADROOM, SendResult, Source, Verdict};
use etherparse::{IpNumber, TcpHeader};

use super::Reached;
use super::checks::{Checks, outer_packet};
use super::frames::{self, Ip};
use super::shell::{SLOT, Shell};
use super::world::{DESTINATIONS, PROBE_PORTS, REALS, Settings, VIPS, World, address_of};
use crate::checksums;

/// Steps of one sequence: a longer one finds nothing that these do not, and takes longer.
const MAX_STEPS: usize = 512;
/// Frames longer than this do not fit the slot behind its headroom.
const MAX_FRAME: usize = 3072;
/// Outer packets kept, for routers to complain about.
const REMEMBERED: usize = 8;
/// The number of clients in each family; the last ones are not clients at all.
const CLIENTS: u8 = 16;
/// Steps of the clock: within a flow's life, and beyond each timeout.
const SPANS: [Duration; 8] = [
    Duration::from_millis(1),
    Duration::from_millis(600),
    Duration::from_secs(11),
    Duration::from_secs(31),
    Duration::from_secs(61),
    Duration::from_secs(121),
    Duration::from_secs(601),
    Duration::from_secs(8101),
];

/// What a client's side of one connection has come to.
#[derive(Clone, Copy)]
struct Talk {
    sequence: u32,
    acknowledgement: u32,
}

pub(super) struct Player {
    now: Time,
    world: World,
    shell: Shell,
    slot: Vec<u8>,
    checks: Checks,
    /// By client and service.
    talks: [[Talk; 8]; CLIENTS as usize],
    /// The frame before, for steps that change it a little.
    last_frame: Vec<u8>,
    /// Outer packets on their way, the newest first.
    outer: VecDeque<Vec<u8>>,
}

impl Player {
    pub(super) fn new(settings: Settings) -> Self {
        let now = Time(3_600_000_000_000);
        let shell = Shell::new(settings.slots, settings.event_room);
        let checks = Checks::default();
        let world = World::new(settings, now);
        Self {
            now,
            world,
            shell,
            slot: vec![0; SLOT],
            checks,
            talks: [[Talk { sequence: 1000, acknowledgement: 5000 }; 8]; CLIENTS as usize],
            last_frame: Vec::new(),
            outer: VecDeque::new(),
        }
    }

    pub(super) fn play(&mut self, bytes: &[u8]) {
        let mut steps = bytes.as_chunks::<8>().0.iter();
        for _ in 0..MAX_STEPS {
            let Some([kind, how @ ..]) = steps.next() else { return };
            match kind % 13 {
                0 => self.tcp(*how),
                1 => self.udp(*how),
                2 => self.fragments(*how),
                3 => {
                    let [blocks, source, repair, ..] = how;
                    let taken: Vec<u8> =
                        steps.by_ref().take(usize::from(blocks % 64)).flatten().copied().collect();
                    self.raw(&taken, *source, *repair);
                }
                4 => self.again(*how),
                5 => self.wait(*how),
                6 => self.complete(usize::from(how[0]), how[1]),
                7 => self.router_error(*how),
                8 => self.client_error(*how),
                9 => self.control(*how),
                10 => self.neighbour(*how),
                11 => self.echo(*how),
                _ => {
                    self.shell.available = usize::from(how[0] % 17);
                    self.shell.event_room = usize::from(how[1]);
                    self.hear_events();
                }
            }
        }
    }

    /// Lets all sends complete and all timers run out: then nothing may be in flight or held.
    pub(super) fn finish(mut self) -> Reached {
        self.complete(usize::MAX, 0);
        for _ in 0..64 {
            self.now = self.now + SPANS[7];
            self.tick();
        }
        self.complete(usize::MAX, 0);
        self.checks.at_rest(&self.world);
        self.checks.reached(&self.world)
    }

    /// Gives one frame to the core and checks what comes of it.
    fn receive(&mut self, source: Source, frame: &[u8]) -> Verdict {
        let frame = &frame[..frame.len().min(MAX_FRAME)];
        let range = HEADROOM..HEADROOM + frame.len();
        self.slot.fill(0x5a);
        self.slot[range.clone()].copy_from_slice(frame);
        let before = self.checks.before(&self.world, source, frame);
        let World { director, snapshot, .. } = &mut self.world;
        let verdict =
            director.handle(self.now, snapshot, source, &mut self.slot, range, &mut self.shell);
        let outputs = std::mem::take(&mut self.shell.outputs);
        self.checks.after(&self.world, self.now, &before, &verdict, &self.slot, &outputs);
        match &verdict {
            Verdict::Forward { egress, range } => {
                remember(&mut self.outer, *egress, &self.slot[range.clone()]);
                self.shell.pending.push_back((Account::Forward, None));
            }
            Verdict::Reply { .. } => self.shell.pending.push_back((Account::Reply, None)),
            Verdict::Fragmented
            | Verdict::Pass
            | Verdict::HandedOver
            | Verdict::Hold
            | Verdict::Drop(_) => {}
        }
        for output in &outputs {
            remember(&mut self.outer, output.egress, &output.bytes);
        }
        self.checks.ledger(&self.world, &self.shell);
        if !frame.is_empty() {
            self.last_frame = frame.to_vec();
        }
        verdict
    }

    fn tick(&mut self) {
        let before = self.checks.before(&self.world, Source::Tap, &[]);
        self.world.director.tick(self.now);
        self.checks.after_tick(&self.world, self.now, &before);
        self.world.persistence.sweep(self.now, 8);
        self.shell.outputs.clear();
        self.hear_events();
        self.checks.ledger(&self.world, &self.shell);
    }

    /// Control takes the events: persistence is written.
    fn hear_events(&mut self) {
        for event in self.shell.events.drain(..) {
            if let Event::Established { destination, client } = event
                && let Some(place) = self.world.snapshot.destination(destination)
                && let Some(policy) = &place.persistence
            {
                let client = ip_addr(&client);
                let event = PersistenceEvent::established(policy, client, place.real, self.now);
                self.world.persistence.record(&event);
            }
        }
    }

    fn complete(&mut self, count: usize, result: u8) {
        let result = match result % 4 {
            0 | 1 => SendResult::Sent,
            2 => SendResult::QueueFull,
            _ => SendResult::Failed,
        };
        for _ in 0..count {
            let Some(account) = self.shell.complete() else { break };
            self.world.director.sent(account, result);
        }
        self.checks.ledger(&self.world, &self.shell);
    }

    fn tcp(&mut self, [client, service, flags, size, step, ack, misc]: [u8; 7]) {
        let (ip, port, index) = ends(client, service, misc);
        let talk = &mut self.talks[usize::from(client % CLIENTS)][index];
        match step % 8 {
            6 => talk.sequence = talk.sequence.wrapping_add(2 << 20),
            7 => talk.sequence = talk.sequence.wrapping_sub(1 << 19),
            _ => {}
        }
        match ack % 8 {
            7 => talk.acknowledgement = talk.acknowledgement.wrapping_sub(100),
            more => talk.acknowledgement = talk.acknowledgement.wrapping_add(more.into()),
        }
        let payload = vec![0x42; usize::from(size) * 8];
        let mut header = TcpHeader::new(client_port(client), port, talk.sequence, 64_000);
        header.fin = flags & 1 != 0;
        header.syn = flags & 2 != 0;
        header.rst = flags & 4 != 0;
        header.psh = flags & 8 != 0;
        header.ack = flags & 16 != 0;
        header.acknowledgment_number = talk.acknowledgement;
        if step % 8 != 5 {
            let length = u32::try_from(payload.len()).expect("small");
            let control = u32::from(header.syn) + u32::from(header.fin);
            talk.sequence = talk.sequence.wrapping_add(length + control);
        }
        let segment = frames::segment(&header, &payload);
        let frame = frames::ip_frame(ip, IpNumber::TCP, None, &segment);
        self.receive(Source::Tap, &frame);
    }

    fn udp(&mut self, [client, service, high, low, _, _, misc]: [u8; 7]) {
        let (ip, port, _) = ends(client, service, misc);
        let size = usize::from(u16::from_be_bytes([high, low])) % 2900;
        let datagram = frames::datagram(client_port(client), port, size);
        let frame = frames::ip_frame(ip, IpNumber::UDP, None, &datagram);
        self.receive(Source::Tap, &frame);
    }

    /// A datagram in up to eight pieces. `order` turns and reverses them, `lost` leaves some out.
    fn fragments(&mut self, [client, service, size, cut, order, lost, misc]: [u8; 7]) {
        let (mut ip, port, _) = ends(client, service, misc);
        ip.dont_fragment = false;
        let tcp = misc & 2 != 0;
        let whole = if tcp {
            let header = TcpHeader::new(client_port(client), port, 1000, 64_000);
            frames::segment(&TcpHeader { syn: true, ..header }, &vec![0x42; usize::from(size) * 8])
        } else {
            frames::datagram(client_port(client), port, usize::from(size) * 8)
        };
        let step = 8 * (1 + usize::from(cut % 64));
        let protocol = if tcp { IpNumber::TCP } else { IpNumber::UDP };
        let mut pieces: Vec<_> = whole
            .chunks(step)
            .enumerate()
            .take(8)
            .map(|(number, piece)| {
                let start = number * step;
                let more = start + piece.len() < whole.len();
                let place = (u16::from(order), u16::try_from(start).expect("small"), more);
                (number, frames::ip_frame(ip, protocol, Some(place), piece))
            })
            .collect();
        if order & 1 != 0 {
            pieces.reverse();
        }
        let turn = usize::from(order >> 4) % pieces.len();
        pieces.rotate_left(turn);
        for (number, frame) in pieces {
            if lost >> number & 1 == 0 {
                self.receive(Source::Tap, &frame);
            }
        }
    }

    fn raw(&mut self, bytes: &[u8], source: u8, repair: u8) {
        let mut frame = bytes.to_vec();
        if repair & 1 != 0 {
            let start = if source_of(source) == Source::OuterError { 0 } else { 14 };
            if let Some(packet) = frame.get_mut(start..) {
                checksums::repair(packet);
            }
        }
        self.receive(source_of(source), &frame);
    }

    /// The frame before, with one byte changed, some cut off, or from elsewhere.
    fn again(&mut self, [high, low, change, cut, source, repair, _]: [u8; 7]) {
        let mut frame = self.last_frame.clone();
        let at = usize::from(u16::from_be_bytes([high, low]));
        if let Some(byte) = frame.get_mut(at) {
            *byte ^= change;
        }
        frame.truncate(frame.len().saturating_sub(cut.into()));
        self.raw(&frame, source, repair);
    }

    fn wait(&mut self, [span, tick, ..]: [u8; 7]) {
        self.now = self.now + SPANS[usize::from(span % 8)];
        for _ in 0..tick % 4 {
            self.tick();
        }
    }

    /// A router complains about one of our outer packets, truthfully or not.
    fn router_error(&mut self, [which, kind, quoted, spoil, high, low, _]: [u8; 7]) {
        let Some(outer) = self.outer.get(usize::from(which) % REMEMBERED) else { return };
        let mut quote = outer[..outer.len().min(28 + 4 * usize::from(quoted))].to_vec();
        let at = usize::from(spoil >> 1);
        if let Some(byte) = quote.get_mut(at).filter(|_| spoil & 1 != 0) {
            *byte ^= 0x55;
        }
        let v4 = outer[0] >> 4 == 4;
        let forged = v4 && spoil & 1 != 0 && (4..6).contains(&at);
        let ip = Ip {
            source: if v4 { v4_address(203, 1) } else { v6_address(0xbeef) },
            destination: if v4 { v4_address(10, 5) } else { v6_address(5) },
            hop_limit: 60,
            dont_fragment: false,
        };
        let updates = self.world.counters.worker.path_mtu_updates.get();
        self.error(Source::OuterError, ip, kind, [high, low], &quote);
        let believed = self.world.counters.worker.path_mtu_updates.get() - updates;
        assert!(!forged || believed == 0, "an error with a wrong cookie was believed");
    }

    /// An error about a packet that a real server sent to a client, from the client's side.
    fn client_error(&mut self, [client, service, kind, spoil, high, low, misc]: [u8; 7]) {
        let (ip, port, _) = ends(client, service, misc);
        let answer = Ip { source: ip.destination, destination: ip.source, ..ip };
        // Sent to another VIP than the one whose packet it quotes: nobody's business.
        let astray = kind & 0x80 != 0 && ip.destination == VIPS[0];
        let ip = if astray { Ip { destination: VIPS[1], ..ip } } else { ip };
        let header = TcpHeader::new(port, client_port(client), 5000, 64_000);
        let length = if misc & 2 == 0 { 0 } else { 1240 };
        let segment = frames::segment(&header, &vec![0x42; length]);
        let mut quote = frames::ip_packet(answer, IpNumber::TCP, None, &segment);
        if misc & 2 == 0 {
            quote.truncate(quote.len() - 12);
        }
        if let Some(byte) = quote.get_mut(usize::from(spoil >> 1)).filter(|_| spoil & 1 != 0) {
            *byte ^= 0x55;
        }
        let forwarded = self.world.counters.worker.icmp_forwarded.get();
        self.error(Source::Tap, ip, kind, [high, low], &quote);
        let forwarded = self.world.counters.worker.icmp_forwarded.get() - forwarded;
        assert!(!astray || forwarded == 0, "an error about another VIP's packet was believed");
    }

    fn error(&mut self, from: Source, ip: Ip, kind: u8, mtu: [u8; 2], quote: &[u8]) {
        let v4 = ip.source.is_ipv4();
        let (kind, code) = match (kind % 6, v4) {
            (0, true) => (3, 4),
            (0, false) => (2, 0),
            (1, true) => (3, 3),
            (1, false) => (1, 4),
            (2, true) => (11, 0),
            (2, false) => (3, 0),
            (3, true) => (12, 0),
            (3, false) => (4, 1),
            (4, true) => (13, 0),
            (4, false) => (144, 0),
            (_, true) => (3, 1),
            (_, false) => (1, 3),
        };
        let (protocol, message) = frames::icmp(ip, kind, code, [0, 0, mtu[0], mtu[1]], quote);
        let frame = match from {
            Source::OuterError => frames::ip_packet(ip, protocol, None, &message),
            Source::Tap | Source::Neighbour => frames::ip_frame(ip, protocol, None, &message),
        };
        self.receive(from, &frame);
    }

    /// Health, drain, weight or membership of one member changes.
    fn control(&mut self, [member, state, ..]: [u8; 7]) {
        let id = usize::from(member) % DESTINATIONS;
        self.world.members[id] = match (self.world.members[id], state & 8 != 0) {
            (_, true) => None,
            (old, false) => {
                let address = address_of(id);
                let up = old.unwrap_or_else(|| Member::up(address, 100));
                Some(Member {
                    down: state & 1 != 0,
                    draining: state & 2 != 0,
                    effective_weight: if state & 4 != 0 { 0 } else { 100 },
                    ..up
                })
            }
        };
        self.world.publish();
    }

    fn neighbour(&mut self, [kind, source, vip, ..]: [u8; 7]) {
        let target = VIPS[usize::from(vip) % VIPS.len()];
        let frame = match target {
            IpAddr::V4(target) => {
                let claims = kind & 1 != 0;
                let sender = if claims { target } else { Ipv4Addr::new(192, 0, 2, 1) };
                frames::arp_request(frames::HOST_MAC, sender, target)
            }
            IpAddr::V6(target) => {
                let sender = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
                let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0x10);
                let to = if kind & 2 == 0 { group } else { target };
                frames::neighbour(135 + (kind & 1), sender, to, target)
            }
        };
        let source = if source & 1 == 0 { Source::Tap } else { Source::Neighbour };
        self.receive(source, &frame);
    }

    fn echo(&mut self, [client, service, size, kind, _, _, misc]: [u8; 7]) {
        let (ip, ..) = ends(client, service, misc);
        let request = if ip.source.is_ipv4() { 8 } else { 128 };
        let kind = if kind == 0 { request } else { kind };
        let (protocol, message) =
            frames::icmp(ip, kind, 0, [0, 7, 0, 1], &vec![0x42; usize::from(size)]);
        let frame = frames::ip_frame(ip, protocol, None, &message);
        self.receive(Source::Tap, &frame);
    }
}

/// Keeps an outer packet for routers to complain about.
fn remember(outer: &mut VecDeque<Vec<u8>>, egress: EgressId, bytes: &[u8]) {
    if let Some(packet) = outer_packet(egress, bytes) {
        outer.truncate(REMEMBERED - 1);
        outer.push_front(packet.to_vec());
    }
}

fn source_of(source: u8) -> Source {
    match source % 4 {
        0 | 1 => Source::Tap,
        2 => Source::Neighbour,
        _ => Source::OuterError,
    }
}

fn v4_address(site: u8, host: u8) -> IpAddr {
    if site == 10 {
        Ipv4Addr::new(10, 0, 0, host).into()
    } else {
        Ipv4Addr::new(site, 0, 113, host).into()
    }
}

fn v6_address(host: u16) -> IpAddr {
    Ipv6Addr::new(0x2001, 0xdb8, 0x10, 0, 0, 0, 0, host).into()
}

fn client_port(client: u8) -> u16 {
    40_000 + u16::from(client)
}

/// The ends of a client's packet: addresses, the VIP's port, and the number of the talk.
fn ends(client: u8, service: u8, misc: u8) -> (Ip, u16, usize) {
    let service = service % 8;
    let (destination, port) = match service {
        0 => (VIPS[0], 5432),
        1 => (VIPS[0], 55),
        2 => (VIPS[2], 5432),
        3 => (VIPS[1], 6379),
        4 => (VIPS[2], 53),
        5 => (VIPS[0], 9),
        6 => (Ipv4Addr::new(198, 51, 100, 99).into(), 5432),
        _ => (Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x99).into(), 5432),
    };
    let number = client % CLIENTS;
    let source: IpAddr = match (destination, number) {
        // Some that no client can be, and a real server.
        (IpAddr::V4(_), 13) => Ipv4Addr::new(224, 0, 0, 1).into(),
        (IpAddr::V4(_), 14) => VIPS[1],
        (IpAddr::V4(_), 15) => REALS[0],
        (IpAddr::V4(_), _) => Ipv4Addr::new(192, 0, 2, number + 1).into(),
        (IpAddr::V6(_), 13) => Ipv6Addr::LOCALHOST.into(),
        (IpAddr::V6(_), 14) => VIPS[2],
        (IpAddr::V6(_), 15) => REALS[3],
        (IpAddr::V6(_), _) => {
            Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, u16::from(number) + 1).into()
        }
    };
    // Those whose ports checks have, too, may not have come over a router.
    let checks = client_port(client) >= PROBE_PORTS.0 && misc & 2 == 0;
    let hop_limit = if checks { 255 } else { 64 - misc / 4 };
    let ip = Ip { source, destination, hop_limit, dont_fragment: misc & 1 != 0 };
    (ip, port, service.into())
}
