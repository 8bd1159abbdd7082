//! What changes while a director runs.

use super::super::announcement::Announcements;
use super::super::build::{CookieRoot, PathTarget, World};
use super::super::config::{Config, VipPrefix};
use super::super::egress_paths::EgressPaths;
use super::super::finding::Finding;
use super::super::health::{self, Board};
use super::super::host;
use super::super::netlink::egress::Survey;
use super::super::netlink::neighbours::NeighbourKey;
use super::drains::Draining;
use crate::dataplane::ids::{DestinationId, RealId};
use crate::dataplane::packet::{self, Address};
use crate::dataplane::persistence::PersistenceTable;
use crate::dataplane::region::{Entry, RegionHeader};
use crate::dataplane::snapshot::Snapshot;
use crate::dataplane::time::Time;
use crate::io::JoinedGroups;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// What changes while a director runs. Borrowed for moments, never across an await.
pub(super) struct State {
    pub(super) config: Config,
    pub(super) world: World<&'static [Entry]>,
    pub(super) survey: Survey,
    pub(super) paths: EgressPaths<PathTarget>,
    /// Whether a path is missing that should be tried again at the next look.
    pub(super) incomplete: bool,
    /// Why paths could not be opened, at the last attempt.
    pub(super) unopened: BTreeMap<PathTarget, String>,
    /// Whether something has changed that the worker was not told yet.
    pub(super) unpublished: bool,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) persistence: PersistenceTable<&'static [Entry]>,
    pub(super) header: &'static RegionHeader,
    pub(super) cookies: CookieRoot,
    /// When the cookies' epoch moves on.
    pub(super) next_epoch: Time,
    /// Path MTUs that errors have taught the worker, as it told.
    pub(super) path_mtus: HashMap<RealId, (u16, Time)>,
    /// VIPs that are routed, announced and in the firewall.
    pub(super) vips: BTreeSet<VipPrefix>,
    /// Which of those are announced by their routes, where routes announce them.
    pub(super) announcements: Announcements,
    /// Next hops the kernel was asked to look after.
    pub(super) kept: HashSet<NeighbourKey>,
    /// Memberships in the multicast groups of IPv6 VIPs.
    pub(super) groups: Option<JoinedGroups>,
    /// Since when destinations drain.
    pub(super) draining: HashMap<DestinationId, Time>,
    /// What is wrong with the host, as far as was seen at start.
    pub(super) findings: Vec<Finding>,
    /// What was wrong with it at the last look; [`conditions`](Self::conditions) has more.
    pub(super) seen: Vec<Finding>,
    /// The firewall's rules as they were listed when they had been made; `None` where this kernel
    /// cannot have them.
    pub(super) rules: Option<String>,
    /// Whether the host was not brought to what this says, as a whole, since it changed.
    pub(super) host_due: bool,
    /// MAC of the client-facing interface, where Adit answers there.
    pub(super) client_mac: Option<[u8; 6]>,
    /// Number of the client-facing interface.
    pub(super) client_index: u32,
    /// What checks know of real servers.
    pub(super) health: Board,
    /// Real servers that operators keep from new flows.
    pub(super) draining_reals: Draining,
    /// Whether a change has begun that is yet to be told as a whole: nothing is told in between.
    pub(super) in_change: bool,
    /// Whether a configuration is being put in force, which the host may yet refuse: until then checks
    /// wait, and no VIP is withdrawn for what it says.
    pub(super) entering: bool,
}

impl State {
    /// VIPs of the configuration, and those whose flows have not ended.
    pub(super) fn vips_in_force(&self) -> BTreeSet<VipPrefix> {
        let mut vips: BTreeSet<VipPrefix> = self.config.vips().into_iter().collect();
        let known = self.world.destinations.iter().filter(|(_, known)| !known.idle);
        vips.extend(known.map(|(_, known)| known.key.vip));
        vips
    }

    /// What is wrong now with the host, and with services.
    pub(super) fn conditions(&self) -> Vec<Finding> {
        let unopened = self.unopened.values().map(|error| {
            Finding::error(
                error.clone(),
                "packets that would go this way are dropped (no_egress); it is tried again",
            )
        });
        let no_way = self.survey.paths.iter().filter_map(host::no_way);
        let unserved = health::without_server(&self.config, &self.snapshot.services, &self.health);
        self.seen.iter().cloned().chain(unopened).chain(no_way).chain(unserved).collect()
    }

    /// Frees ids of real servers and VIPs that nothing refers to any more.
    pub(super) fn free_ids(&mut self) {
        let (mut reals, mut vips): (BTreeSet<RealId>, BTreeSet<Address>) = Default::default();
        for (_, known) in self.world.destinations.iter() {
            reals.insert(known.key.real);
            vips.extend(known.key.vip.addresses().map(packet::address));
        }
        for service in self.snapshot.services.services() {
            vips.extend(service.prefix.addresses().map(packet::address));
        }
        // Clients that persistence keeps at a real server come back to it when it does.
        reals.extend(self.persistence.entries().map(|entry| entry.real));
        // What was learned of a path must not be taken for that of the next one with its id.
        let now = super::now();
        self.path_mtus.retain(|_, (_, until)| *until > now);
        reals.extend(self.path_mtus.keys());
        self.world.reals.retain(|id, _| reals.contains(&id));
        self.world.vips.retain(|_, identity| vips.contains(&identity.address));
    }
}
