//! What health checks of a running director find, and how it is shown. Nobody unwraps tunnels here:
//! the lab of `tests/lab` has real servers that live.

use crate::lab::{eventually, lab};

const SERVICES: &str = r#"
[[service]]
name = "db"
vip = "192.0.2.10"
port = 7
check = { kind = "tcp", interval = "200ms", timeout = "100ms", down_interval = "200ms" }
[[service.real]]
address = "10.0.0.2"
[[service.real]]
address = "10.0.0.3"

[[service]]
name = "dns"
vip = "192.0.2.10"
port = 53
protocol = "udp"
[[service.real]]
address = "10.0.0.2"
"#;

#[test]
fn dead_real_servers_get_nothing_and_every_command_says_why() {
    let Some(mut lab) = lab() else { return };
    lab.configure(SERVICES);
    // Answers would come in where the VIP is not routed to.
    lab.on_director("sysctl -qw net.ipv4.conf.eth1.rp_filter=1");
    let said = lab.refused("check");
    assert!(said.contains("reverse path filtering on eth1 drops the answers"), "{said}");
    lab.on_director("sysctl -qw net.ipv4.conf.all.rp_filter=0");
    lab.on_director("sysctl -qw net.ipv4.conf.eth1.rp_filter=2");
    lab.start();
    let rows = eventually("both are found dead", || {
        let rows = lab.json("list --health");
        let rows = rows.as_array().unwrap().clone();
        rows.iter().all(|row| row["state"] == "down").then_some(rows)
    });
    assert_eq!(rows.len(), 2, "what is not checked is not there: {rows:?}");
    assert_eq!(rows[0]["last"], "timeout", "{rows:?}");
    let reason = rows[0]["reason"].as_str().unwrap();
    assert_eq!(reason, "down: no SYN-ACK within 100ms, 3 of 3");

    let list = eventually("the worker has been told", || {
        let list = lab.json("list");
        (list["status"]["conditions"].as_array()?.len() == 1).then_some(list)
    });
    let reals = &list["services"][0]["reals"];
    assert_eq!((&reals[0]["state"], &reals[0]["effective_weight"]), (&"down".into(), &0.into()));
    assert_eq!(list["services"][1]["reals"][0]["state"], "up", "that is another service");
    assert!(lab.ok("list").contains("error: service db: no real server is up"));
    assert!(lab.ok("list --health").contains(reason));
    let explained = lab.ok("explain 198.51.100.1:40000 192.0.2.10:7");
    assert!(explained.contains("no_real_server") && explained.contains(reason), "{explained}");
    let said = lab.refused("doctor");
    assert!(said.contains(&format!("real server 10.0.0.3 {reason}")), "{said}");
    let metrics = lab.ok("metrics");
    let up = "adit_check_up{service=\"db\",vip=\"192.0.2.10\",port=\"7\",protocol=\"tcp\",\
              real_server=\"10.0.0.2\",tunnel=\"ipip\"} 0";
    assert!(metrics.contains(up), "{metrics}");
    assert!(lab.log().contains("real server is down"));

    // Whoever waits hears who is missing, and that there may be nothing to wait for.
    let said = lab.refused("list --health --wait 1s db");
    assert!(said.contains(&format!("10.0.0.3 of db: {reason}")), "{said}");
    let said = lab.refused("list --health --wait 1s dns");
    assert!(said.contains("nothing to wait for"), "{said}");

    // Its packets are no traffic, and the ledger knows them.
    let status = lab.json("list")["status"].clone();
    assert!(status["totals"]["probe_packets"].as_u64() >= Some(6), "{status}");
    assert_eq!((&status["totals"]["scheduled"], &status["active"]), (&0.into(), &0.into()));
    assert_eq!(lab.connections(), []);

    lab.configure(&SERVICES.replace("check =", "# check ="));
    lab.ok("reload");
    assert_eq!(lab.json("list --health").as_array().unwrap().len(), 0);
    let list = lab.json("list");
    assert_eq!(list["services"][0]["reals"][0]["state"], "up", "nothing says otherwise any more");
}
