//! The schedulers and flags that a service can name.

use std::{fmt, sync::Arc};

use serde::{Serialize, Serializer};

use super::{
    Carried, Member, Scheduler,
    by_load::ByLoad,
    dh::Dh,
    fo::Fo,
    lblc::Lblc,
    lblcr::Lblcr,
    lc::Lc,
    maglev::Maglev,
    mh::Mh,
    nq::Nq,
    ovf::Ovf,
    sed::Sed,
    sh::Sh,
    table::{TableCache, TableError},
    twos::Twos,
    wlc::Wlc,
    wrr::Wrr,
};

/// The schedulers a service can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SchedulerKind {
    /// Consistent hashing over a Maglev table.
    Maglev,
    /// Weighted round robin.
    Wrr,
    /// Round robin: `wrr` with equal weights.
    Rr,
    /// Least connections.
    Lc,
    /// Weighted least connections.
    Wlc,
    /// Source hashing.
    Sh,
    /// Destination hashing.
    Dh,
    /// Shortest expected delay.
    Sed,
    /// Never queue.
    Nq,
    /// Weighted failover.
    Fo,
    /// Weighted overflow.
    Ovf,
    /// Locality-based least connections.
    Lblc,
    /// Locality-based least connections with replication.
    Lblcr,
    /// Power of two choices.
    Twos,
    /// Consistent hashing of clients over a Maglev table, as IPVS's `mh`.
    Mh,
}

impl SchedulerKind {
    /// All kinds, in the order in which they are documented.
    pub const ALL: [Self; 15] = [
        Self::Maglev,
        Self::Wrr,
        Self::Rr,
        Self::Lc,
        Self::Wlc,
        Self::Sh,
        Self::Dh,
        Self::Sed,
        Self::Nq,
        Self::Fo,
        Self::Ovf,
        Self::Lblc,
        Self::Lblcr,
        Self::Twos,
        Self::Mh,
    ];

    /// The name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Maglev => "maglev",
            Self::Wrr => "wrr",
            Self::Rr => "rr",
            Self::Lc => "lc",
            Self::Wlc => "wlc",
            Self::Sh => "sh",
            Self::Dh => "dh",
            Self::Sed => "sed",
            Self::Nq => "nq",
            Self::Fo => "fo",
            Self::Ovf => "ovf",
            Self::Lblc => "lblc",
            Self::Lblcr => "lblcr",
            Self::Twos => "twos",
            Self::Mh => "mh",
        }
    }

    /// The kind of this name in the configuration.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether it places by a table, which takes time to build and has a size.
    pub const fn has_table(self) -> bool {
        matches!(self, Self::Maglev | Self::Mh)
    }

    /// Whether it places by a hash, so that services with the same members and weights agree.
    pub const fn is_hash(self) -> bool {
        match self {
            Self::Maglev | Self::Mh | Self::Sh | Self::Dh => true,
            Self::Wrr
            | Self::Rr
            | Self::Lc
            | Self::Wlc
            | Self::Sed
            | Self::Nq
            | Self::Fo
            | Self::Ovf
            | Self::Twos
            | Self::Lblc
            | Self::Lblcr => false,
        }
    }

    /// Whether it looks at the connections there are.
    pub const fn counts_connections(self) -> bool {
        match self {
            Self::Lc
            | Self::Wlc
            | Self::Sed
            | Self::Nq
            | Self::Ovf
            | Self::Lblc
            | Self::Lblcr
            | Self::Twos => true,
            Self::Maglev | Self::Mh | Self::Wrr | Self::Rr | Self::Sh | Self::Dh | Self::Fo => {
                false
            }
        }
    }

    /// Builds the scheduler of one service. Tables come from `tables`, where services with the
    /// same members and weights share one; what moves is carried over from `previous`, the
    /// service's scheduler in the snapshot before. Flags of other kinds have no effect.
    ///
    /// # Errors
    /// [`TableError`] when no table can hold the members; only for kinds that
    /// [have one](Self::has_table).
    pub fn build(
        self,
        flags: &[SchedulerFlag],
        members: &[Member],
        tables: &mut TableCache,
        previous: Option<&dyn Scheduler>,
    ) -> Result<Arc<dyn Scheduler>, TableError> {
        let before = previous.map_or(Carried::Nothing, |scheduler| scheduler.carried());
        let has = |flag| flags.contains(&flag);
        Ok(match self {
            Self::Maglev => Arc::new(Maglev::new(members, tables)?),
            Self::Wrr => Arc::new(Wrr::new(members, before.turns())),
            Self::Rr => Arc::new(Wrr::round_robin(members, before.turns())),
            Self::Lc => Arc::new(ByLoad::<Lc>::default()),
            Self::Wlc => Arc::new(ByLoad::<Wlc>::default()),
            Self::Sh => {
                let (port, fallback) = (SchedulerFlag::ShPort, SchedulerFlag::ShFallback);
                Arc::new(Sh::new(has(port), has(fallback)))
            }
            Self::Dh => Arc::new(Dh),
            Self::Sed => Arc::new(ByLoad::<Sed>::default()),
            Self::Nq => Arc::new(ByLoad::<Nq>::default()),
            Self::Fo => Arc::new(ByLoad::<Fo>::default()),
            Self::Ovf => Arc::new(ByLoad::<Ovf>::default()),
            Self::Lblc => Arc::new(Lblc::new(members, before.locality())),
            Self::Lblcr => Arc::new(Lblcr::new(members, before.locality())),
            Self::Twos => Arc::new(Twos::new(tables.key(), before.draws())),
            Self::Mh => {
                let (port, fallback) = (SchedulerFlag::MhPort, SchedulerFlag::MhFallback);
                Arc::new(Mh::new(Maglev::new(members, tables)?, has(port), has(fallback)))
            }
        })
    }
}

impl fmt::Display for SchedulerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for SchedulerKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// What a scheduler does otherwise than by default, by the names of `ipvsadm -b`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SchedulerFlag {
    /// `sh` looks at the client's port too.
    ShPort,
    /// `sh` asks another server when the placed one takes no new flow.
    ShFallback,
    /// `mh` looks at the client's port too.
    MhPort,
    /// `mh` asks another server when the placed one takes no new flow.
    MhFallback,
}

impl SchedulerFlag {
    /// All flags.
    pub const ALL: [Self; 4] = [Self::ShPort, Self::ShFallback, Self::MhPort, Self::MhFallback];

    /// The name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ShPort => "sh-port",
            Self::ShFallback => "sh-fallback",
            Self::MhPort => "mh-port",
            Self::MhFallback => "mh-fallback",
        }
    }

    /// The only scheduler that has it.
    pub const fn scheduler(self) -> SchedulerKind {
        match self {
            Self::ShPort | Self::ShFallback => SchedulerKind::Sh,
            Self::MhPort | Self::MhFallback => SchedulerKind::Mh,
        }
    }
}

impl fmt::Display for SchedulerFlag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for SchedulerFlag {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}
