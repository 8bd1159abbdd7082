//! The director as a whole, its workers and their flow tables.

use super::Reading;
use super::families::{Families, Label, alone};
use crate::control::admin::api::{FlowsView, Status, VipView, WorkerView};
use crate::dataplane::conntrack::Class;
use crate::dataplane::counters::WorkerReading;
use std::fmt;

/// A worker and its number as text.
struct Worker<'a> {
    number: String,
    view: &'a WorkerView,
}

impl Worker<'_> {
    /// The label of what it counts.
    fn label(&self) -> Label<'_> {
        ("worker", &self.number)
    }
}

/// A family of which each worker has a series: name, help, and what a worker's value is.
type PerWorker = (&'static str, &'static str, fn(&WorkerView) -> u64);

pub(super) fn encode(reading: &Reading, families: &mut Families<'_>) -> fmt::Result {
    let Status {
        version,
        pid,
        start_time_seconds,
        // The time since then, which queries take from it.
        uptime_seconds: _,
        config_file,
        config_hash,
        services_hash,
        key_fingerprint,
        tap,
        interface,
        engine,
        engine_reason,
        ring,
        steering,
        max_connections,
        active,
        inactive,
        adopted,
        ledger_balances,
        workers,
        vips,
        // Sums over the workers and the reasons, and the longest silence.
        io: _,
        last_send_error: _,
        flows: _,
        totals: _,
        dropped: _,
        worker_silence_ms: _,
        // Counted by where they were seen; their words are for people.
        warnings: _,
        conditions: _,
    } = &reading.status;
    let workers: Vec<Worker<'_>> =
        workers.iter().map(|view| Worker { number: view.worker.to_string(), view }).collect();
    families.info(
        "adit_build_info",
        "The version that runs.",
        [[("version", version.as_str())]],
    )?;
    families.gauge(
        "adit_start_time_seconds",
        "When the director started, in seconds since 1970.",
        alone(*start_time_seconds),
    )?;
    let pid = pid.to_string();
    families.info(
        "adit_director_info",
        "Process, configuration file and devices of the director.",
        [[
            ("pid", pid.as_str()),
            ("config_file", config_file),
            ("tap", tap),
            ("interface", interface),
        ]],
    )?;
    families.info(
        "adit_config_info",
        "Hashes of the configuration in force and of its services, and the fingerprint of the \
         hash key: directors of one group share the last two.",
        [[
            ("config_hash", config_hash.as_str()),
            ("services_hash", services_hash),
            ("key_fingerprint", key_fingerprint),
        ]],
    )?;
    families.gauge(
        "adit_findings",
        "What is wrong or perhaps not meant, by where it was seen: `adit list` says what it is.",
        reading.findings.iter().map(|(seen, severity, count)| {
            ([("source", seen.name()), ("severity", severity.name())], *count)
        }),
    )?;
    ledger(&workers, *ledger_balances, families)?;
    totals(&workers, families)?;
    families.gauge(
        "adit_worker_silence_seconds",
        "Time since the worker said that it is alive, which it does every 50 ms.",
        workers.iter().map(|worker| ([worker.label()], seconds(worker.view.silence_ms))),
    )?;
    families.info(
        "adit_engine_info",
        "How workers read the TAP, why so, and how the kernel runs their rings.",
        [[("engine", engine.as_str()), ("reason", engine_reason), ("ring", ring)]],
    )?;
    families.info(
        "adit_steering_info",
        "How packets are shared out among the workers, and why so where it is not by flow.",
        [[("steering", steering.as_str())]],
    )?;
    engine_counters(&workers, families)?;
    flow_table(*max_connections, &workers, families)?;
    families.gauge(
        "adit_connections",
        "Connections of all services as ipvsadm counts them: active ones are established.",
        [([("state", "active")], *active), ([("state", "inactive")], *inactive)],
    )?;
    families.gauge(
        "adit_adopted_flows",
        "Flows that the director took over from the process before, when it started.",
        alone(*adopted),
    )?;
    announcements(vips, families)
}

/// VIPs that their routes announce.
fn announcements(vips: &[VipView], families: &mut Families<'_>) -> fmt::Result {
    let mut named = Vec::new();
    for VipView { vip, announced, reason, withdrawals } in vips {
        named.push((vip.to_string(), *announced, reason.as_deref(), *withdrawals));
    }
    families.gauge(
        "adit_vip_announced",
        "Whether the VIP is announced by its route (`announce = \"route\"`): 0 while it is withdrawn.",
        named.iter().map(|(vip, announced, ..)| ([("vip", vip.as_str())], u64::from(*announced))),
    )?;
    families.info(
        "adit_vip_withdrawn_info",
        "Why a VIP is withdrawn, while it is.",
        named.iter().filter_map(|(vip, _, reason, _)| {
            Some([("vip", vip.as_str()), ("reason", (*reason)?)])
        }),
    )?;
    families.counter(
        "adit_vip_withdrawals_total",
        "Times that a VIP was withdrawn.",
        named.iter().map(|(vip, .., count)| ([("vip", vip.as_str())], *count)),
    )
}

/// Families of counters, with a series for each worker.
fn counters(
    workers: &[Worker<'_>],
    list: &[PerWorker],
    families: &mut Families<'_>,
) -> fmt::Result {
    for (name, help, value) in list {
        let series = workers.iter().map(|worker| ([worker.label()], value(worker.view)));
        families.counter(name, help, series)?;
    }
    Ok(())
}

/// The terms of the ledger: received + taken over = forwarded + replied + passed + handed over +
/// held + in flight + dropped.
fn ledger(workers: &[Worker<'_>], balances: bool, families: &mut Families<'_>) -> fmt::Result {
    let list: [PerWorker; 6] = [
        ("adit_received_packets_total", "Frames handed to the core.", |w| w.totals.received),
        (
            "adit_taken_over_packets_total",
            "Frames that other workers received and handed over to this one.",
            |w| w.totals.taken_over,
        ),
        ("adit_forwarded_packets_total", "Packets whose send to a real server completed.", |w| {
            w.totals.forwarded
        }),
        ("adit_replied_packets_total", "Packets that Adit answered itself.", |w| w.totals.replied),
        ("adit_passed_packets_total", "Frames left to the kernel.", |w| w.totals.passed),
        (
            "adit_handed_over_packets_total",
            "Frames handed over to the worker that has their flow.",
            |w| w.totals.handed_over,
        ),
    ];
    counters(workers, &list, families)?;
    let list: [PerWorker; 2] = [
        ("adit_held_packets", "Fragments that wait for the first one of their datagram.", |w| {
            w.totals.held
        }),
        ("adit_in_flight_packets", "Packets whose send has not completed.", |w| w.totals.in_flight),
    ];
    for (name, help, value) in list {
        let series = workers.iter().map(|worker| ([worker.label()], value(worker.view)));
        families.gauge(name, help, series)?;
    }
    families.counter(
        "adit_dropped_packets_total",
        "Packets dropped, by reason: `adit drops --all` says what each means.",
        workers.iter().flat_map(|worker| {
            let dropped = worker.view.dropped.iter();
            dropped.map(|(reason, count)| ([worker.label(), ("reason", reason.as_str())], *count))
        }),
    )?;
    families.gauge(
        "adit_ledger_balances",
        "Whether received + taken over = forwarded + replied + passed + handed over + held + in \
         flight + dropped held for every worker when it was looked at: 1 if so. Under load a look \
         may fall in between.",
        alone(u64::from(balances)),
    )
}

/// What else workers count.
fn totals(workers: &[Worker<'_>], families: &mut Families<'_>) -> fmt::Result {
    let list: [PerWorker; 19] = [
        (
            "adit_received_bytes_total",
            "Bytes of IP packets received from clients for forwarding.",
            |w| w.totals.received_bytes,
        ),
        (
            "adit_output_packets_total",
            "Outer packets sent; a packet that is fragmented sends several.",
            |w| w.totals.output_packets,
        ),
        (
            "adit_output_failed_packets_total",
            "Outer packets beyond the first of their input that could not be sent.",
            |w| w.totals.output_failed,
        ),
        ("adit_scheduled_flows_total", "New flows placed by their scheduler.", |w| {
            w.totals.scheduled
        }),
        ("adit_persisted_flows_total", "New flows placed by persistence.", |w| w.totals.persisted),
        (
            "adit_rederived_flows_total",
            "Flows met in their middle and given to their first configured candidate.",
            |w| w.totals.rederived,
        ),
        (
            "adit_untracked_packets_total",
            "Packets forwarded by hash without an entry: the table was full of established flows.",
            |w| w.totals.untracked,
        ),
        ("adit_resets_sent_total", "Resets sent to clients for segments of unknown flows.", |w| {
            w.totals.resets_sent
        }),
        (
            "adit_fragmented_packets_total",
            "Packets that did not fit a tunnel and were fragmented outside.",
            |w| w.totals.fragmented,
        ),
        (
            "adit_too_big_sent_total",
            "Fragmentation-needed and packet-too-big messages sent to clients.",
            |w| w.totals.too_big_sent,
        ),
        (
            "adit_path_mtu_updates_total",
            "ICMP errors about outer packets that changed a path MTU.",
            |w| w.totals.path_mtu_updates,
        ),
        (
            "adit_icmp_forwarded_total",
            "ICMP errors of the clients' paths given to the real server that owns the flow.",
            |w| w.totals.icmp_forwarded,
        ),
        (
            "adit_neighbour_answers_total",
            "ARP requests and neighbour solicitations answered.",
            |w| w.totals.neighbour_answers,
        ),
        (
            "adit_address_conflicts_total",
            "Times that another host on the link answered for a VIP.",
            |w| w.totals.address_conflicts,
        ),
        ("adit_echo_answers_total", "Echo requests answered.", |w| w.totals.echo_answers),
        (
            "adit_probe_packets_total",
            "Packets of the director's own health checks, sent to the real server they are about; \
             they are in no figure of a service.",
            |w| w.totals.probe_packets,
        ),
        (
            "adit_untracked_half_open_packets_total",
            "SYNs forwarded by hash without an entry: their service had as many half-open flows as it \
             may, and none was found that could give way.",
            |w| w.totals.untracked_half_open,
        ),
        (
            "adit_gave_way_flows_total",
            "Half-open flows that gave way to newer ones: their service had as many as it may.",
            |w| w.totals.gave_way,
        ),
        (
            "adit_events_lost_total",
            "Events for control that found the queue full: each may cost a persistence entry.",
            |w| w.totals.events_lost,
        ),
    ];
    counters(workers, &list, families)?;
    families.counter(
        "adit_evicted_flows_total",
        "Flows evicted for newer ones, by class. Established ones never are.",
        workers.iter().flat_map(|worker| {
            let WorkerReading { evicted_half_open, evicted_unproven, .. } = worker.view.totals;
            [(Class::HalfOpen, evicted_half_open), (Class::Unproven, evicted_unproven)]
                .map(|(class, count)| ([worker.label(), ("class", class.name())], count))
        }),
    )?;
    families.counter(
        "adit_tunnel_errors_total",
        "Authentic ICMP errors about outer packets, other than those about their size.",
        workers.iter().flat_map(|worker| {
            let totals = &worker.view.totals;
            [
                ("unreachable", totals.tunnel_unreachable),
                ("time_exceeded", totals.tunnel_time_exceeded),
                ("parameter_problem", totals.tunnel_parameter_problem),
            ]
            .map(|(kind, count)| ([worker.label(), ("kind", kind)], count))
        }),
    )
}

fn engine_counters(workers: &[Worker<'_>], families: &mut Families<'_>) -> fmt::Result {
    let list: [PerWorker; 6] = [
        ("adit_io_batches_total", "Batches of completions.", |w| w.io.batches),
        ("adit_io_tap_frames_total", "Frames read from the TAP.", |w| w.io.tap_frames),
        (
            "adit_io_source_frames_total",
            "Frames from the sockets for neighbours and for errors about outer packets.",
            |w| w.io.source_frames,
        ),
        ("adit_io_source_errors_total", "Times that a receive socket reported an error.", |w| {
            w.io.source_errors
        }),
        (
            "adit_io_out_of_slots_total",
            "Times that reading the TAP stopped because all buffers were in use.",
            |w| w.io.out_of_slots,
        ),
        ("adit_io_armed_total", "Times that the multishot read was armed.", |w| w.io.armed),
    ];
    counters(workers, &list, families)?;
    families.info(
        "adit_last_send_error_info",
        "The error of the last send that failed otherwise than by a full queue, if one ever did.",
        workers.iter().filter_map(|worker| {
            Some([worker.label(), ("error", worker.view.last_send_error.as_deref()?)])
        }),
    )
}

fn flow_table(slots: u32, workers: &[Worker<'_>], families: &mut Families<'_>) -> fmt::Result {
    families.gauge(
        "adit_flow_table_slots",
        "Flows that the table can hold (`max_connections`).",
        alone(slots),
    )?;
    families.gauge(
        "adit_flow_table_flows",
        "Flows in the table by class; those that have expired and wait to be swept are in.",
        workers.iter().flat_map(|worker| {
            let FlowsView { half_open, unproven, established, closing_fin, closing_rst } =
                worker.view.flows;
            [
                (Class::HalfOpen, half_open),
                (Class::Unproven, unproven),
                (Class::Established, established),
                (Class::ClosingFin, closing_fin),
                (Class::ClosingRst, closing_rst),
            ]
            .map(|(class, count)| ([worker.label(), ("class", class.name())], count))
        }),
    )
}

/// Milliseconds as seconds.
fn seconds(milliseconds: u64) -> f64 {
    std::time::Duration::from_millis(milliseconds).as_secs_f64()
}
