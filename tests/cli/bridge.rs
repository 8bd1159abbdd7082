//! Bridge capture: the TAP is a port of the bridge on which the clients are, and answers there.

use crate::lab::{Lab, eventually, lab};
use crate::real;

/// A bridge `br0` around `eth0`, with its addresses, and VIPs on the clients' own link.
fn bridged() -> Option<Lab> {
    let lab = lab()?;
    for line in [
        "ip link add br0 type bridge mcast_querier 1 mcast_query_response_interval 1",
        "ip addr flush dev eth0",
        "ip link set eth0 master br0",
        "ip link set br0 up",
        "ip addr add 198.51.100.254/24 dev br0",
        "ip addr add 2001:db8:c::fe/64 dev br0 nodad",
        // Nothing is routed.
        "sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0",
    ] {
        lab.on_director(line);
    }
    let mut services = String::from("");
    for (name, vip, address) in
        [("four", "198.51.100.10", "10.0.0.2"), ("six", "2001:db8:c::10", "2001:db8:a::2")]
    {
        services.push_str(&format!(
            "[[service]]\nname = \"{name}\"\nvip = \"{vip}\"\nport = 7\nprotocol = \"udp\"\n{}",
            real(address),
        ));
    }
    lab.configure(&services);
    let text = std::fs::read_to_string(lab.file("adit.toml")).unwrap();
    let text = text.replace("interface = \"eth0\"", "interface = \"br0\"\ncapture = \"bridge\"");
    std::fs::write(lab.file("adit.toml"), text).unwrap();
    Some(lab)
}

/// Packets that a service's real server got.
fn forwarded(lab: &Lab, service: &str) -> u64 {
    let services = lab.json("list")["services"].clone();
    let of = services.as_array().unwrap().iter().find(|s| s["name"] == service).unwrap();
    of["reals"][0]["counters"]["packets"].as_u64().unwrap()
}

#[test]
fn checks_reach_real_servers_from_the_bridges_own_host() {
    let Some(mut lab) = bridged() else { return };
    let file = lab.file("adit.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let check = "protocol = \"udp\"\ncheck = { kind = \"tcp\", port = 9, interval = \"200ms\" }";
    std::fs::write(&file, text.replace("protocol = \"udp\"", check)).unwrap();
    lab.start();
    // Of both families, though nobody answers.
    eventually("packets of checks are forwarded", || {
        let rows = lab.json("list --health");
        let timeouts = |row: &serde_json::Value| row["failures"]["timeout"].as_u64();
        rows.as_array()?.iter().all(|row| timeouts(row) >= Some(1)).then_some(())?;
        let status = lab.json("list")["status"].clone();
        (status["totals"]["probe_packets"].as_u64() >= Some(2)).then_some(())
    });
    assert_eq!(forwarded(&lab, "four") + forwarded(&lab, "six"), 0, "they are no traffic");
    // A VIP behind a router would lower the hop limit of everybody's packets.
    lab.on_director("ip route add 198.51.100.10/32 via 10.0.0.2");
    let said = lab.refused("check");
    assert!(said.contains("checks of the VIP 198.51.100.10 do not go to the TAP"), "{said}");
}

#[test]
fn clients_on_the_bridges_link_reach_the_vips() {
    let Some(mut lab) = bridged() else { return };
    lab.ok("check");
    lab.start();
    // The director's host is found by the same link.
    lab.datagram("198.51.100.1:40000", "198.51.100.254:7");
    lab.datagram("198.51.100.1:40000", "198.51.100.10:7");
    // With snooping and a querier, solicitations go only where somebody wants them.
    lab.datagram("[2001:db8:c::1]:40000", "[2001:db8:c::10]:7");
    for service in ["four", "six"] {
        eventually("it is forwarded", || (forwarded(&lab, service) == 1).then_some(()));
    }
    // Their MAC is the TAP's other end's, which is nobody else's.
    let mac = |address: &str| {
        eventually("the client knows a MAC", || {
            let known = lab.on_client("ip neigh show");
            let line = known.lines().find(|line| line.starts_with(&format!("{address} ")))?;
            Some(line.split("lladdr ").nth(1)?.split(' ').next()?.to_owned())
        })
    };
    assert_eq!(mac("198.51.100.10"), mac("2001:db8:c::10"));
    assert_ne!(mac("198.51.100.10"), mac("198.51.100.254"));

    // What the bridge floods is not the director's, and not counted as dropped.
    lab.on_client("ip neigh replace 198.51.100.99 lladdr 02:00:00:00:00:99 dev c0 nud permanent");
    let passed = |lab: &Lab| lab.json("list")["status"]["totals"]["passed"].as_u64().unwrap();
    let before = passed(&lab);
    lab.datagram("198.51.100.1:40001", "198.51.100.99:7");
    eventually("it is left alone", || (passed(&lab) > before).then_some(()));
    assert_eq!(lab.json("drops").as_array().unwrap().len(), 0);
}

#[test]
fn the_tap_is_put_back_into_its_bridge() {
    let Some(mut lab) = bridged() else { return };
    lab.start();
    let is_port = |lab: &Lab| lab.on_director("ip -d link show adit0").contains("master br0");
    assert!(is_port(&lab));
    lab.on_director("ip link set adit0 nomaster");
    eventually("it is back", || is_port(&lab).then_some(()));
    eventually("it gets all multicast", || {
        lab.on_director("ip -d link show adit0").contains("mcast_router 2").then_some(())
    });
    lab.datagram("198.51.100.1:40000", "198.51.100.10:7");
    eventually("it is forwarded", || (forwarded(&lab, "four") == 1).then_some(()));
}

#[test]
fn what_is_no_bridge_is_refused() {
    let Some(lab) = bridged() else { return };
    let file = lab.file("adit.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("\"br0\"", "\"eth1\"")).unwrap();
    assert!(lab.refused("check").contains("ERROR: eth1 is not a bridge"));
    assert!(lab.refused("run").contains("eth1 is not a bridge"));
}
