//! The schedulers of IPVS and their flags. Adit has each under IPVS's own name.

use super::report::{Remark, visible};
use crate::dataplane::scheduler::{SchedulerFlag, SchedulerKind};

/// The scheduler of a service that names none, in IPVS as in keepalived.
pub(super) const DEFAULT: SchedulerKind = SchedulerKind::Wlc;

/// What was chosen for a service.
#[derive(Debug, Clone)]
pub(super) struct Chosen {
    pub(super) kind: SchedulerKind,
    /// Of this scheduler, sorted, each once.
    pub(super) flags: Vec<SchedulerFlag>,
}

/// IPVS's scheduler of this name; `None` when it has none, as `maglev`, which is Adit's own.
pub(super) fn named(name: &str) -> Option<SchedulerKind> {
    SchedulerKind::from_name(name).filter(|kind| *kind != SchedulerKind::Maglev)
}

/// The name of every scheduler of IPVS, for the documentation to be held against.
pub fn supported() -> impl Iterator<Item = &'static str> {
    SchedulerKind::ALL.iter().map(|kind| kind.name()).filter(|name| named(name).is_some())
}

/// What differs from IPVS's scheduler of the same name, as far as clients notice it
/// (docs/schedulers.md).
pub(super) fn difference(kind: SchedulerKind) -> Option<Remark> {
    hashes(kind).then(|| {
        Remark::changed(
            format!("`{kind}` has another hash than IPVS's: clients are placed anew, once"),
            "move at a time when clients may come to another server",
        )
    })
}

/// Whether a server of weight 0 has clients that IPVS refuses, and others get here: in IPVS it
/// keeps its place in the tables of these schedulers.
pub(super) fn refuses_without_weight(chosen: &Chosen) -> bool {
    let fallback = [SchedulerFlag::ShFallback, SchedulerFlag::MhFallback];
    hashes(chosen.kind) && !fallback.iter().any(|flag| chosen.flags.contains(flag))
}

/// What [`refuses_without_weight`] means.
pub(super) fn weight_zero(kind: SchedulerKind) -> Remark {
    Remark::changed(
        format!(
            "under IPVS's `{kind}` a server of weight 0 keeps its clients and refuses them; here \
             they go to others"
        ),
        "nothing, unless they were meant to be refused",
    )
}

fn hashes(kind: SchedulerKind) -> bool {
    matches!(kind, SchedulerKind::Sh | SchedulerKind::Dh | SchedulerKind::Mh)
}

/// The flag that `text` names for a scheduler.
///
/// `flag-1` and `flag-2` are the numbers of `fallback` and `port` (`ip_vs.h`).
///
/// # Errors
/// When the scheduler has no such flag.
pub(super) fn flag(kind: SchedulerKind, text: &str) -> Result<SchedulerFlag, Remark> {
    let name = match text {
        "flag-1" => format!("{kind}-fallback"),
        "flag-2" => format!("{kind}-port"),
        name => name.to_owned(),
    };
    let own = |flag: &SchedulerFlag| flag.scheduler() == kind && flag.name() == name;
    SchedulerFlag::ALL.into_iter().find(own).ok_or_else(|| {
        Remark::unknown(
            format!("`{kind}` has no flag `{}`", visible(text)),
            "nothing: IPVS does not look at it either",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedulers_of_ipvs_are_found_by_name() {
        assert_eq!(supported().count(), 14);
        for name in supported() {
            assert_eq!(named(name).map(SchedulerKind::name), Some(name));
        }
        for other in ["maglev", "", "WLC", "wlc "] {
            assert_eq!(named(other), None, "{other}");
        }
    }

    #[test]
    fn flags_by_name_and_by_number() {
        let of = |kind, text| flag(kind, text).ok();
        use SchedulerKind::{Mh, Rr, Sh};
        assert_eq!(of(Mh, "mh-port"), Some(SchedulerFlag::MhPort));
        assert_eq!(of(Mh, "flag-2"), Some(SchedulerFlag::MhPort));
        assert_eq!(of(Sh, "sh-fallback"), Some(SchedulerFlag::ShFallback));
        assert_eq!(of(Sh, "flag-1"), Some(SchedulerFlag::ShFallback));
        for (kind, wrong) in [(Mh, "sh-port"), (Mh, "flag-3"), (Rr, "flag-1"), (Sh, "port")] {
            assert_eq!(of(kind, wrong), None, "{kind} {wrong}");
        }
    }

    #[test]
    fn a_fallback_takes_the_clients_of_weight_zero_in_ipvs_too() {
        let refuses = |kind, flags| refuses_without_weight(&Chosen { kind, flags });
        assert!(refuses(SchedulerKind::Sh, vec![SchedulerFlag::ShPort]));
        assert!(refuses(SchedulerKind::Dh, vec![]));
        assert!(!refuses(SchedulerKind::Mh, vec![SchedulerFlag::MhFallback]));
        assert!(!refuses(SchedulerKind::Wlc, vec![]));
    }
}
