//! What travels over the admin socket: the JSON of docs/admin-api.md, as types.
//!
//! Both sides use these, so the daemon and the command line cannot disagree. Fields are added,
//! never renamed.

use crate::control::config::ServiceLimits;
use crate::control::finding::Finding;
use crate::dataplane::conntrack::Class;
use crate::dataplane::counters::{DestinationReading, WorkerReading};
use crate::dataplane::vip_prefix::VipPrefix;
use crate::io::IoCounters;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// `GET /v1/status`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Version of the running director.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// When it started, in seconds since 1970.
    pub start_time_seconds: u64,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// Configuration file.
    pub config_file: String,
    /// Hash of the configuration in force.
    pub config_hash: String,
    /// Hash of its services, which directors of one group share.
    pub services_hash: String,
    /// Fingerprint of the hash key.
    pub key_fingerprint: String,
    /// The TAP.
    pub tap: String,
    /// The client-facing interface.
    pub interface: String,
    /// How workers read the TAP: `multishot` or `poll`.
    pub engine: String,
    /// Why that one.
    pub engine_reason: String,
    /// How the kernel agreed to run the workers' rings.
    pub ring: String,
    /// How packets are shared out among the workers, and why so where it is not by flow.
    #[serde(default)]
    pub steering: String,
    /// What the workers' engines count, as of their last signs of life.
    pub io: IoCounters,
    /// The error of the last send that failed otherwise than by a full queue, if one ever did.
    pub last_send_error: Option<String>,
    /// Slots of the flow table.
    pub max_connections: u32,
    /// Flows in the table that are established.
    pub active: u64,
    /// Flows in the table that are not.
    pub inactive: u64,
    /// The same by class, as of the workers' last signs of life.
    pub flows: FlowsView,
    /// Flows taken over from the process before, at start.
    pub adopted: u64,
    /// The workers' totals, together.
    pub totals: WorkerReading,
    /// The same in packets: dropped for whatever reason.
    pub dropped: u64,
    /// Whether received + taken over = forwarded + replied + passed + handed over + dropped + held +
    /// in flight held for each worker when it was looked at. Between calls into the core it always
    /// does; under load one look may fall in between.
    pub ledger_balances: bool,
    /// Milliseconds since the worker that is silent for longest said that it is alive.
    pub worker_silence_ms: u64,
    /// Each worker for itself.
    #[serde(default)]
    pub workers: Vec<WorkerView>,
    /// Where routes announce VIPs: each VIP, and whether it is announced.
    #[serde(default)]
    pub vips: Vec<VipView>,
    /// What is in force and perhaps not meant, or was so at the start; and `conditions`.
    pub warnings: Vec<OwnedFinding>,
    /// What was wrong with the host at the last look.
    #[serde(default)]
    pub conditions: Vec<OwnedFinding>,
}

/// One worker of a running director.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WorkerView {
    /// Its number, from 0 on: its queue of the TAP.
    pub worker: usize,
    /// Its totals.
    pub totals: WorkerReading,
    /// Packets it dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Flows in its table, as of its last sign of life.
    pub flows: FlowsView,
    /// What its engine counts, as of its last sign of life.
    pub io: IoCounters,
    /// The error of its last send that failed otherwise than by a full queue, if one ever did.
    pub last_send_error: Option<String>,
    /// Milliseconds since it said that it is alive.
    pub silence_ms: u64,
}

/// A VIP that its route announces, or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipView {
    /// The VIP, or the prefix.
    pub vip: VipPrefix,
    /// Whether it is announced.
    pub announced: bool,
    /// Why not; absent where it is.
    pub reason: Option<String>,
    /// How often it was withdrawn since the director started.
    pub withdrawals: u64,
}

/// Flows in the table by class; those that have expired and wait to be swept are in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FlowsView {
    /// Only a SYN was seen.
    pub half_open: u64,
    /// Not proven yet.
    pub unproven: u64,
    /// Established.
    pub established: u64,
    /// The client has sent FIN.
    pub closing_fin: u64,
    /// The client has sent RST.
    pub closing_rst: u64,
}

impl FlowsView {
    /// How many flows of each class there are, as `of` says.
    pub(in crate::control) fn of(of: impl Fn(Class) -> u64) -> Self {
        FlowsView {
            half_open: of(Class::HalfOpen),
            unproven: of(Class::Unproven),
            established: of(Class::Established),
            closing_fin: of(Class::ClosingFin),
            closing_rst: of(Class::ClosingRst),
        }
    }
}

/// A finding as it arrives on the other side.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OwnedFinding {
    /// `error`, `warning` or `note`.
    pub severity: String,
    /// What was seen.
    pub message: String,
    /// What it means and how to mend it.
    pub help: String,
}

impl From<&Finding> for OwnedFinding {
    fn from(finding: &Finding) -> Self {
        OwnedFinding {
            severity: finding.severity.name().to_owned(),
            message: finding.message.clone(),
            help: finding.help.clone(),
        }
    }
}

/// `GET /v1/services`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Services {
    /// In the order of their names; those that were removed and drain come last.
    pub services: Vec<ServiceView>,
}

/// One service.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServiceView {
    /// Its name.
    pub name: String,
    /// Its VIP, or prefix of them.
    pub vip: VipPrefix,
    /// Its ports: `5432`, `80,443`, `6000-6009` or `any`.
    pub ports: String,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Its scheduler's name in the configuration, such as `maglev`.
    pub scheduler: String,
    /// What the scheduler does otherwise than by default, such as `sh-port`.
    #[serde(default)]
    pub scheduler_flags: Vec<String>,
    /// Whether each datagram is scheduled anew.
    #[serde(default)]
    pub one_packet: bool,
    /// Slots of its table, where it has one.
    pub table_size: Option<u32>,
    /// Seconds of persistence, where it has any.
    pub persistence_seconds: Option<u64>,
    /// What it takes of new flows, as its configuration says.
    #[serde(default, skip_serializing_if = "ServiceLimits::is_none")]
    pub limits: ServiceLimits,
    /// Whether the configuration in force names it.
    pub configured: bool,
    /// Its real servers, by address.
    pub reals: Vec<RealView>,
}

/// One real server of a service.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RealView {
    /// Its address.
    pub address: IpAddr,
    /// Configured weight.
    pub weight: u32,
    /// What is left of it.
    pub effective_weight: u32,
    /// Connections from which on it takes no new ones.
    #[serde(default)]
    pub max_connections: Option<u32>,
    /// Connections below which it takes new ones again, given or by default.
    #[serde(default)]
    pub min_connections: Option<u32>,
    /// `up`, `down` and `unchecked` (by its checks), `overloaded` (it has as many connections as it
    /// may), `drained` (weight 0, or by `adit drain`) or `draining` (taken out of the configuration).
    pub state: String,
    /// Flows and traffic since it was configured.
    pub counters: DestinationReading,
    /// How packets to it are carried: `ipip`, `gre`, `gue port 6080`, the last two perhaps `with
    /// checksum`, or `direct`.
    #[serde(default)]
    pub tunnel: String,
    /// Outer source address; the first where there are several.
    pub source: Option<IpAddr>,
    /// The other outer source addresses, where flows spread over several.
    #[serde(default)]
    pub more_sources: Vec<IpAddr>,
    /// Device its packets leave by.
    pub interface: Option<String>,
    /// Next hop.
    pub next_hop: Option<IpAddr>,
    /// `direct`, or `kernel` or `none` with the reason.
    pub egress: String,
    /// MTU of the way as this host knows it.
    pub link_mtu: u32,
    /// Path MTU in force: smaller where an error said so lately.
    pub path_mtu: u32,
    /// What checks know of it, where it is checked.
    #[serde(default)]
    pub health: Option<HealthView>,
    /// Who keeps it from new flows by `adit drain`, and what is left, where somebody does.
    #[serde(default)]
    pub drain: Option<DrainView>,
}

/// A drain of a real server of a service, and what is left there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainView {
    /// Who asked: `root`, or `root (logged in as alice)`.
    pub owner: String,
    /// Why, as they said.
    pub reason: Option<String>,
    /// When: `2026-11-25T17:40:23Z`.
    pub since: String,
    /// Seconds since then.
    pub age_seconds: u64,
    /// Whether it holds in all services of the real server.
    pub all_services: bool,
    /// Sessions that have not ended, in the table when it was last looked through, a second ago at
    /// most; `null` before that was done for the first time since the drain is in force.
    pub remaining: Option<u64>,
    /// The same by how far they have come.
    pub sessions: Option<SessionsView>,
}

/// Sessions that have not ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SessionsView {
    /// Established.
    pub established: u64,
    /// Not proven yet; all of UDP begins so.
    pub unproven: u64,
    /// Only a SYN was seen.
    pub half_open: u64,
    /// The client has sent FIN, and was heard in the last five seconds.
    pub closing: u64,
}

impl SessionsView {
    /// All of them.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.established + self.unproven + self.half_open + self.closing
    }

    /// The sum with others.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        SessionsView {
            established: self.established + other.established,
            unproven: self.unproven + other.unproven,
            half_open: self.half_open + other.half_open,
            closing: self.closing + other.closing,
        }
    }
}

/// As people read it: `3 sessions remain (2 established, 1 half-open)`.
impl std::fmt::Display for SessionsView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kinds = [
            (self.established, "established"),
            (self.unproven, "unproven"),
            (self.half_open, "half-open"),
            (self.closing, "closing"),
        ];
        let kinds: Vec<String> = kinds
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, kind)| format!("{count} {kind}"))
            .collect();
        match self.total() {
            0 => f.write_str("no session remains"),
            1 => write!(f, "1 session remains ({})", kinds.join(", ")),
            total => write!(f, "{total} sessions remain ({})", kinds.join(", ")),
        }
    }
}

/// As people read it: `drained by root for 5m: kernel update; no session remains`.
impl std::fmt::Display for DrainView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let age = humantime::format_duration(std::time::Duration::from_secs(self.age_seconds));
        let everywhere = if self.all_services { " in all services" } else { "" };
        write!(f, "drained{everywhere} by {} for {age}", self.owner)?;
        if let Some(reason) = &self.reason {
            write!(f, ": {reason}")?;
        }
        match &self.sessions {
            Some(sessions) => write!(f, "; {sessions}"),
            None => f.write_str("; its sessions are being counted"),
        }
    }
}

/// `POST /v1/drain` and `POST /v1/undrain`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// Whether this request made a difference.
    pub changed: bool,
    /// The service that was named; `null` for all.
    pub service: Option<String>,
    /// The real server.
    pub real: IpAddr,
    /// The services of the configuration that it concerns.
    pub services: Vec<String>,
    /// What keeps the real server from new flows of these services now, by whomever.
    pub drains: Vec<Hold>,
    /// What may not be meant: services without a real server for new flows.
    pub warnings: Vec<String>,
}

/// One drain that is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Its service; `null` for all.
    pub service: Option<String>,
    /// Who asked.
    pub owner: String,
    /// Why.
    pub reason: Option<String>,
    /// When: `2026-11-25T17:40:23Z`.
    pub since: String,
}

/// What checks know of a real server of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthView {
    /// What is tried: `tcp 5432`.
    pub check: String,
    /// `up`, `down`, or `unchecked` before the first check has ended.
    pub state: String,
    /// Seconds since it is that.
    pub since_seconds: u64,
    /// How the last check ended: `ok`, or the step at which it failed: `local` (it could not leave this
    /// host), `no-route`, `refused`, `unreachable`, `timeout`.
    pub last: Option<String>,
    /// Microseconds from SYN to SYN-ACK in the last check, where it succeeded.
    pub latency_us: Option<u64>,
    /// Seconds since the last check ended.
    pub age_seconds: Option<u64>,
    /// Checks that succeeded.
    pub passed: u64,
    /// Checks that failed.
    pub failures: FailuresView,
    /// Why the state is what it is: `down: no SYN-ACK within 1s, 3 of 3`.
    pub reason: String,
}

/// Checks that failed, by step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FailuresView {
    /// They could not leave this host.
    pub local: u64,
    /// This host has no way to the real server.
    pub no_route: u64,
    /// Answered by a reset.
    pub refused: u64,
    /// Answered by an error.
    pub unreachable: u64,
    /// Not answered.
    pub timeout: u64,
}

/// `GET /v1/connections`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Connections {
    /// A page of them.
    pub connections: Vec<ConnectionView>,
    /// What to give as `cursor` for the next page; absent at the end.
    pub next: Option<u64>,
}

/// One connection.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ConnectionView {
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The client.
    pub client: IpAddr,
    /// Its port.
    pub client_port: u16,
    /// The VIP.
    pub vip: IpAddr,
    /// Its port.
    pub vip_port: u16,
    /// The service; absent where it is gone.
    pub service: Option<String>,
    /// The real server.
    pub real: Option<IpAddr>,
    /// `half-open`, `unproven`, `established`, `closing-fin` or `closing-rst`.
    pub state: String,
    /// Seconds since its last packet from the client.
    pub idle_seconds: u64,
    /// Seconds until it is forgotten if no packet comes.
    pub expires_seconds: u64,
    /// Seconds since it began.
    pub age_seconds: u64,
    /// Met in its middle and sent to a guessed real server.
    pub rederived: bool,
}

/// `GET /v1/drops`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Drops {
    /// Every reason, those that never happened too.
    pub drops: Vec<Drop>,
}

/// One reason for which packets are dropped.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Drop {
    /// Its stable name.
    pub reason: String,
    /// What it means.
    pub meaning: String,
    /// Packets dropped for it.
    pub count: u64,
}

/// `POST /v1/reload`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reloaded {
    /// Whether the new configuration is in force now. Not with `dry_run`.
    pub applied: bool,
    /// Hash of the configuration before.
    pub old_hash: String,
    /// Hash of the one that was read.
    pub new_hash: String,
    /// What differs.
    pub changes: Vec<Change>,
    /// What is allowed and perhaps not meant in the new one.
    pub warnings: Vec<OwnedFinding>,
}

/// One difference between two configurations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// In one line: `service orders: real server 10.0.0.3 added with weight 100`.
    pub what: String,
    /// What it does to connections and new flows.
    pub effect: String,
    /// Connections it touches: those that drain, or that are cut.
    pub connections: u64,
}

/// `GET /v1/explain`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Explained {
    /// The client asked about.
    pub client: String,
    /// The VIP asked about.
    pub vip: String,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The service that takes the packet; absent where none does.
    pub service: Option<String>,
    /// What the placement key is made of.
    pub key_of: Option<String>,
    /// How the scheduler would choose now; the form of `dataplane::scheduler::Explanation`.
    pub choice: Option<serde_json::Value>,
    /// The real server a new flow would go to.
    pub real: Option<IpAddr>,
    /// How packets to that are carried, in the form of [`RealView::tunnel`].
    #[serde(default)]
    pub tunnel: Option<String>,
    /// The connection there is, which goes before any choice; live only.
    pub connection: Option<ConnectionView>,
    /// The real server that persistence remembers for the client; live only.
    pub persisted: Option<IpAddr>,
    /// Real servers of the service that its checks keep from new flows; live only.
    #[serde(default)]
    pub unhealthy: Vec<Unhealthy>,
    /// Real servers of the service that are drained by `adit drain`; live only.
    #[serde(default)]
    pub drained: Vec<DrainedReal>,
    /// In one sentence.
    pub answer: String,
}

/// A real server that checks keep from new flows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unhealthy {
    /// The real server.
    pub real: IpAddr,
    /// Why: `down: no SYN-ACK within 1s, 3 of 3`.
    pub reason: String,
}

/// `POST /v1/probe`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probed {
    /// The service.
    pub service: String,
    /// Its VIP; of a prefix the first address.
    pub vip: IpAddr,
    /// The real server.
    pub real: IpAddr,
    /// Whether all steps have succeeded.
    pub ok: bool,
    /// What was tried; what could not be for want of an earlier one is absent.
    pub steps: Vec<ProbeStep>,
}

/// One step of a probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeStep {
    /// `connect` (to the service), `live` (to `adit-realserver verify --live`), `download` (full packets
    /// from there) or `upload` (full packets through the tunnel).
    pub step: String,
    /// The VIP and its port.
    pub to: SocketAddr,
    /// `ok`, or how far it came, in the words of [`HealthView::last`].
    pub outcome: String,
    /// Microseconds it took, where it succeeded.
    pub took_us: Option<u64>,
    /// What happened otherwise.
    pub what: String,
    /// Where to look then.
    pub look_at: String,
}

/// A real server that an operator keeps from new flows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainedReal {
    /// The real server.
    pub real: IpAddr,
    /// By whom, since when, and what is left.
    pub drain: DrainView,
}

/// The body of every answer that is not a success.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What was refused, and why.
    pub error: String,
    /// Mistakes in a configuration, each with its place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<crate::control::config::Problem>,
    /// The mistakes as `adit check` draws them.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub drawn: String,
}

/// Views for tests: of a director without a complaint and without traffic.
#[cfg(test)]
pub(crate) mod sample {
    use super::*;

    pub(crate) fn status() -> Status {
        Status {
            version: String::new(),
            pid: 0,
            start_time_seconds: 0,
            uptime_seconds: 0,
            config_file: String::new(),
            config_hash: String::new(),
            services_hash: String::new(),
            key_fingerprint: String::new(),
            tap: "adit0".to_owned(),
            interface: "eth0".to_owned(),
            engine: String::new(),
            engine_reason: String::new(),
            ring: String::new(),
            steering: String::new(),
            io: IoCounters::default(),
            last_send_error: None,
            max_connections: 0,
            active: 0,
            inactive: 0,
            flows: FlowsView::default(),
            adopted: 0,
            totals: WorkerReading::default(),
            dropped: 0,
            ledger_balances: true,
            worker_silence_ms: 0,
            workers: vec![worker(0)],
            vips: Vec::new(),
            warnings: Vec::new(),
            conditions: Vec::new(),
        }
    }

    pub(crate) fn worker(number: usize) -> WorkerView {
        WorkerView {
            worker: number,
            totals: WorkerReading::default(),
            dropped: BTreeMap::new(),
            flows: FlowsView::default(),
            io: IoCounters::default(),
            last_send_error: None,
            silence_ms: 0,
        }
    }

    pub(crate) fn service(name: &str, vip: &str, reals: Vec<RealView>) -> ServiceView {
        ServiceView {
            name: name.to_owned(),
            vip: vip.parse().unwrap(),
            ports: "5432".to_owned(),
            protocol: "tcp".to_owned(),
            scheduler: "maglev".to_owned(),
            scheduler_flags: Vec::new(),
            one_packet: false,
            table_size: None,
            persistence_seconds: None,
            limits: ServiceLimits::default(),
            configured: true,
            reals,
        }
    }

    pub(crate) fn real(address: &str) -> RealView {
        RealView {
            address: address.parse().unwrap(),
            weight: 100,
            effective_weight: 100,
            max_connections: None,
            min_connections: None,
            state: "up".to_owned(),
            counters: DestinationReading::default(),
            tunnel: "ipip".to_owned(),
            source: None,
            more_sources: Vec::new(),
            interface: None,
            next_hop: None,
            egress: "direct".to_owned(),
            link_mtu: 1500,
            path_mtu: 1500,
            health: None,
            drain: None,
        }
    }
}
