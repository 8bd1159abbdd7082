//! The tables of the core allocate when they are made, and never again: a counting allocator looks
//! on while they work.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    time::Duration,
};

use adit::dataplane::{
    conntrack::{
        FlowKey, FlowTable, NewFlow, Observation, SWEEP_BUDGET, Slot, TcpSegment, Timeouts,
    },
    fragments::{DatagramKey, Fragments, Later, Lost, Piece},
    ids::{DestinationId, RealId, VipId},
    time::Time,
};

thread_local! {
    /// Allocations of this thread: other threads of the test harness do not disturb.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

#[allow(unsafe_code, reason = "a global allocator is unsafe by its trait; tests only")]
// SAFETY: every call is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `System.alloc` above, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations_during(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

fn key(number: u32) -> FlowKey {
    let mut client = [0x20; 16];
    client[12..].copy_from_slice(&number.to_be_bytes());
    FlowKey { client, client_port: 1, vip: VipId(1), vip_port: 5432, protocol: 6 }
}

fn segment(kind: u32) -> Observation {
    Observation::Tcp(TcpSegment {
        sequence: 100,
        acknowledgement: 5,
        payload: 0,
        syn: kind == 0,
        ack: kind != 0,
        fin: kind == 8,
        rst: kind == 9,
    })
}

#[test]
fn the_allocator_counts() {
    assert_eq!(allocations_during(|| drop(vec![1_u8; 100])), 1);
}

#[test]
fn the_flow_table_never_allocates() {
    let slots: Vec<Slot> = (0..1000).map(|_| Slot::default()).collect();
    let mut table = FlowTable::new(slots, [1, 2, 3, 4]);
    let timeouts = Timeouts::default();
    let (mut hits, mut evictions, mut expired, mut removed) = (0, 0, 0, 0);
    let allocations = allocations_during(|| {
        for round in 0_u32..200_000 {
            let now = Time::ZERO + Duration::from_millis(u64::from(round) * 20);
            let number = (round.wrapping_mul(2_654_435_761) >> 16) % 1500;
            let observation = segment(round % 10);
            if let Some(flow) = table.lookup(now, &key(number)) {
                hits += 1;
                let _ = table.observe(flow, now, &timeouts, &observation);
                if round % 50 == 0 {
                    table.remove(flow);
                    removed += 1;
                }
            } else {
                let flow = NewFlow {
                    key: key(number),
                    real: RealId(1),
                    destination: DestinationId(1),
                    rederived: false,
                };
                if let Ok(entered) = table.insert(now, &flow, &timeouts, &observation) {
                    evictions += u32::from(entered.ended.is_some());
                }
            }
            if round % 100 == 0 {
                expired += table.sweep(now, SWEEP_BUDGET, |_| {});
            }
        }
    });
    assert_eq!(allocations, 0);
    // The work was done: each way through the table was taken many times.
    let ways =
        [("hits", hits), ("evictions", evictions), ("expired", expired), ("removed", removed)];
    for (way, count) in ways {
        assert!(count > 100, "{way}: {count}");
    }
}

#[test]
fn fragments_never_allocate() {
    let mut fragments = Fragments::new(1500, [1, 2, 3, 4]);
    let packet = [0; 1500];
    let mut lost = Lost::default();
    let (mut released, mut forwarded, mut held) = (0, 0, 0);
    let allocations = allocations_during(|| {
        for round in 0_u32..200_000 {
            let now = Time::ZERO + Duration::from_millis(u64::from(round));
            let mixed = round.wrapping_mul(2_654_435_761) >> 8;
            let mut source = [0x20; 16];
            source[2] = mixed.to_le_bytes()[0];
            let key = DatagramKey {
                source,
                destination: [1; 16],
                identification: mixed >> 8 & 7,
                protocol: 17,
            };
            let offset = if round % 2 == 0 { 0 } else { 1480 };
            let piece = Piece { key, offset, length: 1480, more: offset == 0 || round % 7 == 0 };
            if piece.is_first() {
                let release = fragments.first(now, &piece, DestinationId(1), &mut lost);
                while fragments.release(release).is_some() {
                    released += 1;
                }
            } else {
                match fragments.later(now, &piece, &packet, &mut lost) {
                    Later::Forward(_) => forwarded += 1,
                    Later::Held => held += 1,
                    Later::Refused => unreachable!("the packet fits"),
                }
            }
            if round % 100 == 0 {
                fragments.expire(now, &mut lost);
            }
        }
    });
    assert_eq!(allocations, 0);
    assert!(released > 100 && forwarded > 100 && held > 100, "{released} {forwarded} {held}");
}
