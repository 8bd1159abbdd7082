//! Announcing VIPs by their routes: they are there while a VIP can serve, for a routing daemon to
//! export, and gone at once when it cannot any more.

use super::workers::{Heard, Threads};
use super::{Daemon, DaemonError, Signals, TICK, how_it_ended, now};
use crate::control::announcement::{Ability, Withdrawn, abilities};
use crate::control::config::Announce;
use crate::control::netlink::vip_routes::{Leading, Reserve};
use crate::dataplane::vip_prefix::VipPrefix;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

/// Keeps the routes of VIPs to what these can do, until the director stops. A withdrawal waits for
/// nothing but other routes.
pub(super) async fn keep_announced(daemon: Rc<Daemon>) {
    if !daemon.is_announced_by_routes() {
        return;
    }
    while !daemon.stopping.get() {
        // A new snapshot is looked at at once. Holds end without one.
        let _ = tokio::time::timeout(TICK, daemon.published.notified()).await;
        if !daemon.look_at_announcements() {
            continue;
        }
        if let Err(error) = daemon.lead_again().await {
            tracing::error!(%error, "VIPs are announced otherwise than they should be; it is tried again");
            daemon.state.borrow_mut().host_due = true;
        }
    }
}

impl Daemon {
    /// Whether the routes of VIPs announce them. A reload cannot change that.
    pub(super) fn is_announced_by_routes(&self) -> bool {
        self.state.borrow().config.director.announce == Announce::Route
    }

    /// Decides which VIPs are announced now; whether that is another decision than before.
    pub(super) fn look_at_announcements(&self) -> bool {
        let mut state = self.state.borrow_mut();
        let snapshot = Arc::clone(&state.snapshot);
        let mut able = abilities(&snapshot);
        if state.entering {
            // The host may yet refuse the configuration that leaves a VIP without real servers.
            let announced = state.announcements.iter().filter(|(_, a)| a.withdrawn.is_none());
            for (vip, _) in announced {
                let ability = able.entry(vip).or_insert(Ability::NoService);
                if *ability <= Ability::NoRealServer {
                    *ability = Ability::Serves;
                }
            }
        }
        let changed = state.announcements.look(now(), &able);
        for (vip, announcement) in &changed {
            match announcement.withdrawn {
                None => tracing::info!(%vip, "announced"),
                Some(reason @ Withdrawn::Stopping) => tracing::info!(%vip, %reason, "withdrawn"),
                Some(reason) => tracing::warn!(%vip, %reason, "withdrawn"),
            }
        }
        !changed.is_empty()
    }

    /// How the VIPs that routes announce are to be led to the TAP, as was decided last.
    pub(super) fn leading_by_routes(&self) -> Vec<(VipPrefix, Leading)> {
        let state = self.state.borrow();
        let services = state.config.services.iter();
        let checked: Vec<IpAddr> = services
            .filter(|service| service.check.is_some())
            .map(|service| service.vip.address())
            .collect();
        // Checks of a VIP that is withdrawn are to reach real servers through this director. Those of
        // a prefix go to one address, which a service of its own may have.
        let is_checked = |vip: VipPrefix| checked.iter().any(|address| vip.contains(*address));
        state.announcements.leading(|vip| match is_checked(vip) {
            true => Reserve::BeforeOthers,
            false => Reserve::BehindOthers,
        })
    }

    /// Brings the routes of the VIPs that are led here to what was decided.
    async fn lead_again(&self) -> Result<(), String> {
        let _routing = self.routing.lock().await;
        if self.stopping.get() {
            return Ok(());
        }
        let leading = self.leading_by_routes();
        let done = self.netlink.set_vip_routes(&leading, self.tap.index()).await;
        done.map_err(|error| error.to_string())
    }

    /// Withdraws all VIPs that routes announce, and goes on forwarding while the network learns of
    /// it. Another signal cuts that short.
    ///
    /// # Errors
    /// When a worker ends meanwhile.
    pub(super) async fn withdraw(
        &self,
        signals: &mut Signals,
        threads: &mut Threads,
    ) -> Result<(), DaemonError> {
        let wait = {
            let mut state = self.state.borrow_mut();
            let Some(wait) = state.config.director.withdraw_wait else { return Ok(()) };
            state.announcements.stop();
            wait
        };
        self.look_at_announcements();
        if let Err(error) = self.lead_again().await {
            tracing::error!(%error, "VIPs are not withdrawn before the end");
        }
        tracing::info!(?wait, "VIPs are withdrawn; forwarding goes on meanwhile");
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut heard = Heard::new(&self.workers);
        let enough = tokio::time::sleep(wait);
        tokio::pin!(enough);
        loop {
            tokio::select! {
                () = &mut enough => return Ok(()),
                _ = signals.terminate.recv() => return Ok(()),
                _ = signals.interrupt.recv() => return Ok(()),
                (number, end) = threads.first_end() => {
                    let worker = self.workers.name(number);
                    return Err(DaemonError::Worker { worker, how: how_it_ended(end) });
                }
                _ = tick.tick() => self.tick_and_listen(&mut heard)?,
            }
        }
    }
}
