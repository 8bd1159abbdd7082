//! VIPs that their routes announce, on a host without a routing daemon; with them see the lab.

use crate::lab::{Lab, eventually, lab};
use crate::{THREE, real};
use nix::sys::signal::Signal;

fn announced_by_routes(lab: &Lab, more: &str) {
    let text = std::fs::read_to_string(lab.file("adit.toml")).unwrap();
    let text = text.replace("[director]\n", &format!("[director]\nannounce = \"route\"\n{more}"));
    std::fs::write(lab.file("adit.toml"), text).unwrap();
}

/// Routes of a VIP that a routing daemon may export.
fn exported(lab: &Lab, vip: &str) -> usize {
    lab.on_director(&format!("ip route show {vip} proto 173 metric 1")).lines().count()
}

#[test]
fn a_vip_that_nobody_serves_is_not_announced_and_its_packets_still_come_here() {
    let Some(mut lab) = lab() else { return };
    let drained = real("10.0.0.2").replace("[[service.real]]\n", "[[service.real]]\nweight = 0\n");
    lab.configure(&format!(
        "{THREE}[[service]]\nname = \"drained\"\nvip = \"192.0.2.30\"\nport = 7\n\
         protocol = \"udp\"\n{drained}"
    ));
    announced_by_routes(&lab, "");
    let checked = lab.ok("check");
    assert!(checked.contains("no routing daemon is seen here"), "{checked}");
    assert!(checked.contains("krt_source = 173 && krt_metric = 1"), "{checked}");
    lab.start();
    assert_eq!([exported(&lab, "192.0.2.10"), exported(&lab, "192.0.2.30")], [1, 0]);
    let list = lab.ok("list");
    assert!(list.contains("VIP 192.0.2.10 announced\n"), "{list}");
    assert!(
        list.contains("VIP 192.0.2.30 withdrawn: no real server takes new connections\n"),
        "{list}"
    );
    assert!(lab.log().contains("withdrawn vip=192.0.2.30 reason=no real server"), "{}", lab.log());
    let doctor = lab.refused("doctor");
    assert!(doctor.contains("the VIP 192.0.2.30 is withdrawn: no real server"), "{doctor}");
    let metrics = lab.ok("metrics");
    assert!(metrics.contains("adit_vip_announced{vip=\"192.0.2.10\"} 1\n"), "{metrics}");
    assert!(metrics.contains("adit_vip_announced{vip=\"192.0.2.30\"} 0\n"), "{metrics}");

    // They are dropped with a name, not by the blackhole behind.
    lab.datagram("198.51.100.1:40000", "192.0.2.30:7");
    eventually("it is dropped for want of a real server", || {
        let drops = lab.json("drops");
        let of =
            drops.as_array().unwrap().iter().find(|d| d["reason"] == "no_real_server").cloned();
        (of?["count"] == 1).then_some(())
    });
    // Nobody answers for VIPs on the clients' link.
    let status = lab.json("list")["status"].clone();
    assert_eq!(status["io"]["source_frames"], 0, "{status}");
    // By itself, after the two seconds that are the default.
    assert_eq!(lab.end(Signal::SIGTERM), Some(0), "{}", lab.log());
    assert_eq!(lab.on_director("ip route show proto 173"), "");
}

#[test]
fn a_stop_withdraws_first_and_forwards_until_the_network_has_followed() {
    let Some(mut lab) = lab() else { return };
    lab.configure(THREE);
    announced_by_routes(&lab, "withdraw_wait = \"60s\"\n");
    lab.start();
    let packets = |lab: &Lab| {
        let totals = lab.json("list")["status"]["totals"].clone();
        totals["received"].as_u64().unwrap()
    };
    assert_eq!(exported(&lab, "192.0.2.10"), 1);
    lab.signal(Signal::SIGTERM);
    eventually("the VIP is withdrawn", || (exported(&lab, "192.0.2.10") == 0).then_some(()));
    // While it waits it answers, forwards, and looks after what is left of the routes.
    let list = eventually("it says so", || {
        let list = lab.ok("list");
        list.contains("VIP 192.0.2.10 withdrawn: the director stops\n").then_some(list)
    });
    assert!(!list.contains("VIP 192.0.2.10 announced"), "{list}");
    let before = packets(&lab);
    lab.datagram("198.51.100.1:40000", "192.0.2.10:7");
    eventually("it is forwarded", || (packets(&lab) > before).then_some(()));
    lab.on_director("ip route del 192.0.2.10 dev adit0");
    eventually("the route in reserve is back", || {
        lab.on_director("ip route show 192.0.2.10").contains("dev adit0").then_some(())
    });
    assert_eq!(exported(&lab, "192.0.2.10"), 0);
    // Who is in a hurry says it again.
    assert_eq!(lab.end(Signal::SIGTERM), Some(0), "{}", lab.log());
    assert_eq!(lab.on_director("ip route show proto 173"), "");
}

#[test]
fn a_worker_that_ends_while_the_network_follows_is_not_waited_for() {
    let Some(mut lab) = lab() else { return };
    lab.configure(THREE);
    announced_by_routes(&lab, "withdraw_wait = \"60s\"\n");
    lab.start();
    lab.signal(Signal::SIGTERM);
    eventually("the wait has begun", || lab.log().contains("goes on meanwhile").then_some(()));
    lab.on_director("ip link del adit0");
    assert_eq!(eventually("it ends", || lab.ended()), Some(1), "{}", lab.log());
    assert_eq!(lab.on_director("ip route show proto 173"), "");
}
