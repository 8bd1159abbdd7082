//! Taking over the flows of an earlier process: every slot is checked before it is believed.

use super::{FlowRecord, FlowTable, List, Slot, SlotError, Ticks, list_of};
use crate::dataplane::{ids::DestinationId, time::Time};

/// Why a slot's flow was not taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The slot holds no flow.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// Idle for longer than its class allows.
    #[error("expired")]
    Expired,
    /// Its times lie in the future, or end before they begin.
    #[error("times are impossible")]
    Times,
    /// Its VIP or real server is not in the directory.
    #[error("unknown VIP or real server")]
    UnknownTarget,
    /// Another slot has the same key.
    #[error("key met twice")]
    Duplicate,
    /// The new table is smaller, and more proven flows came first.
    #[error("no room")]
    NoRoom,
}

/// What an adoption found, in flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdoptionReport {
    /// Taken over.
    pub adopted: u32,
    /// Idle for too long meanwhile.
    pub expired: u32,
    /// Of another format.
    pub format: u32,
    /// Torn by the end of the earlier process.
    pub torn: u32,
    /// With a class, flag or family that cannot be.
    pub field: u32,
    /// With times that cannot be.
    pub times: u32,
    /// To a VIP or real server that the directory does not know.
    pub unknown_target: u32,
    /// With a key another flow already had.
    pub duplicate: u32,
    /// For which a smaller table had no room.
    pub no_room: u32,
}

impl AdoptionReport {
    fn reject(&mut self, rejection: Rejection) {
        *match rejection {
            Rejection::Slot(SlotError::Format(_)) => &mut self.format,
            Rejection::Slot(SlotError::Torn) => &mut self.torn,
            Rejection::Slot(SlotError::Field) => &mut self.field,
            Rejection::Expired => &mut self.expired,
            Rejection::Times => &mut self.times,
            Rejection::UnknownTarget => &mut self.unknown_target,
            Rejection::Duplicate => &mut self.duplicate,
            Rejection::NoRoom => &mut self.no_room,
        } += 1;
    }
}

/// Takes back the flows that are meant, before the region they are in is adopted.
pub fn end(slots: &[Slot], mut is_meant: impl FnMut(&FlowRecord) -> bool) {
    for slot in slots {
        if let Ok(Some(flow)) = slot.read()
            && is_meant(&flow)
        {
            slot.clear();
        }
    }
}

/// A flow that waits to be entered, in the order in which it may take room: what is evicted last
/// comes first, and of one list the oldest first.
type Waiting = (u8, Ticks, u32);

impl<S: AsRef<[Slot]>> FlowTable<S> {
    /// Takes over the flows that are in `slots`, in place. `resolve` names the destination of a
    /// flow in this process, `None` when the directory does not know its VIP or real server.
    /// Allocates; it is part of the start.
    pub fn adopt(
        slots: S,
        seed: [u64; 4],
        now: Time,
        mut resolve: impl FnMut(&FlowRecord) -> Option<DestinationId>,
    ) -> (Self, AdoptionReport) {
        let mut table = Self::bare(slots, seed);
        let mut report = AdoptionReport::default();
        let mut waiting: Vec<Waiting> = Vec::new();
        for number in 0..table.count() {
            let found = check(table.slot(number), now, &mut resolve).and_then(|record| {
                record.map_or(Ok(None), |record| table.claim(number, &record).map(Some))
            });
            match found {
                Ok(Some(record)) => {
                    report.adopted += 1;
                    waiting.push(place_in_line(&record, number));
                    continue;
                }
                Ok(None) => {}
                Err(rejection) => report.reject(rejection),
            }
            table.slot(number).clear();
            table.ages.push(List::Free as usize, number);
        }
        waiting.sort_unstable();
        for (_, _, number) in waiting {
            let progress = table.slot(number).progress();
            table.enlist(number, &progress);
        }
        (table, report)
    }

    /// Enters the slot's flow into the index, unless its key is in already.
    fn claim(&mut self, number: u32, record: &FlowRecord) -> Result<FlowRecord, Rejection> {
        let (hash, same) = self.find(&record.key);
        if same.is_some() {
            return Err(Rejection::Duplicate);
        }
        self.slot(number).set_destination(record.destination);
        self.index.insert(hash, number);
        Ok(*record)
    }

    /// Enters the flows of another region: one of another capacity, number of workers or format.
    /// `resolve` as in [`adopt`](Self::adopt); `is_ours` leaves out what is another worker's. When
    /// the table is smaller, what would be evicted first is left behind. Allocates.
    pub fn reinsert_from<'a>(
        &mut self,
        old: impl IntoIterator<Item = &'a Slot>,
        now: Time,
        mut resolve: impl FnMut(&FlowRecord) -> Option<DestinationId>,
        mut is_ours: impl FnMut(&FlowRecord) -> bool,
    ) -> AdoptionReport {
        let mut report = AdoptionReport::default();
        let mut records: Vec<(Waiting, FlowRecord)> = Vec::new();
        for slot in old {
            // A slot that cannot be read has no worker: each counts it, so that none is forgotten.
            match check(slot, now, &mut resolve) {
                Ok(Some(record)) if is_ours(&record) => {
                    records.push((place_in_line(&record, 0), record));
                }
                Ok(_) => {}
                Err(rejection) => report.reject(rejection),
            }
        }
        records.sort_by_key(|(waiting, _)| *waiting);
        for (_, record) in &records {
            let (hash, same) = self.find(&record.key);
            if same.is_some() {
                report.reject(Rejection::Duplicate);
            } else if self.place(hash, record).is_none() {
                report.reject(Rejection::NoRoom);
            } else {
                report.adopted += 1;
            }
        }
        report
    }
}

fn place_in_line(record: &FlowRecord, number: u32) -> Waiting {
    let rank = match list_of(record.progress.class, record.progress.proven) {
        None => 0,
        Some(List::Closing) => 1,
        Some(List::Unproven) => 2,
        Some(List::HalfOpen | List::Free) => 3,
    };
    (rank, record.progress.created, number)
}

/// A slot's flow with its destination in this process; `None` when it is free.
fn check(
    slot: &Slot,
    now: Time,
    resolve: &mut impl FnMut(&FlowRecord) -> Option<DestinationId>,
) -> Result<Option<FlowRecord>, Rejection> {
    let Some(mut record) = slot.read()? else { return Ok(None) };
    let now = Ticks::at(now);
    let progress = &record.progress;
    if progress.last_seen > now || progress.created > progress.last_seen {
        return Err(Rejection::Times);
    }
    if progress.is_expired(now) {
        return Err(Rejection::Expired);
    }
    record.destination = resolve(&record).ok_or(Rejection::UnknownTarget)?;
    Ok(Some(record))
}
