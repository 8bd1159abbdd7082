//! Schedulers, thresholds and one-packet scheduling in a running director, and how they are shown.

use crate::lab::{eventually, lab};
use std::collections::BTreeSet;

const SERVICES: &str = r#"
[[service]]
name = "spread"
vip = "192.0.2.10"
port = 7
protocol = "udp"
scheduler = "rr"
one_packet = true
[[service.real]]
address = "10.0.0.2"
[[service.real]]
address = "10.0.0.3"
[[service.real]]
address = "10.0.0.4"

[[service]]
name = "least"
vip = "192.0.2.10"
port = 8
protocol = "udp"
scheduler = "wlc"
[[service.real]]
address = "10.0.0.2"
weight = 1
[[service.real]]
address = "10.0.0.3"
weight = 2

[[service]]
name = "first"
vip = "192.0.2.10"
port = 9
protocol = "udp"
scheduler = "fo"
[[service.real]]
address = "10.0.0.2"
weight = 2
max_connections = 3
min_connections = 2
[[service.real]]
address = "10.0.0.3"
weight = 1
max_connections = 1000

[[service]]
name = "kept"
vip = "192.0.2.10"
port = 10
protocol = "udp"
scheduler = "sh"
scheduler_flags = ["sh-fallback", "sh-port"]
[[service.real]]
address = "10.0.0.2"
"#;

#[test]
fn each_scheduler_does_and_shows_what_it_should() {
    let Some(mut lab) = lab() else { return };
    // Nobody needs to receive what is sent there.
    let mac = "02:00:00:00:00:99";
    for real in ["10.0.0.2", "10.0.0.3", "10.0.0.4"] {
        lab.on_director(&format!("ip neigh replace {real} lladdr {mac} dev eth1 nud permanent"));
    }
    lab.configure(SERVICES);
    lab.start();
    for n in 0..9 {
        // One client for the first service, another each time for the others.
        lab.datagram("198.51.100.1:40000", "192.0.2.10:7");
        lab.datagram(&format!("198.51.100.1:{}", 41_000 + n), "192.0.2.10:8");
        lab.datagram(&format!("198.51.100.1:{}", 42_000 + n), "192.0.2.10:9");
        lab.datagram(&format!("198.51.100.1:{}", 43_000 + n), "192.0.2.10:10");
    }
    eventually("36 datagrams", || {
        let totals = lab.json("list")["status"]["totals"].clone();
        (totals["scheduled"] == 36).then_some(())
    });
    let listed = lab.ok("list");
    // What is above the table and below it is not about services.
    let table = |text: &str| {
        let lines = text.lines().skip_while(|line| !line.starts_with("Prot"));
        lines.take_while(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
    };
    insta::assert_snapshot!("schedulers", table(&listed));
    insta::assert_snapshot!("thresholds", table(&lab.ok("list --thresholds")));
    insta::assert_snapshot!("schedulers_stats", table(&lab.ok("list --stats")));
    let connections = lab.json("connections");
    let service = |c: &serde_json::Value| c["service"].to_string();
    let tracked: BTreeSet<_> = connections.as_array().unwrap().iter().map(service).collect();
    assert_eq!(tracked, ["first", "kept", "least"].map(|s| format!("\"{s}\"")).into());
    let explained = lab.ok("explain 198.51.100.1:50000 192.0.2.10:8/udp");
    insta::assert_snapshot!("explain_wlc", explained);
    let explained = lab.ok("explain 198.51.100.1:50000 192.0.2.10:9/udp");
    insta::assert_snapshot!("explain_fo", explained);
}
