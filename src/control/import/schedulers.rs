//! The schedulers of IPVS and what takes their place.
//!
//! A scheduler that Adit has under IPVS's own name is taken over by name, whatever stands in the
//! table; only the others are looked up there.

use super::report::Remark;
use crate::dataplane::scheduler::SchedulerKind;

/// What takes a scheduler's place where there is none of its name.
#[derive(Clone, Copy)]
struct Nearest {
    /// IPVS's name.
    name: &'static str,
    kind: SchedulerKind,
    /// Only the servers of the highest weight get connections.
    only_heaviest: bool,
    /// What the nearest one does otherwise.
    why: &'static str,
    instead: &'static str,
}

const BY_CONNECTIONS: &str = "connections are not counted here: a server that is slow to end them gets as many new ones as \
     the others";
const BY_DESTINATION: &str = "clients are placed by a hash of their own address and port: by \
                              destination, a service of one VIP would have one server";
const SPREAD: &str = "give the stronger servers more weight, or take \"maglev\", which every \
                      director and every restart places alike";

const fn nearest(
    name: &'static str,
    kind: SchedulerKind,
    why: &'static str,
    instead: &'static str,
) -> Nearest {
    Nearest { name, kind, only_heaviest: false, why, instead }
}

/// Every scheduler of IPVS. One line each.
const SCHEDULERS: [Nearest; 14] = [
    nearest("rr", SchedulerKind::Rr, "", ""),
    nearest("wrr", SchedulerKind::Wrr, "", ""),
    nearest("lc", SchedulerKind::Rr, BY_CONNECTIONS, SPREAD),
    nearest("wlc", SchedulerKind::Wrr, BY_CONNECTIONS, SPREAD),
    nearest("sed", SchedulerKind::Wrr, BY_CONNECTIONS, SPREAD),
    nearest("nq", SchedulerKind::Wrr, BY_CONNECTIONS, SPREAD),
    nearest("twos", SchedulerKind::Wrr, BY_CONNECTIONS, SPREAD),
    nearest(
        "ovf",
        SchedulerKind::Wrr,
        "servers share by weight: nobody waits for another to be full",
        SPREAD,
    ),
    nearest(
        "mh",
        SchedulerKind::Maglev,
        "the same algorithm with another hash and another table: every client is placed anew once",
        "move at a time when sessions may be opened anew",
    ),
    nearest(
        "sh",
        SchedulerKind::Maglev,
        "a consistent hash: clients are placed anew once, and hardly any later when servers change",
        "move at a time when sessions may be opened anew",
    ),
    nearest(
        "dh",
        SchedulerKind::Maglev,
        BY_DESTINATION,
        "look whether the service is to have one server only; then name that one alone",
    ),
    nearest(
        "lblc",
        SchedulerKind::Maglev,
        BY_DESTINATION,
        "nothing, unless this director stood in front of caches: there it has no equal",
    ),
    nearest(
        "lblcr",
        SchedulerKind::Maglev,
        BY_DESTINATION,
        "nothing, unless this director stood in front of caches: there it has no equal",
    ),
    Nearest {
        name: "fo",
        kind: SchedulerKind::Maglev,
        only_heaviest: true,
        why: "nobody takes over by itself: the highest weight is kept, the others are set to 0",
        instead: "when the first server fails, change the weights and run `adit reload`",
    },
];

/// A scheduler that was chosen for a service.
#[derive(Debug, Clone)]
pub(super) struct Chosen {
    pub(super) kind: SchedulerKind,
    /// All servers but those of the highest weight get weight 0.
    pub(super) only_heaviest: bool,
    /// What differs from IPVS's, if anything.
    pub(super) remark: Option<Remark>,
}

/// What takes the place of IPVS's scheduler `name`; `None` when IPVS has none of that name.
pub(super) fn choose(name: &str) -> Option<Chosen> {
    let nearest = SCHEDULERS.iter().find(|scheduler| scheduler.name == name)?;
    if let Some(kind) = SchedulerKind::from_name(name) {
        return Some(Chosen { kind, only_heaviest: false, remark: None });
    }
    let why = format!("there is no `{name}` here; `{}` {}", nearest.kind.name(), does(nearest));
    let remark = Some(Remark::changed(why, nearest.instead));
    Some(Chosen { kind: nearest.kind, only_heaviest: nearest.only_heaviest, remark })
}

fn does(nearest: &Nearest) -> String {
    format!("takes its place: {}", nearest.why)
}

/// The name of every scheduler of IPVS, for the documentation to be held against.
#[must_use]
pub fn supported() -> [&'static str; 14] {
    SCHEDULERS.map(|scheduler| scheduler.name)
}

/// The scheduler of a service that names none, in IPVS as in keepalived.
pub(super) const DEFAULT: &str = "wlc";

/// Whether Maglev places the way a flag asks of `sh` or `mh`, or what it does otherwise.
///
/// `flag-1` and `flag-2` are the numbers of `fallback` and `port` (`ip_vs.h`).
pub(super) fn flag(scheduler: &str, kind: SchedulerKind, flag: &str) -> Result<Flag, Remark> {
    let hashes = matches!(scheduler, "sh" | "mh");
    let name = match flag.strip_prefix(scheduler).and_then(|rest| rest.strip_prefix('-')) {
        Some(name) => name,
        None if flag == "flag-1" => "fallback",
        None if flag == "flag-2" => "port",
        None => flag,
    };
    match name {
        // Maglev always goes on to the next candidate, and always hashes the client's port.
        "fallback" if hashes && kind == SchedulerKind::Maglev => Ok(Flag::Fallback),
        "port" if hashes && kind == SchedulerKind::Maglev => Ok(Flag::Port),
        "fallback" | "port" if hashes => Err(Remark::left_out(
            format!("flags of `{scheduler}` are not imported"),
            "set them in the configuration where the scheduler has them",
        )),
        _ => Err(Remark::unknown(
            format!("`{scheduler}` has no such flag"),
            "nothing: IPVS does not look at it either",
        )),
    }
}

/// What a flag asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flag {
    Fallback,
    Port,
}

/// Whether clients that were kept together by address are no longer: `sh` and `mh` without their
/// port flag, where Maglev takes their place.
pub(super) fn scatters(scheduler: &str, kind: SchedulerKind, flags: &[Flag]) -> bool {
    matches!(scheduler, "sh" | "mh")
        && kind == SchedulerKind::Maglev
        && !flags.contains(&Flag::Port)
}

/// What [`scatters`] means.
pub(super) fn scattered(scheduler: &str) -> Remark {
    Remark::changed(
        format!(
            "`{scheduler}` without its port flag keeps a client's connections together; `maglev` \
             places each of them"
        ),
        "where clients must be kept together: persistence = { timeout = \"10m\", ipv4_prefix = 32 }",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scheduler_is_chosen_by_its_name_or_said_to_differ() {
        for scheduler in &SCHEDULERS {
            let chosen = choose(scheduler.name).unwrap();
            let same = chosen.kind.name() == scheduler.name;
            assert_eq!(chosen.remark.is_none(), same, "{}", scheduler.name);
            assert!(
                SchedulerKind::from_name(scheduler.name).is_none_or(|kind| kind == chosen.kind)
            );
        }
        assert!(choose(DEFAULT).is_some());
        assert!(choose("maglev").is_none() && choose("").is_none());
    }

    #[test]
    fn flags_by_name_and_by_number() {
        let of = |scheduler: &str, text: &str| flag(scheduler, SchedulerKind::Maglev, text).ok();
        assert_eq!(of("mh", "mh-port"), Some(Flag::Port));
        assert_eq!(of("mh", "flag-2"), Some(Flag::Port));
        assert_eq!(of("sh", "sh-fallback"), Some(Flag::Fallback));
        assert_eq!(of("sh", "flag-1"), Some(Flag::Fallback));
        for (scheduler, wrong) in [("mh", "sh-port"), ("mh", "flag-3"), ("rr", "flag-1")] {
            assert_eq!(of(scheduler, wrong), None, "{scheduler} {wrong}");
        }
        assert!(scatters("mh", SchedulerKind::Maglev, &[Flag::Fallback]));
        assert!(!scatters("sh", SchedulerKind::Maglev, &[Flag::Port]));
        assert!(!scatters("wlc", SchedulerKind::Wrr, &[]));
    }
}
