//! The program by which the kernel shares a TAP's packets out among its queues (TUNSETSTEERINGEBPF,
//! since 4.16).
//!
//! It computes what `crate::dataplane::steering` computes, from the bytes of the packet: the owner
//! of TCP and UDP, of the flow that an ICMP error quotes, and the meeting place of fragments. IPv6
//! extension headers other than the fragment header it does not follow, and of what it cannot read
//! it says queue 0: the worker there hands such packets over.
//!
//! The instructions are assembled here rather than compiled from C, since they are few, and both
//! sides of the rule stay in one language. `tests/steering.rs` compares the two in the kernel.

use std::ffi::{CStr, c_int, c_uint};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use thiserror::Error;

use super::tap::Tap;

/// The rule, in numbers: so many workers, and how the hash is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SteeringRule {
    /// Queues, and workers.
    pub workers: u16,
    /// What the hash begins with.
    pub seed: u32,
    /// What each step multiplies by.
    pub multiplier: u32,
    /// How far the upper bits are folded onto the lower after each step.
    pub fold: u32,
}

/// Why the kernel shares packets out by its own rule.
#[derive(Debug, Error)]
#[error("{action}: {errno}")]
pub struct SteeringError {
    /// What was tried.
    pub action: &'static str,
    /// The kernel's answer. `EPERM` where CAP_BPF is missing, `EINVAL` where the kernel is too old.
    pub errno: Errno,
}

/// The program, as the kernel has verified it.
#[derive(Debug)]
pub struct SteeringProgram {
    program: OwnedFd,
}

impl SteeringProgram {
    /// Gives the program for a rule to the kernel.
    ///
    /// # Errors
    /// The kernel has no eBPF, or does not let this process use it.
    pub fn load(rule: &SteeringRule) -> Result<Self, SteeringError> {
        let instructions = assemble(rule);
        let mut attributes = LoadAttributes {
            kind: PROG_TYPE_SOCKET_FILTER,
            instruction_count: c_uint::try_from(instructions.len()).unwrap_or(c_uint::MAX),
            instructions: instructions.as_ptr() as u64,
            license: LICENSE.as_ptr() as u64,
            ..LoadAttributes::default()
        };
        // SAFETY: the attributes, the instructions and the licence they point to outlive the call,
        // and the count is the instructions'. The call writes to none of them.
        let fd = unsafe { bpf(PROG_LOAD, &mut attributes) }
            .map_err(|errno| SteeringError { action: "load the steering program", errno })?;
        // SAFETY: a descriptor that was just opened and that nobody else knows.
        Ok(Self { program: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Lets the TAP share its packets out by the program, from now on and for as long as it exists.
    ///
    /// # Errors
    /// The kernel's TAP has no steering.
    pub fn attach(&self, tap: &Tap) -> Result<(), SteeringError> {
        let program: c_int = self.program.as_raw_fd();
        // SAFETY: the call reads one int, which outlives it.
        let result = unsafe {
            libc::ioctl(tap.as_fd().as_raw_fd(), TUN_SET_STEERING_EBPF, &raw const program)
        };
        let error = |errno| SteeringError { action: "attach it to the TAP", errno };
        Errno::result(result).map(drop).map_err(error)
    }

    /// Where the program puts an Ethernet frame: asked of the kernel, with no packet sent.
    ///
    /// # Errors
    /// The kernel cannot run programs for a test, or refuses the frame.
    pub fn queue_of(&self, frame: &[u8]) -> Result<u32, Errno> {
        let mut attributes = RunAttributes {
            program: u32::try_from(self.program.as_raw_fd()).map_err(|_| Errno::EBADF)?,
            size_in: u32::try_from(frame.len()).map_err(|_| Errno::E2BIG)?,
            data_in: frame.as_ptr() as u64,
            repeat: 1,
            ..RunAttributes::default()
        };
        // SAFETY: the attributes and the frame they point to outlive the call, and the size is the
        // frame's. The call writes its results into the attributes, and nowhere else: `data_out` is
        // null.
        unsafe { bpf(PROG_TEST_RUN, &mut attributes) }?;
        Ok(attributes.result)
    }
}

impl AsFd for SteeringProgram {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }
}

/// The helpers behind packet loads are for programs under a licence like the kernel's only.
const LICENSE: &CStr = c"GPL";
const PROG_LOAD: c_int = 5;
const PROG_TEST_RUN: c_int = 10;
const PROG_TYPE_SOCKET_FILTER: c_uint = 1;
/// `_IOR('T', 224, int)`
const TUN_SET_STEERING_EBPF: libc::c_ulong = 0x8004_54e0;

/// `union bpf_attr` of `BPF_PROG_LOAD`, as far as it is used (linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    kind: c_uint,
    instruction_count: c_uint,
    instructions: u64,
    license: u64,
    log_level: c_uint,
    log_size: c_uint,
    log: u64,
    kernel_version: c_uint,
    flags: c_uint,
}

/// `union bpf_attr` of `BPF_PROG_TEST_RUN`, as far as it is used.
#[repr(C)]
#[derive(Default)]
struct RunAttributes {
    program: u32,
    result: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

/// bpf(2).
///
/// # Safety
/// `T` is the beginning of `union bpf_attr` for `command`; what it points to is valid for the call.
unsafe fn bpf<T>(command: c_int, attributes: &mut T) -> Result<c_int, Errno> {
    // SAFETY: the attributes are initialised and as long as is said; the rest is the caller's promise.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>())
    };
    Errno::result(result).map(|value| c_int::try_from(value).unwrap_or(-1))
}

/// Registers. Loads from the packet take the context in R6, give their result in R0 and forget R1
/// to R5.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Register {
    /// What was loaded, and the result.
    R0 = 0,
    /// The context at first, scratch later.
    R1 = 1,
    Context = 6,
    Hash = 7,
    /// Where the transport header or the quoted IP header begins, from the IP header on.
    Header = 8,
    /// The protocol, or where the quoted transport header begins.
    Other = 9,
}

/// Where jumps lead.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Label {
    Ipv4,
    Ipv6,
    Tuple4,
    Tuple6,
    Icmp4,
    Icmp6,
    Quoted4,
    Quoted4Ports,
    Quoted6,
    Quoted6Ports,
    Meet4,
    Meet6,
    Finish,
}

/// Offsets of a packet's bytes count from its IP header (`SKF_NET_OFF`).
const NETWORK: i32 = -0x10_0000;
/// Sizes of loads.
const WORD: u8 = 0x00;
const HALF: u8 = 0x08;
const BYTE: u8 = 0x10;
/// Operations, on the lower 32 bits of a register.
const MUL: u8 = 0x20;
const OR: u8 = 0x40;
const AND: u8 = 0x50;
const LEFT: u8 = 0x60;
const RIGHT: u8 = 0x70;
const XOR: u8 = 0xa0;
const MOVE: u8 = 0xb0;
const ADD: u8 = 0x00;

const PROTOCOL_ICMP: i32 = 1;
const PROTOCOL_TCP: i32 = 6;
const PROTOCOL_UDP: i32 = 17;
const PROTOCOL_ICMPV6: i32 = 58;

/// Instructions on their way, jumps with their labels.
struct Assembler {
    instructions: Vec<u64>,
    jumps: Vec<(usize, Label)>,
    places: Vec<(Label, usize)>,
    rule: SteeringRule,
}

use {Label::*, Register::*};

impl Assembler {
    fn push(&mut self, code: u8, to: Register, from: Register, offset: u16, value: i32) {
        let (to, from) = (to as u8, from as u8);
        // Both are in one byte, in the order of the machine's bit fields.
        let registers =
            if cfg!(target_endian = "little") { to | from << 4 } else { to << 4 | from };
        let [o0, o1] = offset.to_ne_bytes();
        let [v0, v1, v2, v3] = value.to_ne_bytes();
        self.instructions.push(u64::from_ne_bytes([code, registers, o0, o1, v0, v1, v2, v3]));
    }

    /// `to = to operation value`
    fn value(&mut self, operation: u8, to: Register, value: i32) {
        self.push(0x04 | operation, to, R0, 0, value);
    }

    /// `to = to operation from`
    fn registers(&mut self, operation: u8, to: Register, from: Register) {
        self.push(0x0c | operation, to, from, 0, 0);
    }

    /// `R0 = packet[offset]`
    fn load(&mut self, size: u8, offset: i32) {
        self.push(0x20 | size, R0, R0, 0, NETWORK + offset);
    }

    /// `R0 = packet[base + offset]`
    fn load_behind(&mut self, size: u8, base: Register, offset: i32) {
        self.push(0x40 | size, R0, base, 0, NETWORK + offset);
    }

    fn at(&mut self, label: Label) {
        self.places.push((label, self.instructions.len()));
    }

    fn jump(&mut self, label: Label) {
        self.jumps.push((self.instructions.len(), label));
        self.push(0x05, R0, R0, 0, 0);
    }

    fn jump_if_equal(&mut self, value: i32, label: Label) {
        self.jumps.push((self.instructions.len(), label));
        self.push(0x15, R0, R0, 0, value);
    }

    fn jump_if_not_equal(&mut self, value: i32, label: Label) {
        self.jumps.push((self.instructions.len(), label));
        self.push(0x55, R0, R0, 0, value);
    }

    fn exit(&mut self) {
        self.push(0x95, R0, R0, 0, 0);
    }

    fn begin_hash(&mut self) {
        self.value(MOVE, Hash, self.rule.seed.cast_signed());
    }

    /// Takes R0 into the hash.
    fn mix(&mut self) {
        self.registers(XOR, Hash, R0);
        self.value(MUL, Hash, self.rule.multiplier.cast_signed());
        self.registers(MOVE, R1, Hash);
        self.value(RIGHT, R1, self.rule.fold.cast_signed());
        self.registers(XOR, Hash, R1);
    }

    fn mix_words(&mut self, offsets: impl Iterator<Item = i32>) {
        for offset in offsets {
            self.load(WORD, offset);
            self.mix();
        }
    }

    /// Swaps the ports in R0: what is quoted goes the other way.
    fn swap_ports(&mut self) {
        self.registers(MOVE, R1, R0);
        self.value(LEFT, R0, 16);
        self.value(RIGHT, R1, 16);
        self.registers(OR, R0, R1);
    }

    fn finish(mut self) -> Vec<u64> {
        for (jump, label) in &self.jumps {
            let place = self.places.iter().find(|(known, _)| known == label);
            let (_, place) = place.expect("every label that is jumped to has its place");
            let distance = u16::try_from(place - jump - 1).expect("a short way forward");
            let [o0, o1] = distance.to_ne_bytes();
            let mut bytes = self.instructions[*jump].to_ne_bytes();
            (bytes[2], bytes[3]) = (o0, o1);
            self.instructions[*jump] = u64::from_ne_bytes(bytes);
        }
        self.instructions
    }
}

/// The program. All jumps go forward.
fn assemble(rule: &SteeringRule) -> Vec<u64> {
    let mut a =
        Assembler { instructions: Vec::new(), jumps: Vec::new(), places: Vec::new(), rule: *rule };
    // 64 bits wide, unlike all else: a pointer.
    a.push(0xbf, Context, R1, 0, 0);
    a.begin_hash();
    a.load(BYTE, 0);
    a.value(RIGHT, R0, 4);
    a.jump_if_equal(4, Ipv4);
    a.jump_if_equal(6, Ipv6);
    a.value(MOVE, R0, 0);
    a.exit();
    ipv4(&mut a);
    ipv6(&mut a);
    // The part of the range of hashes: the upper half of a product of 64 bits.
    a.at(Finish);
    a.registers(MOVE, R0, Hash);
    a.push(0x27, R0, R0, 0, i32::from(rule.workers));
    a.push(0x77, R0, R0, 0, 32);
    a.exit();
    a.finish()
}

fn ipv4(a: &mut Assembler) {
    a.at(Ipv4);
    header_length(a);
    a.registers(MOVE, Header, R0);
    a.load(HALF, 6);
    a.value(AND, R0, 0x3fff);
    a.jump_if_not_equal(0, Meet4);
    a.load(BYTE, 9);
    a.jump_if_equal(PROTOCOL_TCP, Tuple4);
    a.jump_if_equal(PROTOCOL_UDP, Tuple4);
    a.jump_if_equal(PROTOCOL_ICMP, Icmp4);
    a.jump(Meet4);

    a.at(Tuple4);
    a.registers(MOVE, Other, R0);
    a.mix_words([12, 16].into_iter());
    a.load_behind(WORD, Header, 0);
    a.mix();
    a.registers(MOVE, R0, Other);
    a.mix();
    a.jump(Finish);

    // Destination unreachable, time exceeded, parameter problem.
    a.at(Icmp4);
    a.load_behind(BYTE, Header, 0);
    a.jump_if_equal(3, Quoted4);
    a.jump_if_equal(11, Quoted4);
    a.jump_if_equal(12, Quoted4);
    a.jump(Meet4);
    a.at(Quoted4);
    a.value(ADD, Header, 8);
    a.load_behind(HALF, Header, 6);
    a.value(AND, R0, 0x1fff);
    a.jump_if_not_equal(0, Meet4);
    a.load_behind(BYTE, Header, 0);
    a.value(AND, R0, 15);
    a.value(LEFT, R0, 2);
    a.registers(MOVE, Other, R0);
    a.registers(ADD, Other, Header);
    a.load_behind(BYTE, Header, 9);
    a.jump_if_equal(PROTOCOL_TCP, Quoted4Ports);
    a.jump_if_equal(PROTOCOL_UDP, Quoted4Ports);
    a.jump(Meet4);
    a.at(Quoted4Ports);
    for offset in [16, 12] {
        a.load_behind(WORD, Header, offset);
        a.mix();
    }
    a.load_behind(WORD, Other, 0);
    a.swap_ports();
    a.mix();
    a.load_behind(BYTE, Header, 9);
    a.mix();
    a.jump(Finish);

    a.at(Meet4);
    a.mix_words([12, 16].into_iter());
    a.value(MOVE, R0, 0);
    a.mix();
    a.jump(Finish);
}

/// The length of the IPv4 header, in R0.
fn header_length(a: &mut Assembler) {
    a.load(BYTE, 0);
    a.value(AND, R0, 15);
    a.value(LEFT, R0, 2);
}

fn ipv6(a: &mut Assembler) {
    let addresses = || (8..40).step_by(4);
    a.at(Ipv6);
    a.load(BYTE, 6);
    a.jump_if_equal(PROTOCOL_TCP, Tuple6);
    a.jump_if_equal(PROTOCOL_UDP, Tuple6);
    a.jump_if_equal(PROTOCOL_ICMPV6, Icmp6);
    a.jump(Meet6);

    a.at(Tuple6);
    a.mix_words(addresses());
    a.load(WORD, 40);
    a.mix();
    a.load(BYTE, 6);
    a.mix();
    a.jump(Finish);

    // Unreachable, too big, time exceeded, parameter problem. The quote begins at 48.
    a.at(Icmp6);
    a.load(BYTE, 40);
    for kind in 1..=4 {
        a.jump_if_equal(kind, Quoted6);
    }
    a.jump(Meet6);
    a.at(Quoted6);
    a.load(BYTE, 48 + 6);
    a.jump_if_equal(PROTOCOL_TCP, Quoted6Ports);
    a.jump_if_equal(PROTOCOL_UDP, Quoted6Ports);
    a.jump(Meet6);
    a.at(Quoted6Ports);
    a.mix_words((48 + 24..48 + 40).step_by(4).chain((48 + 8..48 + 24).step_by(4)));
    a.load(WORD, 48 + 40);
    a.swap_ports();
    a.mix();
    a.load(BYTE, 48 + 6);
    a.mix();
    a.jump(Finish);

    a.at(Meet6);
    a.mix_words(addresses());
    a.value(MOVE, R0, 0);
    a.mix();
}
