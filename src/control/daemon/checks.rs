//! Health checks of a running director: begins those that are due, hears how they end, tells the
//! worker what follows from it and the log what has changed.

use super::{Daemon, now};
use crate::control::health::board::{Change, Start};
use crate::control::health::connect;
use crate::control::health::target::{Outcome, State};
use crate::control::netlink::egress::{Egress, KernelReason};
use crate::control::runtime;
use crate::dataplane::time::Time;
use std::collections::HashSet;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc;

/// States that change within this time after the last were told are told together: when a data centre
/// is lost, hundreds do.
const TOGETHER: Duration = Duration::from_millis(20);
/// How soon the worker is told again where it did not take it.
const TELL_AGAIN: Duration = Duration::from_millis(200);

/// Checks real servers, for ever.
pub(super) async fn check_real_servers(daemon: Rc<Daemon>) {
    // One of each target at most is under way.
    let (tell, mut heard) = mpsc::unbounded_channel::<(u64, Outcome)>();
    let news = daemon.state.borrow().health.news();
    let mut tell_at = Time::ZERO;
    loop {
        let next = {
            let health = &daemon.state.borrow().health;
            let tell = health.is_untold().then_some(tell_at);
            [health.next_due(), tell].into_iter().flatten().min()
        };
        let sleep = async {
            match next {
                Some(at) => tokio::time::sleep(at.saturating_since(now())).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = news.notified() => {}
            Some((target, outcome)) = heard.recv() => {
                daemon.note_check(target, outcome);
                while let Ok((target, outcome)) = heard.try_recv() {
                    daemon.note_check(target, outcome);
                }
            }
            () = sleep => {}
        }
        for start in daemon.checks_due() {
            let tell = tell.clone();
            runtime::spawn(async move {
                let outcome = connect::tcp(&start).await;
                // Nobody hears it when the director has stopped.
                let _ = tell.send((start.target, outcome));
            });
        }
        let due = tell_at <= now() && daemon.state.borrow().health.is_untold();
        if due {
            // The first of many at once, so that nothing is shown before it holds.
            let next = if daemon.tell_health() { TOGETHER } else { TELL_AGAIN };
            tell_at = now() + next;
        }
    }
}

impl Daemon {
    fn checks_due(&self) -> Vec<Start> {
        let mut state = self.state.borrow_mut();
        if state.health.next_due().is_none_or(|due| due > now()) {
            return Vec::new();
        }
        if state.entering {
            // The way to a VIP that is new may not be there yet.
            return Vec::new();
        }
        // A real server may be reached in several ways.
        let paths = state.survey.paths.iter();
        let reached: HashSet<IpAddr> =
            paths.clone().filter(|path| has_way(path.egress)).map(|path| path.address).collect();
        let looked_up: HashSet<IpAddr> = paths.map(|path| path.address).collect();
        let has_way = |real| reached.contains(&real) || !looked_up.contains(&real);
        let (starts, changes) = state.health.due(now(), has_way);
        changes.iter().for_each(report);
        starts
    }

    fn note_check(&self, target: u64, outcome: Outcome) {
        let change = self.state.borrow_mut().health.finished(now(), target, outcome);
        change.iter().for_each(report);
    }

    /// Tells the worker what checks have found; whether that is done. A change of the configuration
    /// that is under way tells it with the rest.
    fn tell_health(&self) -> bool {
        if self.state.borrow().in_change {
            return false;
        }
        match self.publish() {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "what checks have found is told again in a moment");
                false
            }
        }
    }
}

/// Whether a check has a way to try, as far as this host knows. Where the next hop has only not
/// answered yet, trying tells more than its silence.
pub(super) const fn has_way(egress: Egress) -> bool {
    match egress {
        Egress::Direct(_) => true,
        Egress::Kernel(reason) => {
            !matches!(reason, KernelReason::NoRoute | KernelReason::Refused | KernelReason::Local)
        }
        Egress::None(reason) => matches!(reason, KernelReason::Unresolved),
    }
}

fn report(change: &Change) {
    let Change { key, to, reason } = change;
    let (service, vip, real) = (key.service.as_str(), key.vip, key.real);
    match to {
        State::Up => tracing::info!(service, %vip, %real, reason, "real server is up"),
        State::Down => tracing::warn!(service, %vip, %real, reason, "real server is down"),
        // Nothing comes back to that.
        State::Unchecked => {}
    }
}
