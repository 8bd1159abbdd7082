//! `adit probe`: what an operator tries through the tunnel of one real server, as checks do.

use super::{Daemon, ReloadError, checks, now};
use crate::control::admin::api::{ProbeStep, Probed};
use crate::control::config::{Ports, Protocol, Service};
use crate::control::health::TargetKey;
use crate::control::health::board::Ready;
use crate::control::health::exchange::{self, Ended, Way};
use crate::control::health::target::{Failure, Step};
use crate::control::runtime;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

/// How long after its last use a port that was tried is given back, and a little more.
const GIVEN_BACK: Duration = Duration::from_secs(61);

/// What is to be tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeRequest {
    /// The service, by name.
    pub service: String,
    /// The real server.
    pub real: IpAddr,
    /// Where `adit-realserver verify --live` listens.
    pub port: u16,
}

/// Why nothing was tried.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The configuration has no such service.
    #[error("there is no service {0}")]
    NoService(String),
    /// The service has no such real server.
    #[error("service {service} has no real server {real}")]
    NoReal {
        /// The service.
        service: String,
        /// The real server asked for.
        real: IpAddr,
    },
    /// Too much is tried.
    #[error("too many ports are tried at a time: wait a minute")]
    TooMany,
    /// The worker cannot be told of it.
    #[error(transparent)]
    Change(#[from] ReloadError),
}

/// The ports that are tried, each with where its connections come from.
struct Tried {
    service: Option<(u64, SocketAddr)>,
    live: (u64, SocketAddr),
}

impl Daemon {
    /// Tries the way to a real server, to its service and back.
    ///
    /// # Errors
    /// When it cannot be tried. What fails in it is no error.
    pub async fn probe(self: &Rc<Self>, request: &ProbeRequest) -> Result<Probed, ProbeError> {
        let (key, port) = self.asked_of(request)?;
        let tried = self.have_ports(&key, port, request.port).await?;
        let daemon = Rc::clone(self);
        runtime::spawn(async move {
            tokio::time::sleep(GIVEN_BACK).await;
            daemon.give_ports_back().await;
        });
        let steps = if self.has_way_to(request.real) {
            let (first, mut rest) =
                tokio::join!(self.try_service(&tried), self.try_both_ways(&tried));
            first.into_iter().chain(rest.drain(..)).collect()
        } else {
            let what = "no route to the real server".to_owned();
            let to = tried.service.map_or(tried.live.1, |(_, to)| to);
            vec![step("connect", to, Err(Failure { step: Step::NoRoute, what }))]
        };
        Ok(Probed {
            service: key.service,
            vip: key.vip,
            real: key.real,
            ok: steps.iter().all(|step| step.outcome == "ok"),
            steps,
        })
    }

    /// The real server that is asked of, and the port of its service, where it has one of TCP.
    fn asked_of(&self, request: &ProbeRequest) -> Result<(TargetKey, Option<u16>), ProbeError> {
        let state = self.state.borrow();
        let service = state
            .config
            .services
            .iter()
            .find(|service| service.name == request.service)
            .ok_or_else(|| ProbeError::NoService(request.service.clone()))?;
        if service.reals.iter().all(|real| real.address != request.real) {
            let service = service.name.clone();
            return Err(ProbeError::NoReal { service, real: request.real });
        }
        let key = TargetKey {
            service: service.name.clone(),
            // Of a prefix the first address stands for all, as with checks.
            vip: service.vip.address(),
            real: request.real,
        };
        Ok((key, tcp_port(service)))
    }

    /// Has source ports for both, and the worker know of them.
    async fn have_ports(
        &self,
        key: &TargetKey,
        service: Option<u16>,
        live: u16,
    ) -> Result<Tried, ProbeError> {
        let _changing = self.change().await?;
        let (tried, told) = {
            let mut state = self.state.borrow_mut();
            let mut take = |port| {
                let id = state.health.try_port(key, port, now()).ok_or(ProbeError::TooMany)?;
                Ok::<_, ProbeError>((id, SocketAddr::new(key.vip, port)))
            };
            let service = service.map(&mut take).transpose()?;
            let tried = Tried { service, live: take(live)? };
            let ids = [Some(tried.live.0), tried.service.map(|(id, _)| id)];
            let told = ids.into_iter().flatten().all(|id| state.health.is_pinned(id));
            (tried, told)
        };
        if !told {
            self.publish()?;
        }
        Ok(tried)
    }

    /// Ports that nobody has tried for a minute are nobody's again.
    async fn give_ports_back(&self) {
        // Not when it stops: then they go with it.
        let Ok(_changing) = self.change().await else { return };
        if !self.state.borrow_mut().health.forget_tried(now()) {
            return;
        }
        // Where the worker is busy now, whatever is published next tells it.
        if let Err(error) = self.publish() {
            tracing::warn!(%error, "ports that were tried are given back later");
        }
    }

    /// Where the next connection comes from, as soon as the worker knows.
    async fn source(&self, id: u64) -> Result<SocketAddr, Failure> {
        loop {
            let ready = self.state.borrow_mut().health.ready(id, now());
            match ready {
                Ready::From(from) => return Ok(from),
                Ready::At(at) => tokio::time::sleep(at.saturating_since(now())).await,
                Ready::Not(why) => {
                    return Err(Failure { step: Step::Local, what: why.to_owned() });
                }
            }
        }
    }

    async fn try_service(&self, tried: &Tried) -> Option<ProbeStep> {
        let (id, to) = tried.service?;
        let ended = match self.source(id).await {
            Ok(from) => exchange::service(from, to).await,
            Err(failure) => Err(failure),
        };
        Some(step("connect", to, ended))
    }

    /// The conversation with `verify --live`.
    async fn try_both_ways(&self, tried: &Tried) -> Vec<ProbeStep> {
        let (id, to) = tried.live;
        let greet = async |way| exchange::greet(self.source(id).await?, to, way).await;
        let greeted = match greet(Way::Download).await {
            Ok(greeted) => greeted,
            Err(failure) => return vec![step("live", to, Err(failure))],
        };
        let took = greeted.took;
        let upload = async {
            match greet(Way::Upload).await {
                Ok(greeted) => greeted.upload().await,
                Err(failure) => Err(failure),
            }
        };
        let (download, upload) = tokio::join!(greeted.download(), upload);
        vec![step("live", to, Ok(took)), step("download", to, download), step("upload", to, upload)]
    }

    /// Whether this host has a way to a real server, as far as it knows.
    fn has_way_to(&self, real: IpAddr) -> bool {
        let state = self.state.borrow();
        let mut paths = state.survey.paths.iter().filter(|path| path.address == real).peekable();
        // One that was never looked up is tried.
        paths.peek().is_none() || paths.any(|path| checks::has_way(path.egress))
    }
}

/// The port that a service's clients come to, as far as it can be connected to: its check's, else its
/// own, the first of several.
fn tcp_port(service: &Service) -> Option<u16> {
    let own = match (&service.ports, service.protocol) {
        (Ports::Exact(port) | Ports::Range(port, _), Protocol::Tcp) => Some(*port),
        (Ports::List(ports), Protocol::Tcp) => ports.first().copied(),
        (Ports::Any, Protocol::Tcp) | (_, Protocol::Udp) => None,
    };
    service.check.map(|check| check.port).or(own)
}

fn step(name: &str, to: SocketAddr, ended: Ended) -> ProbeStep {
    let (outcome, took_us, what, look_at) = match ended {
        Ok(took) => {
            let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            ("ok", Some(micros), String::new(), String::new())
        }
        Err(Failure { step, what }) => (step.name(), None, what, look_at(name, step).to_owned()),
    };
    ProbeStep { step: name.to_owned(), to, outcome: outcome.to_owned(), took_us, what, look_at }
}

/// What to look at when a step of a probe has failed so.
const fn look_at(name: &str, step: Step) -> &'static str {
    match (name.as_bytes(), step) {
        (_, Step::Local) => {
            "this host: its firewall's output chain, `[health]` (source, ports), the VIP's way to the TAP (adit check)"
        }
        (_, Step::NoRoute) => "this host's routes: ip route get",
        (_, Step::Unreachable) => "the router or firewall that said so",
        (b"connect", Step::Refused) => {
            "the real server: the service does not run, or does not listen on the VIP"
        }
        (b"live", Step::Refused) => {
            "the real server: run `adit-realserver verify --live` there, with the same --port"
        }
        (b"download", _) => {
            "the way back: what is smaller comes, full packets do not; an MTU below the real server's, and ICMP \
             \"fragmentation needed\" to the VIP filtered"
        }
        (b"upload", _) => {
            "the tunnel's way: what is smaller comes, full packets do not; path_mtu of the real server, and ICMP \
             \"fragmentation needed\" to this host filtered"
        }
        (_, Step::Refused | Step::Timeout) => {
            "what `adit-realserver verify --live` says on the real server; it tells where the packet was lost"
        }
    }
}
