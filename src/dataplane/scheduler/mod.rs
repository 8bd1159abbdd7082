//! Schedulers: which member of a service takes a new flow.
//!
//! A choice has two stages. *Placement* depends on the configured members and weights only and
//! is the same on every director; *eligibility* (health, drain, lag, load, all folded into an
//! effective weight) acts on new flows only and rebuilds nothing. Hashes ([`maglev`], [`mh`], [`sh`],
//! [`dh`]) have both; the others have no placement and choose among the eligible, by effective
//! weight and connections.
//!
//! A scheduler is immutable and shared by all workers in a snapshot; what moves (the cursors of
//! `wrr`, the draws of `twos`, whom `lblc` has chosen) lives in atomics that the next snapshot
//! carries over, by member address where it belongs to a member.
//!
//! The names are IPVS's, and so is what they do; `docs/schedulers.md` says where they differ.

mod by_load;
mod candidates;
pub mod dh;
mod explanation;
mod fo;
mod kind;
pub mod lblc;
pub mod lblcr;
mod lc;
mod load;
mod locality;
pub mod maglev;
pub mod mh;
mod nq;
mod ovf;
#[cfg(test)]
mod properties;
mod rendezvous;
#[cfg(test)]
mod scenes;
mod sed;
pub mod sh;
pub mod table;
mod threshold;
pub mod twos;
mod wlc;
pub mod wrr;

use std::net::IpAddr;

pub use self::{
    candidates::{Candidate, Candidates},
    explanation::{ChosenMember, Explanation, ProbeOutcome, ProbedCandidate},
    kind::{SchedulerFlag, SchedulerKind},
    load::{Load, Loads},
    locality::Locality,
    threshold::Threshold,
};
use self::{maglev::Maglev, twos::Twos, wrr::Wrr};
use super::hash::PlacementKey;

/// Live state of one member of a service: all that the second stage looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The real server's address, its identity.
    pub address: IpAddr,
    /// The configured weight: the ceiling, and all that placement sees.
    pub weight: u32,
    /// What health, lag, slow start and `adit weight` leave of it, 0..=`weight`.
    pub effective_weight: u32,
    /// Dead as far as health checks know.
    pub down: bool,
    /// Takes no new flow, keeps those it has.
    pub draining: bool,
}

impl Member {
    /// A member that is up and takes its full share.
    pub const fn up(address: IpAddr, weight: u32) -> Self {
        Self { address, weight, effective_weight: weight, down: false, draining: false }
    }

    /// The weight with which this member takes part in choices for new flows; 0 takes none.
    #[inline]
    pub fn admitted_weight(&self) -> u32 {
        if self.down || self.draining { 0 } else { self.effective_weight.min(self.weight) }
    }

    /// Whether a new flow may go here. Persistence asks this too.
    #[inline]
    pub fn is_eligible(&self) -> bool {
        self.admitted_weight() > 0
    }

    /// Whether a probe's acceptance hash lies below the share that `admitted` is of the configured
    /// weight. Exact: acceptance / 2^32 < admitted / configured, cross-multiplied.
    #[inline]
    fn share_holds(&self, admitted: u32, acceptance: u32) -> bool {
        u64::from(acceptance) * u64::from(self.weight) < u64::from(admitted) << 32
    }
}

/// What of a flow decides its placement, where its service has no persistence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyedBy {
    /// All that names it: client, port, VIP, port and protocol.
    Flow,
    /// The client's address.
    Client,
    /// The client's address and port.
    ClientAndPort,
    /// The VIP.
    Vip,
}

/// What a scheduler hands to its successor in the next snapshot.
#[derive(Clone, Copy)]
pub enum Carried<'a> {
    /// It keeps nothing.
    Nothing,
    /// Whose turn it is.
    Turns(&'a Wrr),
    /// How many were drawn.
    Draws(&'a Twos),
    /// Who serves a VIP.
    Locality(&'a Locality),
}

impl<'a> Carried<'a> {
    fn turns(self) -> Option<&'a Wrr> {
        if let Self::Turns(wrr) = self { Some(wrr) } else { None }
    }

    fn draws(self) -> Option<&'a Twos> {
        if let Self::Draws(twos) = self { Some(twos) } else { None }
    }

    fn locality(self) -> Option<&'a Locality> {
        if let Self::Locality(locality) = self { Some(locality) } else { None }
    }
}

/// Chooses real servers for new flows. `candidates` has always the members that the scheduler was
/// built for, in the same order, with the live state of now.
pub trait Scheduler: Send + Sync {
    /// The name in the configuration.
    fn name(&self) -> &'static str;

    /// What the placement key is to be made of.
    fn keyed_by(&self) -> KeyedBy {
        KeyedBy::Flow
    }

    /// Whether a placement can be derived again from the key alone.
    fn is_hash(&self) -> bool {
        false
    }

    /// Member for a new flow, or `None` when nobody may have it. Never allocates.
    fn schedule(&self, key: &PlacementKey, candidates: &Candidates<'_>) -> Option<usize>;

    /// The one guess for a packet in mid-flow that has no entry: the first placed candidate
    /// that is not down (draining counts as up). `None` for schedulers that are not hashes.
    fn rederive(&self, _key: &PlacementKey, _members: &[Member]) -> Option<usize> {
        None
    }

    /// How [`Scheduler::schedule`] would decide now, for `adit explain`. Moves nothing.
    fn explain(&self, key: &PlacementKey, candidates: &Candidates<'_>) -> Explanation;

    /// What the next snapshot goes on with.
    fn carried(&self) -> Carried<'_> {
        Carried::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_end_exactly_where_they_should() {
        const HALF: u32 = 1 << 31;
        let cases = [
            // Configured, effective, acceptance, whether it takes the key.
            (100, 0, 0, false),
            (100, 50, HALF - 1, true),
            (100, 50, HALF, false),
            (100, 100, u32::MAX, true),
            (u32::MAX, u32::MAX, u32::MAX, true),
            (u32::MAX, 1, 1, true),
            (u32::MAX, 1, 2, false),
            (100, 500, u32::MAX, true),
            (0, 0, 0, false),
        ];
        for (weight, effective_weight, acceptance, takes) in cases {
            let member =
                Member { effective_weight, ..Member::up(IpAddr::from([10, 0, 0, 1]), weight) };
            let case = (weight, effective_weight, acceptance);
            assert_eq!(member.share_holds(member.admitted_weight(), acceptance), takes, "{case:?}");
        }
    }
}
