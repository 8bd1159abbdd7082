//! What a running director's own state says, and how to mend it: the second half of `adit doctor`.
//! The first is [`judge`](super::judge()), of the host.

use crate::control::admin::api::{Drop, OwnedFinding, RealView, ServiceView, Status};
use crate::control::finding::Finding;
use crate::control::netlink::egress::{Egress, KernelReason};
use crate::dataplane::verdict::DropReason;

use super::HostFacts;

/// A worker says that it lives every 50 ms; after so many milliseconds without a word something
/// keeps it from running.
const SILENCE_MS: u64 = 1000;

/// How the view of the steering begins where it is not the director's.
pub(crate) const BY_THE_KERNEL: &str = "by the kernel's own rule";

/// What a director tells of itself.
#[derive(Debug, Clone)]
pub struct LiveState {
    /// `GET /v1/status`
    pub status: Status,
    /// `GET /v1/services`
    pub services: Vec<ServiceView>,
    /// `GET /v1/drops`
    pub drops: Vec<Drop>,
}

impl LiveState {
    /// Packets dropped for a reason since the start.
    fn dropped(&self, reason: DropReason) -> u64 {
        self.drops.iter().find(|d| d.reason == reason.name()).map_or(0, |d| d.count)
    }
}

/// What is wrong or perhaps not meant, of a director that runs on the host of `facts`.
#[must_use]
pub fn diagnose(live: &LiveState, facts: &HostFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    conditions(live, &mut findings);
    worker(live, &mut findings);
    services(live, &mut findings);
    announcements(live, &mut findings);
    next_hops(facts, &mut findings);
    path_mtus(live, &mut findings);
    queues(live, facts, &mut findings);
    table(live, &mut findings);
    strangers(live, &mut findings);
    findings
}

/// A warning about something that was counted, where it ever was.
fn counted(findings: &mut Vec<Finding>, count: u64, what: &str, help: &str) {
    if count > 0 {
        findings.push(Finding::warning(format!("{count} {what} since the start"), help));
    }
}

fn conditions(live: &LiveState, findings: &mut Vec<Finding>) {
    let of = |found: &OwnedFinding| Finding::error(found.message.clone(), found.help.clone());
    findings.extend(live.status.conditions.iter().map(of));
}

fn worker(live: &LiveState, findings: &mut Vec<Finding>) {
    let status = &live.status;
    for worker in status.workers.iter().filter(|worker| worker.silence_ms > SILENCE_MS) {
        let who = match status.workers.len() {
            1 => "the worker".to_owned(),
            _ => format!("worker {}", worker.worker),
        };
        findings.push(Finding::error(
            format!("{who} has been silent for {} ms", worker.silence_ms),
            "something keeps its core busy: look at it with `top -H`, and keep other work off that \
             core",
        ));
    }
    counted(
        findings,
        status.io.source_errors,
        "errors of receive sockets",
        "neighbours' questions or ICMP errors may have been missed; the log says which socket",
    );
    if status.steering.starts_with(BY_THE_KERNEL) {
        findings.push(Finding::warning(
            format!("packets are shared out {}", status.steering),
            "workers hand over to each other what is not theirs, which costs a copy: give the \
             director CAP_BPF, or a kernel that knows TUNSETSTEERINGEBPF (4.16)",
        ));
    }
    counted(
        findings,
        live.dropped(DropReason::HandOverFull),
        "packets dropped on their way to another worker",
        "that worker cannot keep up: its core is busy with other work, or one client sends more \
         than a core can carry",
    );
    counted(
        findings,
        status.totals.events_lost,
        "events for persistence and the log lost",
        "more flows began at once than the queue holds; clients may be placed anew when they return",
    );
}

fn services(live: &LiveState, findings: &mut Vec<Finding>) {
    for service in live.services.iter().filter(|s| s.configured) {
        for real in &service.reals {
            findings.extend(checked(service, real));
        }
        // Where checks have taken them out, the director has said so itself.
        if service.reals.iter().any(|real| real.state == "down") {
            continue;
        }
        if !service.reals.is_empty() && service.reals.iter().all(|r| r.effective_weight == 0) {
            findings.push(Finding::error(
                format!("service {}: no real server takes new connections", service.name),
                "all are drained, draining or have weight 0: `adit list` shows which",
            ));
        }
    }
    counted(
        findings,
        live.dropped(DropReason::NoService),
        "packets to VIPs for ports or protocols without a service",
        "a client uses a port that no [[service]] names, or somebody scans: `adit capture --side \
         inner` shows them",
    );
}

fn announcements(live: &LiveState, findings: &mut Vec<Finding>) {
    for vip in &live.status.vips {
        if let Some(reason) = &vip.reason {
            findings.push(Finding::warning(
                format!("the VIP {} is withdrawn: {reason}", vip.vip),
                "its route is not announced, so that clients reach other directors; it comes back by \
                 itself: `adit list` shows what its real servers lack",
            ));
        }
    }
}

/// What a check found that failed, and where to look.
fn checked(service: &ServiceView, real: &RealView) -> Option<Finding> {
    let health = real.health.as_ref()?;
    let failed = health.last.as_deref().filter(|last| *last != "ok")?;
    let help = match failed {
        "refused" => {
            "the tunnel and the VIP are there, and nobody listens on the port: start the service, or \
             let it listen on the VIP"
        }
        "local" => {
            "the check does not leave this host: see what this host and its firewall say of packets \
             to the VIP"
        }
        "no-route" => "ip route get to its address shows what this host knows",
        "unreachable" => "a router or the real server's firewall refuses it",
        _ => {
            "nothing came back: protocol 4 or 41 filtered on the way or there, no tunnel device or no \
             VIP there, or its answer is lost on its way here (firewall, reverse path filter):\n\
             adit-realserver verify, there, says which; adit capture --side outer shows what leaves"
        }
    };
    let message =
        format!("service {}: real server {} {}", service.name, real.address, health.reason);
    Some(if health.state == "up" && failed != "local" {
        Finding::note(message, help)
    } else {
        Finding::warning(message, help)
    })
}

fn next_hops(facts: &HostFacts, findings: &mut Vec<Finding>) {
    for path in &facts.survey.paths {
        if path.egress == Egress::Kernel(KernelReason::Unresolved) {
            let next_hop = path.next_hop.map_or_else(|| "?".to_owned(), |hop| hop.to_string());
            findings.push(Finding::warning(
                format!("the next hop {next_hop} of real server {} has not answered", path.address),
                format!(
                    "packets go through the kernel until it does, and are lost if it never does:\n\
                     ip neigh show {next_hop}"
                ),
            ));
        }
    }
}

fn path_mtus(live: &LiveState, findings: &mut Vec<Finding>) {
    let mut reals: Vec<&RealView> = live.services.iter().flat_map(|s| &s.reals).collect();
    reals.sort_by_key(|real| real.address);
    reals.dedup_by_key(|real| real.address);
    for real in reals.iter().filter(|real| real.path_mtu < real.link_mtu) {
        findings.push(Finding::note(
            format!(
                "the path to real server {} carries {} bytes, the link {}",
                real.address, real.path_mtu, real.link_mtu
            ),
            format!(
                "clients are told. To spare them the lost packets, limit segments on the real \
                 server, in /etc/adit/realserver.toml:\npath_mtu = {}",
                real.path_mtu
            ),
        ));
    }
}

fn queues(live: &LiveState, facts: &HostFacts, findings: &mut Vec<Finding>) {
    let tap = facts.tap.as_ref().map_or(0, |tap| tap.tx_dropped);
    counted(
        findings,
        tap,
        "packets dropped by the TAP's queue",
        "bursts are longer than it, or the worker cannot keep up: raise `tap_queue_length`, and \
         look at `adit list --stats` for `out of slots`",
    );
    counted(
        findings,
        live.dropped(DropReason::EgressFull),
        "packets dropped because an egress queue was full",
        "the interface towards real servers sends slower than packets come: look at its rate, and at \
         `tc -s qdisc show`",
    );
    let last = live.status.last_send_error.as_deref().unwrap_or("unknown");
    counted(
        findings,
        live.dropped(DropReason::EgressError),
        "packets whose send the kernel refused",
        &format!("the last refusal was: {last}; a firewall's output chain says EPERM"),
    );
    counted(
        findings,
        live.dropped(DropReason::FragmentOverflow),
        "fragments without room in the pool",
        "a flood of fragments, or clients that send large datagrams: let them send smaller ones",
    );
}

fn table(live: &LiveState, findings: &mut Vec<Finding>) {
    let status = &live.status;
    let max = u64::from(status.max_connections);
    if status.active * 10 >= max * 9 {
        findings.push(Finding::warning(
            format!("{} of {max} places of the flow table hold established flows", status.active),
            "when it is full, services scheduled by hash go on without entries, and others refuse \
             new connections: raise `max_connections` and restart, which connections outlive",
        ));
    }
    counted(
        findings,
        status.totals.untracked,
        "packets forwarded without an entry",
        "the flow table was full of established flows: raise `max_connections` and restart",
    );
    counted(
        findings,
        live.dropped(DropReason::TableFull),
        "new connections refused by a full flow table",
        "raise `max_connections` and restart, which connections outlive",
    );
    if !status.ledger_balances {
        findings.push(Finding::note(
            "the packet counters were in between two states",
            "under load one look may fall so; if it stays, report it as a fault of Adit",
        ));
    }
}

/// What others send that they should not.
fn strangers(live: &LiveState, findings: &mut Vec<Finding>) {
    let totals = &live.status.totals;
    if totals.address_conflicts > 0 {
        findings.push(Finding::error(
            format!("another host answered for a VIP, {} times", totals.address_conflicts),
            "clients' packets go to it: a real server that is not silent in ARP (adit-realserver \
             apply), or a second director; the log names its MAC",
        ));
    }
    let forged = live.dropped(DropReason::ForgedError) + live.dropped(DropReason::ErrorIgnored);
    counted(
        findings,
        forged,
        "ICMP errors about tunnels without proof that they answer a packet of ours",
        "somebody forges them, or a router rewrites what it quotes; path MTUs are not learned from \
         them",
    );
    counted(
        findings,
        live.dropped(DropReason::EmitRateLimited),
        "answers of Adit's own kept back by their rate limit",
        "a flood, or [limits] are too low for so many clients",
    );
    counted(
        findings,
        totals.tunnel_unreachable,
        "messages that a real server or its network cannot be reached",
        "a real server without the tunnel device answers `protocol unreachable`, a router without a \
         route `host unreachable`: `adit capture --side outer` shows the packets they are about",
    );
    counted(
        findings,
        totals.tunnel_time_exceeded,
        "outer packets that ran out of hops",
        "a routing loop on the way to a real server, or [tunnel] ttl is too low",
    );
    counted(
        findings,
        totals.rederived,
        "connections met in their middle and given to the server of their hash",
        "after a restart without its flow table or a failover that is what should be; otherwise \
         packets of a connection have come by another way before",
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::admin::api::{FailuresView, HealthView, VipView, sample};
    use crate::control::config::RealTunnel;
    use crate::control::finding::Severity;
    use crate::control::netlink::egress::{RealPath, Survey};
    use crate::control::netlink::links::Link;
    use std::net::IpAddr;

    const REAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    /// A director without a complaint.
    fn good() -> (LiveState, HostFacts) {
        let service = sample::service("db", "192.0.2.1", vec![sample::real(&REAL.to_string())]);
        let status = Status { max_connections: 100, worker_silence_ms: 50, ..sample::status() };
        let path = RealPath {
            address: REAL,
            tunnel: RealTunnel::Ipip,
            sources: Vec::new(),
            mtu: 1500,
            interface: None,
            next_hop: Some(REAL),
            egress: Egress::Kernel(KernelReason::NotEthernet),
        };
        let tap = Link {
            index: 3,
            name: "adit0".into(),
            mtu: 1500,
            ethernet: true,
            mac: None,
            up: true,
            is_bridge: false,
            controller: None,
            in_bridge: false,
            tx_dropped: 0,
        };
        let survey = Survey { paths: vec![path], ..Survey::default() };
        let facts = HostFacts { survey, tap: Some(tap), ..HostFacts::default() };
        (LiveState { status, services: vec![service], drops: Vec::new() }, facts)
    }

    fn drop_of(reason: DropReason) -> Vec<Drop> {
        vec![Drop { reason: reason.name().into(), meaning: String::new(), count: 7 }]
    }

    /// The real server, whose last check failed at a step.
    fn checked_as(state: &str, last: &str) -> RealView {
        let health = HealthView {
            check: "tcp 5432".into(),
            state: state.into(),
            since_seconds: 0,
            last: Some(last.into()),
            latency_us: None,
            age_seconds: Some(0),
            passed: 0,
            failures: FailuresView::default(),
            reason: format!("{state}: x"),
        };
        let effective_weight = if state == "up" { 100 } else { 0 };
        let real = sample::real(&REAL.to_string());
        RealView { state: state.into(), effective_weight, health: Some(health), ..real }
    }

    /// A change of a good director, and the finding it makes.
    type Case = (fn(&mut LiveState, &mut HostFacts), Severity, &'static str);

    #[test]
    fn each_fault_is_named_and_nothing_else() {
        use Severity::{Error, Note, Warning};
        let (live, facts) = good();
        assert_eq!(diagnose(&live, &facts), []);
        let cases: [Case; 29] = [
            (
                |l, _| {
                    let finding = Finding::error("the route of 192.0.2.1 is missing", "wait");
                    l.status.conditions = vec![OwnedFinding::from(&finding)];
                },
                Error,
                "the route of 192.0.2.1",
            ),
            (
                |l, _| l.status.workers[0].silence_ms = 1500,
                Error,
                "the worker has been silent for 1500 ms",
            ),
            (
                |l, _| {
                    l.status.workers.push(sample::worker(1));
                    l.status.workers[1].silence_ms = 1500;
                },
                Error,
                "worker 1 has been silent for 1500 ms",
            ),
            (|l, _| l.status.steering = "by the kernel's own rule (x)".into(), Warning, "own rule"),
            (|l, _| l.drops = drop_of(DropReason::HandOverFull), Warning, "another worker"),
            (|l, _| l.status.io.source_errors = 7, Warning, "7 errors of receive sockets"),
            (|l, _| l.status.totals.events_lost = 7, Warning, "events"),
            (
                |l, _| {
                    let vip = IpAddr::from([192, 0, 2, 1]).into();
                    let reason = Some("no way".to_owned());
                    l.status.vips = vec![VipView { vip, announced: false, reason, withdrawals: 1 }];
                },
                Warning,
                "192.0.2.1 is withdrawn: no way",
            ),
            (|l, _| l.services[0].reals[0].effective_weight = 0, Error, "service db"),
            (
                |l, _| l.services[0].reals[0] = checked_as("down", "timeout"),
                Warning,
                "10.0.0.2 down: x",
            ),
            (|l, _| l.services[0].reals[0] = checked_as("up", "refused"), Note, "10.0.0.2 up: x"),
            (|l, _| l.services[0].reals[0] = checked_as("up", "local"), Warning, "10.0.0.2 up: x"),
            (|l, _| l.drops = drop_of(DropReason::NoService), Warning, "without a service"),
            (
                |_, f| f.survey.paths[0].egress = Egress::Kernel(KernelReason::Unresolved),
                Warning,
                "next hop 10.0.0.2",
            ),
            (|l, _| l.services[0].reals[0].path_mtu = 1400, Note, "carries 1400 bytes"),
            (|_, f| f.tap.as_mut().unwrap().tx_dropped = 7, Warning, "TAP's queue"),
            (|l, _| l.drops = drop_of(DropReason::EgressFull), Warning, "egress queue"),
            (|l, _| l.drops = drop_of(DropReason::EgressError), Warning, "the kernel refused"),
            (|l, _| l.drops = drop_of(DropReason::FragmentOverflow), Warning, "fragments"),
            (|l, _| l.status.active = 90, Warning, "90 of 100 places"),
            (|l, _| l.status.totals.untracked = 7, Warning, "without an entry"),
            (|l, _| l.drops = drop_of(DropReason::TableFull), Warning, "full flow table"),
            (|l, _| l.status.ledger_balances = false, Note, "counters"),
            (|l, _| l.status.totals.address_conflicts = 7, Error, "another host"),
            (|l, _| l.drops = drop_of(DropReason::ForgedError), Warning, "7 ICMP errors"),
            (|l, _| l.drops = drop_of(DropReason::EmitRateLimited), Warning, "rate limit"),
            (|l, _| l.status.totals.tunnel_unreachable = 7, Warning, "cannot be reached"),
            (|l, _| l.status.totals.tunnel_time_exceeded = 7, Warning, "ran out of hops"),
            (|l, _| l.status.totals.rederived = 7, Warning, "met in their middle"),
        ];
        for (spoil, severity, word) in cases {
            let (mut live, mut facts) = good();
            spoil(&mut live, &mut facts);
            let findings = diagnose(&live, &facts);
            assert_eq!(findings.len(), 1, "{word}: {findings:?}");
            assert_eq!(findings[0].severity, severity, "{word}");
            assert!(findings[0].message.contains(word), "{word}: {findings:?}");
            assert!(!findings[0].help.is_empty(), "{word}: says not what to do");
        }
    }
}
