//! Noticing that others have taken away what leads VIPs here, and putting it back.

use super::Daemon;
use super::update::ReloadError;
use crate::control::config::Capture;
use crate::control::finding::Finding;
use crate::control::firewall;
use std::net::IpAddr;

impl Daemon {
    /// Looks whether everything that leads VIPs here is still there, and puts back what is not.
    pub(super) async fn mend_host(&self) -> Result<(), ReloadError> {
        let _changing = self.change().await?;
        let missing = self.missing_from_host().await?;
        let mut conditions = Vec::from_iter(self.wider_interface().await?);
        if !missing.is_empty() {
            let missing = missing.join(", ");
            match self.enter_host().await {
                Ok(()) => tracing::warn!(missing, "somebody has removed it; it is put back"),
                Err(error) => {
                    conditions.push(Finding::error(
                        format!("removed by somebody, and not yet put back: {missing}"),
                        format!("what stands in the way: {error}; it is tried again"),
                    ));
                }
            }
        }
        let before = std::mem::replace(&mut self.state.borrow_mut().conditions, conditions.clone());
        for condition in conditions.iter().filter(|condition| !before.contains(condition)) {
            tracing::error!(help = condition.help, "{}", condition.message);
        }
        Ok(())
    }

    /// The client-facing interface, where it has come to take larger packets than the TAP does.
    async fn wider_interface(&self) -> Result<Option<Finding>, ReloadError> {
        let name = self.state.borrow().config.director.interface.clone();
        let Some(link) = self.netlink.link_by_name(&name).await? else { return Ok(None) };
        let tap = self.tap.mtu();
        Ok((link.mtu > tap).then(|| {
            Finding::error(
                format!("the MTU of {name} is {} now, and the TAP's is {tap}", link.mtu),
                "larger packets of clients do not fit the TAP: restart the director, which \
                 connections outlive, or give the interface its MTU back",
            )
        }))
    }

    /// What should be on the host and is not, by name.
    async fn missing_from_host(&self) -> Result<Vec<String>, ReloadError> {
        let (vips, capture, without_rules) = {
            let state = self.state.borrow();
            let vips: Vec<IpAddr> = state.vips_in_force().into_iter().collect();
            (vips, state.config.director.capture, state.without_rules)
        };
        let mut missing = Vec::new();
        if capture == Capture::Route {
            let routes = self.netlink.missing_vip_routes(&vips, self.tap.index()).await?;
            missing.extend(routes.iter().map(ToString::to_string));
        }
        if !without_rules {
            let tap = self.tap.name().to_owned();
            let table = firewall::table_name(&tap);
            let present = tokio::task::spawn_blocking(move || firewall::is_present(&tap)).await;
            match present {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => missing.push(format!("nft table inet {table}")),
                Ok(Err(error)) => return Err(ReloadError::Host(error.to_string())),
                Err(error) => return Err(ReloadError::Host(error.to_string())),
            }
        }
        Ok(missing)
    }
}
