//! What the core is told of checks: made from the services of a snapshot and the ways to real servers.

use super::board::{Board, Pins, TargetKey};
use crate::control::netlink::egress::Survey;
use crate::dataplane::ids::{DestinationId, VipId};
use crate::dataplane::probe::Probes;
use crate::dataplane::service::ServiceTable;
use std::collections::HashMap;
use std::net::IpAddr;

/// The pins of all targets that `services` has.
#[must_use]
pub fn pin(board: &Board, services: &ServiceTable, survey: &Survey) -> (Probes, Pins) {
    let ways: HashMap<IpAddr, IpAddr> = survey
        .paths
        .iter()
        .filter_map(|path| Some((path.address, *path.sources.first()?)))
        .collect();
    let mut known: HashMap<(&str, IpAddr), (IpAddr, VipId, DestinationId)> = HashMap::new();
    for service in services.services() {
        for (member, destination) in service.members.iter().zip(&service.destinations) {
            let Some(vip) = service.vips.first() else { continue };
            let is = (service.prefix.address(), *vip, *destination);
            known.insert((&service.name, member.address), is);
        }
    }
    let destination = |key: &TargetKey| {
        let (address, vip, destination) = known.get(&(key.service.as_str(), key.real)).copied()?;
        (address == key.vip).then_some((vip, destination))
    };
    board.probes(|real| ways.get(&real).copied(), destination)
}
