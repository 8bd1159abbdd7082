//! What a running director shows of itself.

use super::state::State;
use super::{Daemon, drains, now};
use crate::control::admin::api::{
    ConnectionView, Connections, DrainedReal, Drop, Drops, Explained, FlowsView, OwnedFinding,
    RealView, ServiceView, Services, Status, Unhealthy, VipView,
};
use crate::control::announcement::Announcement;
use crate::control::config::{
    Real, RealTunnel, Service, ServiceLimits, VipPrefix, config_hash, services_hash,
};
use crate::control::destinations::Known;
use crate::control::explain::{self, Live, Question};
use crate::control::finding::{self, Severity};
use crate::control::metrics::{Reading, Seen};
use crate::control::netlink::egress::RealPath;
use crate::dataplane::conntrack::FlowRecord;
use crate::dataplane::hash::ClientPrefix;
use crate::dataplane::ids::DestinationId;
use crate::dataplane::packet::{self, protocol};
use crate::dataplane::persistence::PersistenceKey;
use crate::dataplane::scheduler::Threshold;
use crate::dataplane::verdict::DropReason;
use crate::io::IoCounters;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::UNIX_EPOCH;

/// The way to each real server. Looked for once per real server, of which there may be many.
type Paths<'s> = HashMap<(IpAddr, RealTunnel), &'s RealPath>;

fn paths(state: &State) -> Paths<'_> {
    state.survey.paths.iter().map(|path| ((path.address, path.tunnel), path)).collect()
}

fn vip_view((vip, announcement): (VipPrefix, &Announcement)) -> VipView {
    VipView {
        vip,
        announced: announcement.withdrawn.is_none(),
        reason: announcement.withdrawn.map(|reason| reason.to_string()),
        withdrawals: announcement.withdrawals,
    }
}

/// Connections in one page, at most: some 300 bytes of JSON each.
pub const PAGE: usize = 1000;

/// Which connections to show.
#[derive(Debug, Clone, Default)]
pub struct ConnectionFilter {
    /// Of this service.
    pub service: Option<String>,
    /// Of this client.
    pub client: Option<IpAddr>,
    /// To this real server.
    pub real: Option<IpAddr>,
    /// Where to begin: `next` of the page before.
    pub cursor: u64,
    /// How many at most.
    pub limit: usize,
}

impl Daemon {
    /// `GET /v1/status`
    pub fn status(&self) -> Status {
        let state = self.state.borrow();
        let director = &state.config.director;
        let totals = self.counters.totals();
        let (mut active, mut inactive) = (0, 0);
        for (id, _) in state.world.destinations.iter() {
            if let Some(counters) = self.counters.destinations().get(id.index()) {
                active += counters.active.get();
                inactive += counters.inactive.get();
            }
        }
        let mut warnings = state.config.warnings();
        let conditions = state.conditions();
        let drained = state.draining_reals.drains().findings(&state.config);
        let seen = state.findings.iter().chain(&conditions).chain(&drained);
        warnings.extend(seen.filter(|f| f.severity != Severity::Note).cloned());
        let workers = self.workers.views();
        let mut io = IoCounters::default();
        workers.iter().for_each(|worker| io += worker.io);
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            start_time_seconds: self
                .started_at
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs(),
            uptime_seconds: now().saturating_since(self.started).as_secs(),
            config_file: self.config_path.display().to_string(),
            config_hash: config_hash(&state.config).to_string(),
            services_hash: services_hash(&state.config.services).to_string(),
            key_fingerprint: self.key.fingerprint(),
            tap: director.tap.clone(),
            interface: director.interface.clone(),
            engine: self.engine.engine.to_string(),
            engine_reason: self.engine.reason.clone(),
            ring: self.workers.ring.to_owned(),
            steering: self.workers.steering.clone(),
            io,
            last_send_error: workers.iter().find_map(|worker| worker.last_send_error.clone()),
            max_connections: director.max_connections,
            active,
            inactive,
            flows: FlowsView::of(|class| self.counters.flows(class)),
            adopted: self.adopted,
            totals,
            dropped: self.counters.dropped_in_all(),
            ledger_balances: self.counters.ledger_balances(),
            worker_silence_ms: workers.iter().map(|worker| worker.silence_ms).max().unwrap_or(0),
            workers,
            vips: state.announcements.iter().map(vip_view).collect(),
            warnings: warnings.iter().map(OwnedFinding::from).collect(),
            conditions: conditions.iter().map(OwnedFinding::from).collect(),
        }
    }

    /// What the metrics are made of.
    pub(in crate::control) fn reading(&self) -> Reading {
        let state = self.state.borrow();
        let config = state.config.warnings().len() as u64;
        let mut findings = vec![(Seen::Config, Severity::Warning, config)];
        let mut now = state.conditions();
        now.extend(state.draining_reals.drains().findings(&state.config));
        for (seen, found) in [(Seen::Start, &state.findings), (Seen::Now, &now)] {
            for severity in [Severity::Error, Severity::Warning] {
                findings.push((seen, severity, finding::count(found, severity) as u64));
            }
        }
        drop(state);
        Reading { status: self.status(), services: self.services(), findings }
    }

    /// `GET /v1/services`
    pub fn services(&self) -> Services {
        let state = self.state.borrow();
        let paths = paths(&state);
        let mut services = Vec::new();
        for service in &state.config.services {
            let known = state.world.destinations.iter().filter(|(_, k)| !k.idle);
            let mut reals: Vec<RealView> = known
                .filter(|(_, k)| k.key.service == service.name)
                .filter(|(_, k)| k.key.vip == service.vip)
                .filter_map(|(id, k)| {
                    let address = state.world.address_of(k.key.real)?;
                    let place = service.reals.binary_search_by_key(&address, |r| r.address);
                    // One that is reached in another way now drains by the way it was.
                    let real = place.ok().filter(|_| k.configured);
                    let real = real.map(|place| (service, &service.reals[place]));
                    self.real_view((&state, &paths), id, k, real)
                })
                .collect();
            reals.sort_by(|a, b| (a.address, &a.tunnel).cmp(&(b.address, &b.tunnel)));
            services.push(ServiceView {
                name: service.name.clone(),
                vip: service.vip,
                ports: service.ports.to_string(),
                protocol: service.protocol.to_string(),
                scheduler: service.scheduler.to_string(),
                scheduler_flags: service.scheduler_flags.iter().map(ToString::to_string).collect(),
                one_packet: service.one_packet,
                table_size: service.table_size(),
                persistence_seconds: service.persistence.as_ref().map(|p| p.timeout.as_secs()),
                limits: service.limits,
                configured: true,
                reals,
            });
        }
        drop(state);
        services.extend(self.removed_services());
        Services { services }
    }

    /// Services that are not configured any more and whose connections go on.
    fn removed_services(&self) -> Vec<ServiceView> {
        let state = self.state.borrow();
        let paths = paths(&state);
        let mut removed: Vec<ServiceView> = Vec::new();
        for (id, known) in state.world.destinations.iter().filter(|(_, k)| !k.idle) {
            let vip = known.key.vip;
            let name = &known.key.service;
            if state.config.services.iter().any(|s| s.name == *name && s.vip == vip) {
                continue;
            }
            let Some(real) = self.real_view((&state, &paths), id, known, None) else { continue };
            match removed.iter_mut().find(|s| s.name == *name && s.vip == vip) {
                Some(service) => service.reals.push(real),
                None => removed.push(ServiceView {
                    name: name.clone(),
                    vip,
                    ports: "-".to_owned(),
                    protocol: "-".to_owned(),
                    scheduler: "-".to_owned(),
                    scheduler_flags: Vec::new(),
                    one_packet: false,
                    table_size: None,
                    persistence_seconds: None,
                    limits: ServiceLimits::default(),
                    configured: false,
                    reals: vec![real],
                }),
            }
        }
        removed
    }

    /// Whether a real server has as many connections of its service as it may.
    fn is_overloaded(&self, state: &State, id: DestinationId, service: &str) -> bool {
        let services = state.snapshot.services.services();
        let Some(service) = services.iter().find(|s| *s.name == *service) else { return false };
        let position = service.destinations.iter().position(|destination| *destination == id);
        let candidates = service.candidates(self.counters.destinations(), now());
        position.is_some_and(|position| candidates.is_overloaded(position))
    }

    fn real_view(
        &self,
        (state, paths): (&State, &Paths<'_>),
        id: DestinationId,
        known: &Known,
        configured: Option<(&Service, &Real)>,
    ) -> Option<RealView> {
        let address = state.world.address_of(known.key.real)?;
        let way = state.world.way_of(known.key.real);
        let path = way.and_then(|way| paths.get(&way));
        let link_mtu = path.map_or(0, |p| p.mtu);
        let learned = state.path_mtus.get(&known.key.real).filter(|(_, until)| *until > now());
        let health = configured.and_then(|(service, _)| {
            state.health.view(&service.name, service.vip.address(), address, now())
        });
        let checked = health.as_ref().map_or("up", |health| health.state.as_str());
        let drain = state.draining_reals.view(&known.key.service, address, id, drains::calendar());
        let weight = configured.map_or(0, |(_, real)| u32::from(real.weight));
        let max_connections = configured.and_then(|(_, real)| real.max_connections);
        let condition = match (known.cut, known.configured, weight) {
            (true, _, _) => "cut",
            (false, false, _) => "draining",
            (false, true, 0) => "drained",
            (false, true, _) if drain.is_some() => "drained",
            (false, true, _) if checked != "up" => checked,
            (false, true, _)
                if max_connections.is_some()
                    && self.is_overloaded(state, id, &known.key.service) =>
            {
                "overloaded"
            }
            (false, true, _) => "up",
        };
        Some(RealView {
            address,
            weight,
            effective_weight: if checked == "up" && drain.is_none() { weight } else { 0 },
            max_connections,
            min_connections: max_connections.map(|upper| {
                let given = configured.and_then(|(_, real)| real.min_connections);
                given.unwrap_or(Threshold::default_lower(upper))
            }),
            state: condition.to_owned(),
            health: health.clone(),
            drain,
            counters: known.reading(&self.counters.destination(id)?),
            tunnel: way.map_or_else(|| "unknown".to_owned(), |(_, tunnel)| tunnel.to_string()),
            source: path.and_then(|p| p.sources.first().copied()),
            more_sources: path.and_then(|p| p.sources.get(1..)).unwrap_or_default().to_vec(),
            interface: path.and_then(|p| p.interface.clone()),
            next_hop: path.and_then(|p| p.next_hop),
            egress: path.map_or_else(|| "none".to_owned(), |p| p.egress.to_string()),
            link_mtu,
            path_mtu: learned.map_or(link_mtu, |(mtu, _)| link_mtu.min(u32::from(*mtu))),
        })
    }

    /// `GET /v1/connections`: reads the tables while the workers write them; each connection is whole,
    /// the page is no moment's picture.
    pub fn connections(&self, filter: &ConnectionFilter) -> Connections {
        let mut connections = Vec::new();
        let begin = usize::try_from(filter.cursor).unwrap_or(usize::MAX);
        for (number, slot) in self.flows.iter().copied().flatten().enumerate().skip(begin) {
            if connections.len() >= filter.limit.clamp(1, PAGE) {
                return Connections { connections, next: Some(number as u64) };
            }
            if let Ok(Some(flow)) = slot.read()
                && let Some(view) = self.connection(&flow)
                && filter.service.as_ref().is_none_or(|s| view.service.as_ref() == Some(s))
                && filter.client.is_none_or(|client| view.client == client)
                && filter.real.is_none_or(|real| view.real == Some(real))
            {
                connections.push(view);
            }
        }
        Connections { connections, next: None }
    }

    /// A flow as it is shown; `None` for one that has expired and waits to be swept.
    fn connection(&self, flow: &FlowRecord) -> Option<ConnectionView> {
        let state = self.state.borrow();
        let known = state.world.destinations.get(flow.destination);
        let progress = &flow.progress;
        let seconds = now().saturating_since(crate::dataplane::time::Time::ZERO);
        let since = |ticks: crate::dataplane::conntrack::Ticks| {
            seconds.saturating_sub(ticks.to_duration()).as_secs()
        };
        let idle_seconds = since(progress.last_seen);
        let limit = progress.idle_limit.to_duration().as_secs();
        if idle_seconds > limit {
            return None;
        }
        let protocol = if flow.key.protocol == protocol::UDP { "udp" } else { "tcp" };
        Some(ConnectionView {
            protocol: protocol.to_owned(),
            client: packet::ip_addr(&flow.key.client),
            client_port: flow.key.client_port,
            vip: state.world.vip_address(flow.key.vip)?,
            vip_port: flow.key.vip_port,
            service: known.map(|k| k.key.service.clone()),
            real: state.world.address_of(flow.real),
            state: progress.class.name().to_owned(),
            idle_seconds,
            expires_seconds: limit.saturating_sub(idle_seconds),
            age_seconds: since(progress.created),
            rederived: flow.rederived,
        })
    }

    /// `GET /v1/drops`
    pub fn drops(&self) -> Drops {
        let drop = |reason: &DropReason| Drop {
            reason: reason.name().to_owned(),
            meaning: reason.meaning().to_owned(),
            count: self.counters.dropped(*reason),
        };
        Drops { drops: DropReason::ALL.iter().map(drop).collect() }
    }

    /// `GET /v1/explain`: what the configuration says, and before it what is known of the client.
    pub fn explain(&self, question: &Question) -> Explained {
        let mut explained = {
            let state = self.state.borrow();
            let live = Live { counters: self.counters.destinations(), now: now() };
            let mut explained =
                explain::explain(&state.snapshot.services, self.key.key, question, live);
            explained.add_tunnel(&state.config);
            explained
        };
        explained.unhealthy = self.unhealthy(explained.service.as_deref());
        explained.drained = self.drained(explained.service.as_deref());
        explained.connection = self.connection_of(question);
        explained.persisted = self.persisted(question);
        if let Some(connection) = &explained.connection
            && let Some(real) = connection.real
        {
            explained.answer = format!(
                "connection in the table ({}): packets go to {real}; {}",
                connection.state, explained.answer
            );
        } else if let Some(real) = explained.persisted {
            explained.answer = format!(
                "the client is kept at {real} while that takes new flows; {}",
                explained.answer
            );
        }
        explained
    }

    /// Real servers that checks keep from new flows of a service.
    fn unhealthy(&self, service: Option<&str>) -> Vec<Unhealthy> {
        let state = self.state.borrow();
        let Some(service) = state.config.services.iter().find(|s| Some(s.name.as_str()) == service)
        else {
            return Vec::new();
        };
        let reason = |real: &Real| {
            let health =
                state.health.view(&service.name, service.vip.address(), real.address, now())?;
            (health.state != "up")
                .then_some(Unhealthy { real: real.address, reason: health.reason })
        };
        service.reals.iter().filter_map(reason).collect()
    }

    /// Real servers of a service that operators keep from new flows.
    fn drained(&self, service: Option<&str>) -> Vec<DrainedReal> {
        let state = self.state.borrow();
        let (draining, calendar) = (&state.draining_reals, drains::calendar());
        let of = state.world.destinations.iter().filter(|(_, known)| known.configured);
        let of = of.filter(|(_, known)| Some(known.key.service.as_str()) == service);
        let drained = |(id, known): (DestinationId, &Known)| {
            let real = state.world.address_of(known.key.real)?;
            let drain = draining.view(&known.key.service, real, id, calendar)?;
            Some(DrainedReal { real, drain })
        };
        let mut found: Vec<DrainedReal> = of.filter_map(drained).collect();
        found.sort_by_key(|drained| drained.real);
        found
    }

    fn connection_of(&self, question: &Question) -> Option<ConnectionView> {
        let tuple = question.tuple();
        let client = packet::address(tuple.client);
        let vip = self.state.borrow().snapshot.services.vip(&packet::address(tuple.vip))?;
        let ours = |flow: &FlowRecord| {
            let key = &flow.key;
            key.client == client
                && key.client_port == tuple.client_port
                && key.vip == vip
                && key.vip_port == tuple.vip_port
                && key.protocol == tuple.protocol
        };
        let flow = self
            .flows
            .iter()
            .copied()
            .flatten()
            .filter_map(|s| s.read().ok().flatten())
            .find(ours)?;
        self.connection(&flow)
    }

    fn persisted(&self, question: &Question) -> Option<IpAddr> {
        let tuple = question.tuple();
        let state = self.state.borrow();
        let services = &state.snapshot.services;
        let vip = services.vip(&packet::address(tuple.vip))?;
        let policy = services.find(vip, tuple.protocol, tuple.vip_port)?.persistence?;
        let client: ClientPrefix = policy.prefix(tuple.client);
        let key = PersistenceKey { client, group: policy.group };
        let entry = state.persistence.entries().find(|e| e.key == key && e.expires > now())?;
        state.world.address_of(entry.real)
    }
}
