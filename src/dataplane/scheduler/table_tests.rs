//! The bounds of the placement table, and its golden copy.

use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;

fn address(number: usize) -> IpAddr {
    let mixed = mix64(number as u64 + 1);
    match mixed % 3 {
        0 => IpAddr::from([0x2001, 0xdb8, (mixed >> 8) as u16, 0, 0, 0, 0, number as u16]),
        _ => IpAddr::from([10, (mixed >> 8) as u8, (number >> 8) as u8, number as u8]),
    }
}

fn members(weights: &[u32]) -> Vec<Member> {
    (0..).zip(weights).map(|(i, &weight)| Member::up(address(i), weight)).collect()
}

fn addresses(table: &Table) -> Vec<IpAddr> {
    (0..table.size()).map(|slot| table.address(slot).unwrap()).collect()
}

/// Slots by address.
fn tally(table: &Table) -> HashMap<IpAddr, u32> {
    let mut counts = HashMap::new();
    for holder in addresses(table) {
        *counts.entry(holder).or_default() += 1;
    }
    counts
}

/// Share of all slots that change hands when `gone` leaves, beyond those it held.
fn moved_beyond_its_own(members: &[Member], gone: usize, key: &HashKey) -> f64 {
    let before = Table::build(members, key).unwrap();
    let rest = [&members[..gone], &members[gone + 1..]].concat();
    let after = Table::build(&rest, key).unwrap();
    let (old, new) = (addresses(&before), addresses(&after));
    assert_eq!(old.len(), new.len(), "choose counts on one side of a size's limit");
    let moved = old
        .iter()
        .zip(&new)
        .filter(|(old, new)| old != new && **old != members[gone].address)
        .count();
    moved as f64 / old.len() as f64
}

fn assert_weights_honoured(members: &[Member], table: &Table) {
    let counts = tally(table);
    let total: f64 = members.iter().map(|member| f64::from(member.weight)).sum();
    for member in members {
        let due = f64::from(table.size()) * f64::from(member.weight) / total;
        let held = f64::from(counts.get(&member.address).copied().unwrap_or(0));
        assert!((held - due).abs() <= (due / 100.0).max(1.0), "{member:?}: {held}, due {due}");
    }
}

fn some_weights() -> impl Strategy<Value = Vec<u32>> {
    let weight = prop_oneof![4 => 1..200u32, 1 => Just(100u32), 1 => 1..60_000u32, 1 => Just(1)];
    prop::collection::vec(weight, 2..60)
}

proptest! {
    // A table costs tens of milliseconds without optimisation.
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn weights_are_honoured(weights in some_weights(), key in any::<[u8; 16]>()) {
        let members = members(&weights);
        let table = Table::build(&members, &HashKey(key)).unwrap();
        assert_weights_honoured(&members, &table);
    }

    #[test]
    fn a_removal_moves_little_more_than_its_share(
        weights in some_weights(),
        gone in any::<prop::sample::Index>(),
        key in any::<[u8; 16]>(),
    ) {
        let members = members(&weights);
        let moved = moved_beyond_its_own(&members, gone.index(members.len()), &HashKey(key));
        prop_assert!(moved <= 0.01, "{moved}");
    }

    #[test]
    fn the_order_of_members_is_irrelevant(weights in some_weights(), seed in any::<u64>()) {
        let sorted = members(&weights);
        let mut shuffled = sorted.clone();
        shuffled.sort_by_key(|member| mix64(seed ^ u64::from(canonical_octets(member.address)[15])));
        let (one, other) = (
            Table::build(&sorted, &HashKey::DEFAULT).unwrap(),
            Table::build(&shuffled, &HashKey::DEFAULT).unwrap(),
        );
        prop_assert_eq!(addresses(&one), addresses(&other));
    }
}

/// Where a bound is nearest: few slots for each member, at the ends of the two smallest tables.
#[test]
fn bounds_hold_for_hundreds_of_members() {
    let mixed = |count: usize| -> Vec<u32> {
        (0..count as u64).map(|i| 1 + (mix64(i) % 200) as u32).collect()
    };
    for (weights, gone) in [
        (vec![100; 300], 17),
        (mixed(300), 150),
        (vec![1; 655], 3),
        (mixed(655), 654),
        (vec![7; 1_000], 999),
        (mixed(1_311), 1),
    ] {
        let members = members(&weights);
        let table = Table::build(&members, &HashKey::DEFAULT).unwrap();
        assert_weights_honoured(&members, &table);
        // Its own share of the keys and one percent; the share is what the weights say.
        let moved = moved_beyond_its_own(&members, gone, &HashKey::DEFAULT);
        assert!(moved <= 0.01, "{} members: {moved}", members.len());
    }
}

/// Weights as far apart as they go: still exact, and no round passes without a probe for long.
#[test]
fn extreme_weights_are_honoured() {
    for weights in [
        vec![u32::MAX, 1],
        vec![1, 0, 0],
        [vec![u32::MAX; 3], vec![1; 97]].concat(),
        [vec![60_000; 5], vec![1; 595]].concat(),
    ] {
        let members = members(&weights);
        let table = Table::build(&members, &HashKey::DEFAULT).unwrap();
        assert_weights_honoured(&members, &table);
    }
}

#[test]
fn the_hash_key_decides_who_is_where() {
    let members = members(&[100; 10]);
    let one = addresses(&Table::build(&members, &HashKey::DEFAULT).unwrap());
    let other = addresses(&Table::build(&members, &HashKey([1; 16])).unwrap());
    let alike = one.iter().zip(&other).filter(|(one, other)| one == other).count();
    // One in ten by chance, standard deviation 77 slots.
    assert!((6_100..7_000).contains(&alike), "{alike}");
}

#[test]
fn sizes_give_each_member_a_hundred_slots() {
    for (members, size) in [
        (0, Ok(65_537)),
        (655, Ok(65_537)),
        (656, Ok(131_101)),
        (1_311, Ok(131_101)),
        (1_312, Ok(262_147)),
        (MEMBERS_MAX, Ok(1_048_583)),
        (MEMBERS_MAX + 1, Err(TableError::TooManyMembers { members: MEMBERS_MAX + 1 })),
    ] {
        assert_eq!(table_size(members), size);
    }
}

#[test]
fn members_without_weight_hold_no_slot() {
    let none = Table::build(&members(&[0, 0]), &HashKey::DEFAULT).unwrap();
    assert_eq!((none.address(0), none.memory()), (None, 0));
    let table = Table::build(&members(&[0, 3]), &HashKey::DEFAULT).unwrap();
    assert_eq!(tally(&table), HashMap::from([(address(1), table.size())]));
}

#[test]
fn an_address_listed_twice_is_refused() {
    let mut members = members(&[1, 1, 1]);
    members[2].address = members[0].address;
    let refused = Table::build(&members, &HashKey::DEFAULT).err();
    assert_eq!(refused, Some(TableError::DuplicateMember { address: members[0].address }));
}

#[test]
fn services_with_the_same_members_share_a_table() {
    let mut cache = TableCache::new(HashKey::DEFAULT);
    let (some, mut reordered, other) = (members(&[1, 2, 3]), members(&[1, 2, 3]), members(&[3, 2]));
    reordered.reverse();
    reordered[0].effective_weight = 0;
    let first = cache.table(&some).unwrap();
    let second = cache.table(&reordered).unwrap();
    let third = cache.table(&other).unwrap();
    assert!(Arc::ptr_eq(&first, &second));
    assert!(!Arc::ptr_eq(&first, &third));
    assert_eq!(cache.in_use(), (2, 2 * 2 * 65_537));
    drop((first, second));
    assert_eq!(cache.in_use(), (1, 2 * 65_537));
}

/// Tables of all versions and machines are the same: this file was written once.
#[test]
fn tables_match_the_golden_file() {
    let mixed: Vec<u32> = (0..1_000).map(|i| 1 + (mix64(i) % 200) as u32).collect();
    let cases: [(&str, HashKey, Vec<u32>); 5] = [
        ("one", HashKey::DEFAULT, vec![100]),
        ("three-equal", HashKey::DEFAULT, vec![100; 3]),
        ("three-equal-other-key", HashKey([7; 16]), vec![100; 3]),
        ("five-weighted", HashKey::DEFAULT, vec![1, 10, 100, 0, 50]),
        ("thousand-mixed", HashKey::DEFAULT, mixed),
    ];
    let mut actual = String::new();
    for (name, key, weights) in cases {
        let table = Table::build(&members(&weights), &key).unwrap();
        let holders = addresses(&table);
        let bytes: Vec<u8> = holders.iter().flat_map(|&holder| canonical_octets(holder)).collect();
        let (high, low) = HashKey::DEFAULT.hash(&bytes);
        writeln!(actual, "{name} key={} size={}", key.fingerprint(), table.size()).unwrap();
        writeln!(actual, "  siphash-2-4-128 of all addresses: {high:016x}{low:016x}").unwrap();
        for holder in &holders[..8] {
            writeln!(actual, "  {holder}").unwrap();
        }
    }
    let golden = include_str!("golden/tables.txt");
    assert!(actual == golden, "placement changed; it must not. Now:\n{actual}");
}
