//! The packet loop of one worker: completions in, frames to the handler, sends out.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;

use super::clock;
use super::engine_error::EngineError;
use super::exchange::{Exchange, RESERVE};
use super::handler::{Handler, IoCounters, TICK};
use super::input::Input;
use super::multishot::Multishot;
use super::packet_socket::{NeighbourSockets, OuterErrorSockets};
use super::poll::Poll;
use super::probe::EngineKind;
use super::ring::{BATCH, Completion, Kind, Ring};
use super::slots::{AuxSlots, SlotPool};
use super::tap::Tap;
use super::tun::Tun;
use super::tunnel_socket::TunnelSocket;
use super::wake::{Waker, duplicate};

/// Time for requests to end after a stop: sends end at once (MSG_DONTWAIT), cancellation in
/// microseconds. Past it the memory is given up rather than freed under the kernel's hands.
const QUIESCE: Duration = Duration::from_secs(1);

/// After `since` by `interval`, in nanoseconds of the packet path's clock.
fn later(since: u64, interval: Duration) -> u64 {
    since.saturating_add(u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX))
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
    /// Which of the TAP's queues it reads.
    pub queue: usize,
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
            queue: 0,
            waker,
        }
    }
}

/// How frames are taken from inputs.
pub(super) trait Receive {
    /// Starts receiving.
    fn start(&mut self, exchange: &mut Exchange) -> Result<(), EngineError>;

    /// A completion of kind `InputRead` or `InputPoll`.
    fn completion(
        &mut self,
        exchange: &mut Exchange,
        completion: Completion,
    ) -> Result<(), EngineError>;

    /// After each batch: delivers what was received, returns slots to the kernel, re-arms. `true`
    /// when there is more to do at once, without waiting.
    fn continues(
        &mut self,
        exchange: &mut Exchange,
        handler: &mut impl Handler,
    ) -> Result<bool, EngineError>;

    /// Ends receiving; may take some batches.
    fn stop(&mut self, exchange: &mut Exchange) -> Result<(), EngineError>;

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
    exchange: Exchange,
    receiver: Receiver,
    kind: EngineKind,
}

impl Engine {
    /// Allocates and registers everything. Afterwards nothing is allocated any more.
    ///
    /// # Errors
    /// Says what is missing: io_uring, memory, files; `io_uring_disabled`, seccomp or limits.
    pub fn build(tap: &Tap, config: EngineConfig) -> Result<Self, EngineError> {
        let error = |errno| EngineError::Ring { action: "duplicate the TAP", errno };
        let queue = tap.queue(config.queue).ok_or(Errno::ENODEV).map_err(error)?;
        // Ethernet and one VLAN tag in front of the network layer's MTU.
        let frame_capacity = tap.mtu() as usize + 14 + 4;
        let input = Input::Tap(duplicate(queue).map_err(error)?);
        Self::assemble(Some(queue), vec![input], frame_capacity, config)
    }

    /// An engine that takes packets of any length from sockets and writes to a TUN, which
    /// [`super::EgressId::TUN`] names.
    ///
    /// # Errors
    /// As [`Engine::build`].
    pub fn between(
        sockets: Vec<TunnelSocket>,
        tun: &Tun,
        config: EngineConfig,
    ) -> Result<Self, EngineError> {
        Self::of_sockets(sockets, Some(tun.as_fd()), usize::from(u16::MAX), config)
    }

    /// As [`Engine::between`], for packets of up to `capacity` bytes, where the TUN may be missing.
    pub(super) fn of_sockets(
        sockets: Vec<TunnelSocket>,
        tun: Option<BorrowedFd<'_>>,
        capacity: usize,
        config: EngineConfig,
    ) -> Result<Self, EngineError> {
        let inputs = sockets.into_iter().map(Input::Tunnel).collect();
        Self::assemble(tun, inputs, capacity + TunnelSocket::ROOM, config)
    }

    fn assemble(
        device: Option<BorrowedFd<'_>>,
        inputs: Vec<Input>,
        frame_capacity: usize,
        config: EngineConfig,
    ) -> Result<Self, EngineError> {
        let EngineConfig { kind, slots, aux_slots, neighbours, outer_errors, queue: _, waker } =
            config;
        let pool = SlotPool::new(slots + RESERVE, frame_capacity).map_err(EngineError::Memory)?;
        let aux = AuxSlots::new(aux_slots, frame_capacity).map_err(EngineError::Memory)?;
        // Room for all that can be in the kernel at once, so that the queue never overflows.
        let completions = (slots + RESERVE + aux_slots + BATCH).next_power_of_two();
        let ring = Ring::new(u32::try_from(completions).unwrap_or(u32::MAX))?;

        raise_file_limit();
        let device = device.map(|device| device.as_raw_fd());
        let mut exchange = Exchange::new(ring, pool, aux, device, inputs, waker)?;
        exchange.add_sources(neighbours, outer_errors);
        let receiver = match kind {
            EngineKind::Multishot => {
                Receiver::Multishot(Multishot::new(&exchange.ring, slots, exchange.inputs())?)
            }
            EngineKind::Poll => Receiver::Poll(Poll::new(exchange.inputs())),
        };
        Ok(Self { exchange, receiver, kind })
    }

    /// Which engine this is.
    pub fn kind(&self) -> EngineKind {
        self.kind
    }

    /// How the kernel agreed to run the ring, for the log.
    pub fn setup(&self) -> &'static str {
        self.exchange.ring.setup()
    }

    /// Drives `handler` until it asks to stop. To be called once.
    ///
    /// # Errors
    /// [`EngineError::TapGone`] and other ends that the daemon must not survive.
    pub fn run(&mut self, handler: &mut impl Handler) -> Result<IoCounters, EngineError> {
        self.exchange.ring.enable()?;
        match &mut self.receiver {
            Receiver::Multishot(receiver) => run_with(&mut self.exchange, receiver, handler),
            Receiver::Poll(receiver) => run_with(&mut self.exchange, receiver, handler),
        }?;
        Ok(self.exchange.counters)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let quiet = match &self.receiver {
            Receiver::Multishot(receiver) => receiver.is_quiet(),
            Receiver::Poll(receiver) => receiver.is_quiet(),
        };
        if quiet && self.exchange.in_flight() == 0 {
            return;
        }
        // The kernel may still write to or read from the slots (an engine that ended by an error, or
        // was never quiet): their memory is leaked, once, instead of freed under its hands.
        if self.exchange.leak_slots().is_err() {
            // Not even a page left: nothing safe remains to be done.
            std::process::abort();
        }
        let receiver = std::mem::replace(&mut self.receiver, Receiver::Poll(Poll::default()));
        std::mem::forget(receiver);
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

fn run_with(
    exchange: &mut Exchange,
    receiver: &mut impl Receive,
    handler: &mut impl Handler,
) -> Result<(), EngineError> {
    let mut batch = Vec::with_capacity(BATCH);
    receiver.start(exchange)?;
    exchange.arm()?;

    let mut next_tick = 0;
    let mut more = false;
    let mut quiet_by = u64::MAX;
    loop {
        let wait = if more { 0 } else { 1 };
        exchange.ring.submit(wait, Some(TICK))?;
        let now = clock::boottime_ns();
        exchange.ring.reap(&mut batch)?;
        exchange.counters.batches += 1;
        handler.batch(now, &mut exchange.egress_control());

        for &completion in &batch {
            match completion.kind {
                Kind::InputRead | Kind::InputPoll => receiver.completion(exchange, completion)?,
                Kind::Send => exchange.main_sent(handler, completion)?,
                Kind::AuxSend => exchange.aux_sent(handler, completion)?,
                Kind::SourcePoll => exchange.source_ready(completion)?,
                Kind::WakePoll => exchange.woken()?,
                Kind::Cancel => {}
            }
        }
        let sources_left = exchange.read_sources(handler)?;
        more = receiver.continues(exchange, handler)? || sources_left || batch.len() == BATCH;
        more |= exchange.take_inbox(handler)?;

        if now >= next_tick {
            next_tick = later(now, TICK);
            exchange.tick(handler, now)?;
        }
        if !exchange.stopping && handler.stop_requested() {
            exchange.stopping = true;
            quiet_by = later(now, QUIESCE);
            receiver.stop(exchange)?;
        }
        if exchange.stopping
            && (now > quiet_by || (receiver.is_quiet() && exchange.in_flight() == 0))
        {
            return Ok(());
        }
    }
}

#[cfg(test)]
impl Engine {
    /// Free main and auxiliary slots, and slots the kernel has for receiving.
    pub(super) fn slot_balance(&self) -> (usize, usize, usize) {
        self.exchange.slot_balance()
    }
}
