//! The director as a whole, its worker and its flow table.

use super::Reading;
use super::families::{Families, Label, alone};
use crate::control::admin::api::{Drop, FlowsView, Status};
use crate::dataplane::conntrack::Class;
use crate::dataplane::counters::WorkerReading;
use crate::io::IoCounters;
use std::fmt;

/// The label of what one worker counts. There is one worker.
const WORKER: [Label<'static>; 1] = [("worker", "0")];

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
        io,
        last_send_error,
        max_connections,
        active,
        inactive,
        flows,
        adopted,
        totals,
        // The sum over the reasons.
        dropped: _,
        ledger_balances,
        worker_silence_ms,
        // Counted by where they were seen; their words are for people.
        warnings: _,
        conditions: _,
    } = &reading.status;
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
    ledger(totals, *ledger_balances, &reading.drops.drops, families)?;
    worker(totals, families)?;
    families.gauge(
        "adit_worker_silence_seconds",
        "Time since the worker said that it is alive, which it does every 50 ms.",
        [(WORKER, seconds(*worker_silence_ms))],
    )?;
    families.info(
        "adit_engine_info",
        "How the worker reads the TAP, why so, and how the kernel runs its ring.",
        [[("worker", "0"), ("engine", engine.as_str()), ("reason", engine_reason), ("ring", ring)]],
    )?;
    engine_counters(io, last_send_error.as_deref(), families)?;
    flow_table(*max_connections, *flows, families)?;
    families.gauge(
        "adit_connections",
        "Connections of all services as ipvsadm counts them: active ones are established.",
        [([("state", "active")], *active), ([("state", "inactive")], *inactive)],
    )?;
    families.gauge(
        "adit_adopted_flows",
        "Flows that the director took over from the process before, when it started.",
        alone(*adopted),
    )
}

/// The terms of the ledger: received = forwarded + replied + passed + held + in flight + dropped.
fn ledger(
    totals: &WorkerReading,
    balances: bool,
    drops: &[Drop],
    families: &mut Families<'_>,
) -> fmt::Result {
    // The other fields are those of `worker`.
    let WorkerReading { received, forwarded, replied, passed, held, in_flight, .. } = *totals;
    for (name, help, value) in [
        ("adit_received_packets_total", "Frames handed to the core.", received),
        (
            "adit_forwarded_packets_total",
            "Packets whose send to a real server completed.",
            forwarded,
        ),
        ("adit_replied_packets_total", "Packets that Adit answered itself.", replied),
        ("adit_passed_packets_total", "Frames left to the kernel.", passed),
    ] {
        families.counter(name, help, [(WORKER, value)])?;
    }
    for (name, help, value) in [
        ("adit_held_packets", "Fragments that wait for the first one of their datagram.", held),
        ("adit_in_flight_packets", "Packets whose send has not completed.", in_flight),
    ] {
        families.gauge(name, help, [(WORKER, value)])?;
    }
    families.counter(
        "adit_dropped_packets_total",
        "Packets dropped, by reason: `adit drops --all` says what each means.",
        drops.iter().map(|drop| ([WORKER[0], ("reason", drop.reason.as_str())], drop.count)),
    )?;
    families.gauge(
        "adit_ledger_balances",
        "Whether received = forwarded + replied + passed + held + in flight + dropped held when \
         it was looked at: 1 if so. Under load a look may fall in between.",
        alone(u64::from(balances)),
    )
}

/// What else a worker counts.
fn worker(totals: &WorkerReading, families: &mut Families<'_>) -> fmt::Result {
    let WorkerReading {
        received: _,
        forwarded: _,
        replied: _,
        passed: _,
        held: _,
        in_flight: _,
        received_bytes,
        output_packets,
        output_failed,
        scheduled,
        persisted,
        rederived,
        untracked,
        evicted_half_open,
        evicted_unproven,
        untracked_half_open,
        gave_way,
        resets_sent,
        fragmented,
        too_big_sent,
        path_mtu_updates,
        tunnel_unreachable,
        tunnel_time_exceeded,
        tunnel_parameter_problem,
        icmp_forwarded,
        neighbour_answers,
        address_conflicts,
        echo_answers,
        events_lost,
    } = *totals;
    for (name, help, value) in [
        (
            "adit_received_bytes_total",
            "Bytes of IP packets received from clients for forwarding.",
            received_bytes,
        ),
        (
            "adit_output_packets_total",
            "Outer packets sent; a packet that is fragmented sends several.",
            output_packets,
        ),
        (
            "adit_output_failed_packets_total",
            "Outer packets beyond the first of their input that could not be sent.",
            output_failed,
        ),
        ("adit_scheduled_flows_total", "New flows placed by their scheduler.", scheduled),
        ("adit_persisted_flows_total", "New flows placed by persistence.", persisted),
        (
            "adit_rederived_flows_total",
            "Flows met in their middle and given to their first configured candidate.",
            rederived,
        ),
        (
            "adit_untracked_packets_total",
            "Packets forwarded by hash without an entry: the table was full of established flows.",
            untracked,
        ),
        (
            "adit_resets_sent_total",
            "Resets sent to clients for segments of unknown flows.",
            resets_sent,
        ),
        (
            "adit_fragmented_packets_total",
            "Packets that did not fit a tunnel and were fragmented outside.",
            fragmented,
        ),
        (
            "adit_too_big_sent_total",
            "Fragmentation-needed and packet-too-big messages sent to clients.",
            too_big_sent,
        ),
        (
            "adit_path_mtu_updates_total",
            "ICMP errors about outer packets that changed a path MTU.",
            path_mtu_updates,
        ),
        (
            "adit_icmp_forwarded_total",
            "ICMP errors of the clients' paths given to the real server that owns the flow.",
            icmp_forwarded,
        ),
        (
            "adit_neighbour_answers_total",
            "ARP requests and neighbour solicitations answered.",
            neighbour_answers,
        ),
        (
            "adit_address_conflicts_total",
            "Times that another host on the link answered for a VIP.",
            address_conflicts,
        ),
        (
            "adit_untracked_half_open_packets_total",
            "SYNs forwarded by hash without an entry: their service had as many half-open flows as it \
             may, and none was found that could give way.",
            untracked_half_open,
        ),
        (
            "adit_gave_way_flows_total",
            "Half-open flows that gave way to newer ones: their service had as many as it may.",
            gave_way,
        ),
        ("adit_echo_answers_total", "Echo requests answered.", echo_answers),
        (
            "adit_events_lost_total",
            "Events for control that found the queue full: each may cost a persistence entry.",
            events_lost,
        ),
    ] {
        families.counter(name, help, [(WORKER, value)])?;
    }
    families.counter(
        "adit_evicted_flows_total",
        "Flows evicted for newer ones, by class. Established ones never are.",
        [(Class::HalfOpen, evicted_half_open), (Class::Unproven, evicted_unproven)]
            .map(|(class, count)| ([WORKER[0], ("class", class.name())], count)),
    )?;
    families.counter(
        "adit_tunnel_errors_total",
        "Authentic ICMP errors about outer packets, other than those about their size.",
        [
            ("unreachable", tunnel_unreachable),
            ("time_exceeded", tunnel_time_exceeded),
            ("parameter_problem", tunnel_parameter_problem),
        ]
        .map(|(kind, count)| ([WORKER[0], ("kind", kind)], count)),
    )
}

fn engine_counters(
    io: &IoCounters,
    last_send_error: Option<&str>,
    families: &mut Families<'_>,
) -> fmt::Result {
    let IoCounters { batches, tap_frames, source_frames, source_errors, out_of_slots, armed } = *io;
    for (name, help, value) in [
        ("adit_io_batches_total", "Batches of completions.", batches),
        ("adit_io_tap_frames_total", "Frames read from the TAP.", tap_frames),
        (
            "adit_io_source_frames_total",
            "Frames from the sockets for neighbours and for errors about outer packets.",
            source_frames,
        ),
        (
            "adit_io_source_errors_total",
            "Times that a receive socket reported an error.",
            source_errors,
        ),
        (
            "adit_io_out_of_slots_total",
            "Times that reading the TAP stopped because all buffers were in use.",
            out_of_slots,
        ),
        ("adit_io_armed_total", "Times that the multishot read was armed.", armed),
    ] {
        families.counter(name, help, [(WORKER, value)])?;
    }
    families.info(
        "adit_last_send_error_info",
        "The error of the last send that failed otherwise than by a full queue, if one ever did.",
        last_send_error.map(|error| [WORKER[0], ("error", error)]),
    )
}

fn flow_table(slots: u32, flows: FlowsView, families: &mut Families<'_>) -> fmt::Result {
    families.gauge(
        "adit_flow_table_slots",
        "Flows that the table can hold (`max_connections`).",
        alone(slots),
    )?;
    let FlowsView { half_open, unproven, established, closing_fin, closing_rst } = flows;
    let by_class = [
        (Class::HalfOpen, half_open),
        (Class::Unproven, unproven),
        (Class::Established, established),
        (Class::ClosingFin, closing_fin),
        (Class::ClosingRst, closing_rst),
    ];
    families.gauge(
        "adit_flow_table_flows",
        "Flows in the table by class; those that have expired and wait to be swept are in.",
        by_class.map(|(class, count)| ([WORKER[0], ("class", class.name())], count)),
    )
}

/// Milliseconds as seconds.
fn seconds(milliseconds: u64) -> f64 {
    std::time::Duration::from_millis(milliseconds).as_secs_f64()
}
