//! The packet loop of one worker: completions in, frames to the handler, sends out.

use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use io_uring::{opcode, types};
use nix::errno::Errno;
use thiserror::Error;

use super::clock;
use super::egress::{EgressControl, EgressId, EgressTable};
use super::multishot::Multishot;
use super::packet_socket::{NeighbourSockets, OuterErrorSockets};
use super::poll::Poll;
use super::probe::EngineKind;
use super::ring::{BATCH, Completion, Kind, Ring};
use super::slots::{AuxSlots, HEADROOM, Owner, PendingSend, Slot, SlotPool};
use super::tap::Tap;
use super::wake::{Waker, duplicate};

/// [`Handler::tick`] is called at least this often.
pub const TICK: Duration = Duration::from_millis(50);
const TICK_NS: u64 = 50_000_000;

/// Received slots that stay out of the buffer ring, for the sockets that are read directly.
pub(super) const RESERVE: usize = 16;

/// Frames read from one source at a time, so that a flood of ARP or ICMP cannot keep the worker from
/// the TAP.
const SOURCE_BUDGET: usize = 16;

/// Time for requests to end after a stop: sends end at once (MSG_DONTWAIT), cancellation in
/// microseconds. Past it the memory is given up rather than freed under the kernel's hands.
const QUIESCE: Duration = Duration::from_secs(1);

/// Where a frame came from, and so what its first byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The TAP: an Ethernet frame.
    Tap,
    /// A neighbour request: an Ethernet frame.
    Neighbour {
        /// Place of the interface in [`EngineConfig::neighbours`].
        interface: u16,
    },
    /// An ICMP or ICMPv6 error about an outer packet, from its IP header on.
    OuterError,
}

/// What becomes of a received slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disposition {
    /// It is free again.
    Release,
    /// Part of it is sent; it is free when that has completed.
    Send {
        /// The way out.
        egress: EgressId,
        /// The bytes to send, counted from the start of the slot.
        range: Range<usize>,
        /// Given back by [`Handler::sent`].
        token: u32,
    },
}

/// What a worker does with frames. All calls are made on the thread of [`Engine::run`].
pub trait Handler {
    /// Once per batch, before its frames. `now_ns` is [`clock::boottime_ns`]. The time to look at
    /// the snapshot and to install or remove paths.
    fn batch(&mut self, now_ns: u64, egress: &mut EgressControl<'_>);

    /// One received frame: `slot` is the whole slot, `frame` the place of the received bytes in it,
    /// which have [`HEADROOM`] bytes in front.
    fn frame(
        &mut self,
        source: Source,
        slot: &mut [u8],
        frame: Range<usize>,
        aux: &mut AuxSlots,
    ) -> Disposition;

    /// A send has completed; called exactly once for each one asked for, before its slot is used
    /// again. `EAGAIN` and `ENOBUFS`: the way out is full. `ENXIO`: the path is not installed.
    fn sent(&mut self, token: u32, result: Result<(), Errno>);

    /// At least every [`TICK`], also when nothing is received.
    fn tick(&mut self, now_ns: u64, aux: &mut AuxSlots, counters: &IoCounters);

    /// Looked at once per batch. After `true` the engine ends what is in flight, and returns.
    fn stop_requested(&self) -> bool;
}

/// What the engine itself counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IoCounters {
    /// Batches of completions.
    pub batches: u64,
    /// Frames from the TAP.
    pub tap_frames: u64,
    /// Frames from neighbour and error sockets.
    pub source_frames: u64,
    /// Times that a receive socket reported an error (interface down, for example).
    pub source_errors: u64,
    /// Times that reading stopped because all slots were in use.
    pub out_of_slots: u64,
    /// Times that the multishot read was armed.
    pub armed: u64,
}

/// What to allocate.
#[derive(Debug)]
pub struct EngineConfig {
    /// Which engine, as found by [`super::choose`].
    pub kind: EngineKind,
    /// Slots for received frames, up to 32768.
    pub slots: usize,
    /// Auxiliary slots.
    pub aux_slots: usize,
    /// Sockets for neighbour requests, in the order of [`Source::Neighbour`].
    pub neighbours: Vec<NeighbourSockets>,
    /// Sockets for errors about outer packets.
    pub outer_errors: Option<OuterErrorSockets>,
    /// Wakes the worker.
    pub waker: Waker,
}

impl EngineConfig {
    /// Default of `slots`. One batch is received while the one before is sent, and twice that for
    /// bursts; more would only fall out of the L2 cache, since the TAP's own queue holds bursts.
    pub const DEFAULT_SLOTS: usize = 4 * BATCH;
    /// Default of `aux_slots`: about 400 kB of fragments held or made.
    pub const DEFAULT_AUX_SLOTS: usize = 256;

    /// The defaults, without receive sockets.
    pub fn new(kind: EngineKind, waker: Waker) -> Self {
        Self {
            kind,
            slots: Self::DEFAULT_SLOTS,
            aux_slots: Self::DEFAULT_AUX_SLOTS,
            neighbours: Vec::new(),
            outer_errors: None,
            waker,
        }
    }
}

/// Why there is no packet loop, or why it ended.
#[derive(Debug, Error)]
pub enum EngineError {
    /// No ring at all.
    #[error("io_uring: {errno}: {hint}")]
    RingRefused {
        /// The kernel's answer.
        errno: Errno,
        /// What to do about it.
        hint: String,
    },
    /// The kernel lacks what every engine needs.
    #[error("io_uring of this kernel is too old: it lacks {0}; Linux 5.15 or later is needed")]
    KernelTooOld(&'static str),
    /// An operation on the ring failed.
    #[error("io_uring: {action}: {errno}")]
    Ring {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
    /// No memory for slots.
    #[error("slots: {0}: lower the number of slots, or give the service more memory")]
    Memory(Errno),
    /// No room for files in the ring.
    #[error(
        "registering {} files: {errno}: raise the limit of open files to at least that (LimitNOFILE)",
        super::egress::MAX_EGRESS
    )]
    Files {
        /// The kernel's answer.
        errno: Errno,
    },
    /// READ_MULTISHOT was asked for by name and is not usable.
    #[error("io = \"multishot\" is not usable here: {0}; choose \"auto\" or \"poll\"")]
    NoMultishot(String),
    /// The TAP is gone.
    #[error("the TAP cannot be read any more: {0} (was the device deleted?)")]
    TapGone(Errno),
    /// A completion that cannot be.
    #[error("inconsistent completion: {0}; this is a defect of kernel or engine")]
    Corrupt(&'static str),
}

impl EngineError {
    /// Says which limit, sysctl or filter refused a ring.
    pub(super) fn ring_refused(errno: Errno) -> Self {
        let hint = match errno {
            Errno::ENOSYS => {
                "the kernel has no io_uring, or a seccomp filter (container) hides it".into()
            }
            Errno::EPERM | Errno::EACCES => {
                let path = "/proc/sys/kernel/io_uring_disabled";
                match std::fs::read_to_string(path).as_deref().map(str::trim) {
                    Ok("2") => format!("{path} is 2: set kernel.io_uring_disabled to 0 or 1"),
                    Ok("1") => format!(
                        "{path} is 1: give CAP_SYS_ADMIN, or join the group of \
                         kernel.io_uring_group, or set kernel.io_uring_disabled to 0"
                    ),
                    _ => "a seccomp filter or security module forbids it (containers need a \
                          profile that allows io_uring_setup, _enter and _register)"
                        .into(),
                }
            }
            Errno::ENOMEM => "not enough memory that may be locked: raise LimitMEMLOCK \
                              (ulimit -l) to 64 MiB"
                .into(),
            Errno::EMFILE | Errno::ENFILE => "raise LimitNOFILE".into(),
            _ => "unexpected; please report it".into(),
        };
        Self::RingRefused { errno, hint }
    }
}

/// A receive socket that is polled and read directly: it is rarely ready.
#[derive(Debug)]
struct SourceSocket {
    source: Source,
    socket: OwnedFd,
    /// Told ready, and not yet read until EAGAIN.
    ready: bool,
}

/// What both engines share.
pub(super) struct Core {
    // Dropped first: the ring goes before the memory it was given.
    pub(super) ring: Ring,
    pub(super) pool: SlotPool,
    aux: AuxSlots,
    egress: EgressTable,
    sources: Vec<SourceSocket>,
    waker: Waker,
    tap: OwnedFd,
    pub(super) counters: IoCounters,
    in_flight: usize,
    /// After a stop: nothing is armed any more.
    pub(super) stopping: bool,
}

/// How frames are taken from the TAP.
pub(super) trait Receive {
    /// Starts receiving.
    fn start(&mut self, core: &mut Core) -> Result<(), EngineError>;

    /// A completion of kind `TapRead` or `TapPoll`.
    fn completion(
        &mut self,
        core: &mut Core,
        handler: &mut impl Handler,
        completion: Completion,
    ) -> Result<(), EngineError>;

    /// After each batch: reads on, returns slots to the kernel, re-arms. `true` when there is more
    /// to do at once, without waiting.
    fn continues(
        &mut self,
        core: &mut Core,
        handler: &mut impl Handler,
    ) -> Result<bool, EngineError>;

    /// Ends receiving; may take some batches.
    fn stop(&mut self, core: &mut Core) -> Result<(), EngineError>;

    /// Nothing of the receiver is in the kernel's hands.
    fn is_quiet(&self) -> bool;
}

enum Receiver {
    Multishot(Multishot),
    Poll(Poll),
}

/// One worker's ring, memory and sockets. Built on any thread, driven by one.
pub struct Engine {
    // Dropped before the receiver, whose buffer ring the kernel knows.
    core: Core,
    receiver: Receiver,
    kind: EngineKind,
}

impl Engine {
    /// Allocates and registers everything. Afterwards nothing is allocated any more.
    ///
    /// # Errors
    /// Says what is missing: io_uring, memory, files; `io_uring_disabled`, seccomp or limits.
    pub fn build(tap: &Tap, config: EngineConfig) -> Result<Self, EngineError> {
        let EngineConfig { kind, slots, aux_slots, neighbours, outer_errors, waker } = config;
        // Ethernet and one VLAN tag in front of the network layer's MTU.
        let frame_capacity = tap.mtu() as usize + 14 + 4;
        let pool = SlotPool::new(slots + RESERVE, frame_capacity).map_err(EngineError::Memory)?;
        let aux = AuxSlots::new(aux_slots, frame_capacity).map_err(EngineError::Memory)?;
        // Room for all that can be in the kernel at once, so that the queue never overflows.
        let completions = (slots + RESERVE + aux_slots + BATCH).next_power_of_two();
        let ring = Ring::new(u32::try_from(completions).unwrap_or(u32::MAX))?;

        let tap_fd = duplicate(tap.as_fd())
            .map_err(|errno| EngineError::Ring { action: "duplicate the TAP", errno })?;
        raise_file_limit();
        let egress = EgressTable::register(&ring, tap_fd.as_raw_fd())
            .map_err(|errno| EngineError::Files { errno })?;

        let core = Core {
            ring,
            pool,
            aux,
            egress,
            sources: source_sockets(neighbours, outer_errors),
            waker,
            tap: tap_fd,
            counters: IoCounters::default(),
            in_flight: 0,
            stopping: false,
        };
        let receiver = match kind {
            EngineKind::Multishot => Receiver::Multishot(Multishot::new(&core.ring, slots)?),
            EngineKind::Poll => Receiver::Poll(Poll::default()),
        };
        Ok(Self { core, receiver, kind })
    }

    /// Which engine this is.
    pub fn kind(&self) -> EngineKind {
        self.kind
    }

    /// How the kernel agreed to run the ring, for the log.
    pub fn setup(&self) -> &'static str {
        self.core.ring.setup()
    }

    /// Drives `handler` until it asks to stop. To be called once.
    ///
    /// # Errors
    /// [`EngineError::TapGone`] and other ends that the daemon must not survive.
    pub fn run(&mut self, handler: &mut impl Handler) -> Result<IoCounters, EngineError> {
        self.core.ring.enable()?;
        match &mut self.receiver {
            Receiver::Multishot(receiver) => run_with(&mut self.core, receiver, handler),
            Receiver::Poll(receiver) => run_with(&mut self.core, receiver, handler),
        }?;
        Ok(self.core.counters)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let quiet = match &self.receiver {
            Receiver::Multishot(receiver) => receiver.is_quiet(),
            Receiver::Poll(receiver) => receiver.is_quiet(),
        };
        if quiet && self.core.in_flight == 0 {
            return;
        }
        // The kernel may still write to or read from the slots (an engine that ended by an error, or
        // was never quiet): their memory is leaked, once, instead of freed under its hands.
        let nothing = || SlotPool::new(0, 0).and_then(|pool| Ok((pool, AuxSlots::new(0, 0)?)));
        match nothing() {
            Ok((pool, aux)) => {
                std::mem::forget(std::mem::replace(&mut self.core.pool, pool));
                std::mem::forget(std::mem::replace(&mut self.core.aux, aux));
                let receiver = Receiver::Poll(Poll::default());
                std::mem::forget(std::mem::replace(&mut self.receiver, receiver));
            }
            // Not even a page left: nothing safe remains to be done.
            Err(_) => std::process::abort(),
        }
    }
}

/// Fixed files count against the soft limit of open files, which is 1024 by default; the hard limit
/// is usually far higher. If this fails, registering says so with the errno.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

fn source_sockets(
    neighbours: Vec<NeighbourSockets>,
    outer_errors: Option<OuterErrorSockets>,
) -> Vec<SourceSocket> {
    let neighbours = (0u16..).zip(neighbours).flat_map(|(interface, sockets)| {
        sockets.sockets.map(|socket| (Source::Neighbour { interface }, socket))
    });
    let errors = outer_errors
        .into_iter()
        .flat_map(|sockets| sockets.sockets.map(|socket| (Source::OuterError, socket)));
    neighbours
        .chain(errors)
        .map(|(source, socket)| SourceSocket { source, socket, ready: false })
        .collect()
}

fn run_with(
    core: &mut Core,
    receiver: &mut impl Receive,
    handler: &mut impl Handler,
) -> Result<(), EngineError> {
    let mut batch = Vec::with_capacity(BATCH);
    receiver.start(core)?;
    core.arm_sources()?;
    core.arm_waker()?;

    let mut next_tick = 0;
    let mut more = false;
    let mut quiet_by = u64::MAX;
    loop {
        let wait = if more { 0 } else { 1 };
        core.ring.submit(wait, Some(TICK))?;
        let now = clock::boottime_ns();
        core.ring.reap(&mut batch)?;
        core.counters.batches += 1;
        handler.batch(now, &mut EgressControl { table: &mut core.egress, ring: &core.ring });

        for &completion in &batch {
            match completion.kind {
                Kind::TapRead | Kind::TapPoll => receiver.completion(core, handler, completion)?,
                Kind::Send => core.main_sent(handler, completion)?,
                Kind::AuxSend => core.aux_sent(handler, completion)?,
                Kind::SourcePoll => core.source_ready(completion)?,
                Kind::WakePoll => core.woken()?,
                Kind::Cancel => {}
            }
        }
        let sources_left = core.read_sources(handler)?;
        more = receiver.continues(core, handler)? || sources_left || batch.len() == BATCH;

        if now >= next_tick {
            next_tick = now + TICK_NS;
            handler.tick(now, &mut core.aux, &core.counters);
            core.send_pending(handler)?;
        }
        if !core.stopping && handler.stop_requested() {
            core.stopping = true;
            quiet_by = now.saturating_add(u64::try_from(QUIESCE.as_nanos()).unwrap_or(u64::MAX));
            receiver.stop(core)?;
        }
        if core.stopping && (now > quiet_by || (receiver.is_quiet() && core.in_flight == 0)) {
            return Ok(());
        }
    }
}

impl Core {
    /// Hands a frame of `length` bytes behind the headroom to the handler and does what it says.
    pub(super) fn deliver(
        &mut self,
        handler: &mut impl Handler,
        source: Source,
        slot: Slot,
        length: usize,
    ) -> Result<(), EngineError> {
        let bytes = self.pool.bytes_mut(&slot);
        let end = (HEADROOM + length).min(bytes.len());
        match handler.frame(source, bytes, HEADROOM..end, &mut self.aux) {
            Disposition::Release => self.pool.release(slot),
            Disposition::Send { egress, range, token } => {
                self.send_main(handler, slot, egress, range, token)?;
            }
        }
        if !self.aux.pending.is_empty() {
            self.send_pending(handler)?;
        }
        Ok(())
    }

    fn send_main(
        &mut self,
        handler: &mut impl Handler,
        slot: Slot,
        egress: EgressId,
        range: Range<usize>,
        token: u32,
    ) -> Result<(), EngineError> {
        let pool = &mut self.pool;
        match submit_send(
            &mut self.ring,
            pool,
            &self.egress,
            Kind::Send,
            slot,
            egress,
            range,
            token,
        )? {
            Ok(()) => self.in_flight += 1,
            Err((slot, errno)) => {
                handler.sent(token, Err(errno));
                self.pool.release(slot);
            }
        }
        Ok(())
    }

    fn send_pending(&mut self, handler: &mut impl Handler) -> Result<(), EngineError> {
        let AuxSlots { pool, pending } = &mut self.aux;
        for PendingSend { slot, egress, range, token } in pending.drain(..) {
            let kind = Kind::AuxSend;
            match submit_send(&mut self.ring, pool, &self.egress, kind, slot, egress, range, token)?
            {
                Ok(()) => self.in_flight += 1,
                Err((slot, errno)) => {
                    handler.sent(token, Err(errno));
                    pool.release(slot);
                }
            }
        }
        Ok(())
    }

    fn main_sent(
        &mut self,
        handler: &mut impl Handler,
        completion: Completion,
    ) -> Result<(), EngineError> {
        let slot = self
            .pool
            .reclaim(completion.index, Owner::Flight)
            .ok_or(EngineError::Corrupt("a send of a slot that is not in flight"))?;
        self.in_flight -= 1;
        handler.sent(completion.token, completion.outcome().map(drop));
        self.pool.release(slot);
        Ok(())
    }

    fn aux_sent(
        &mut self,
        handler: &mut impl Handler,
        completion: Completion,
    ) -> Result<(), EngineError> {
        let slot = self
            .aux
            .pool
            .reclaim(completion.index, Owner::Flight)
            .ok_or(EngineError::Corrupt("a send of an auxiliary slot that is not in flight"))?;
        self.in_flight -= 1;
        handler.sent(completion.token, completion.outcome().map(drop));
        self.aux.pool.release(slot);
        Ok(())
    }

    /// Reads the TAP into a slot once. `None`: nothing there.
    pub(super) fn read_tap(&mut self, slot: &Slot) -> Result<Option<usize>, Errno> {
        let room = &mut self.pool.bytes_mut(slot)[HEADROOM..];
        match nix::unistd::read(&self.tap, room) {
            Ok(length) => Ok(Some(length)),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    fn arm_sources(&mut self) -> Result<(), EngineError> {
        (0..self.sources.len()).try_for_each(|index| self.arm_source(index))
    }

    fn arm_source(&mut self, index: usize) -> Result<(), EngineError> {
        let fd = self.sources[index].socket.as_raw_fd();
        let number = u32::try_from(index).map_err(|_| EngineError::Corrupt("too many sources"))?;
        self.arm_poll(fd, Kind::SourcePoll.user_data(number, 0))
    }

    fn arm_waker(&mut self) -> Result<(), EngineError> {
        let fd = self.waker.as_fd().as_raw_fd();
        self.arm_poll(fd, Kind::WakePoll.user_data(0, 0))
    }

    /// Asks for one completion when `fd` is readable. One-shot: it works on every kernel, and while
    /// the worker is busy with the descriptor nobody pays for wake-ups.
    pub(super) fn arm_poll(&mut self, fd: i32, user_data: u64) -> Result<(), EngineError> {
        let events = libc::POLLIN as u32; // 1
        let entry = opcode::PollAdd::new(types::Fd(fd), events).build().user_data(user_data);
        // SAFETY: a poll points to no memory.
        unsafe { self.ring.push(&entry) }
    }

    pub(super) fn arm_tap_poll(&mut self) -> Result<(), EngineError> {
        let events = libc::POLLIN as u32; // 1
        let user_data = Kind::TapPoll.user_data(0, 0);
        // Fixed file 0 is the TAP.
        let entry = opcode::PollAdd::new(types::Fixed(0), events).build().user_data(user_data);
        // SAFETY: a poll points to no memory.
        unsafe { self.ring.push(&entry) }
    }

    fn woken(&mut self) -> Result<(), EngineError> {
        self.waker.drain();
        self.arm_waker()
    }

    fn source_ready(&mut self, completion: Completion) -> Result<(), EngineError> {
        let source = self
            .sources
            .get_mut(completion.index as usize)
            .ok_or(EngineError::Corrupt("a poll of no source"))?;
        source.ready = true;
        Ok(())
    }

    /// Reads the sockets that are ready. `true` when some are not read to their end.
    fn read_sources(&mut self, handler: &mut impl Handler) -> Result<bool, EngineError> {
        let mut left = false;
        for index in 0..self.sources.len() {
            if self.sources[index].ready {
                left |= self.read_source(handler, index)?;
            }
        }
        Ok(left)
    }

    fn read_source(
        &mut self,
        handler: &mut impl Handler,
        index: usize,
    ) -> Result<bool, EngineError> {
        for _ in 0..SOURCE_BUDGET {
            let Some(slot) = self.pool.take() else {
                self.counters.out_of_slots += 1;
                return Ok(false); // still ready; read again when a send has given a slot back
            };
            let SourceSocket { source, socket, .. } = &self.sources[index];
            let source = *source;
            let room = &mut self.pool.bytes_mut(&slot)[HEADROOM..];
            match nix::unistd::read(socket, room) {
                Ok(length) => {
                    self.counters.source_frames += 1;
                    self.deliver(handler, source, slot, length)?;
                }
                Err(errno) => {
                    self.pool.release(slot);
                    if errno != Errno::EAGAIN {
                        // ENETDOWN and the like are told once per event; the socket stays usable.
                        self.counters.source_errors += 1;
                    }
                    self.sources[index].ready = false;
                    self.arm_source(index)?;
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    #[cfg(test)]
    pub(super) fn slots_free(&self) -> (usize, usize) {
        (self.pool.free_count(), self.aux.free_count())
    }
}

/// Queues a send, or gives the slot back with the reason why not.
#[expect(clippy::too_many_arguments, reason = "parts of Core that are borrowed apart, and a send")]
fn submit_send(
    ring: &mut Ring,
    pool: &mut SlotPool,
    table: &EgressTable,
    kind: Kind,
    slot: Slot,
    egress: EgressId,
    range: Range<usize>,
    token: u32,
) -> Result<Result<(), (Slot, Errno)>, EngineError> {
    let within = range.start < range.end && range.end <= pool.slot_len();
    let Some(length) = u32::try_from(range.len()).ok().filter(|_| within) else {
        return Ok(Err((slot, Errno::EINVAL)));
    };
    let index = pool.hand_over(slot, Owner::Flight);
    let Some(entry) = table.request(egress, pool.address(index, range.start), length) else {
        let slot = pool
            .reclaim(index, Owner::Flight)
            .ok_or(EngineError::Corrupt("a slot that was handed over a line before"))?;
        return Ok(Err((slot, Errno::ENXIO)));
    };
    let entry = entry.user_data(kind.user_data(index, token));
    // SAFETY: the bytes are inside the slot (`within`), the slot is in flight and so neither touched
    // nor given away before its completion reclaims it, and its memory outlives the ring
    // (`Engine::drop`).
    unsafe { ring.push(&entry) }?;
    Ok(Ok(()))
}

#[cfg(test)]
impl Engine {
    /// Free main and auxiliary slots, and slots the kernel has for receiving.
    pub(super) fn slot_balance(&self) -> (usize, usize, usize) {
        let (main, aux) = self.core.slots_free();
        (main, aux, self.core.pool.owned_by(Owner::Receive))
    }
}
