//! What both engines share: slots to the handler, sends to the ring, and the sockets beside the
//! inputs.

use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use io_uring::{opcode, types};
use nix::errno::Errno;

use super::egress::{EgressControl, EgressTable};
use super::engine_error::EngineError;
use super::handler::{Disposition, Handler, IoCounters, Source};
use super::input::Input;
use super::packet_socket::{NeighbourSockets, OuterErrorSockets};
use super::ring::{BATCH, Completion, Kind, Ring};
use super::slots::{AuxSlots, HEADROOM, Owner, PendingSend, Slot, SlotPool};
use super::wake::Waker;

/// Received slots that stay out of the buffer ring, for the sockets that are read directly.
pub(super) const RESERVE: usize = 16;

/// Frames read from one source at a time, so that a flood of ARP or ICMP cannot keep the worker from
/// the TAP.
const SOURCE_BUDGET: usize = 16;

/// A receive socket that is polled and read directly: it is rarely ready.
#[derive(Debug)]
struct SourceSocket {
    source: Source,
    socket: OwnedFd,
    /// Told ready, and not yet read until EAGAIN.
    ready: bool,
}

/// What both engines share.
pub(super) struct Exchange {
    // Dropped first: the ring goes before the memory it was given.
    pub(super) ring: Ring,
    pub(super) pool: SlotPool,
    aux: AuxSlots,
    /// Frames from inputs that wait for the handler, and their places in their slots.
    received: Vec<(Source, Slot, Range<usize>)>,
    egress: EgressTable,
    sources: Vec<SourceSocket>,
    waker: Waker,
    inputs: Box<[Input]>,
    pub(super) counters: IoCounters,
    in_flight: usize,
    /// After a stop: nothing is armed any more.
    pub(super) stopping: bool,
}

impl Exchange {
    /// Registers the device (TAP or TUN) that is written to, and the places for paths.
    pub(super) fn new(
        ring: Ring,
        pool: SlotPool,
        aux: AuxSlots,
        device: Option<RawFd>,
        inputs: Vec<Input>,
        waker: Waker,
    ) -> Result<Self, EngineError> {
        let egress =
            EgressTable::register(&ring, device).map_err(|errno| EngineError::Files { errno })?;
        Ok(Self {
            ring,
            pool,
            aux,
            received: Vec::with_capacity(BATCH),
            egress,
            sources: Vec::new(),
            waker,
            inputs: inputs.into(),
            counters: IoCounters::default(),
            in_flight: 0,
            stopping: false,
        })
    }

    /// Adds the receive sockets; they are read once [`Exchange::arm`] was called.
    pub(super) fn add_sources(
        &mut self,
        neighbours: Vec<NeighbourSockets>,
        outer_errors: Option<OuterErrorSockets>,
    ) {
        let neighbours = (0u16..).zip(neighbours).flat_map(|(interface, sockets)| {
            sockets.sockets.map(|socket| (Source::Neighbour { interface }, socket))
        });
        let errors = outer_errors
            .into_iter()
            .flat_map(|sockets| sockets.sockets.map(|socket| (Source::OuterError, socket)));
        let sockets = neighbours.chain(errors).map(|(source, socket)| SourceSocket {
            source,
            socket,
            ready: false,
        });
        self.sources.extend(sockets);
    }

    /// Asks to be told of the receive sockets and the waker.
    pub(super) fn arm(&mut self) -> Result<(), EngineError> {
        (0..self.sources.len()).try_for_each(|index| self.arm_source(index))?;
        self.arm_waker()
    }

    /// Sends whose completion has not come yet.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(super) fn egress_control(&mut self) -> EgressControl<'_> {
        EgressControl { table: &mut self.egress, ring: &self.ring }
    }

    /// Gives up the slots' memory without unmapping it.
    pub(super) fn leak_slots(&mut self) -> Result<(), Errno> {
        let (pool, aux) = (SlotPool::new(0, 0)?, AuxSlots::new(0, 0)?);
        std::mem::forget(std::mem::replace(&mut self.pool, pool));
        std::mem::forget(std::mem::replace(&mut self.aux, aux));
        Ok(())
    }

    pub(super) fn tick(
        &mut self,
        handler: &mut impl Handler,
        now_ns: u64,
    ) -> Result<(), EngineError> {
        handler.tick(now_ns, &mut self.aux, &self.counters);
        self.send_pending(handler)
    }

    /// Lets the handler take what other threads have left for it. `true` when there is more.
    pub(super) fn take_inbox(&mut self, handler: &mut impl Handler) -> Result<bool, EngineError> {
        let more = handler.inbox(&mut self.aux);
        self.send_pending(handler)?;
        Ok(more)
    }

    /// How many inputs there are.
    pub(super) fn inputs(&self) -> usize {
        self.inputs.len()
    }

    /// Takes note of `length` bytes that an input has given to a slot behind its headroom, for
    /// [`Exchange::deliver_received`].
    pub(super) fn receive(&mut self, input: usize, slot: Slot, length: usize) {
        let bytes = &mut self.pool.bytes_mut(&slot)[HEADROOM..];
        let length = length.min(bytes.len());
        let frame = self.inputs[input].frame(bytes, length);
        let frame = HEADROOM + frame.start..HEADROOM + frame.end;
        self.counters.tap_frames += 1;
        self.received.push((self.inputs[input].source(), slot, frame));
    }

    /// Whether frames from inputs wait for the handler.
    pub(super) fn has_received(&self) -> bool {
        !self.received.is_empty()
    }

    /// Hands the frames received from inputs to the handler: all of them to look at first, then one
    /// by one.
    pub(super) fn deliver_received(
        &mut self,
        handler: &mut impl Handler,
    ) -> Result<(), EngineError> {
        let mut received = std::mem::take(&mut self.received);
        // A frame that comes alone has nothing to overlap with.
        if received.len() > 1 && handler.looks_ahead() {
            for (_, slot, frame) in &received {
                handler.ahead(&self.pool.bytes_mut(slot)[frame.clone()]);
            }
        }
        for (source, slot, frame) in received.drain(..) {
            self.deliver(handler, source, slot, frame)?;
        }
        self.received = received;
        Ok(())
    }

    /// Hands a frame and its place in the slot to the handler and does what it says.
    fn deliver(
        &mut self,
        handler: &mut impl Handler,
        source: Source,
        slot: Slot,
        frame: Range<usize>,
    ) -> Result<(), EngineError> {
        let bytes = self.pool.bytes_mut(&slot);
        match handler.frame(source, bytes, frame, &mut self.aux) {
            Disposition::Release => self.pool.release(slot),
            Disposition::Send { egress, range, token } => {
                let send = PendingSend { slot, egress, range, token };
                let pool = &mut self.pool;
                match submit_send(&mut self.ring, pool, &self.egress, Kind::Send, send)? {
                    Submitted::InFlight => self.in_flight += 1,
                    Submitted::Refused(slot, errno) => {
                        handler.sent(token, Err(errno));
                        self.pool.release(slot);
                    }
                }
            }
        }
        if !self.aux.pending.is_empty() {
            self.send_pending(handler)?;
        }
        Ok(())
    }

    fn send_pending(&mut self, handler: &mut impl Handler) -> Result<(), EngineError> {
        let AuxSlots { pool, pending } = &mut self.aux;
        for send in pending.drain(..) {
            let token = send.token;
            match submit_send(&mut self.ring, pool, &self.egress, Kind::AuxSend, send)? {
                Submitted::InFlight => self.in_flight += 1,
                Submitted::Refused(slot, errno) => {
                    handler.sent(token, Err(errno));
                    pool.release(slot);
                }
            }
        }
        Ok(())
    }

    pub(super) fn main_sent(
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

    pub(super) fn aux_sent(
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

    /// Reads an input into a slot once. `None`: nothing there.
    pub(super) fn read_input(
        &mut self,
        input: usize,
        slot: &Slot,
    ) -> Result<Option<usize>, EngineError> {
        let room = &mut self.pool.bytes_mut(slot)[HEADROOM..];
        match self.inputs[input].read(room) {
            Ok(length) => Ok(Some(length)),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            Err(errno) => self.input_error(input, errno).map(|()| None),
        }
    }

    /// What an error of an input's means: that it is over, or nothing that lasts.
    pub(super) fn input_error(&mut self, input: usize, errno: Errno) -> Result<(), EngineError> {
        self.inputs[input].survives(errno)?;
        self.counters.source_errors += 1;
        Ok(())
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

    /// Asks for one completion when an input is readable.
    pub(super) fn arm_input_poll(&mut self, input: usize) -> Result<(), EngineError> {
        let user_data = Kind::InputPoll.user_data(input_number(input)?, 0);
        let entry = self.inputs[input].poll().user_data(user_data);
        // SAFETY: a poll points to no memory.
        unsafe { self.ring.push(&entry) }
    }

    /// Asks for completions, one for each frame of an input, until that is ended. Frames are put into
    /// lent slots.
    pub(super) fn arm_input_read(&mut self, input: usize) -> Result<(), EngineError> {
        let user_data = Kind::InputRead.user_data(input_number(input)?, 0);
        let entry = self.inputs[input].read_multishot().user_data(user_data);
        self.counters.armed += 1;
        // SAFETY: the kernel writes to lent slots only, which nobody touches before their
        // completion, and whose memory outlives the ring (`Engine::drop`). What the request says of
        // a message is the input's, which goes after the ring (field order).
        unsafe { self.ring.push(&entry) }
    }

    /// Ends what [`Exchange::arm_input_read`] began.
    pub(super) fn cancel_input_read(&mut self, input: usize) -> Result<(), EngineError> {
        let read = Kind::InputRead.user_data(input_number(input)?, 0);
        let entry = opcode::AsyncCancel::new(read).build().user_data(Kind::Cancel.user_data(0, 0));
        // SAFETY: a cancellation points to no memory.
        unsafe { self.ring.push(&entry) }
    }

    pub(super) fn woken(&mut self) -> Result<(), EngineError> {
        self.waker.drain();
        self.arm_waker()
    }

    pub(super) fn source_ready(&mut self, completion: Completion) -> Result<(), EngineError> {
        let source = self
            .sources
            .get_mut(completion.index as usize)
            .ok_or(EngineError::Corrupt("a poll of no source"))?;
        source.ready = true;
        Ok(())
    }

    /// Reads the sockets that are ready. `true` when some are not read to their end.
    pub(super) fn read_sources(&mut self, handler: &mut impl Handler) -> Result<bool, EngineError> {
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
                    self.deliver(handler, source, slot, HEADROOM..HEADROOM + length)?;
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

    /// Free main and auxiliary slots, and slots the kernel has for receiving.
    #[cfg(test)]
    pub(super) fn slot_balance(&self) -> (usize, usize, usize) {
        (self.pool.free_count(), self.aux.free_count(), self.pool.owned_by(Owner::Receive))
    }
}

/// An input's place in `user_data`.
fn input_number(input: usize) -> Result<u32, EngineError> {
    u32::try_from(input).map_err(|_| EngineError::Corrupt("too many inputs"))
}

/// What became of a send that was asked for.
enum Submitted {
    InFlight,
    Refused(Slot, Errno),
}

/// Queues a send, or gives the slot back with the reason why not.
fn submit_send(
    ring: &mut Ring,
    pool: &mut SlotPool,
    table: &EgressTable,
    kind: Kind,
    send: PendingSend,
) -> Result<Submitted, EngineError> {
    let PendingSend { slot, egress, range, token } = send;
    let within = range.start < range.end && range.end <= pool.slot_len();
    let Some(length) = u32::try_from(range.len()).ok().filter(|_| within) else {
        return Ok(Submitted::Refused(slot, Errno::EINVAL));
    };
    let index = pool.hand_over(slot, Owner::Flight);
    let Some(entry) = table.request(egress, pool.address(index, range.start), length) else {
        let slot = pool
            .reclaim(index, Owner::Flight)
            .ok_or(EngineError::Corrupt("a slot that was handed over a line before"))?;
        return Ok(Submitted::Refused(slot, Errno::ENXIO));
    };
    let entry = entry.user_data(kind.user_data(index, token));
    // SAFETY: the bytes are inside the slot (`within`), the slot is in flight and so neither touched
    // nor given away before its completion reclaims it, and its memory outlives the ring
    // (`Engine::drop`).
    unsafe { ring.push(&entry) }?;
    Ok(Submitted::InFlight)
}
