//! The flow table alone: what a hit, a new flow and an eviction cost as the table grows, and how
//! long the longest call of the sweep takes.

#![allow(missing_docs, clippy::disallowed_methods, clippy::print_stdout, reason = "a bench")]

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use adit::dataplane::{
    conntrack::{
        FlowKey, FlowTable, NewFlow, Observation, SWEEP_BUDGET, Slot, TcpSegment, Timeouts,
    },
    ids::{DestinationId, RealId, VipId},
    time::Time,
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// Packets of a batch.
const BATCH: usize = 32;
const SEED: [u64; 4] = [1, 2, 3, 4];

fn table(capacity: usize) -> FlowTable<Vec<Slot>> {
    FlowTable::new((0..capacity).map(|_| Slot::default()).collect(), SEED)
}

fn key(number: u32) -> FlowKey {
    let mut client = [0; 16];
    client[10..12].fill(0xff);
    client[12..].copy_from_slice(&number.wrapping_mul(2_654_435_761).to_be_bytes());
    FlowKey { client, client_port: 40_000, vip: VipId(1), vip_port: 5432, protocol: 6 }
}

fn new_flow(number: u32) -> NewFlow {
    NewFlow { key: key(number), real: RealId(1), destination: DestinationId(1), rederived: false }
}

fn segment(syn: bool) -> Observation {
    Observation::Tcp(TcpSegment {
        sequence: 100 - u32::from(syn),
        acknowledgement: 5,
        payload: 0,
        syn,
        ack: !syn,
        fin: false,
        rst: false,
    })
}

/// A full table of established flows.
fn full(capacity: u32) -> FlowTable<Vec<Slot>> {
    let mut table = table(capacity as usize);
    let timeouts = Timeouts::default();
    for number in 0..capacity {
        let entered =
            table.insert(Time::ZERO, &new_flow(number), &timeouts, &segment(true)).expect("room");
        for now in [Time::ZERO, Time::ZERO + Duration::from_secs(1)] {
            let _ = table.observe(entered.flow, now, &timeouts, &segment(false));
        }
    }
    table
}

/// Numbers below `bound` in an order no prefetcher knows: a full-period linear congruence.
fn scattered(bound: u32) -> impl FnMut() -> u32 {
    let mut state = 1_u64;
    move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from(((state >> 32) * u64::from(bound)) >> 32).expect("below the bound")
    }
}

fn hits(criterion: &mut Criterion) {
    let timeouts = Timeouts::default();
    let now = Time::ZERO + Duration::from_secs(2);
    let mut group = criterion.benchmark_group("flow table");
    group.throughput(Throughput::Elements(1));
    for flows in [1_000, 100_000, 1_000_000] {
        let mut table = full(flows);
        let mut next = scattered(flows);
        group.bench_function(format!("hit, {flows} flows"), |bencher| {
            bencher.iter(|| {
                let flow = table.lookup(now, &key(next())).expect("it is in");
                black_box(table.destination(flow));
                let _ = table.observe(flow, now, &timeouts, &segment(false));
            });
        });
        let mut batch = [key(0); BATCH];
        group.throughput(Throughput::Elements(BATCH as u64));
        group.bench_function(format!("{BATCH} hits, warmed first, {flows} flows"), |bencher| {
            bencher.iter(|| {
                batch.fill_with(|| key(next()));
                batch.iter().for_each(|key| table.warm(key));
                for key in &batch {
                    let flow = table.lookup(now, key).expect("it is in");
                    black_box(table.destination(flow));
                    let _ = table.observe(flow, now, &timeouts, &segment(false));
                }
            });
        });
        group.throughput(Throughput::Elements(1));
        let mut other = 0;
        group.bench_function(format!("lookup of an absent flow, {flows} flows"), |bencher| {
            bencher.iter(|| {
                other += 1;
                black_box(table.lookup(now, &key(flows + other % flows)))
            });
        });
    }
    let mut table = table(1_000_000);
    let mut number = 0;
    group.bench_function("new flow that evicts another, 1000000 flows", |bencher| {
        bencher.iter(|| {
            number += 1;
            table.insert(now, &new_flow(number), &timeouts, &segment(true)).expect("evicts").flow
        });
    });
    group.finish();
}

/// Runs of the sweep, of which each call counts with its shortest: the work is the same in all, and
/// what the kernel took away in between is not the sweep's.
const SWEEP_RUNS: u32 = 4;

/// How long each call of a whole sweep took, over a table in which all flows or none have expired.
fn sweep_calls(expired: bool) -> Vec<Duration> {
    let mut table = full(1_000_000);
    let now = Time::ZERO + Duration::from_secs(if expired { 100_000 } else { 2 });
    let calls = 1_000_000 / SWEEP_BUDGET * if expired { 9 } else { 1 };
    let call = |_| {
        let began = Instant::now();
        table.sweep(now, SWEEP_BUDGET, |ended| {
            black_box(ended);
        });
        began.elapsed()
    };
    (0..calls).map(call).collect()
}

fn sweep(_: &mut Criterion) {
    for expired in [false, true] {
        let mut least = sweep_calls(expired);
        for _ in 1..SWEEP_RUNS {
            for (least, again) in least.iter_mut().zip(sweep_calls(expired)) {
                *least = again.min(*least);
            }
        }
        let longest = least.iter().max().expect("a sweep has calls");
        let sum: Duration = least.iter().sum();
        let what = if expired { "all" } else { "no" };
        println!(
            "sweep, 1000000 flows, {what} expired: longest call {longest:?}, all {} calls {sum:?}",
            least.len()
        );
    }
}

criterion_group!(benches, hits, sweep);
criterion_main!(benches);
