//! How a choice came about, for `adit explain`.

use std::net::IpAddr;

use serde::Serialize;

use super::{Candidate, Candidates, Load, Member};

/// How a choice came about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The scheduler's name.
    pub scheduler: &'static str,
    /// The placement key, 32 hexadecimal digits; `None` when the scheduler does not look at it.
    pub key: Option<String>,
    /// Slots of the table; `None` without a table.
    pub table_size: Option<u32>,
    /// Every probed candidate in order, the taken one last.
    pub probes: Vec<ProbedCandidate>,
    /// Whether all probes were passed over, so that weighted rendezvous decided.
    pub rendezvous: bool,
    /// The chosen member, or `None` when nobody is eligible.
    pub chosen: Option<ChosenMember>,
    /// Whom a packet in mid-flow without an entry would be sent to.
    pub rederived: Option<ChosenMember>,
}

impl Explanation {
    /// Of a scheduler that looked at all members: those it passed over, then the one it took.
    /// `passed_over` says why an eligible one was; `None` leaves it out.
    pub(super) fn of_members(
        scheduler: &'static str,
        candidates: &Candidates<'_>,
        chosen: Option<usize>,
        with_load: bool,
        passed_over: impl Fn(&Candidate) -> Option<ProbeOutcome>,
    ) -> Self {
        let outcome = |index: usize| match candidates.get(index) {
            Some(candidate) => passed_over(&candidate),
            None => Some(ProbeOutcome::of(candidates, index, 0)),
        };
        let others = (0..candidates.members.len()).filter(|index| Some(*index) != chosen);
        let passed = others.filter_map(|index| Some((index, outcome(index)?)));
        let looked_at = passed.chain(chosen.map(|index| (index, ProbeOutcome::Taken)));
        let probes = (0..).zip(looked_at).filter_map(|(probe, (index, outcome))| {
            let candidate = ChosenMember::of(index, candidates.members)?;
            let load = with_load.then(|| candidates.loads.of(index));
            Some(ProbedCandidate { probe, slot: None, candidate, load, outcome })
        });
        Self {
            scheduler,
            key: None,
            table_size: None,
            probes: probes.collect(),
            rendezvous: false,
            chosen: chosen.and_then(|index| ChosenMember::of(index, candidates.members)),
            rederived: None,
        }
    }
}

/// A member as an [`Explanation`] names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ChosenMember {
    /// Position among the members.
    pub index: usize,
    /// The real server's address.
    pub address: IpAddr,
}

impl ChosenMember {
    pub(super) fn of(index: usize, members: &[Member]) -> Option<Self> {
        members.get(index).map(|member| Self { index, address: member.address })
    }
}

/// One step of an [`Explanation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ProbedCandidate {
    /// Number of the probe, from 0.
    pub probe: u32,
    /// The slot it looked at; `None` without a table.
    pub slot: Option<u32>,
    /// Who is in that slot.
    pub candidate: ChosenMember,
    /// Its connections, where the scheduler looks at them.
    pub load: Option<Load>,
    /// Why the candidate was taken or passed over.
    pub outcome: ProbeOutcome,
}

/// Why a candidate was taken or passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeOutcome {
    /// It takes the flow.
    Taken,
    /// Health checks say it is dead.
    Down,
    /// It takes no new flows.
    Draining,
    /// Its effective weight is zero.
    WeightZero,
    /// It has as many connections as it may.
    Overloaded,
    /// Its effective weight is below the configured one, and this key is not in the share left.
    BeyondShare,
    /// The taken one has less load for its weight, or the same and comes first.
    Busier,
    /// The taken one has a higher weight, or the same and comes first.
    LowerWeight,
    /// It has more active connections than its weight.
    Overflowing,
    /// It was not drawn.
    NotDrawn,
    /// It does not serve this VIP at present.
    NotServing,
}

impl ProbeOutcome {
    /// What becomes of a key with this acceptance at a member.
    pub(super) fn of(candidates: &Candidates<'_>, index: usize, acceptance: u32) -> Self {
        let member = &candidates.members[index];
        if member.down {
            Self::Down
        } else if member.draining {
            Self::Draining
        } else if member.admitted_weight() == 0 {
            Self::WeightZero
        } else if candidates.is_overloaded(index) {
            Self::Overloaded
        } else if candidates.accepts(index, acceptance) {
            Self::Taken
        } else {
            Self::BeyondShare
        }
    }
}
