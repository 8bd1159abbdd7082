//! The core in process: time and instructions per packet, table builds, memory per connection.
//!
//! `cargo bench --bench dataplane [-- NAME..]`. A packet costs what deciding, wrapping and
//! accounting for its completed send cost; writing the packet into the slot, which the kernel
//! does in operation, is measured alone and subtracted. Instructions are counted by callgrind,
//! which starts this program once more for each line; without valgrind the column says so.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench prints, and may panic")]
#![allow(clippy::cast_possible_truncation, reason = "packet numbers become addresses and ports")]
#![allow(clippy::cast_precision_loss, reason = "figures are shown with three digits")]

#[path = "../tests/world/mod.rs"]
mod world;

use std::{
    hint::black_box,
    net::IpAddr,
    ops::Range,
    process::{Command, ExitCode},
    time::Duration,
};

use adit::dataplane::{
    conntrack::memory_for,
    hash::HashKey,
    scheduler::{Member, SchedulerKind, table::Table},
    verdict::{Account, EgressId, Event, HEADROOM, Outlet, SendResult, Source, Verdict},
};
use world::{ServiceSpec, World, frames::Tcp, snapshot};

/// Packets of one measurement. Below a second each, and many times the caches at a million flows.
const PACKETS: u32 = 2_000_000;
/// Measurements of a line. On a busy machine the best is nearer to the truth than the median.
const REPEATS: usize = 7;
/// Packets under callgrind, which is fifty times slower and counts exactly.
const COUNTED_PACKETS: u32 = 160 * BATCH as u32;
/// Where a frame begins in the slot.
const FRAME: Range<usize> = HEADROOM..HEADROOM + 64;
/// Bytes of a slot; an odd number of cache lines, as in operation.
const SLOT: usize = HEADROOM + 33 * 64;
/// Packets that are received before the first of them is handled; `PACKETS` is a multiple.
const BATCH: usize = 128;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

fn main() -> ExitCode {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [flag, name] = arguments.as_slice()
        && flag == "--count"
    {
        return count(name);
    }
    let wanted = |name: &str| arguments.is_empty() || arguments.iter().any(|a| name.contains(a));
    // First, while the allocator has nothing left over from others that would be taken again.
    if wanted("memory") {
        memory();
    }
    println!("{:<34} {:>9} {:>9} {:>14}", "per packet", "median ns", "best ns", "instructions");
    for scenario in SCENARIOS.iter().filter(|scenario| wanted(scenario.name)) {
        let (median, best) = scenario.nanos_per_packet();
        let instructions = instructions_per_packet(scenario.name);
        println!("{:<34} {median:>9.1} {best:>9.1} {instructions:>14}", scenario.name);
    }
    if wanted("build") {
        table_builds();
    }
    ExitCode::SUCCESS
}

/// What kind of packets, over what kind of table.
struct Scenario {
    name: &'static str,
    /// Flows that are there before.
    flows: u32,
    /// Room in the flow table.
    capacity: usize,
    packets: Packets,
}

#[derive(Clone, Copy, PartialEq)]
enum Packets {
    /// Data of known flows, in an order that no cache foresees.
    Hits,
    /// SYNs of unknown flows.
    Syns,
    /// Data of unknown flows, each placed by the one guess.
    Guesses,
}

const SCENARIOS: [Scenario; 7] = [
    Scenario { name: "hit, 1k flows", flows: 1_000, capacity: 1 << 20, packets: Packets::Hits },
    Scenario { name: "hit, 100k flows", flows: 100_000, capacity: 1 << 20, packets: Packets::Hits },
    Scenario { name: "hit, 1M flows", flows: 1_000_000, capacity: 1 << 20, packets: Packets::Hits },
    Scenario { name: "miss: SYN", flows: 0, capacity: 1 << 22, packets: Packets::Syns },
    Scenario {
        name: "miss: SYN, 1M flows known",
        flows: 1_000_000,
        capacity: 1 << 22,
        packets: Packets::Syns,
    },
    Scenario {
        name: "miss: SYN, evicts (table full)",
        flows: 0,
        capacity: 100_000,
        packets: Packets::Syns,
    },
    Scenario { name: "miss: one guess", flows: 0, capacity: 1 << 22, packets: Packets::Guesses },
];

impl Scenario {
    /// Median and best of the measurements.
    fn nanos_per_packet(&self) -> (f64, f64) {
        let mut rig = Rig::new(self);
        let mut samples: Vec<f64> = (0..REPEATS)
            .map(|_| {
                // Misses fill the table: each measurement begins with a table of its own.
                if self.packets != Packets::Hits {
                    rig = Rig::new(self);
                }
                let nanos = |run: &mut dyn FnMut()| {
                    let begin = now();
                    run();
                    now().saturating_sub(begin).as_nanos() as f64
                };
                let whole = nanos(&mut || rig.handle(self.packets, PACKETS));
                let writing = nanos(&mut || rig.write(self.packets, PACKETS));
                (whole - writing) / f64::from(PACKETS)
            })
            .collect();
        samples.sort_by(f64::total_cmp);
        (samples[REPEATS / 2], samples[0])
    }
}

/// A director with flows, and the slots its packets come in.
struct Rig {
    world: World,
    shell: NullShell,
    slots: Vec<[u8; SLOT]>,
    /// A frame as it comes; the core writes its outer header over the link header.
    frame: [u8; 64],
    flows: u32,
    /// Number of the next packet.
    next: u32,
}

impl Rig {
    fn new(scenario: &Scenario) -> Self {
        let members = (1..=8).map(|last| Member::up(IpAddr::from([10, 20, 0, last]), 100));
        let spec = ServiceSpec {
            members: members.collect(),
            ..ServiceSpec::orders(SchedulerKind::Maglev)
        };
        // 14 + 20 + 20 bytes of headers and 10 of data.
        let frame = Tcp::data("10.0.0.1:1", "198.51.100.10:5432", 0, &[0; 10]).frame();
        let frame = frame.try_into().unwrap();
        let slots = vec![[0; SLOT]; BATCH];
        let world = World::new(snapshot(vec![spec]), scenario.capacity);
        let (flows, next) = (scenario.flows, 0);
        let mut rig = Self { world, shell: NullShell, slots, frame, flows, next };
        // A SYN and three segments over more than a second establish a flow.
        for flags in [SYN, ACK, ACK, ACK] {
            for number in 0..scenario.flows {
                rig.put(0, number, flags);
                rig.decide(0);
            }
            rig.world.advance(Duration::from_millis(600));
        }
        // Where the table is to be full from the first packet on, half-open flows fill it.
        let full = scenario.packets == Packets::Syns && scenario.capacity < PACKETS as usize;
        for _ in 0..if full { scenario.capacity } else { 0 } {
            let (number, flags) = rig.draw(scenario.packets);
            rig.put(0, number, flags);
            rig.decide(0);
        }
        rig
    }

    /// Writes the packet of a flow into a slot: its client, and a right IPv4 checksum.
    fn put(&mut self, slot: usize, number: u32, flags: u8) {
        let slot = &mut self.slots[slot][FRAME];
        slot.copy_from_slice(&self.frame);
        slot[26..30].copy_from_slice(&[10, (number >> 24) as u8, (number >> 16) as u8, 1]);
        slot[34..36].copy_from_slice(&(number as u16).to_be_bytes());
        slot[47] = flags;
        slot[24..26].fill(0);
        let sum: u32 = slot[14..34]
            .chunks_exact(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        let folded = (folded & 0xffff) + (folded >> 16);
        slot[24..26].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    }

    /// The core's part, as the worker does it.
    #[inline]
    fn decide(&mut self, slot: usize) {
        let World { director, snapshot, now, .. } = &mut self.world;
        let slot = &mut self.slots[slot];
        let verdict = director.handle(*now, snapshot, Source::Tap, slot, FRAME, &mut self.shell);
        if matches!(verdict, Verdict::Forward { .. }) {
            director.sent(Account::Forward, SendResult::Sent);
        }
        black_box(slot);
    }

    /// Writes a batch of packets.
    #[inline]
    fn put_batch(&mut self, packets: Packets) {
        for slot in 0..BATCH {
            let (number, flags) = self.draw(packets);
            self.put(slot, number, flags);
        }
    }

    /// Number of the next packet's flow, and its flags.
    #[inline]
    fn draw(&mut self, packets: Packets) -> (u32, u8) {
        self.next = self.next.wrapping_add(1);
        match packets {
            // A multiplicative hash visits the flows without an order.
            Packets::Hits => {
                let scattered = self.next.wrapping_mul(0x9e37_79b1);
                let number = (u64::from(scattered) * u64::from(self.flows)) >> 32;
                (number as u32, ACK)
            }
            Packets::Syns => (0x4000_0000 + self.next, SYN),
            Packets::Guesses => (0x4000_0000 + self.next, ACK),
        }
    }

    #[inline(never)]
    fn handle(&mut self, packets: Packets, count: u32) {
        let before = self.world.counters.worker.forwarded.get();
        for _ in 0..count / BATCH as u32 {
            self.put_batch(packets);
            let World { director, snapshot, .. } = &self.world;
            if director.looks_ahead() {
                self.slots.iter().for_each(|slot| director.ahead(snapshot, &slot[FRAME]));
            }
            (0..BATCH).for_each(|slot| self.decide(slot));
        }
        // A bench that measures drops measures nothing.
        let forwarded = self.world.counters.worker.forwarded.get() - before;
        assert_eq!(forwarded, u64::from(count));
    }

    /// The same without the core.
    #[inline(never)]
    fn write(&mut self, packets: Packets, count: u32) {
        for _ in 0..count / BATCH as u32 {
            self.put_batch(packets);
            black_box(&mut self.slots);
        }
    }
}

/// Counts by callgrind what `handle` and `write` execute, in a process of its own each.
fn instructions_per_packet(name: &str) -> String {
    let collect = |function: &str| -> Option<u64> {
        let output = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(format!("--toggle-collect=*Rig*{function}*"))
            .arg(std::env::current_exe().ok()?)
            .args(["--count", name])
            .output()
            .ok()?;
        // The summary line: `==PID== Collected : 123456`.
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        text.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok())
    };
    match (collect("handle"), collect("write")) {
        (Some(whole), Some(writing)) => {
            format!("{:.0}", (whole - writing) as f64 / f64::from(COUNTED_PACKETS))
        }
        _ => "needs valgrind".to_owned(),
    }
}

/// The part that runs under callgrind.
fn count(name: &str) -> ExitCode {
    let Some(scenario) = SCENARIOS.iter().find(|scenario| scenario.name == name) else {
        return ExitCode::FAILURE;
    };
    let mut rig = Rig::new(scenario);
    // Both, whichever is collected: the number of packets is the same.
    rig.handle(scenario.packets, COUNTED_PACKETS);
    rig.write(scenario.packets, COUNTED_PACKETS);
    ExitCode::SUCCESS
}

fn table_builds() {
    println!("\n{:<34} {:>12} {:>16}", "Maglev build", "median ms", "best ms");
    for count in [10usize, 100, 655, 1_000, 10_000] {
        for weights in ["equal", "mixed"] {
            let members: Vec<Member> = (0..count)
                .map(|number| {
                    let [.., high, low] = number.to_be_bytes();
                    let mixed = 1 + (number * 7_919 % 200) as u32;
                    let weight = if weights == "equal" { 100 } else { mixed };
                    Member::up(IpAddr::from([10, 30, high, low]), weight)
                })
                .collect();
            let mut samples: Vec<f64> = (0..if count > 1_000 { 5 } else { 41 })
                .map(|_| {
                    let begin = now();
                    black_box(Table::build(black_box(&members), &HashKey::DEFAULT).unwrap());
                    now().saturating_sub(begin).as_secs_f64() * 1e3
                })
                .collect();
            samples.sort_by(f64::total_cmp);
            let name = format!("{count} members, {weights} weights");
            println!("{name:<34} {:>12.2} {:>16.2}", samples[samples.len() / 2], samples[0]);
        }
    }
}

fn memory() {
    const CONNECTIONS: u32 = 1_000_000;
    let before = resident();
    let full = Scenario {
        name: "memory",
        flows: CONNECTIONS,
        capacity: CONNECTIONS as usize,
        packets: Packets::Hits,
    };
    let rig = Rig::new(&full);
    let resident = resident().saturating_sub(before);
    let tracked = rig.world.counters.worker.received.get();
    black_box(&rig);
    let table = memory_for(CONNECTIONS as usize);
    let parts = [("slots", table.slots), ("index", table.index), ("links", table.links)];
    println!("{:<34} {:>12}", "memory per connection, 1M flows", "bytes");
    for (name, bytes) in parts {
        println!("{name:<34} {:>12.1}", bytes as f64 / f64::from(CONNECTIONS));
    }
    println!("{:<34} {:>12.1}\n", "resident, all in all", resident as f64 / f64::from(CONNECTIONS));
    assert_eq!(tracked, 4 * u64::from(CONNECTIONS));
}

/// Bytes of this process in memory.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// The clock of the measurements; the core never sees it.
#[allow(clippy::disallowed_methods, reason = "measuring takes a clock")]
fn now() -> Duration {
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    START.get_or_init(std::time::Instant::now).elapsed()
}

/// A shell that needs nothing: these packets are forwarded from their own slot.
struct NullShell;

impl Outlet for NullShell {
    type Scratch = ();

    fn acquire(&mut self) -> Option<()> {
        None
    }

    fn bytes(&mut self, (): &()) -> &mut [u8] {
        &mut []
    }

    fn send(&mut self, (): (), _: EgressId, _: Range<usize>, _: Account) {}

    fn release(&mut self, (): ()) {}

    fn event(&mut self, _: Event) -> bool {
        true
    }
}
