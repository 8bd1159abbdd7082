//! Any order, any crowd: whole datagrams reach one destination, and nothing is lost without a name.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::dataplane::packet::Address;

const SEED: [u64; 4] = [5, 6, 7, 8];
const SLOT: usize = 64;

fn source(number: u32) -> Address {
    let mut address = [0; 16];
    address[10..12].fill(0xff);
    address[12..].copy_from_slice(&number.to_be_bytes());
    address
}

fn key(source_number: u32, identification: u32) -> DatagramKey {
    DatagramKey {
        source: source(source_number),
        destination: [9; 16],
        identification,
        protocol: 17,
    }
}

/// Part `part` of a datagram in `parts` parts of 16 bytes.
fn piece(key: DatagramKey, part: u16, parts: u16) -> Piece {
    Piece { key, offset: part * 16, length: 16, more: part + 1 < parts }
}

/// What the packet of a part looks like: enough to recognise it.
fn packet(key: &DatagramKey, part: u16) -> Vec<u8> {
    let mut bytes = key.source[12..].to_vec();
    bytes.extend(key.identification.to_be_bytes());
    bytes.extend(part.to_be_bytes());
    bytes
}

/// Feeds a part as the director would; gives the packets that go out, in order.
fn feed(
    fragments: &mut Fragments,
    now: Time,
    piece: &Piece,
    destination: DestinationId,
    lost: &mut Lost,
) -> Vec<(Vec<u8>, DestinationId)> {
    let bytes = packet(&piece.key, piece.offset / 16);
    if piece.is_first() {
        let release = fragments.first(now, piece, destination, lost);
        let mut out = vec![(bytes, destination)];
        while let Some(held) = fragments.release(release) {
            out.push((held.to_vec(), destination));
        }
        return out;
    }
    match fragments.later(now, piece, &bytes, lost) {
        Later::Forward(to) => vec![(bytes, to)],
        Later::Held => vec![],
        Later::Refused => panic!("a small fragment was refused"),
    }
}

fn assert_all_is_free(fragments: &mut Fragments) {
    assert_eq!(fragments.held(), 0);
    assert_eq!((fragments.by_age.oldest(WAITING), fragments.by_age.oldest(DECIDED)), (None, None));
    assert!(fragments.sources.iter().all(|source| source.decided == 0 && source.held == 0));
    let free = std::iter::from_fn(|| fragments.by_age.pop(FREE)).count();
    assert_eq!(free, DATAGRAMS as usize);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Several datagrams of several sources, their parts shuffled together, duplicates left out:
    /// everything comes out once, at its datagram's destination, and nothing stays behind.
    #[test]
    fn any_order_is_whole(
        datagrams in prop::collection::vec((0_u32..4, 2_u16..9), 1..12),
        order in any::<u64>(),
    ) {
        let mut fragments = Fragments::new(SLOT, SEED);
        let mut parts: Vec<(u64, Piece, DestinationId)> = Vec::new();
        for (number, &(source, count)) in (0_u32..).zip(&datagrams) {
            for part in 0..count {
                let rank = (u64::from(number) << 16 | u64::from(part)).wrapping_add(order);
                let rank = rank.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_mul(order | 1);
                parts.push((rank, piece(key(source, number), part, count), DestinationId(number)));
            }
        }
        parts.sort_by_key(|(rank, ..)| *rank);
        let mut lost = Lost::default();
        let mut out = Vec::new();
        for (_, piece, destination) in &parts {
            out.extend(feed(&mut fragments, Time::ZERO, piece, *destination, &mut lost));
        }
        prop_assert_eq!(lost, Lost::default());
        let mut expected: Vec<_> = parts
            .iter()
            .map(|(_, piece, destination)| (packet(&piece.key, piece.offset / 16), *destination))
            .collect();
        // Parts of one datagram that were held come out in order of arrival behind the first.
        for (number, _) in (0_u32..).zip(&datagrams) {
            let of = |list: &[(Vec<u8>, DestinationId)], first: bool| -> Vec<Vec<u8>> {
                let mine = list.iter().filter(|(_, to)| *to == DestinationId(number));
                mine.map(|(bytes, _)| bytes.clone()).filter(|b| !first || b[9] != 0).collect()
            };
            prop_assert_eq!(of(&expected, true), of(&out, true));
        }
        expected.sort();
        out.sort();
        prop_assert_eq!(out, expected);
        assert_all_is_free(&mut fragments);
    }

    /// Anything at all, with duplicates, reused identifications, crowds and time: every fragment is
    /// out, held or lost by name; where a datagram's first was seen, all that leave agree with it.
    #[test]
    fn every_fragment_is_accounted_for(
        steps in prop::collection::vec((0_u32..400, 0_u32..3, 0_u16..4, 0_u64..400), 1..2500),
    ) {
        let mut fragments = Fragments::new(SLOT, SEED);
        let mut firsts: HashMap<DatagramKey, DestinationId> = HashMap::new();
        let mut lost = Lost::default();
        let (mut fed, mut gone, mut now) = (0, 0, Time(1));
        for (number, (source, identification, part, wait)) in (0_u32..).zip(steps) {
            if wait < 4 {
                now = now + Duration::from_secs(wait * 9);
                fragments.expire(now, &mut lost);
            }
            let piece = piece(key(source, identification), part, 4);
            let destination = DestinationId(number);
            if piece.is_first() {
                firsts.insert(piece.key, destination);
            }
            fed += 1;
            for (bytes, to) in feed(&mut fragments, now, &piece, destination, &mut lost) {
                prop_assert_eq!(&bytes[..8], &packet(&piece.key, 0)[..8]);
                prop_assert_eq!(Some(&to), firsts.get(&piece.key));
                gone += 1;
            }
            prop_assert_eq!(fed, gone + fragments.held() + lost.overflow + lost.timeout);
        }
        now = now + FRAGMENT_TIMEOUT + Duration::from_nanos(1);
        for _ in 0..2 * DATAGRAMS / EXPIRE_BUDGET {
            fragments.expire(now, &mut lost);
        }
        prop_assert_eq!(fed, gone + lost.overflow + lost.timeout);
        assert_all_is_free(&mut fragments);
    }
}

#[test]
fn the_largest_datagram_can_arrive_in_reverse() {
    let mut fragments = Fragments::new(SLOT, SEED);
    let mut lost = Lost::default();
    let mut out = Vec::new();
    for part in (0..46).rev() {
        let piece = piece(key(1, 1), part, 46);
        out.extend(feed(&mut fragments, Time::ZERO, &piece, DestinationId(3), &mut lost));
    }
    assert_eq!((out.len(), lost), (46, Lost::default()));
    assert_all_is_free(&mut fragments);
}

#[test]
fn an_identification_that_is_used_again_is_a_new_datagram() {
    let mut fragments = Fragments::new(SLOT, SEED);
    let mut lost = Lost::default();
    let mut see = |part, to| {
        feed(&mut fragments, Time::ZERO, &piece(key(1, 1), part, 2), DestinationId(to), &mut lost)
    };
    assert_eq!(see(0, 1).len(), 1);
    assert_eq!(see(1, 9), [(packet(&key(1, 1), 1), DestinationId(1))]);
    // The datagram is whole: this part is of another one with the same identification.
    assert_eq!(see(1, 9), []);
    assert_eq!(see(0, 2).iter().map(|(_, to)| to.0).collect::<Vec<_>>(), [2, 2]);
    // A first that comes while an earlier one is incomplete counts from now on.
    assert_eq!(see(0, 3).len(), 1);
    assert_eq!(see(0, 4).len(), 1);
    assert_eq!(see(1, 9), [(packet(&key(1, 1), 1), DestinationId(4))]);
}

#[test]
fn what_was_seen_before_the_identification_was_used_again_does_not_count() {
    let mut fragments = Fragments::new(SLOT, SEED);
    let mut lost = Lost::default();
    let mut see = |part, to| {
        let piece = piece(key(1, 1), part, 3);
        let out = feed(&mut fragments, Time::ZERO, &piece, DestinationId(to), &mut lost);
        out.iter().map(|(_, to)| to.0).collect::<Vec<_>>()
    };
    assert_eq!([see(0, 3), see(1, 9)], [[3], [3]]);
    assert_eq!([see(0, 4), see(2, 9), see(1, 9)], [[4], [4], [4]]);
    assert!(see(1, 9).is_empty());
}

#[test]
fn what_waits_too_long_is_lost_by_name() {
    let mut fragments = Fragments::new(SLOT, SEED);
    let mut lost = Lost::default();
    let waiting = piece(key(1, 1), 1, 3);
    feed(&mut fragments, Time::ZERO, &waiting, DestinationId(0), &mut lost);
    feed(&mut fragments, Time::ZERO, &piece(key(1, 2), 0, 3), DestinationId(7), &mut lost);
    let just = Time::ZERO + FRAGMENT_TIMEOUT;
    fragments.expire(just, &mut lost);
    assert_eq!((fragments.held(), lost), (1, Lost::default()));
    let late = just + Duration::from_nanos(1);
    // Exact on lookup too: the old decision does not count any more.
    let out = feed(&mut fragments, late, &piece(key(1, 2), 1, 3), DestinationId(0), &mut lost);
    assert_eq!(out, []);
    fragments.expire(late, &mut lost);
    assert_eq!((fragments.held(), lost), (1, Lost { overflow: 0, timeout: 1 }));
}

#[test]
fn one_source_cannot_push_out_the_others() {
    let mut fragments = Fragments::new(SLOT, SEED);
    let mut lost = Lost::default();
    let victim_waits = key(1, 1);
    let victim_decided = key(1, 2);
    feed(&mut fragments, Time::ZERO, &piece(victim_waits, 1, 2), DestinationId(0), &mut lost);
    feed(&mut fragments, Time::ZERO, &piece(victim_decided, 0, 2), DestinationId(4), &mut lost);
    let attacker =
        (2..).find(|n| fragments.source_of(&key(*n, 0)) != fragments.source_of(&key(1, 0)));
    let attacker = attacker.unwrap();
    for identification in 0..10_000 {
        let of = |part| piece(key(attacker, identification), part, 3);
        let part = u16::try_from(identification % 2).unwrap();
        feed(&mut fragments, Time::ZERO, &of(part), DestinationId(8), &mut lost);
    }
    assert_eq!(fragments.held(), 1 + HELD / SOURCE_SHARE);
    assert_eq!(lost, Lost { overflow: 5000 - HELD / SOURCE_SHARE, timeout: 0 });
    let mut then = |key, part| {
        feed(&mut fragments, Time::ZERO, &piece(key, part, 2), DestinationId(6), &mut lost)
    };
    assert_eq!(then(victim_waits, 0).len(), 2);
    assert_eq!(then(victim_decided, 1), [(packet(&victim_decided, 1), DestinationId(4))]);
}

#[test]
fn a_crowd_pushes_out_the_oldest_first() {
    let mut fragments = Fragments::new(SLOT, SEED);
    let mut lost = Lost::default();
    for number in 0..HELD + 10 {
        // Far apart: no two share their share.
        feed(&mut fragments, Time::ZERO, &piece(key(number, 1), 1, 2), DestinationId(0), &mut lost);
    }
    assert_eq!((fragments.held(), lost.overflow), (HELD, 10));
    for number in 0..HELD + 10 {
        let out = feed(
            &mut fragments,
            Time::ZERO,
            &piece(key(number, 1), 0, 2),
            DestinationId(1),
            &mut lost,
        );
        assert_eq!(out.len(), if number < 10 { 1 } else { 2 }, "{number}");
    }
}

#[test]
fn more_decisions_than_room_push_out_the_oldest() {
    let mut fragments = Fragments::new(SLOT, SEED);
    let mut lost = Lost::default();
    for number in 0..DATAGRAMS + 5 {
        feed(&mut fragments, Time::ZERO, &piece(key(number, 1), 0, 2), DestinationId(1), &mut lost);
    }
    for (number, known) in [(DATAGRAMS + 4, true), (5, true), (4, false), (0, false)] {
        let bytes = [0; 4];
        let later = fragments.later(Time::ZERO, &piece(key(number, 1), 1, 2), &bytes, &mut lost);
        assert_eq!(later == Later::Forward(DestinationId(1)), known, "{number}");
    }
}

#[test]
fn what_does_not_fit_a_slot_is_refused() {
    let mut fragments: Fragments = Fragments::new(SLOT, SEED);
    let mut lost = Lost::default();
    let bytes = [0; SLOT + 1];
    let later = fragments.later(Time::ZERO, &piece(key(1, 1), 1, 2), &bytes, &mut lost);
    assert_eq!((later, fragments.held()), (Later::Refused, 0));
    let later = fragments.later(Time::ZERO, &piece(key(1, 1), 1, 2), &bytes[1..], &mut lost);
    assert_eq!((later, fragments.held()), (Later::Held, 1));
}
