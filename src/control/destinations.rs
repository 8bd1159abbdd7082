//! Numbers for destinations: one real server in one service.
//!
//! A destination that leaves the configuration acts as draining: it keeps its number and stays in
//! the snapshot until its flows have ended. It is identified by its service's name, VIP and real
//! server, so that changing a weight or a timeout keeps it, and moving a service to another VIP
//! drains the old one.

use crate::dataplane::counters::{AllCounters, DestinationReading};
use crate::dataplane::ids::{DestinationId, RealId};
use crate::dataplane::snapshot::Destination;
use crate::dataplane::vip_prefix::VipPrefix;
use std::collections::HashMap;

pub use crate::dataplane::ids::DESTINATION_CAPACITY;

/// What makes a destination the same in two configurations.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DestinationKey {
    /// Name of the service.
    pub service: String,
    /// Its VIP, or prefix of them.
    pub vip: VipPrefix,
    /// The real server.
    pub real: RealId,
}

/// A destination and how it stands.
#[derive(Debug, Clone)]
pub struct Known {
    /// What it is.
    pub key: DestinationKey,
    /// What the core was told last.
    pub destination: Destination,
    /// Whether the configuration in force names it.
    pub configured: bool,
    /// Whether its connections were cut: it keeps its number while flows name it, and is out of
    /// force.
    pub cut: bool,
    /// Whether it drained and its flows have ended: it only waits for its number to be free, and
    /// its VIP need not be led here for it.
    pub idle: bool,
    /// What the counters said when it got its number; they are never reset.
    before: DestinationReading,
}

/// All destinations.
#[derive(Debug, Default, Clone)]
pub struct Destinations {
    by_id: Vec<Option<Known>>,
    by_key: HashMap<DestinationKey, DestinationId>,
}

/// There is no number left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{DESTINATION_CAPACITY} pairs of service and real server are in use, draining ones included"
)]
pub struct DestinationsFull;

impl Destinations {
    /// Begins a new configuration: what is not [`configure`](Self::configure)d from now on drains.
    pub fn begin(&mut self) {
        for known in self.by_id.iter_mut().flatten() {
            known.configured = false;
            // Persistence must not lead new flows to it.
            known.destination.persistence = None;
        }
    }

    /// Names a destination of the new configuration; it keeps the number it has.
    ///
    /// # Errors
    /// When there is no number left.
    pub fn configure(
        &mut self,
        key: DestinationKey,
        destination: Destination,
        counters: &AllCounters,
    ) -> Result<DestinationId, DestinationsFull> {
        self.enter(key, destination, true, counters)
    }

    /// The number of a destination that only flows know: those adopted from an earlier process
    /// whose configuration had it.
    ///
    /// # Errors
    /// When there is no number left.
    pub fn adopt(
        &mut self,
        key: DestinationKey,
        destination: Destination,
        counters: &AllCounters,
    ) -> Result<DestinationId, DestinationsFull> {
        if let Some(id) = self.by_key.get(&key) {
            return Ok(*id);
        }
        self.enter(key, destination, false, counters)
    }

    fn enter(
        &mut self,
        key: DestinationKey,
        destination: Destination,
        configured: bool,
        counters: &AllCounters,
    ) -> Result<DestinationId, DestinationsFull> {
        if let Some(id) = self.by_key.get(&key).copied()
            && let Some(Some(known)) = self.by_id.get_mut(id.index())
        {
            known.destination = destination;
            known.configured = configured;
            (known.cut, known.idle) = (false, false);
            return Ok(id);
        }
        let free = self.by_id.iter().position(Option::is_none).unwrap_or(self.by_id.len());
        let id = DestinationId(u32::try_from(free).map_err(|_| DestinationsFull)?);
        let before = counters.destination(id).ok_or(DestinationsFull)?;
        if free == self.by_id.len() {
            self.by_id.push(None);
        }
        self.by_id[free] = Some(Known {
            key: key.clone(),
            destination,
            configured,
            cut: false,
            idle: false,
            before,
        });
        self.by_key.insert(key, id);
        Ok(id)
    }

    /// Takes those that drain and are meant out of force: their connections are cut.
    pub fn cut(&mut self, mut is_meant: impl FnMut(&Known) -> bool) {
        for known in self.by_id.iter_mut().flatten() {
            known.cut |= !known.configured && is_meant(known);
        }
    }

    /// Notes which of those that drain are idle; whether that changed any.
    pub fn note_idle(&mut self, mut is_idle: impl FnMut(DestinationId) -> bool) -> bool {
        let mut changed = false;
        for (number, known) in (0..).zip(&mut self.by_id) {
            if let Some(known) = known
                && !known.configured
            {
                let idle = is_idle(DestinationId(number));
                changed |= known.idle != idle;
                known.idle = idle;
            }
        }
        changed
    }

    /// Forgets drained destinations for which `is_free` says that nothing refers to them. Their
    /// numbers may be given anew.
    pub fn retain(&mut self, mut is_free: impl FnMut(DestinationId, &Known) -> bool) -> usize {
        let mut freed = 0;
        for (place, number) in self.by_id.iter_mut().zip(0..) {
            let Some(known) = place else { continue };
            if !known.configured && is_free(DestinationId(number), known) {
                self.by_key.remove(&known.key);
                *place = None;
                freed += 1;
            }
        }
        freed
    }

    /// All of them, by number.
    pub fn iter(&self) -> impl Iterator<Item = (DestinationId, &Known)> {
        (0..)
            .map(DestinationId)
            .zip(&self.by_id)
            .filter_map(|(id, known)| Some((id, known.as_ref()?)))
    }

    /// A destination by number.
    #[must_use]
    pub fn get(&self, id: DestinationId) -> Option<&Known> {
        self.by_id.get(id.index())?.as_ref()
    }

    /// A destination's number.
    #[must_use]
    pub fn id(&self, key: &DestinationKey) -> Option<DestinationId> {
        self.by_key.get(key).copied()
    }

    /// What the core is told: every destination in force, by number.
    #[must_use]
    pub fn table(&self) -> Box<[Option<Destination>]> {
        let in_force = |known: &Known| (!known.cut).then(|| known.destination.clone());
        self.by_id.iter().map(|known| known.as_ref().and_then(in_force)).collect()
    }
}

impl Known {
    /// What happened since it got its number. Gauges are as they are.
    #[must_use]
    pub fn reading(&self, now: &DestinationReading) -> DestinationReading {
        DestinationReading {
            connections: now.connections.wrapping_sub(self.before.connections),
            active: now.active,
            inactive: now.inactive,
            packets: now.packets.wrapping_sub(self.before.packets),
            bytes: now.bytes.wrapping_sub(self.before.bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::ids::VipId;
    use crate::dataplane::service::DfPolicy;
    use std::net::IpAddr;

    fn key(real: u32) -> DestinationKey {
        DestinationKey {
            service: "db".into(),
            vip: IpAddr::from([192, 0, 2, 1]).into(),
            real: RealId(real),
        }
    }

    fn destination(real: u32) -> Destination {
        Destination {
            real: RealId(real),
            vip: VipId(0),
            timeouts: crate::dataplane::conntrack::Timeouts::default(),
            df: DfPolicy::Copy,
            persistence: None,
        }
    }

    #[test]
    fn numbers_stay_until_flows_have_ended() {
        let counters = &AllCounters::new(3, 2);
        let mut known = Destinations::default();
        let configure = |known: &mut Destinations, real| {
            known.configure(key(real), destination(real), counters)
        };
        assert_eq!(configure(&mut known, 1), Ok(DestinationId(0)));
        assert_eq!(configure(&mut known, 2), Ok(DestinationId(1)));
        for worker in counters.workers() {
            worker.traffic[0].packets.add(7);
        }
        let reading = |known: &Destinations| {
            let id = DestinationId(0);
            known.get(id).unwrap().reading(&counters.destination(id).unwrap())
        };
        assert_eq!(reading(&known).packets, 14, "both workers' together");

        known.begin();
        assert_eq!(configure(&mut known, 2), Ok(DestinationId(1)));
        assert_eq!(configure(&mut known, 3), Ok(DestinationId(2)));
        assert!(!known.get(DestinationId(0)).unwrap().configured, "it drains");
        assert_eq!(known.table().iter().flatten().count(), 3, "and is in force");
        assert_eq!(configure(&mut known, 4), Err(DestinationsFull));

        assert!(known.note_idle(|_| true) && !known.note_idle(|_| true));
        assert!(known.get(DestinationId(0)).unwrap().idle);
        assert!(!known.get(DestinationId(1)).unwrap().idle, "a configured one never is");
        assert_eq!(known.retain(|_, _| false), 0);
        assert_eq!(known.retain(|_, _| true), 1);
        assert_eq!(known.get(DestinationId(0)).map(|k| &k.key), None);
        assert_eq!(configure(&mut known, 4), Ok(DestinationId(0)));
        assert_eq!(reading(&known).packets, 0, "a new one begins at zero");
        assert_eq!(known.adopt(key(4), destination(4), counters), Ok(DestinationId(0)));
    }
}
