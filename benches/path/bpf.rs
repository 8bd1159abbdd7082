//! Two small BPF programs as raw instructions, and the system calls to load, attach and run them: so
//! the bench needs neither a C compiler nor a loader library.

#![allow(unsafe_code)] // bpf(2) and the mapping of a counter array; see each block

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result, ensure};

/// One instruction (`struct bpf_insn`).
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn op(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: to | from << 4, offset, immediate }
}

const LOAD_WORD: u8 = 0x61; // to = *(u32 *)(from + offset)
const LOAD_BYTE: u8 = 0x71;
const STORE_HALF: u8 = 0x6b; // *(u16 *)(to + offset) = from
const STORE_DOUBLE: u8 = 0x7b; // *(u64 *)(to + offset) = from
const ATOMIC_ADD: u8 = 0xdb; // lock *(u64 *)(to + offset) += from
const MOVE: u8 = 0xbf;
const MOVE_VALUE: u8 = 0xb7;
const ADD_VALUE: u8 = 0x07;
const AND_VALUE: u8 = 0x57;
const XOR_VALUE: u8 = 0xa7;
const SHIFT_RIGHT_VALUE: u8 = 0x77;
const TO_BIG_ENDIAN: u8 = 0xdc;
const JUMP_ABOVE: u8 = 0x2d; // if to > from
const JUMP_NOT_EQUAL_VALUE: u8 = 0x55;
const LOAD_LONG: u8 = 0x18; // two instructions: low half, high half
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// In the `from` register of LOAD_LONG: the immediate is a map's descriptor, the value its first
/// element's address (BPF_PSEUDO_MAP_VALUE).
const MAP_VALUE: u8 = 2;
const HELPER_RANDOM: i32 = 7;

fn load_long(to: u8, value: u64) -> [Instruction; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    let (low, high) = (i32::from_le_bytes([a, b, c, d]), i32::from_le_bytes([e, f, g, h]));
    [op(LOAD_LONG, to, 0, 0, low), op(0, 0, 0, 0, high)]
}

/// Which flows the generator's packets belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flows {
    /// One of so many source ports at random, a power of two.
    Few(u16),
    /// A source port and the lower half of the source address at random: one of two billion, so
    /// that hardly any packet is of a flow that was there before.
    EverNew,
}

/// An XDP program that writes `frame` into the buffer it is run on, with a random source as `flows`
/// says, and passes it to the stack. Everything is written anew each time: the kernel recycles pages
/// as the stack has left them.
fn generator(frame: &[u8; 64], flows: Flows) -> Vec<Instruction> {
    // Identification and address change by opposite amounts, so that the header's checksum holds.
    let address = match flows {
        Flows::Few(_) => vec![],
        Flows::EverNew => vec![
            op(SHIFT_RIGHT_VALUE, 8, 0, 0, 16),
            op(STORE_HALF, 6, 8, 28, 0), // lower half of the source address
            op(XOR_VALUE, 8, 0, 0, 0xffff),
            op(STORE_HALF, 6, 8, 18, 0), // identification
        ],
    };
    // Three instructions for each of eight words, and the three up to the first end.
    let over = 8 * 3 + 3 + i16::try_from(address.len()).expect("a few");
    let mut program = vec![
        op(LOAD_WORD, 6, 1, 0, 0), // r6 = data
        op(LOAD_WORD, 7, 1, 4, 0), // r7 = data_end
        op(CALL, 0, 0, 0, HELPER_RANDOM),
        op(MOVE, 8, 0, 0, 0), // for the address
    ];
    match flows {
        Flows::Few(flows) => program.push(op(AND_VALUE, 0, 0, 0, i32::from(flows - 1))),
        Flows::EverNew => program.push(op(AND_VALUE, 0, 0, 0, 0x7fff)),
    }
    program.extend([
        op(ADD_VALUE, 0, 0, 0, 1024),
        op(TO_BIG_ENDIAN, 0, 0, 0, 16),
        op(MOVE, 2, 6, 0, 0),
        op(ADD_VALUE, 2, 0, 0, 64),
        op(JUMP_ABOVE, 2, 7, over, 0), // too short: to the last two
    ]);
    for (place, bytes) in (0i16..).step_by(8).zip(frame.as_chunks::<8>().0) {
        program.extend(load_long(3, u64::from_le_bytes(*bytes)));
        program.push(op(STORE_DOUBLE, 6, 3, place, 0));
    }
    program.extend(address);
    program.extend([
        op(STORE_HALF, 6, 0, 34, 0),       // source port
        op(MOVE_VALUE, 0, 0, 0, XDP_PASS), // to the stack
        op(EXIT, 0, 0, 0, 0),
        op(MOVE_VALUE, 0, 0, 0, XDP_DROP),
        op(EXIT, 0, 0, 0, 0),
    ]);
    program
}

const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;

/// A traffic-control program that drops everything and counts, in element 0 of an array, packets of
/// `length` bytes that are IPv4 with protocol 4 (wrapped ones), and the others in element 1.
fn sink(counters: RawFd, length: i32) -> Vec<Instruction> {
    let counter = |place| [op(LOAD_LONG, 3, MAP_VALUE, 0, counters), op(0, 0, 0, 0, place)];
    let mut program = vec![
        op(LOAD_WORD, 2, 1, 0, 0), // r2 = skb->len
        op(JUMP_NOT_EQUAL_VALUE, 2, 0, 10, length),
        op(LOAD_WORD, 2, 1, 76, 0), // r2 = data
        op(LOAD_WORD, 4, 1, 80, 0), // r4 = data_end
        op(MOVE, 5, 2, 0, 0),
        op(ADD_VALUE, 5, 0, 0, 34),
        op(JUMP_ABOVE, 5, 4, 5, 0),
        op(LOAD_BYTE, 5, 2, 23, 0), // protocol
        op(JUMP_NOT_EQUAL_VALUE, 5, 0, 3, 4),
    ];
    program.extend(counter(0));
    program.push(op(0x05, 0, 0, 2, 0)); // over the other counter
    program.extend(counter(8));
    program.extend([
        op(MOVE_VALUE, 2, 0, 0, 1),
        op(ATOMIC_ADD, 3, 2, 0, 0),
        op(MOVE_VALUE, 0, 0, 0, TCX_DROP),
        op(EXIT, 0, 0, 0, 0),
    ]);
    program
}

const TCX_DROP: i32 = 2;

/// `bpf(2)`: `attributes` are the leading fields of the command's part of `union bpf_attr`.
fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<i32> {
    // SAFETY: the kernel reads as many bytes as it is told, which is the size of the structure;
    // pointers in it are to memory that the callers keep for the call. Commands used here write to
    // the attributes only within that size, into fields that are not read afterwards.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>())
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: bpf(2) has just returned it as a new descriptor.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

const MAP_CREATE: libc::c_int = 0;
const PROG_LOAD: libc::c_int = 5;
const PROG_TEST_RUN: libc::c_int = 10;
const LINK_CREATE: libc::c_int = 28;

#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach: u32,
}

fn load(kind: u32, expected_attach: u32, program: &[Instruction]) -> Result<OwnedFd> {
    let mut log = vec![0u8; 1 << 16];
    let attributes = Load {
        kind,
        count: u32::try_from(program.len())?,
        instructions: program.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 1,
        log_size: u32::try_from(log.len())?,
        log: log.as_mut_ptr() as u64,
        expected_attach,
        ..Load::default()
    };
    bpf(PROG_LOAD, &attributes).map(owned).with_context(|| {
        let end = log.iter().position(|&byte| byte == 0).unwrap_or(0);
        format!("loading a BPF program: {}", String::from_utf8_lossy(&log[..end]))
    })
}

const PROGRAM_TRAFFIC_CONTROL: u32 = 3;
const PROGRAM_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;
const ATTACH_TCX_INGRESS: u32 = 46;

/// Makes packets arrive on an interface, as if received.
pub struct Generator {
    program: OwnedFd,
    interface: u32,
    frame: [u8; 64],
    _link: OwnedFd,
}

#[repr(C)]
#[derive(Default)]
struct XdpContext {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_interface: u32,
    rx_queue: u32,
    egress_interface: u32,
}

#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    result: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch: u32,
    padding: u32,
}

const LIVE_FRAMES: u32 = 1 << 1;

impl Generator {
    /// `interface` needs NAPI (a veth with `gro on`).
    ///
    /// The program is attached to `idle` too, an interface that receives nothing: a program that is
    /// not attached anywhere is entered into the kernel's dispatcher, and taken out of it, in each
    /// run, which waits for RCU twice.
    pub fn new(interface: u32, idle: u32, frame: [u8; 64], flows: Flows) -> Result<Self> {
        if let Flows::Few(flows) = flows {
            ensure!(flows.is_power_of_two(), "flows must be a power of two");
        }
        let program = load(PROGRAM_XDP, 0, &generator(&frame, flows))?;
        let link = attach(&program, idle, ATTACH_XDP)?;
        Ok(Self { program, interface, frame, _link: link })
    }

    /// Makes `packets` arrive. They are routed, and queued in the TAP, by the calling thread.
    pub fn send(&self, packets: u32) -> Result<()> {
        let context =
            XdpContext { data_end: 64, ingress_interface: self.interface, ..XdpContext::default() };
        let attributes = TestRun {
            program: u32::try_from(self.program.as_raw_fd())?,
            data_size_in: 64,
            data_in: self.frame.as_ptr() as u64,
            repeat: packets,
            context_size_in: u32::try_from(size_of::<XdpContext>())?,
            context_in: std::ptr::from_ref(&context) as u64,
            flags: LIVE_FRAMES,
            batch: packets.min(64),
            ..TestRun::default()
        };
        bpf(PROG_TEST_RUN, &attributes).map(drop).context("running the generator (Linux 5.18)")
    }
}

#[repr(C)]
#[derive(Default)]
struct MapCreate {
    kind: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
    flags: u32,
}

const MAP_ARRAY: u32 = 2;
const MAP_MMAPABLE: u32 = 1 << 10;

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: u32,
    interface: u32,
    attach: u32,
    flags: u32,
    relative: u32,
    padding: u32,
    revision: u64,
}

/// Attaches until the link's descriptor is closed.
fn attach(program: &OwnedFd, interface: u32, attach: u32) -> Result<OwnedFd> {
    let program = u32::try_from(program.as_raw_fd())?;
    let attributes = LinkCreate { program, interface, attach, ..LinkCreate::default() };
    bpf(LINK_CREATE, &attributes).map(owned).context("attaching a BPF program (Linux 6.6)")
}

/// Drops and counts what arrives on an interface, as early and as cheaply as possible.
pub struct Sink {
    counters: *const u64,
    _map: OwnedFd,
    _program: OwnedFd,
    _link: OwnedFd,
}

// SAFETY: the pointer is to a shared mapping that is only read, by volatile loads, and lives until
// the process ends.
unsafe impl Send for Sink {}

impl Sink {
    /// Counts packets of `length` bytes (Ethernet header included) that are wrapped in IPv4.
    pub fn new(interface: u32, length: i32) -> Result<Self> {
        let attributes = MapCreate {
            kind: MAP_ARRAY,
            key_size: 4,
            value_size: 16,
            entries: 1,
            flags: MAP_MMAPABLE,
        };
        let map = bpf(MAP_CREATE, &attributes).map(owned).context("creating the counters")?;
        let program =
            load(PROGRAM_TRAFFIC_CONTROL, ATTACH_TCX_INGRESS, &sink(map.as_raw_fd(), length))?;
        let link = attach(&program, interface, ATTACH_TCX_INGRESS)?;
        // SAFETY: a new read-only mapping of the map's one page at an address of the kernel's choice.
        let counters = unsafe {
            let flags = libc::MAP_SHARED;
            libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, flags, map.as_raw_fd(), 0)
        };
        ensure!(
            counters != libc::MAP_FAILED,
            "mapping the counters: {}",
            io::Error::last_os_error()
        );
        let counters: *const c_void = counters;
        Ok(Self { counters: counters.cast(), _map: map, _program: program, _link: link })
    }

    /// Wrapped packets so far.
    pub fn wrapped(&self) -> u64 {
        // SAFETY: the first words of the mapping made in `new`, never unmapped; the kernel changes
        // them, hence volatile.
        unsafe { self.counters.read_volatile() }
    }

    /// Other packets so far.
    pub fn others(&self) -> u64 {
        // SAFETY: as above; the second word of the value.
        unsafe { self.counters.add(1).read_volatile() }
    }
}
