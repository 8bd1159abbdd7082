use std::{
    cell::Cell,
    net::{IpAddr, SocketAddr},
};

use adit_tunnel::{Encapsulation, OuterFields, OuterTemplate, checksum};
use proptest::prelude::*;

use super::*;
use crate::dataplane::{
    packet::address,
    sample_packets::{icmp as icmp_message, in_slot, tcp, udp},
    snapshot::{Link, RealServer},
};

const SECRETS: [u16; 2] = [0x5a17, 0xc0de];
const LINK_MTU: u16 = 1500;
const SEQUENCE: u32 = 1_000_000;
const NOW: Time = Time(1_000_000_000_000);

/// Outer source, outer destination, router on the way.
const V4: [&str; 3] = ["10.0.0.5", "10.20.0.11", "192.0.2.1"];
const OTHER_V4: [&str; 3] = ["10.0.0.5", "10.30.0.21", "192.0.2.1"];
const V6: [&str; 3] = ["2001:db8:a::5", "2001:db8:b::11", "2001:db8:c::1"];
const TUNNELS: [[&str; 3]; 3] = [V4, OTHER_V4, V6];
/// Client and VIP.
const INNER_V4: [&str; 2] = ["203.0.113.7:40000", "198.51.100.10:5432"];
const INNER_V6: [&str; 2] = ["[2001:db8:9::7]:40000", "[2001:db8::10]:5432"];
/// Bytes quoted: 8 behind the outer header, as routers of RFC 792 do it.
const SHORT: usize = 28;
/// Bytes quoted: what fits 576, as Linux does it.
const LONG: usize = 548;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn ends(inner: [&str; 2]) -> [SocketAddr; 2] {
    inner.map(|end| end.parse().unwrap())
}

fn template(tunnel: [&str; 3]) -> OuterTemplate {
    OuterTemplate::new(ip(tunnel[0]), ip(tunnel[1]), 64).unwrap()
}

fn id_of(tunnel: [&str; 3]) -> RealId {
    let position = TUNNELS.iter().position(|known| *known == tunnel).unwrap();
    RealId(u32::try_from(position).unwrap())
}

fn snapshot() -> Snapshot {
    let real = |tunnel| {
        Some(RealServer {
            outers: template(tunnel).into(),
            link: Link::None,
            link_mtu: LINK_MTU,
            cookie_secrets: SECRETS,
        })
    };
    Snapshot { reals: TUNNELS.map(real).to_vec().into(), ..Default::default() }
}

/// A flow table with the sample flows, on `real`.
fn flow_of(real: RealId) -> impl FnMut(&InnerQuote) -> FlowCheck {
    move |quote| {
        let quoted = (quote.source, quote.source_port, quote.destination, quote.destination_port);
        let known = [INNER_V4, INNER_V6].map(ends).into_iter().any(|[client, vip]| {
            quoted == (address(client.ip()), client.port(), address(vip.ip()), vip.port())
        });
        if !known {
            return FlowCheck::Unknown;
        }
        let near = |sequence: u32| sequence.wrapping_sub(SEQUENCE) < 1 << 20;
        FlowCheck::Known { real, sequence_plausible: quote.sequence.is_none_or(near) }
    }
}

fn segment(inner: [&str; 2], sequence: u32) -> Vec<u8> {
    let [client, vip] = ends(inner);
    tcp(client, vip, sequence, 77, &[0x42; 1400])
}

/// What Adit sends into a tunnel for `inner`.
fn outer(tunnel: [&str; 3], inner: &[u8], secret: u16, dont_fragment: bool) -> Vec<u8> {
    let (mut slot, range) = in_slot(inner);
    let identification = if dont_fragment { cookie(inner, secret) } else { 7 };
    let fields = OuterFields { dont_fragment, identification, ..OuterFields::default() };
    let start = template(tunnel).encapsulate(&mut slot, range.clone(), fields).unwrap();
    slot[start..range.end].to_vec()
}

/// The message of a router that could not forward `outer`, quoting `quoted` bytes of it.
fn too_big(tunnel: [&str; 3], outer: &[u8], quoted: usize, mtu: u32) -> Vec<u8> {
    let type_and_code = if ip(tunnel[0]).is_ipv4() { (3, 4) } else { (2, 0) };
    let quote = &outer[..quoted.min(outer.len())];
    icmp_message(ip(tunnel[2]), ip(tunnel[0]), type_and_code, mtu.to_be_bytes(), quote)
}

/// A world to which messages come.
struct World {
    paths: PathMtus,
    snapshot: Snapshot,
    now: Time,
}

impl World {
    fn new() -> Self {
        Self { paths: PathMtus::new(TUNNELS.len()), snapshot: snapshot(), now: NOW }
    }

    fn hear(&mut self, tunnel: [&str; 3], packet: &[u8]) -> OuterError {
        self.paths.outer_error(self.now, packet, &self.snapshot, flow_of(id_of(tunnel)))
    }

    fn mtu(&self, tunnel: [&str; 3]) -> u16 {
        self.paths.mtu(self.now, id_of(tunnel), LINK_MTU)
    }

    fn pass_seconds(&mut self, seconds: u64) {
        self.now = self.now + Duration::from_secs(seconds);
    }
}

#[test]
fn a_cookie_is_a_fold_of_eight_bytes_and_a_secret() {
    let inner = [0x45, 0x00, 0x05, 0xdc, 0x12, 0x34, 0x40, 0x00, 0x99, 0x99];
    let folded = 0x4500 ^ 0x05dc ^ 0x1234 ^ 0x4000;
    assert_eq!(cookie(&inner, 0), folded);
    assert_eq!(cookie(&inner, 0x5a17), folded ^ 0x5a17);
    assert_eq!(cookie(&inner, folded), 0xffff, "0 is never sent");
    assert_eq!(cookie(&[], 3), 3);
}

#[test]
fn a_routers_message_lowers_the_path_mtu_in_all_combinations() {
    for tunnel in [V4, V6] {
        for inner in [INNER_V4, INNER_V6] {
            for secret in SECRETS {
                let mut world = World::new();
                let sent = outer(tunnel, &segment(inner, SEQUENCE), secret, true);
                let real = id_of(tunnel);
                let heard = world.hear(tunnel, &too_big(tunnel, &sent, LONG, 1400));
                assert_eq!(heard, OuterError::Updated { real, mtu: 1400 });
                assert_eq!(world.mtu(tunnel), 1400);
                let learned: Vec<_> = world.paths.learned(world.now).collect();
                let [LearnedMtu { real: of, mtu: 1400, expires }] = learned[..] else {
                    panic!("{learned:?}");
                };
                assert_eq!(of, real);
                let early = (world.now + MTU_LIFETIME).saturating_since(expires);
                assert!(early < Duration::from_micros(66), "{early:?}");
                assert_eq!(world.mtu(OTHER_V4), LINK_MTU, "another path");
            }
        }
    }
}

#[test]
fn eight_quoted_bytes_suffice_over_ipv4_and_not_over_ipv6() {
    for inner in [INNER_V4, INNER_V6] {
        for quoted in [SHORT, SHORT + 12, SHORT + 19] {
            let mut world = World::new();
            let sent = outer(V4, &segment(inner, SEQUENCE), SECRETS[0], true);
            let heard = world.hear(V4, &too_big(V4, &sent, quoted, 1400));
            assert_eq!(heard, OuterError::Updated { real: id_of(V4), mtu: 1400 });
        }
        let mut world = World::new();
        let sent = outer(V6, &segment(inner, SEQUENCE), SECRETS[0], true);
        let heard = world.hear(V6, &too_big(V6, &sent, 48, 1400));
        assert_eq!(heard, OuterError::Ignored);
        assert_eq!(world.mtu(V6), LINK_MTU);
    }
}

#[test]
fn messages_with_one_thing_wrong_are_not_believed() {
    use OuterError::{Forged, Ignored};
    let right = segment(INNER_V4, SEQUENCE);
    let flipped = |bit: u16| {
        let mut sent = outer(V4, &right, SECRETS[0], true);
        let identification = u16::from_be_bytes([sent[4], sent[5]]) ^ bit;
        sent[4..6].copy_from_slice(&identification.to_be_bytes());
        sent
    };
    let good = |inner: &[u8]| outer(V4, inner, SECRETS[0], true);
    let table = [
        ("cookie, long quote", flipped(1), LONG, Forged),
        ("cookie, short quote", flipped(0x8000), SHORT, Forged),
        ("expired secret", outer(V4, &right, 0x1111, true), LONG, Forged),
        ("sequence behind", good(&segment(INNER_V4, SEQUENCE - 1)), LONG, Forged),
        ("sequence ahead", good(&segment(INNER_V4, SEQUENCE + (1 << 20))), LONG, Forged),
        ("sent without DF", outer(V4, &right, SECRETS[0], false), LONG, Ignored),
        ("without DF, short", outer(V4, &right, SECRETS[0], false), SHORT, Ignored),
    ];
    for (what, sent, quoted, expected) in table {
        let mut world = World::new();
        assert_eq!(world.hear(V4, &too_big(V4, &sent, quoted, 1400)), expected, "{what}");
        assert_eq!(world.mtu(V4), LINK_MTU, "{what}");
        assert_eq!(world.paths.learned(world.now).count(), 0, "{what}");
    }
    for inner in [INNER_V4, INNER_V6] {
        let mut world = World::new();
        let sent = outer(V6, &segment(inner, SEQUENCE - 1), SECRETS[0], true);
        assert_eq!(world.hear(V6, &too_big(V6, &sent, LONG, 1400)), Forged);
    }
    // A flow of another real server.
    let mut world = World::new();
    let packet = too_big(V4, &good(&right), LONG, 1400);
    let flow = flow_of(id_of(OTHER_V4));
    assert_eq!(world.paths.outer_error(NOW, &packet, &world.snapshot, flow), Forged);
}

/// While the flow table is full there are flows that it does not know, forwarded by hash. Nothing
/// but the cookie can be asked of errors about them, as of those with a short quote.
#[test]
fn a_flow_that_is_not_tracked_proves_nothing_and_harms_nothing() {
    let [client, vip] = ends(INNER_V4);
    let untracked = tcp((client.ip(), 40001).into(), vip, SEQUENCE, 1, &[0; 1400]);
    let heard = |world: &mut World, tunnel, secret| {
        let sent = outer(tunnel, &untracked, secret, true);
        world.hear(tunnel, &too_big(tunnel, &sent, LONG, 1400))
    };
    let mut world = World::new();
    for _ in 0..15 {
        assert_eq!(heard(&mut world, V4, 0x1111), OuterError::Forged);
    }
    let believed = OuterError::Updated { real: id_of(V4), mtu: 1400 };
    assert_eq!(heard(&mut world, V4, SECRETS[0]), believed);
    let mut world = World::new();
    for _ in 0..16 {
        assert_eq!(heard(&mut world, V4, 0x1111), OuterError::Forged);
    }
    assert_eq!(heard(&mut world, V4, SECRETS[0]), OuterError::Ignored, "it gets 16 guesses");
    // Where there is no cookie, the flow is all there is.
    assert_eq!(heard(&mut World::new(), V6, SECRETS[0]), OuterError::Forged);
}

#[test]
fn who_has_a_flow_cannot_guess_the_cookie_for_ever() {
    let mut world = World::new();
    let heard = |world: &mut World, secret| {
        let sent = outer(V4, &segment(INNER_V4, SEQUENCE), secret, true);
        world.hear(V4, &too_big(V4, &sent, LONG, 1400))
    };
    for _ in 0..256 {
        assert_eq!(heard(&mut world, 0x1111), OuterError::Forged);
    }
    assert_eq!(heard(&mut world, SECRETS[0]), OuterError::Ignored);
    world.pass_seconds(60);
    let believed = OuterError::Updated { real: id_of(V4), mtu: 1400 };
    assert_eq!(heard(&mut world, SECRETS[0]), believed);
}

#[test]
fn a_flow_without_sequence_numbers_is_asked_for_its_tuple_only() {
    let [client, vip] = ends(INNER_V4);
    let sent = outer(V4, &udp(client, vip, &[1; 1400]), SECRETS[0], true);
    let mut world = World::new();
    let packet = too_big(V4, &sent, LONG, 1400);
    assert_eq!(world.hear(V4, &packet), OuterError::Updated { real: id_of(V4), mtu: 1400 });
}

#[test]
fn messages_about_other_packets_are_not_ours() {
    let mut world = World::new();
    let [client, vip] = ends(INNER_V4);
    let inner = segment(INNER_V4, SEQUENCE);
    let about = |tunnel: [&'static str; 3]| {
        too_big(tunnel, &outer(tunnel, &inner, SECRETS[0], true), LONG, 1400)
    };
    let own_tcp = tcp((ip(V4[0]), 22).into(), client, 1, 2, &[0; 99]);
    let packets = [
        ("another tunnel exit", about(["10.0.0.5", "10.40.0.1", "192.0.2.1"])),
        ("another tunnel entry", about(["10.0.0.6", "10.20.0.11", "192.0.2.1"])),
        ("the host's own TCP", too_big(V4, &own_tcp, LONG, 1400)),
        ("an echo request", icmp_message(ip(V4[2]), ip(V4[0]), (8, 0), [0; 4], &[0; 64])),
        ("a redirect", icmp_message(ip(V4[2]), ip(V4[0]), (5, 1), [0; 4], &[0; 64])),
        ("no ICMP", udp(client, vip, &[0; 64])),
    ];
    for (what, packet) in packets {
        assert_eq!(world.hear(V4, &packet), OuterError::NotOurs, "{what}");
    }
    // About our packet, but told to somebody else.
    let sent = outer(V4, &inner, SECRETS[0], true);
    let packet = icmp_message(ip(V4[2]), ip("10.0.0.9"), (3, 4), [0, 0, 5, 100], &sent[..LONG]);
    assert_eq!(world.hear(V4, &packet), OuterError::Malformed(DropReason::Malformed));
    let mut packet = too_big(V4, &sent, LONG, 1400);
    packet[100] ^= 1;
    assert_eq!(world.hear(V4, &packet), OuterError::Malformed(DropReason::BadChecksum));
    let packet = too_big(V4, &sent, SHORT - 1, 1400);
    assert_eq!(world.hear(V4, &packet), OuterError::Malformed(DropReason::Truncated));
    assert_eq!(world.hear(V4, &packet[..40]), OuterError::Malformed(DropReason::Truncated));
}

#[test]
fn claimed_mtus_are_floored_guessed_and_never_raised() {
    let updated = |mtu| OuterError::Updated { real: id_of(V4), mtu };
    let no_news = OuterError::Counted { real: id_of(V4), kind: OuterNotice::NoNews };
    // The packet is 1460 bytes long: its next plateau is 1006.
    let table = [
        (1499, updated(1499)),
        (1500, no_news),
        (9000, no_news),
        (552, updated(552)),
        (551, updated(552)),
        (68, updated(552)),
        (67, OuterError::Ignored),
        (1, OuterError::Ignored),
        (0, updated(1006)),
    ];
    let sent = outer(V4, &segment(INNER_V4, SEQUENCE), SECRETS[0], true);
    assert_eq!(sent.len(), 1460);
    for (claimed, expected) in table {
        let mut world = World::new();
        assert_eq!(world.hear(V4, &too_big(V4, &sent, LONG, claimed)), expected, "{claimed}");
    }
    let mut world = World::new();
    let in_turn = [(1300, updated(1300)), (1400, no_news), (1300, no_news), (1200, updated(1200))];
    for (claimed, expected) in in_turn {
        assert_eq!(world.hear(V4, &too_big(V4, &sent, LONG, claimed)), expected, "{claimed}");
    }
    let real = id_of(V6);
    let table = [
        (1280, OuterError::Updated { real, mtu: 1280 }),
        (1279, OuterError::Ignored),
        (0, OuterError::Ignored),
        (70_000, OuterError::Counted { real, kind: OuterNotice::NoNews }),
    ];
    let sent = outer(V6, &segment(INNER_V6, SEQUENCE), SECRETS[0], true);
    for (claimed, expected) in table {
        let mut world = World::new();
        assert_eq!(world.hear(V6, &too_big(V6, &sent, LONG, claimed)), expected, "{claimed}");
    }
}

#[test]
fn plateaus_go_down_step_by_step() {
    let table = [(65535, 32000), (9000, 8166), (1500, 1492), (1492, 1006), (297, 296), (296, 0)];
    for (length, plateau) in table {
        assert_eq!(next_plateau(length), plateau, "{length}");
    }
}

#[test]
fn a_learned_mtu_is_forgotten_after_ten_minutes_and_bounded_by_the_link() {
    let mut world = World::new();
    let sent = outer(V4, &segment(INNER_V4, SEQUENCE), SECRETS[0], true);
    let packet = too_big(V4, &sent, LONG, 1400);
    world.hear(V4, &packet);
    assert_eq!(world.paths.mtu(world.now, id_of(V4), 1350), 1350, "a narrower link");
    world.pass_seconds(599);
    assert_eq!(world.mtu(V4), 1400);
    world.pass_seconds(1);
    assert_eq!(world.mtu(V4), LINK_MTU);
    assert_eq!(world.paths.learned(world.now).count(), 0);
    let heard = world.hear(V4, &packet);
    assert_eq!(heard, OuterError::Updated { real: id_of(V4), mtu: 1400 }, "and learned anew");
}

#[test]
fn guessing_cookies_closes_the_short_form_for_a_minute() {
    let mut world = World::new();
    let wrong = outer(V4, &segment(INNER_V4, SEQUENCE), 0x1111, true);
    let wrong = too_big(V4, &wrong, SHORT, 1400);
    let sent = outer(V4, &segment(INNER_V4, SEQUENCE), SECRETS[0], true);
    let right = |mtu| too_big(V4, &sent, SHORT, mtu);
    for guess in 0..15 {
        assert_eq!(world.hear(V4, &wrong), OuterError::Forged, "{guess}");
    }
    let updated = |mtu| OuterError::Updated { real: id_of(V4), mtu };
    assert_eq!(world.hear(V4, &right(1490)), updated(1490), "15 are forgiven");
    assert_eq!(world.hear(V4, &wrong), OuterError::Forged);
    assert_eq!(world.hear(V4, &right(1480)), OuterError::Ignored);
    assert_eq!(world.hear(V4, &wrong), OuterError::Ignored);
    // The flow proves more than a cookie that was hit by chance; and other paths are untouched.
    assert_eq!(world.hear(V4, &too_big(V4, &sent, LONG, 1470)), updated(1470));
    let other = outer(OTHER_V4, &segment(INNER_V4, SEQUENCE), SECRETS[0], true);
    let heard = world.hear(OTHER_V4, &too_big(OTHER_V4, &other, SHORT, 1400));
    assert_eq!(heard, OuterError::Updated { real: id_of(OTHER_V4), mtu: 1400 });
    world.pass_seconds(59);
    assert_eq!(world.hear(V4, &right(1460)), OuterError::Ignored);
    world.pass_seconds(1);
    assert_eq!(world.hear(V4, &right(1460)), updated(1460), "the minute is over");
    for _ in 0..16 {
        assert_eq!(world.hear(V4, &wrong), OuterError::Forged, "and counting began anew");
    }
    assert_eq!(world.hear(V4, &wrong), OuterError::Ignored);
}

/// What is told when a router or real server sends this about a tunnel packet.
fn notice(
    tunnel: [&str; 3],
    type_and_code: (u8, u8),
    dont_fragment: bool,
    quoted: usize,
) -> Option<OuterNotice> {
    let sent = outer(tunnel, &segment(INNER_V4, SEQUENCE), SECRETS[0], dont_fragment);
    let quote = &sent[..quoted];
    let packet = icmp_message(ip(tunnel[2]), ip(tunnel[0]), type_and_code, [0; 4], quote);
    let mut world = World::new();
    let heard = world.hear(tunnel, &packet);
    assert_eq!(world.mtu(tunnel), LINK_MTU);
    if let OuterError::Counted { real, kind } = heard {
        assert_eq!(real, id_of(tunnel));
        return Some(kind);
    }
    assert_eq!(heard, OuterError::Ignored);
    None
}

#[test]
fn other_errors_are_told_and_change_nothing() {
    use Unreachable::{Host, Network, Port, Protocol};
    let table = [
        ((3, 0), OuterNotice::Unreachable(Network)),
        ((3, 1), OuterNotice::Unreachable(Host)),
        ((3, 2), OuterNotice::Unreachable(Protocol)),
        ((3, 3), OuterNotice::Unreachable(Port)),
        ((11, 0), OuterNotice::TimeExceeded),
        ((12, 0), OuterNotice::ParameterProblem),
    ];
    for (type_and_code, expected) in table {
        assert_eq!(notice(V4, type_and_code, true, LONG), Some(expected));
        assert_eq!(notice(V4, type_and_code, true, SHORT), Some(expected));
        assert_eq!(notice(V4, type_and_code, false, LONG), Some(expected), "no cookie, but a flow");
        assert_eq!(notice(V4, type_and_code, false, SHORT), None, "nothing to check");
    }
    let table = [
        ((1, 3), OuterNotice::Unreachable(Host)),
        ((4, 1), OuterNotice::Unreachable(Protocol)),
        ((3, 0), OuterNotice::TimeExceeded),
    ];
    for (type_and_code, expected) in table {
        assert_eq!(notice(V6, type_and_code, true, LONG), Some(expected));
    }
}

const KINDS: [Encapsulation; 5] = [
    Encapsulation::Ipip,
    Encapsulation::Gre { checksum: false },
    Encapsulation::Gre { checksum: true },
    Encapsulation::Gue { port: 6080, checksum: false },
    Encapsulation::Gue { port: 6081, checksum: true },
];

/// A world in which one address is reached by every kind of tunnel: their ids are the places in
/// [`KINDS`], over IPv4, then over IPv6.
fn world_of_kinds() -> World {
    let reals = [V4, V6].into_iter().flat_map(|tunnel| {
        KINDS.map(|kind| {
            let outer = OuterTemplate::with(kind, ip(tunnel[0]), ip(tunnel[1]), 64).unwrap();
            let link = Link::None;
            let outers = outer.into();
            Some(RealServer { outers, link, link_mtu: LINK_MTU, cookie_secrets: SECRETS })
        })
    });
    let reals = reals.collect::<Vec<_>>();
    let paths = PathMtus::new(reals.len());
    World { paths, snapshot: Snapshot { reals: reals.into(), ..Default::default() }, now: NOW }
}

/// What Adit sends through the tunnel with this id.
fn outer_of(world: &World, id: RealId, inner: &[u8]) -> Vec<u8> {
    let (mut slot, range) = in_slot(inner);
    let template = world.snapshot.real(id).unwrap().outers.iter().next().unwrap();
    let fields = OuterFields { dont_fragment: true, entropy: 0x3a5a, ..OuterFields::default() };
    let identification = |payload: &[u8]| cookie(payload, SECRETS[0]);
    let start =
        template.encapsulate_with(&mut slot, range.clone(), fields, identification).unwrap();
    slot[start..range.end].to_vec()
}

#[test]
fn each_kind_of_tunnel_hears_of_its_own_packets_alone() {
    for (families, tunnel) in [V4, V6].into_iter().enumerate() {
        for (place, kind) in KINDS.into_iter().enumerate() {
            for inner in [INNER_V4, INNER_V6] {
                let mut world = world_of_kinds();
                let id = RealId(u32::try_from(families * KINDS.len() + place).unwrap());
                let sent = outer_of(&world, id, &segment(inner, SEQUENCE));
                let hear = |world: &mut World, packet: &[u8]| {
                    world.paths.outer_error(NOW, packet, &world.snapshot, flow_of(id))
                };
                // As old routers quote it: the cookie alone.
                let short = too_big(tunnel, &sent, SHORT, 1400);
                let updated = OuterError::Updated { real: id, mtu: 1400 };
                if tunnel == V4 {
                    assert_eq!(hear(&mut world, &short), updated, "{kind:?}");
                }
                // With the inner packet, whose flow must be known behind headers of any kind.
                let mut world = world_of_kinds();
                let long = too_big(tunnel, &sent, LONG, 1400);
                assert_eq!(hear(&mut world, &long), updated, "{kind:?}");
                let others = world.snapshot.reals.iter().filter(|(other, _)| *other != id);
                for (other, _) in others {
                    assert_eq!(world.paths.mtu(NOW, other, LINK_MTU), LINK_MTU);
                }
                // On another real server: whoever wrote this has not seen the packet.
                let mut world = world_of_kinds();
                let elsewhere = flow_of(RealId(99));
                assert_eq!(
                    world.paths.outer_error(NOW, &long, &world.snapshot, elsewhere),
                    OuterError::Forged,
                    "{kind:?}"
                );
            }
        }
    }
}

#[test]
fn a_cookie_behind_any_header_must_be_right() {
    for (place, kind) in KINDS.into_iter().enumerate() {
        let mut world = world_of_kinds();
        let id = RealId(u32::try_from(place).unwrap());
        let mut sent = outer_of(&world, id, &segment(INNER_V4, SEQUENCE));
        sent[5] ^= 1;
        let message = too_big(V4, &sent, SHORT, 1400);
        assert_eq!(
            world.paths.outer_error(NOW, &message, &world.snapshot, flow_of(id)),
            OuterError::Forged
        );
        // A port, or a kind of GRE, that nobody sends: not ours.
        sent[23] ^= 0xff;
        if kind != Encapsulation::Ipip {
            let message = too_big(V4, &sent, SHORT, 1400);
            let heard = world.paths.outer_error(NOW, &message, &world.snapshot, flow_of(id));
            assert_eq!(heard, OuterError::NotOurs, "{kind:?}");
        }
    }
}

#[test]
fn each_id_of_a_shared_tunnel_is_tried() {
    // A removed real server that still has flows, and its successor with secrets of its own.
    let mut world = World::new();
    let mut reals: Vec<_> = world.snapshot.reals.iter().map(|real| Some(real.1.clone())).collect();
    let mut again = reals[0].clone();
    again.as_mut().unwrap().cookie_secrets = [1, 2];
    reals.push(again);
    world.snapshot.reals = reals.into();
    world.paths = PathMtus::new(4);
    let sent = outer(V4, &segment(INNER_V4, SEQUENCE), 2, true);
    let flow = flow_of(RealId(3));
    let packet = too_big(V4, &sent, LONG, 1400);
    let heard = world.paths.outer_error(NOW, &packet, &world.snapshot, flow);
    assert_eq!(heard, OuterError::Updated { real: RealId(3), mtu: 1400 });
}

#[test]
fn real_servers_beyond_the_capacity_are_used_at_their_links_mtu() {
    let mut world = World::new();
    world.paths = PathMtus::new(1);
    let sent = outer(OTHER_V4, &segment(INNER_V4, SEQUENCE), SECRETS[0], true);
    let heard = world.hear(OTHER_V4, &too_big(OTHER_V4, &sent, LONG, 1400));
    assert_eq!(heard, OuterError::Ignored);
    assert_eq!(world.mtu(OTHER_V4), LINK_MTU);
}

#[test]
fn identifications_count_per_real_server_and_skip_zero() {
    let mut paths = PathMtus::new(2);
    assert_eq!([1, 2, 3], [(); 3].map(|()| paths.next_identification(RealId(0))));
    for expected in 4..0x1_0000 {
        assert_eq!(paths.next_identification(RealId(0)), expected);
    }
    assert_eq!(paths.next_identification(RealId(0)), 0x1_0001, "past IPv4's 0");
    assert_eq!([1, 2], [9, 9].map(|id| paths.next_identification(RealId(id))));
}

/// Two kinds of tunnel to one address are two real servers, whose fragments a receiver may have to
/// tell apart by their identifications alone.
#[test]
fn real_servers_begin_far_from_each_other() {
    const REALS: u32 = 64;
    // The most that one sends while fragments of another wait.
    const APART: u32 = 256;
    for mut paths in PathMtus::for_workers(REALS as usize, 4) {
        let mut firsts: Vec<u32> =
            (0..REALS).map(|id| paths.next_identification(RealId(id)) & 0xffff).collect();
        firsts.sort_unstable();
        for pair in firsts.windows(2) {
            assert!(pair[1] - pair[0] >= APART, "{pair:?}");
        }
    }
}

/// Writes the right ICMP checksum into a message of IPv4.
fn mend_checksum(packet: &mut [u8]) {
    packet[22..24].fill(0);
    let sum = checksum::transport(checksum::Sum::ZERO, &packet[20..]);
    packet[22..24].copy_from_slice(&sum.to_be_bytes());
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut world = World::new();
        world.hear(V4, &bytes);
    }

    /// Arbitrary damage to a genuine message, its checksum mended: no panic, no MTU below its
    /// floor, and none at all where the cookie, its bytes or the tunnel's ends were touched.
    #[test]
    fn damaged_messages_are_never_believed_too_much(
        quoted in SHORT..700usize,
        at in 20usize..120,
        flip in 1u8..,
        inner_v6 in any::<bool>(),
        claimed in 0u32..2000,
    ) {
        let inner = if inner_v6 { INNER_V6 } else { INNER_V4 };
        let sent = outer(V4, &segment(inner, SEQUENCE), SECRETS[0], true);
        let mut packet = too_big(V4, &sent, quoted, claimed);
        prop_assume!(at < packet.len());
        packet[at] ^= flip;
        mend_checksum(&mut packet);
        let mut world = World::new();
        let asked = Cell::new(false);
        let mut flow = flow_of(id_of(V4));
        let heard = world.paths.outer_error(NOW, &packet, &world.snapshot, |quote| {
            asked.set(true);
            flow(quote)
        });
        if let OuterError::Updated { mtu, .. } = heard {
            prop_assert!((MTU_FLOOR_V4..LINK_MTU).contains(&mtu));
            // In the quote: identification and ends of the outer header, bytes of the cookie.
            let touched = at.wrapping_sub(28);
            prop_assert!(!matches!(touched, 4 | 5 | 12..=27), "damage at {}", touched);
            // In the inner packet: the first byte of the sequence number, where the quote reaches it.
            // With other addresses or ports it is of a flow that is not tracked, and the cookie is
            // right.
            let sequence = if inner_v6 { 64 } else { 44 };
            prop_assert!(!(asked.get() && touched == sequence), "damage at {}", touched);
        }
    }
}

#[test]
fn what_one_worker_learns_all_know_and_identifications_never_meet() {
    let workers: Vec<PathMtus> = PathMtus::for_workers(TUNNELS.len(), 3).collect();
    let mut world = World::new();
    let (tunnel, real) = (TUNNELS[0], id_of(TUNNELS[0]));
    let mut others = workers.into_iter();
    world.paths = others.next().unwrap();
    let sent = outer(tunnel, &segment(INNER_V4, SEQUENCE), SECRETS[0], true);
    world.hear(tunnel, &too_big(tunnel, &sent, LONG, 1400));
    assert_eq!(world.mtu(tunnel), 1400);
    let mut seen = std::collections::HashSet::new();
    for mut other in others.chain([world.paths]) {
        assert_eq!(other.mtu(world.now, real, 1500), 1400);
        // As many as IPv4 has for each: of four strides, one for each worker and one unused.
        for _ in 0..16_000 {
            let low = other.next_identification(real) & 0xffff;
            assert!(low != 0 && seen.insert(low), "{low} was used by another, or 0");
        }
    }
}
