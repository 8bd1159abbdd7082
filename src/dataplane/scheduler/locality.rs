//! Which members serve a VIP at present: what `lblc` and `lblcr` remember.
//!
//! IPVS keeps a cache from destination addresses to servers, since a service there may have many
//! (by firewall mark). A service here has one VIP, so one entry is the whole cache: a mark for each
//! member, the time of the last use, and of the last change. All are atomics that the next snapshot
//! carries over, marks by member address.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{Candidate, Candidates, Load, Member, candidates::least};
use crate::dataplane::time::Time;

/// How long an unused entry is remembered, and how long a set stays as it is before `lblcr` lets
/// its busiest member go: IPVS's default of `lblc_expiration` and `lblcr_expiration`.
pub(super) const EXPIRATION: Duration = Duration::from_secs(24 * 60 * 60);

/// The entry of one service. Relaxed throughout: no mark guards other memory, and
/// where two workers write at once, either order will do.
#[derive(Debug, Default)]
pub struct Locality {
    serving: Box<[(IpAddr, Arc<AtomicBool>)]>,
    used: Arc<AtomicU64>,
    changed: Arc<AtomicU64>,
}

impl Locality {
    /// The entry for `members`, with the marks that `previous` had.
    pub(super) fn new(members: &[Member], previous: Option<&Self>) -> Self {
        let kept: HashMap<IpAddr, &Arc<AtomicBool>> = previous
            .into_iter()
            .flat_map(|locality| locality.serving.iter())
            .map(|(address, mark)| (*address, mark))
            .collect();
        let mark = |member: &Member| {
            let mark = kept.get(&member.address).map_or_else(Arc::default, |mark| Arc::clone(mark));
            (member.address, mark)
        };
        Self {
            serving: members.iter().map(mark).collect(),
            used: previous.map_or_else(Arc::default, |p| Arc::clone(&p.used)),
            changed: previous.map_or_else(Arc::default, |p| Arc::clone(&p.changed)),
        }
    }

    /// Whether the member serves the VIP now.
    pub(super) fn serves(&self, index: usize, now: Time) -> bool {
        let used = Time(self.used.load(Relaxed));
        self.is_marked(index) && now.saturating_since(used) <= EXPIRATION
    }

    fn is_marked(&self, index: usize) -> bool {
        self.serving.get(index).is_some_and(|(_, mark)| mark.load(Relaxed))
    }

    /// Members that serve the VIP now.
    pub(super) fn count(&self, now: Time) -> usize {
        (0..self.serving.len()).filter(|index| self.serves(*index, now)).count()
    }

    /// Whether the set has been as it is for so long that it may shrink.
    pub(super) fn is_settled(&self, now: Time) -> bool {
        now.saturating_since(Time(self.changed.load(Relaxed))) > EXPIRATION
    }

    /// The entry was used.
    pub(super) fn touch(&self, now: Time) {
        self.used.store(now.0, Relaxed);
    }

    /// The member serves the VIP from now on.
    pub(super) fn add(&self, index: usize, now: Time) {
        if let Some((_, mark)) = self.serving.get(index)
            && !mark.swap(true, Relaxed)
        {
            self.changed.store(now.0, Relaxed);
        }
    }

    /// The member serves the VIP no more.
    pub(super) fn remove(&self, index: usize, now: Time) {
        if let Some((_, mark)) = self.serving.get(index)
            && mark.swap(false, Relaxed)
        {
            self.changed.store(now.0, Relaxed);
        }
    }

    /// Nobody serves the VIP.
    pub(super) fn clear(&self) {
        self.serving.iter().for_each(|(_, mark)| mark.store(false, Relaxed));
    }
}

/// The weighted least connections of all, for a VIP that nobody serves or whose servers have too
/// much to do.
pub(super) fn least_of_all(candidates: &Candidates<'_>) -> Option<Candidate> {
    least(candidates.eligible(), Load::overhead)
}

/// Whether a server of a VIP should be relieved: it has more active connections than its weight,
/// and another has less than half of its own.
pub(super) fn is_overloaded(candidate: &Candidate, candidates: &Candidates<'_>) -> bool {
    let half_free = |other: Candidate| other.load.active.saturating_mul(2) < other.weight.into();
    candidate.overflows() && candidates.eligible().any(half_free)
}
