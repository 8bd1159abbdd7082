//! The shell of the core: auxiliary slots and events, both bounded, and sends that complete later.

use std::collections::VecDeque;
use std::ops::Range;

use adit::dataplane::verdict::{Account, EgressId, Event, HEADROOM, Outlet};

/// Room for the largest packet the sequences send, twice wrapped.
pub(super) const SLOT: usize = HEADROOM + 4096;
/// Auxiliary slots at most.
const SLOTS: usize = 16;

/// What left an auxiliary slot.
#[derive(Clone, Debug)]
pub(super) struct Output {
    pub(super) egress: EgressId,
    pub(super) bytes: Vec<u8>,
    pub(super) account: Account,
}

pub(super) struct Shell {
    memory: Vec<Vec<u8>>,
    free: Vec<usize>,
    /// Slots that are handed out now; the others are said to be in use.
    pub(super) available: usize,
    /// Events taken before the queue is full.
    pub(super) event_room: usize,
    pub(super) outputs: Vec<Output>,
    pub(super) events: Vec<Event>,
    /// Sends that have not completed, with the auxiliary slot they hold.
    pub(super) pending: VecDeque<(Account, Option<usize>)>,
}

impl Shell {
    pub(super) fn new(available: usize, event_room: usize) -> Self {
        Self {
            memory: vec![vec![0; SLOT]; SLOTS],
            free: (0..SLOTS).collect(),
            available: available.min(SLOTS),
            event_room,
            outputs: Vec::new(),
            events: Vec::new(),
            pending: VecDeque::new(),
        }
    }

    /// Input packets whose send has not completed.
    pub(super) fn in_flight(&self) -> u64 {
        let accounted = |(account, _): &&(Account, _)| *account != Account::Extra;
        self.pending.iter().filter(accounted).count() as u64
    }

    /// The oldest send completes; its slot is free again.
    pub(super) fn complete(&mut self) -> Option<Account> {
        let (account, slot) = self.pending.pop_front()?;
        self.free.extend(slot);
        Some(account)
    }
}

impl Outlet for Shell {
    type Scratch = usize;

    fn acquire(&mut self) -> Option<usize> {
        let in_use = SLOTS - self.free.len();
        if in_use >= self.available { None } else { self.free.pop() }
    }

    fn bytes(&mut self, scratch: &usize) -> &mut [u8] {
        &mut self.memory[*scratch]
    }

    fn send(&mut self, scratch: usize, egress: EgressId, range: Range<usize>, account: Account) {
        let bytes = self.memory[scratch][range].to_vec();
        self.outputs.push(Output { egress, bytes, account });
        self.pending.push_back((account, Some(scratch)));
    }

    fn release(&mut self, scratch: usize) {
        self.free.push(scratch);
    }

    fn event(&mut self, event: Event) -> bool {
        let room = self.events.len() < self.event_room;
        if room {
            self.events.push(event);
        }
        room
    }
}
