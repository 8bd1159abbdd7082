//! Keeping host and worker in step with the state, beside everything else: what is heard of the host,
//! what others take away, what a failed change has left undone.

use super::update::ReloadError;
use super::{Daemon, LOOK_AGAIN, SETTLE};
use crate::control::config::Capture;
use crate::control::finding::Finding;
use crate::control::firewall;
use crate::control::netlink::NetlinkError;
use crate::control::netlink::watch::HostWatch;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;

/// How often it is looked at whether what drains has ended.
const DRAIN_LOOK: Duration = Duration::from_secs(1);

/// Keeps host and worker in step until the director stops. It may have to wait, for a change that is
/// under way or for the host; nothing else waits for it.
///
/// # Errors
/// When the host cannot be watched any more.
pub(super) async fn keep_in_step(
    daemon: Rc<Daemon>,
    mut watch: HostWatch,
) -> Result<(), NetlinkError> {
    // At once: next hops are to be resolved, and what changed during the start is to be seen.
    let mut look = Instant::now();
    let mut look_at_own = look + LOOK_AGAIN;
    let mut look_at_drains = look + DRAIN_LOOK;
    // Grows while each look finds something missing: another program may take it away each time.
    let mut mend_after = SETTLE;
    loop {
        let (what, done) = tokio::select! {
            change = watch.changed() => {
                let (change, heard) = (change?, Instant::now());
                if let Some(wait) = daemon.look_within(change) {
                    look = look.min(heard + wait);
                }
                if daemon.concerns_own(change) {
                    look_at_own = look_at_own.min(heard + mend_after);
                }
                continue;
            }
            () = tokio::time::sleep_until(look) => {
                look = Instant::now() + LOOK_AGAIN;
                ("cannot look at the host; the last look stays in force", daemon.look_again().await)
            }
            () = tokio::time::sleep_until(look_at_own) => {
                look_at_own = Instant::now() + LOOK_AGAIN;
                let found = daemon.mend_host().await;
                let again = matches!(found, Ok(true));
                mend_after = if again { LOOK_AGAIN.min(mend_after * 2) } else { SETTLE };
                ("cannot see whether VIPs are still led here", found.map(|_| ()))
            }
            () = tokio::time::sleep_until(look_at_drains) => {
                look_at_drains = Instant::now() + DRAIN_LOOK;
                ("a drained real server stays in force", daemon.end_draining().await)
            }
        };
        match done {
            Ok(()) => {}
            Err(ReloadError::Stopping) => return Ok(()),
            Err(error) => tracing::error!(%error, "{what}"),
        }
    }
}

impl Daemon {
    /// Looks whether everything that leads VIPs here is still there, and puts back what is not;
    /// whether anything was missing.
    async fn mend_host(&self) -> Result<bool, ReloadError> {
        let _changing = self.change().await?;
        let mut conditions = self.client_interface().await?;
        let (mut missing, unseen) = self.missing_from_host().await;
        conditions.extend(unseen);
        let due = self.state.borrow().host_due;
        if due {
            missing.push("what an earlier change left undone".to_owned());
        }
        let found = !missing.is_empty();
        if found {
            let missing = missing.join(", ");
            match self.enter_host_where_possible().await {
                Ok(()) => tracing::warn!(missing, "missing on the host; it is put back"),
                Err(error) => {
                    conditions.push(Finding::error(
                        format!("missing on the host, and not yet put back: {missing}"),
                        format!("what stands in the way: {error}; it is tried again"),
                    ));
                }
            }
        }
        if due {
            self.state.borrow_mut().free_ids();
        }
        let before = std::mem::replace(&mut self.state.borrow_mut().seen, conditions.clone());
        for condition in conditions.iter().filter(|condition| !before.contains(condition)) {
            tracing::error!(help = condition.help, "{}", condition.message);
        }
        Ok(found)
    }

    /// What is wrong with the client-facing interface: it was replaced, or has come to take larger
    /// packets than the TAP does.
    async fn client_interface(&self) -> Result<Vec<Finding>, ReloadError> {
        let (name, index) = {
            let state = self.state.borrow();
            (state.config.director.interface.clone(), state.client_index)
        };
        let Some(link) = self.netlink.link_by_name(&name).await? else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        if link.index != index {
            // The sockets that hear neighbours are bound to the old one.
            found.push(Finding::error(
                format!("{name} was replaced by another interface of that name"),
                "clients' neighbours are not heard there: restart the director, which connections \
                 outlive",
            ));
        }
        let tap = self.tap.mtu();
        if link.mtu > tap {
            found.push(Finding::error(
                format!("the MTU of {name} is {} now, and the TAP's is {tap}", link.mtu),
                "larger packets of clients do not fit the TAP: restart the director, which \
                 connections outlive, or give the interface its MTU back",
            ));
        }
        Ok(found)
    }

    /// What should be on the host and is not, by name; and what could not be looked at.
    async fn missing_from_host(&self) -> (Vec<String>, Option<Finding>) {
        let (vips, capture, bridge, rules) = {
            let state = self.state.borrow();
            (
                state.vips_in_force(),
                state.config.director.capture,
                state.client_index,
                state.rules.clone(),
            )
        };
        let (mut missing, mut unseen) = (Vec::new(), None);
        if let Some(rules) = rules {
            match firewall::listing(self.tap.name()).await {
                Ok(Some(listed)) if listed == rules => {}
                Ok(_) => {
                    let table = firewall::table_name(self.tap.name());
                    missing.push(format!("the rules of nft table inet {table}"));
                }
                Err(error) => unseen = Some(error.to_string()),
            }
        }
        let tap = self.tap.index();
        match capture {
            Capture::Route => {
                let _routing = self.routing.lock().await;
                match self.netlink.astray_vip_routes(&self.leading(&vips), tap).await {
                    Ok((routes, unwanted)) => {
                        missing.extend(routes.iter().map(ToString::to_string));
                        let withdrawals =
                            unwanted.iter().map(|r| format!("the withdrawal of {}", r.vip));
                        missing.extend(withdrawals);
                    }
                    Err(error) => unseen = Some(error.to_string()),
                }
            }
            Capture::Bridge => match self.netlink.link_by_index(tap).await {
                Ok(link) if link.as_ref().and_then(|l| l.controller) == Some(bridge) => {}
                Ok(_) => missing.push("the TAP as a port of the bridge".to_owned()),
                Err(error) => unseen = Some(error.to_string()),
            },
            Capture::Manual => {}
        }
        let unseen = unseen.map(|error| {
            Finding::error(
                "cannot see whether VIPs are still led here",
                format!("what stands in the way: {error}; it is tried again"),
            )
        });
        (missing, unseen)
    }
}
