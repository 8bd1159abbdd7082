//! The rule that no plan may break, looked at step by step whoever made the plan.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::PlanError;
use crate::observed::Observed;
use crate::step::Step;

/// Refuses steps that show a VIP while ARP is not silent, unless it was so before.
///
/// # Errors
/// [`PlanError::Loud`].
pub(super) fn stays_silent(observed: &Observed, steps: &[Step]) -> Result<(), PlanError> {
    let mut parameters = observed.parameters.clone();
    let mut vips = Vips::new(observed);
    let was_silent = observed.is_silent();
    let before = vips.shown();
    for step in steps {
        if let Step::Set { parameter, value } = step {
            parameters.insert(parameter.clone(), *value);
        }
        vips.take(step);
        if observed.is_silent_with(&parameters) {
            continue;
        }
        let shown = vips.shown();
        if let Some(&vip) = shown.iter().find(|vip| was_silent || !before.contains(vip)) {
            return Err(PlanError::Loud { vip, step: step.to_string() });
        }
    }
    Ok(())
}

/// Where the VIPs are that we put there: of IPv4 alone, since IPv6 addresses are told of on their own
/// device only (`ndisc_recv_ns` in net/ipv6/ndisc.c). What somebody else put there is his.
struct Vips(BTreeSet<(String, IpAddr)>);

impl Vips {
    fn new(observed: &Observed) -> Self {
        let ours = observed.memory.addresses.iter();
        let ours = ours.flat_map(|(name, all)| all.iter().map(move |vip| (name.clone(), *vip)));
        let there = |(name, vip): &(String, IpAddr)| {
            let link = observed.links.get(name);
            vip.is_ipv4() && link.is_some_and(|link| link.addresses.contains(vip))
        };
        Self(ours.filter(there).collect())
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::AddAddress { device, address } if address.is_ipv4() => {
                self.0.insert((device.clone(), *address));
            }
            Step::DeleteAddress { device, address } => {
                self.0.remove(&(device.clone(), *address));
            }
            Step::Unmake(device) => self.0.retain(|(name, _)| name != device.name()),
            Step::Remember(_)
            | Step::Load(_)
            | Step::Unload(_)
            | Step::Make { .. }
            | Step::Set { .. }
            | Step::AddAddress { .. }
            | Step::SetTable(_)
            | Step::DeleteTable
            | Step::SetRoute { .. }
            | Step::DeleteRoute(_)
            | Step::AddSource(_)
            | Step::DeleteSource(_)
            | Step::AddPort(_)
            | Step::DeletePort(_)
            | Step::Up(_)
            | Step::Down(_) => {}
        }
    }

    fn shown(&self) -> BTreeSet<IpAddr> {
        self.0.iter().map(|(_, vip)| *vip).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::ParameterName;
    use crate::observed::Link;

    const VIP: &str = "198.51.100.10";

    fn add() -> Step {
        Step::AddAddress { device: "tunl0".to_owned(), address: VIP.parse().unwrap() }
    }

    fn delete() -> Step {
        Step::DeleteAddress { device: "tunl0".to_owned(), address: VIP.parse().unwrap() }
    }

    fn set(name: ParameterName, value: i32) -> Step {
        Step::Set { parameter: name.all(), value }
    }

    #[test]
    fn a_vip_before_silence_is_refused_and_so_is_noise_before_it_goes() {
        use ParameterName::{ArpAnnounce, ArpIgnore};
        let mut host = Observed::default();
        host.links.insert("eth0".to_owned(), Link { arp: true, up: true, ..Link::default() });
        host.links.insert("tunl0".to_owned(), Link::default());
        let (ignore, announce) = (set(ArpIgnore, 1), set(ArpAnnounce, 2));
        assert_eq!(stays_silent(&host, &[ignore.clone(), announce.clone(), add()]), Ok(()));
        for wrong in [
            vec![add(), ignore.clone(), announce.clone()],
            vec![ignore.clone(), add(), announce.clone()],
            vec![announce.clone(), set(ArpIgnore, 3), add()],
        ] {
            let refused = stays_silent(&host, &wrong).unwrap_err();
            assert!(refused.to_string().contains(VIP), "{refused}");
        }

        let mut host = host.clone();
        for (name, value) in [(ArpIgnore, 1), (ArpAnnounce, 2)] {
            host.parameters.insert(name.all(), value);
        }
        let vip: IpAddr = VIP.parse().unwrap();
        host.memory.addresses.insert("tunl0".to_owned(), [vip].into());
        host.links.get_mut("tunl0").unwrap().addresses.insert(vip);
        let loud = set(ArpIgnore, 0);
        assert_eq!(stays_silent(&host, &[delete(), loud.clone()]), Ok(()));
        assert!(stays_silent(&host, &[loud, delete()]).is_err());
    }
}
