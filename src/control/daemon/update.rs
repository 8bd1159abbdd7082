//! Changing the world of a running director: reloads, news from the host, the end of draining.

use super::state::State;
use super::workers::Heard;
use super::{Daemon, DaemonError, now, start};
use crate::control::admin::api::{Change, OwnedFinding, Reloaded};
use crate::control::build::{BuildError, PathTarget, Surroundings, path_targets};
use crate::control::config::{self, Config, ConfigErrors, RenderStyle, config_hash};
use crate::control::destinations::{Destinations, Known};
use crate::control::diff;
use crate::control::egress_paths::{PathChange, PathsInForce};
use crate::control::health;
use crate::control::health::board::Pins;
use crate::control::host;
use crate::control::netlink::NetlinkError;
use crate::dataplane::counters::AllCounters;
use crate::dataplane::hash::HashKey;
use crate::dataplane::ids::DestinationId;
use crate::dataplane::packet;
use crate::dataplane::path_mtu::MTU_LIFETIME;
use crate::dataplane::persistence::PersistenceEvent;
use crate::dataplane::scheduler::table::Table;
use crate::dataplane::snapshot::Snapshot;
use crate::dataplane::time::Time;
use crate::dataplane::verdict::{EgressId, Event};
use crate::io::{OpenEgress, Tap};
use crate::worker::link::Update;
use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::MutexGuard;

/// Persistence entries and events of each worker are looked at in pieces, so that no tick takes long.
const EVENTS_PER_TICK: usize = 8192;
const SWEPT_PER_TICK: usize = 4096;
/// A destination without flows keeps its number this long after it was taken out: fragments and
/// packets in flight may still name it (fragments are followed for 30 s).
const DRAINED_FOR: Duration = Duration::from_secs(60);
/// After this long the worker has long taken the snapshot in which a destination drains, so that
/// one without flows will not get any more: its VIP need not be led here.
const SNAPSHOT_TAKEN: Duration = Duration::from_secs(2);

/// What a reload is asked to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReloadRequest {
    /// Say what would change, and change nothing.
    pub dry_run: bool,
    /// Cut connections to real servers that are taken out, instead of letting them end.
    pub now: bool,
}

/// Why a configuration was not taken. The old one stays in force.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It has mistakes.
    #[error("{0}")]
    Config(Box<ConfigErrors>),
    /// It changes what only a restart can change.
    #[error("{}; restart the director to change it: connections outlive a restart", .0.join("; "))]
    Fixed(Vec<String>),
    /// It does not fit.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The host refuses what it needs.
    #[error("{0}")]
    Host(String),
    /// The host cannot be looked at.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// There is nothing to reload any more.
    #[error("the director is stopping")]
    Stopping,
    /// The worker does not take it.
    #[error("{0} does not take updates; it is stalled")]
    WorkerBusy(String),
}

impl ReloadError {
    /// The mistakes in the file, drawn, where that is the reason.
    #[must_use]
    pub fn drawn(&self) -> Option<(String, Vec<config::Problem>)> {
        if let ReloadError::Config(errors) = self {
            return Some((errors.render(RenderStyle::Plain), errors.problems().to_vec()));
        }
        None
    }
}

/// An update for the workers, and the number of the path that answers neighbours.
pub(super) struct Planned {
    pub(super) snapshot: Arc<Snapshot>,
    /// One for each worker.
    pub(super) updates: Vec<Update>,
    pub(super) client_egress: Option<EgressId>,
    /// Paths in force once the worker has the update.
    pub(super) paths: PathsInForce<PathTarget>,
    /// Whether a path is missing that should be tried again.
    pub(super) incomplete: bool,
    /// Where health checks come from once the worker has the update.
    pub(super) pins: Pins,
}

/// Makes the update that brings the worker from where it is to what `state` says.
pub(super) fn plan(
    state: &mut State,
    key: HashKey,
    tap: &Tap,
    counters: &AllCounters,
) -> Result<Planned, BuildError> {
    if state.in_change {
        state.health.configure(&state.config, now());
    }
    let client = PathTarget::Direct { interface: state.client_index };
    let answers = state.client_mac.is_some();
    let hop_limit = state.config.tunnel.ttl;
    let wanted = answers
        .then_some(client)
        .into_iter()
        .chain(state.survey.paths.iter().flat_map(|path| path_targets(path, hop_limit)));
    let mut unopened = BTreeMap::new();
    let workers = counters.workers().len();
    // A socket for each worker, so that they do not meet at its locks.
    let open = |target: &PathTarget| (0..workers).map(|_| start::open_path(target)).collect();
    let change = state.paths.plan(wanted, |target| match open(target) {
        Ok(open) => Some(open),
        Err(error) => {
            unopened.insert(*target, error.to_string());
            None
        }
    });
    for (target, error) in &unopened {
        if state.unopened.get(target) != Some(error) {
            tracing::error!("{error}; it is tried again");
        }
    }
    state.unopened = unopened;
    let around = Surroundings {
        // As many as the configuration can mean.
        workers: u16::try_from(workers).unwrap_or(u16::MAX),
        survey: &state.survey,
        tap_mac: tap.peer_mac(),
        client_mac: state.client_mac,
        cookies: state.cookies,
        counters: counters.destinations(),
        health: &state.health,
        drains: state.draining_reals.drains(),
    };
    let previous = Arc::clone(&state.snapshot);
    let mut snapshot = state.world.snapshot(
        &state.config,
        key,
        &around,
        |target| change.after.id(target),
        Some(&previous),
    )?;
    let (probes, pins) = health::pin(&state.health, &snapshot.services, &state.survey);
    snapshot.probes = probes;
    let PathChange { install, remove, after: paths, incomplete } = change;
    let client_egress = if answers { paths.id(&client) } else { None };
    let snapshot = Arc::new(snapshot);
    let mut install: Vec<(EgressId, Vec<OpenEgress>)> = install;
    let update = |_| Update {
        install: install.iter_mut().filter_map(|(id, open)| Some((*id, open.pop()?))).collect(),
        snapshot: Arc::clone(&snapshot),
        remove: remove.clone(),
    };
    let updates = (0..workers).map(update).collect();
    Ok(Planned { snapshot, updates, client_egress, paths, incomplete, pins })
}

impl Daemon {
    /// Waits until the world may be changed; not any more once the director stops.
    pub(super) async fn change(&self) -> Result<MutexGuard<'_, ()>, ReloadError> {
        let changing = self.changing.lock().await;
        if self.stopping.get() { Err(ReloadError::Stopping) } else { Ok(changing) }
    }

    /// Puts what `state` says in force at the worker.
    pub(super) fn publish(&self) -> Result<(), ReloadError> {
        let mut state = self.state.borrow_mut();
        let planned = plan(&mut state, self.key.key, &self.tap, &self.counters)?;
        self.workers
            .publish(planned.updates)
            .map_err(|busy| ReloadError::WorkerBusy(self.workers.name(busy)))?;
        state.snapshot = planned.snapshot;
        state.paths.commit(planned.paths);
        state.incomplete = planned.incomplete;
        state.unpublished = false;
        self.published.notify_one();
        state.in_change = false;
        state.health.told(&planned.pins, now());
        Ok(())
    }

    /// Looks at the host again, and tells the worker if the way to a real server is another.
    pub(super) async fn look_again(&self) -> Result<(), ReloadError> {
        let _changing = self.change().await?;
        let looked = self.survey().await;
        let due = {
            let state = self.state.borrow();
            state.unpublished || state.incomplete
        };
        if due {
            // With the last look, where this one failed: what has changed otherwise is not held back.
            self.publish()?;
        }
        looked?;
        self.keep_next_hops().await;
        Ok(())
    }

    /// Looks at the way to every real server, and notes whether it is another than before: that
    /// stays to be told until the worker has taken it.
    async fn survey(&self) -> Result<(), ReloadError> {
        let wanted = {
            let state = self.state.borrow();
            state.world.wanted_paths(&state.config)
        };
        let survey = self.netlink.survey(&wanted).await?;
        let interface = self.state.borrow().config.director.interface.clone();
        let client = self.netlink.link_by_name(&interface).await?;
        let mut state = self.state.borrow_mut();
        let mut changed = state.survey != survey;
        for (old, new) in state.survey.paths.iter().zip(&survey.paths) {
            let same = (old.address, old.tunnel) == (new.address, new.tunnel);
            if same && old.egress != new.egress {
                tracing::info!(real = %new.address, tunnel = %new.tunnel, before = %old.egress, now = %new.egress, "egress");
            }
        }
        if let Some(client) = client {
            // One that has replaced it is a condition that the upkeep tells.
            if client.index == state.client_index {
                let mac = client.mac.filter(|_| start::answers_there(&state.config));
                changed |= mac != state.client_mac;
                state.client_mac = mac;
            }
        }
        state.survey = survey;
        state.unpublished |= changed;
        Ok(())
    }

    /// Reads the configuration file again and puts it in force.
    ///
    /// # Errors
    /// When the file is refused; the configuration in force stays.
    pub async fn reload(&self, request: ReloadRequest) -> Result<Reloaded, ReloadError> {
        let _changing = self.change().await?;
        let path = &self.config_path;
        let text = std::fs::read_to_string(path)
            .map_err(|source| ReloadError::Read { path: path.clone(), source })?;
        let new = config::parse(&text, &path.display().to_string())
            .map_err(|errors| ReloadError::Config(Box::new(errors)))?;
        if let Some(foreign) = self.netlink.foreign(new.tunnel.sources()).await?.first() {
            let foreign = host::foreign_source(*foreign);
            return Err(ReloadError::Host(format!("{}: {}", foreign.message, foreign.help)));
        }
        let reloaded = self.compare(&new, request)?;
        if request.dry_run {
            return Ok(reloaded);
        }
        self.take(new, request).await?;
        Ok(Reloaded { applied: true, ..reloaded })
    }

    /// What would change, and what each change touches.
    fn compare(&self, new: &Config, request: ReloadRequest) -> Result<Reloaded, ReloadError> {
        let state = self.state.borrow();
        let fixed = diff::fixed(&state.config, new);
        if !fixed.is_empty() {
            return Err(ReloadError::Fixed(fixed));
        }
        // A key file whose content changed is a change of the key.
        let key = config::LoadedKey::load(new.director.hash_key_file.as_deref());
        match key {
            Ok(key) if key.key == self.key.key => {}
            Ok(_) => return Err(ReloadError::Fixed(vec!["the hash key differs".to_owned()])),
            Err(error) => return Err(ReloadError::Host(error.to_string())),
        }
        let flows = |service: &str, real: Option<IpAddr>| -> u64 {
            let of = state.world.destinations.iter().filter(|(_, known)| {
                known.key.service == service
                    && real.is_none_or(|r| state.world.address_of(known.key.real) == Some(r))
            });
            of.map(|(id, _)| self.counters.flows_to(id)).sum()
        };
        let mut changes: Vec<Change> = diff::changes(&state.config, new, request.now, flows);
        if request.now {
            changes.extend(cuts(&state, &self.counters));
        }
        changes.extend(state.draining_reals.drains().leaving(new).map(|(key, drain)| Change {
            what: format!("the drain of {key}, by {}", drain.owner),
            effect: "is dropped: the configuration does not have it any more".to_owned(),
            connections: 0,
        }));
        Ok(Reloaded {
            applied: false,
            old_hash: config_hash(&state.config).to_string(),
            new_hash: config_hash(new).to_string(),
            changes,
            warnings: new.warnings().iter().map(OwnedFinding::from).collect(),
        })
    }

    /// Puts a new configuration in force: at the worker first, then on the host. Where either
    /// refuses, the old one is put back.
    async fn take(&self, new: Config, request: ReloadRequest) -> Result<(), ReloadError> {
        let (old, destinations) = {
            let mut state = self.state.borrow_mut();
            let destinations = state.world.destinations.clone();
            if let Err(error) = state.world.enter(&new, &self.counters) {
                // The worker has not heard of any of them, and their ids are not needed.
                state.world.destinations = destinations;
                state.free_ids();
                return Err(error.into());
            }
            (std::mem::replace(&mut state.config, new), destinations)
        };
        if let Err(error) = self.put_in_force().await {
            self.roll_back(old, &destinations).await;
            return Err(error);
        }
        self.mark_draining();
        self.drop_drains_of_those_gone().await;
        if request.now {
            // Only now: a configuration that is not taken cuts nothing.
            let mut state = self.state.borrow_mut();
            state.world.destinations.cut(|_| true);
            state.unpublished = true;
            drop(state);
            if let Err(error) = self.publish() {
                tracing::error!(%error, "connections are cut at the next look only");
            }
        }
        Ok(())
    }

    /// Puts the configuration before back in force. Destinations that only the refused one had
    /// drain: the worker has seen them, and flows may have begun.
    async fn roll_back(&self, old: Config, before: &Destinations) {
        {
            let mut state = self.state.borrow_mut();
            let State { world, config, draining, .. } = &mut *state;
            // What the refused one had has not been draining, even where it did before.
            draining.retain(|id, _| world.destinations.get(*id).is_some_and(|k| !k.configured));
            if let Err(error) = world.enter(&old, &self.counters) {
                // All of them have their numbers still.
                tracing::error!(%error, "the old configuration cannot be entered again");
            }
            *config = old;
            // Those without flows are not waited for: what the host refused is most likely theirs.
            let taken = u64::try_from(SNAPSHOT_TAKEN.as_nanos()).unwrap_or(u64::MAX);
            let long_ago = Time(now().0.saturating_sub(taken));
            let mut idle = HashSet::new();
            for (id, known) in world.destinations.iter().filter(|(_, known)| !known.configured) {
                if known.idle || (!draining.contains_key(&id) && self.counters.flows_to(id) == 0) {
                    idle.insert(id);
                    draining.entry(id).or_insert(long_ago);
                }
            }
            world.destinations.note_idle(|id| idle.contains(&id));
            let was_cut = |known: &Known| {
                let id = before.id(&known.key);
                id.and_then(|id| before.get(id)).is_some_and(|known| known.cut)
            };
            world.destinations.cut(was_cut);
        }
        self.mark_draining();
        if let Err(error) = self.put_in_force().await {
            tracing::error!(%error, "the old configuration could not be put back as a whole");
        }
    }

    /// Brings worker and host to what the state says. What cannot be done now is tried again by the upkeep.
    async fn put_in_force(&self) -> Result<(), ReloadError> {
        {
            let mut state = self.state.borrow_mut();
            (state.unpublished, state.host_due) = (true, true);
            (state.in_change, state.entering) = (true, true);
        }
        let done = self.tell_and_enter().await;
        self.state.borrow_mut().entering = false;
        done
    }

    async fn tell_and_enter(&self) -> Result<(), ReloadError> {
        self.survey().await?;
        let _tables = self.build_tables().await?;
        self.publish()?;
        self.keep_next_hops().await;
        self.enter_host().await.map_err(ReloadError::Host)
    }

    /// Builds placement tables beside the runtime, so that events and timers go on. The caller
    /// holds the lock on changes, and the tables until they are in a snapshot.
    async fn build_tables(&self) -> Result<Vec<Arc<Table>>, ReloadError> {
        let work = {
            let mut state = self.state.borrow_mut();
            let State { world, config, .. } = &mut *state;
            world.lend_tables(config)
        };
        match tokio::task::spawn_blocking(move || work.build()).await {
            Ok((tables, built)) => {
                self.state.borrow_mut().world.return_tables(tables);
                Ok(built)
            }
            Err(error) => Err(ReloadError::Host(format!("building tables: {error}"))),
        }
    }

    /// Remembers since when destinations drain.
    pub(super) fn mark_draining(&self) {
        let mut state = self.state.borrow_mut();
        let State { world, draining, .. } = &mut *state;
        draining.retain(|id, _| world.destinations.get(*id).is_some_and(|k| !k.configured));
        for (id, known) in world.destinations.iter() {
            if !known.configured {
                draining.entry(id).or_insert_with(now);
            }
        }
    }

    /// A tick: what workers have to tell, and whether all of them live.
    ///
    /// # Errors
    /// When one is stuck.
    pub(super) fn tick_and_listen(&self, heard: &mut Heard) -> Result<(), DaemonError> {
        self.tick();
        let Some((number, silence)) = heard.listen(&self.workers) else { return Ok(()) };
        let how = format!("it is stuck since {silence:?}");
        Err(DaemonError::Worker { worker: self.workers.name(number), how })
    }

    /// What the worker has to tell, and persistence. Waits for nothing.
    pub(super) fn tick(&self) {
        self.take_events();
        self.workers.collect_retired();
        while let Some((id, errno)) = self.workers.next_failed_install() {
            tracing::error!(path = id.0, %errno, "the worker could not install an egress path");
            let mut state = self.state.borrow_mut();
            state.paths.forget(id);
            state.incomplete = true;
        }
        self.state.borrow_mut().persistence.sweep(now(), SWEPT_PER_TICK);
    }

    fn take_events(&self) {
        let mut state = self.state.borrow_mut();
        for event in self.workers.events(EVENTS_PER_TICK) {
            match event {
                Event::Established { destination, client } => {
                    let Some(known) = state.world.destinations.get(destination) else { continue };
                    let Some(policy) = known.destination.persistence else { continue };
                    let client = packet::ip_addr(&client);
                    let event =
                        PersistenceEvent::established(&policy, client, known.key.real, now());
                    state.persistence.record(&event);
                }
                Event::AddressConflict { vip, mac } => {
                    let vip = packet::ip_addr(&vip);
                    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
                    tracing::error!(%vip, mac, "another host on the link answers for a VIP");
                }
                Event::PathMtu { real, mtu } => {
                    let address = state.world.address_of(real);
                    tracing::info!(real = ?address, mtu, "path MTU");
                    state.path_mtus.insert(real, (mtu, now() + MTU_LIFETIME));
                }
            }
        }
    }

    /// Forgets destinations whose flows have ended, moves the cookies' epoch on.
    pub(super) async fn end_draining(&self) -> Result<(), ReloadError> {
        let _changing = self.change().await?;
        let (ended, epoch_ends) = {
            let mut state = self.state.borrow_mut();
            let State { world, draining, .. } = &mut *state;
            let time = now();
            let without_flows_for = |id: DestinationId, least: Duration| {
                let since = draining.get(&id);
                let long = since.is_some_and(|since| time.saturating_since(*since) >= least);
                long && self.counters.flows_to(id) == 0
            };
            // A flow that moves between two gauges may be in neither for a moment: only what was
            // without flows at the last look too is given up.
            let were_idle: HashSet<DestinationId> =
                world.destinations.iter().filter(|(_, k)| k.idle).map(|(id, _)| id).collect();
            let idle = world.destinations.note_idle(|id| without_flows_for(id, SNAPSHOT_TAKEN));
            let freed = world
                .destinations
                .retain(|id, _| were_idle.contains(&id) && without_flows_for(id, DRAINED_FOR));
            draining.retain(|id, _| world.destinations.get(*id).is_some());
            let epoch_ends = time >= state.next_epoch;
            if epoch_ends {
                state.cookies.epoch += 1;
                state.header.set_cookie_epoch(state.cookies.epoch);
                state.next_epoch = time + start::COOKIE_EPOCH;
                state.unpublished = true;
            }
            (idle || freed > 0, epoch_ends)
        };
        if epoch_ends && !ended {
            self.publish()?;
        }
        if ended {
            self.put_in_force().await?;
            self.state.borrow_mut().free_ids();
        }
        Ok(())
    }
}

/// What has been draining since earlier changes and would be cut now.
fn cuts(state: &State, counters: &AllCounters) -> Vec<Change> {
    let mut changes = Vec::new();
    for (id, known) in state.world.destinations.iter() {
        let connections = counters.flows_to(id);
        if known.configured || known.cut || connections == 0 {
            continue;
        }
        let real = state.world.address_of(known.key.real);
        let real = real.map_or_else(|| "?".to_owned(), |address| address.to_string());
        changes.push(Change {
            what: format!("service {}: real server {real} drains", known.key.service),
            effect: "its connections are cut".to_owned(),
            connections,
        });
    }
    changes
}
