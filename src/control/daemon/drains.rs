//! Drains of a running director: begun and taken back by operators, kept in the state directory, and
//! looked after until the last session has ended.

use super::state::State;
use super::update::ReloadError;
use super::{Daemon, now};
use crate::control::admin::api::{DrainView, Drained, Hold, SessionsView};
use crate::control::config::Config;
use crate::control::destinations::Known;
use crate::control::drains::{Drain, DrainKey, Drains, MOST, file, sessions};
use crate::control::finding::Finding;
use crate::dataplane::ids::DestinationId;
use crate::dataplane::snapshot::Snapshot;
use std::collections::{HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often sessions of drained real servers are counted.
const COUNT_EVERY: Duration = Duration::from_millis(500);
/// How often it is looked at whether workers have taken the snapshot in which a drain is.
const TAKEN_YET: Duration = Duration::from_millis(20);
/// Slots of the flow table that are read without a pause: some 200 µs, in which nothing else runs on
/// this thread.
const SLOTS_AT_ONCE: usize = 4096;
/// After a count that took long, the pause is so many times that: 2 % of this thread's time at most.
const REST: u32 = 50;

/// Why somebody is not drained, or not undrained. Nothing has changed, if not said otherwise.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    /// There is no such service.
    #[error("there is no service {0}")]
    NoService(String),
    /// It is no real server there.
    #[error("{0}: the configuration in force has no such real server")]
    NoReal(DrainKey),
    /// It would take services down.
    #[error(
        "{} would have no real server left for new connections: {}; drain another one less, or ask \
         with --force",
        if .0.len() == 1 { "this service" } else { "these services" },
        .0.join(", ")
    )]
    Empties(Vec<String>),
    /// It is held in all services.
    #[error(
        "{real} is drained in all services, by {owner}: `adit undrain all {real}` takes that back"
    )]
    HeldInAll {
        /// The real server.
        real: IpAddr,
        /// By whom.
        owner: String,
    },
    /// There are too many.
    #[error("{MOST} drains are in force, which is all there is room for")]
    TooMany,
    /// It would not outlive the process.
    #[error("{directory} takes no file, so that a restart would forget it: {source}")]
    Store {
        /// The state directory.
        directory: String,
        /// What the system said.
        source: io::Error,
    },
    /// The director stops.
    #[error(transparent)]
    Change(#[from] ReloadError),
    /// It is recorded, and workers do not know yet.
    #[error("it is recorded, and tried again, but is not in force yet: {0}")]
    Unpublished(ReloadError),
}

/// Drains, and what is known of them.
pub(super) struct Draining {
    /// In force, and in the state directory.
    drains: Drains,
    /// The snapshot before that in which the last of them is: while a worker has it, new flows may
    /// still go where they should not.
    before: Weak<Snapshot>,
    /// Counts up with each change, so that a count that began before it is not taken for one after.
    changes: u64,
    /// Sessions by destination, as they were counted last; `None` before that.
    counted: Option<HashMap<DestinationId, SessionsView>>,
    /// Rings when there is something to count.
    news: Rc<tokio::sync::Notify>,
}

impl Draining {
    /// With the drains of an earlier process, as far as the configuration still has their real
    /// servers; and what is to be said about that.
    pub(super) fn inherit(config: &Config) -> (Self, Vec<Finding>) {
        let directory = &config.director.state_dir;
        let mut findings = Vec::new();
        let drains = file::load(directory).unwrap_or_else(|lost| {
            tracing::error!("{lost}");
            findings.push(Finding::warning(
                format!("drains of an earlier process are lost: {lost}"),
                "real servers that were drained take new connections: `adit drain` those that should \
                 not",
            ));
            Drains::default()
        });
        let staying = drains.staying(config);
        for (key, drain) in drains.iter().filter(|(key, _)| staying.get(key).is_some()) {
            let (owner, reason) = (drain.owner.as_str(), drain.reason.as_deref());
            tracing::info!(%key, owner, reason, "still drained");
        }
        if staying != drains {
            say_who_is_gone(&drains, &staying);
            say_what_may_come_back(file::store(directory, &staying));
        }
        (Self::of(staying), findings)
    }

    fn of(drains: Drains) -> Self {
        Draining {
            drains,
            before: Weak::new(),
            changes: 0,
            counted: None,
            news: Rc::new(tokio::sync::Notify::new()),
        }
    }

    /// Those in force.
    pub(super) const fn drains(&self) -> &Drains {
        &self.drains
    }

    /// What is shown of a drain of a destination.
    pub(super) fn view(
        &self,
        service: &str,
        real: IpAddr,
        destination: DestinationId,
        calendar: u64,
    ) -> Option<DrainView> {
        let (key, drain) = self.drains.find(service, real)?;
        let of = |counted: &HashMap<_, SessionsView>| counted.get(&destination).copied();
        let sessions = self.counted.as_ref().map(|counted| of(counted).unwrap_or_default());
        Some(DrainView {
            owner: drain.owner.clone(),
            reason: drain.reason.clone(),
            since: date(drain.since),
            age_seconds: calendar.saturating_sub(drain.since),
            all_services: key.service.is_none(),
            remaining: sessions.map(|sessions| sessions.total()),
            sessions,
        })
    }

    /// Whether what remains can be counted: somebody is drained, and no worker can still begin a flow that
    /// he should not. Then the number of the change that a count belongs to.
    fn countable(&self) -> Option<u64> {
        (!self.drains.is_empty() && self.before.strong_count() == 0).then_some(self.changes)
    }

    /// Takes a count, unless a change has overtaken it.
    fn take_count(&mut self, of: u64, counted: HashMap<DestinationId, SessionsView>) {
        if self.changes == of {
            self.counted = Some(counted);
        }
    }

    /// Begins counting anew: other destinations may be drained.
    fn count_anew(&mut self) {
        self.changes += 1;
        self.counted = None;
        self.news.notify_one();
    }

    /// Has other drains in force, of which workers are told next. `before` is what they know now.
    fn replace(&mut self, drains: Drains, before: Weak<Snapshot>) {
        self.drains = drains;
        self.before = before;
        self.count_anew();
    }
}

/// Says which drains end since the configuration has their real servers no more.
fn say_who_is_gone(before: &Drains, after: &Drains) {
    for (key, drain) in before.iter().filter(|(key, _)| after.get(key).is_none()) {
        let (owner, reason) = (drain.owner.as_str(), drain.reason.as_deref());
        tracing::warn!(%key, owner, reason, "drain dropped: the configuration does not have it any more");
    }
}

/// Says what follows where the file still has them.
fn say_what_may_come_back(stored: io::Result<()>) {
    if let Err(error) = stored {
        tracing::error!(%error, "a drain that was dropped may come back with its real server after a restart");
    }
}

/// Writes the file beside this thread: a disk may take its time.
async fn store(directory: PathBuf, drains: Drains) -> io::Result<()> {
    let store = tokio::task::spawn_blocking(move || file::store(&directory, &drains)).await;
    store.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// Seconds since 1970.
#[allow(clippy::disallowed_methods, reason = "a shell reads the calendar: drains outlive reboots")]
pub(super) fn calendar() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A moment as people and programs read it; the calendar ends where RFC 3339 does, in the year 9999.
fn date(seconds: u64) -> String {
    const LAST: u64 = 253_402_300_799;
    let moment = UNIX_EPOCH + Duration::from_secs(seconds.min(LAST));
    humantime::format_rfc3339_seconds(moment).to_string()
}

/// Counts the sessions of drained real servers, until the director stops.
pub(super) async fn count_sessions(daemon: Rc<Daemon>) {
    let news = Rc::clone(&daemon.state.borrow().draining_reals.news);
    let mut rest = COUNT_EVERY;
    while !daemon.stopping.get() {
        let wait = {
            let state = daemon.state.borrow();
            let draining = &state.draining_reals;
            if draining.drains.is_empty() {
                None
            } else if draining.countable().is_none() {
                Some(TAKEN_YET)
            } else if draining.counted.is_none() {
                Some(Duration::ZERO)
            } else {
                Some(rest)
            }
        };
        match wait {
            None => news.notified().await,
            // A change is looked at at once.
            Some(wait) => drop(tokio::time::timeout(wait, news.notified()).await),
        }
        let begun = now();
        daemon.count_once().await;
        rest = COUNT_EVERY.max(now().saturating_since(begun) * REST);
    }
}

impl Daemon {
    /// Counts once, unless workers may not have been told of a drain yet.
    async fn count_once(&self) {
        let (changes, drained) = {
            let state = self.state.borrow();
            let draining = &state.draining_reals;
            let Some(changes) = draining.countable() else { return };
            let drained = drained_destinations(&state);
            // Twice nothing: a flow that moves between two gauges may be in neither for a moment.
            if draining.counted.as_ref().is_some_and(HashMap::is_empty)
                && drained.iter().all(|id| self.counters.flows_to(*id) == 0)
            {
                return;
            }
            (changes, drained)
        };
        let mut counted: HashMap<DestinationId, SessionsView> = HashMap::new();
        for slots in self.flows.iter().copied().flat_map(|slots| slots.chunks(SLOTS_AT_ONCE)) {
            let time = now();
            for flow in slots.iter().filter_map(|slot| slot.read().ok().flatten()) {
                if drained.contains(&flow.destination)
                    && let Some(session) = sessions::of(&flow, time)
                {
                    let of = counted.entry(flow.destination).or_default();
                    *of = of.plus(session);
                }
            }
            tokio::task::yield_now().await;
        }
        self.state.borrow_mut().draining_reals.take_count(changes, counted);
    }

    /// Keeps a real server from new flows.
    ///
    /// # Errors
    /// When there is no such thing, it would take a service down and nobody forces it, or it would not
    /// outlive a restart.
    pub async fn drain(
        &self,
        key: DrainKey,
        owner: String,
        reason: Option<String>,
        force: bool,
    ) -> Result<Drained, DrainError> {
        let _changing = self.change().await?;
        let after = {
            let state = self.state.borrow();
            known(&state.config, &key)?;
            let drains = &state.draining_reals.drains;
            if drains.get(&key).is_some() {
                drop(state);
                return self.drained_already(key);
            }
            if drains.len() >= MOST {
                return Err(DrainError::TooMany);
            }
            let emptied = drains.emptied_by(&key, &state.snapshot.services);
            if !emptied.is_empty() && !force {
                return Err(DrainError::Empties(emptied));
            }
            let drain = Drain { owner, reason, since: calendar() };
            let (owner, reason) = (drain.owner.as_str(), drain.reason.as_deref());
            tracing::info!(%key, owner, reason, force, "drain asked for");
            drains.with(key.clone(), drain)
        };
        self.put_drains_in_force(after).await?;
        tracing::info!(%key, "drained");
        Ok(self.state.borrow().drained(key, true))
    }

    /// Takes a drain back.
    ///
    /// # Errors
    /// When there is no such thing, another drain holds it, or it would come back with a restart.
    pub async fn undrain(&self, key: DrainKey, by: String) -> Result<Drained, DrainError> {
        let _changing = self.change().await?;
        let after = {
            let state = self.state.borrow();
            known(&state.config, &key)?;
            let drains = &state.draining_reals.drains;
            if drains.get(&key).is_none() {
                let held = key.service.as_deref().and_then(|name| drains.find(name, key.real));
                if let Some((_, drain)) = held {
                    let owner = drain.owner.clone();
                    return Err(DrainError::HeldInAll { real: key.real, owner });
                }
                drop(state);
                return self.drained_already(key);
            }
            drains.without(&key)
        };
        self.put_drains_in_force(after).await?;
        tracing::info!(%key, by, "drain taken back");
        Ok(self.state.borrow().drained(key, true))
    }

    /// What was asked for is recorded already. Where workers could not be told of that, they are now.
    fn drained_already(&self, key: DrainKey) -> Result<Drained, DrainError> {
        if self.state.borrow().unpublished {
            self.publish().map_err(DrainError::Unpublished)?;
        }
        Ok(self.state.borrow().drained(key, false))
    }

    /// Records the drains and tells the workers. The caller holds the lock on changes.
    async fn put_drains_in_force(&self, drains: Drains) -> Result<(), DrainError> {
        let directory = self.state.borrow().config.director.state_dir.clone();
        store(directory.clone(), drains.clone()).await.map_err(|source| {
            let directory = directory.display().to_string();
            DrainError::Store { directory, source }
        })?;
        {
            let mut state = self.state.borrow_mut();
            let before = Arc::downgrade(&state.snapshot);
            state.draining_reals.replace(drains, before);
            state.unpublished = true;
        }
        self.publish().map_err(DrainError::Unpublished)
    }

    /// Drops drains whose real servers have left the configuration, which is in force now.
    /// The caller holds the lock on changes.
    pub(super) async fn drop_drains_of_those_gone(&self) {
        let gone = {
            let mut state = self.state.borrow_mut();
            let State { config, draining_reals, .. } = &mut *state;
            let staying = draining_reals.drains.staying(config);
            let gone = staying != draining_reals.drains;
            if gone {
                say_who_is_gone(&draining_reals.drains, &staying);
                // Workers know nobody whom this concerns.
                draining_reals.drains = staying.clone();
            }
            draining_reals.count_anew();
            gone.then(|| (config.director.state_dir.clone(), staying))
        };
        if let Some((directory, staying)) = gone {
            say_what_may_come_back(store(directory, staying).await);
        }
    }
}

/// The destinations that operators keep from new flows, those that left the configuration while their
/// real server's address is still there included: it may have been reached in another way.
fn drained_destinations(state: &State) -> HashSet<DestinationId> {
    let drains = &state.draining_reals.drains;
    let is_drained = |known: &Known| {
        let real = state.world.address_of(known.key.real);
        real.is_some_and(|real| drains.find(&known.key.service, real).is_some())
    };
    let all = state.world.destinations.iter();
    all.filter(|(_, known)| is_drained(known)).map(|(id, _)| id).collect()
}

/// Whether the configuration has what is to be drained.
fn known(config: &Config, key: &DrainKey) -> Result<(), DrainError> {
    if let Some(name) = &key.service
        && !config.services.iter().any(|service| service.name == *name)
    {
        return Err(DrainError::NoService(name.clone()));
    }
    match key.services(config).next() {
        Some(_) => Ok(()),
        None => Err(DrainError::NoReal(key.clone())),
    }
}

impl State {
    /// How things are after a request.
    fn drained(&self, key: DrainKey, changed: bool) -> Drained {
        let drains = &self.draining_reals.drains;
        let services: Vec<String> =
            key.services(&self.config).map(|service| service.name.clone()).collect();
        let holds = drains.iter().filter(|(held, _)| {
            held.real == key.real
                && held.service.as_ref().is_none_or(|service| services.contains(service))
        });
        let hold = |(held, drain): (&DrainKey, &Drain)| Hold {
            service: held.service.clone(),
            owner: drain.owner.clone(),
            reason: drain.reason.clone(),
            since: date(drain.since),
        };
        Drained {
            changed,
            drains: holds.map(hold).collect(),
            service: key.service,
            real: key.real,
            services,
            warnings: drains.findings(&self.config).into_iter().map(|f| f.message).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DESTINATION: DestinationId = DestinationId(3);

    fn drains() -> Drains {
        let key = DrainKey { service: None, real: [10, 0, 0, 1].into() };
        let drain = Drain { owner: "root".to_owned(), reason: None, since: 1_700_000_000 };
        Drains::of([(key, drain)])
    }

    fn counted(established: u64) -> HashMap<DestinationId, SessionsView> {
        [(DESTINATION, SessionsView { established, ..SessionsView::default() })].into()
    }

    fn view(draining: &Draining) -> DrainView {
        draining.view("db", [10, 0, 0, 1].into(), DESTINATION, 1_700_000_060).unwrap()
    }

    #[test]
    fn nothing_is_counted_while_a_worker_may_not_know_of_the_drain() {
        let mut draining = Draining::of(Drains::default());
        assert_eq!(draining.countable(), None, "nobody is drained");
        // What two workers look at.
        let before = Arc::new(Snapshot::default());
        let other = Arc::clone(&before);
        draining.replace(drains(), Arc::downgrade(&before));
        drop(before);
        assert_eq!(draining.countable(), None, "one of them has it still");
        assert_eq!((view(&draining).remaining, view(&draining).age_seconds), (None, 60));
        drop(other);
        let of = draining.countable().unwrap();
        draining.take_count(of, counted(2));
        assert_eq!(view(&draining).remaining, Some(2));
        // Another service's real server has none.
        let other = draining.view("web", [10, 0, 0, 1].into(), DestinationId(4), 0).unwrap();
        assert_eq!((other.remaining, other.age_seconds), (Some(0), 0));
    }

    #[test]
    fn a_count_that_a_change_has_overtaken_is_thrown_away() {
        let mut draining = Draining::of(drains());
        let of = draining.countable().unwrap();
        let snapshot = Arc::new(Snapshot::default());
        draining.replace(drains(), Arc::downgrade(&snapshot));
        draining.take_count(of, counted(0));
        assert_eq!(view(&draining).remaining, None);
        drop(snapshot);
        let of = draining.countable().unwrap();
        draining.count_anew();
        draining.take_count(of, counted(0));
        assert_eq!(
            view(&draining).remaining,
            None,
            "a reload may have brought another destination"
        );
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01T00:00:00Z");
        assert_eq!(date(1_700_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(date(u64::MAX), "9999-12-31T23:59:59Z", "of a file that somebody has edited");
    }
}
