//! The binary as its users meet it: commands, exit codes, signals, what stays on the host.

#![allow(clippy::unwrap_used, reason = "tests")]

mod admin;
mod announce;
mod bridge;
mod check_host;
mod commands;
mod doctor;
mod drain;
mod health;
mod host;
mod install;
mod lab;
mod metrics;
mod scheduling;
mod shown;
#[path = "../../src/testing.rs"]
mod testing;
mod top;
mod watchdog;

use lab::{ADIT, eventually, lab};
use nix::sys::signal::Signal;
use std::os::unix::net::UnixDatagram;
use std::process::Command;

const THREE: &str = r#"
[[service]]
name = "echo"
vip = "192.0.2.10"
port = 7
protocol = "udp"
[[service.real]]
address = "10.0.0.2"
[[service.real]]
address = "10.0.0.3"
[[service.real]]
address = "10.0.0.4"
"#;

fn real(address: &str) -> String {
    format!("[[service.real]]\naddress = \"{address}\"\n")
}

#[test]
fn connections_land_where_explain_said_and_survive_kill_9() {
    let Some(mut lab) = lab() else { return };
    lab.configure(THREE);
    // Before there is a director at all.
    let mut foretold = Vec::new();
    for port in 40_000..40_040_u64 {
        let asked = format!("explain --offline 198.51.100.1:{port} 192.0.2.10:7/udp");
        foretold.push((port, lab.json(&asked)["real"].as_str().unwrap().to_owned()));
    }
    assert!(foretold.iter().any(|(_, real)| *real != foretold[0].1), "more than one is used");

    lab.start();
    for (port, _) in &foretold {
        lab.datagram(&format!("198.51.100.1:{port}"), "192.0.2.10:7");
    }
    eventually("every datagram has its connection", || {
        (lab.connections() == foretold).then_some(())
    });
    let live = lab.json("explain 198.51.100.1:40000 192.0.2.10:7/udp");
    assert_eq!(live["connection"]["real"].as_str(), Some(foretold[0].1.as_str()));

    assert_eq!(lab.end(Signal::SIGKILL), None);
    // At once: the old TAP may still be going.
    lab.start();
    assert_eq!(lab.connections(), foretold);
    assert_eq!(lab.json("list")["status"]["adopted"], 40);

    // Another capacity: entered again, into a region of its own size.
    assert_eq!(lab.end(Signal::SIGKILL), None);
    eventually("only the blackhole route is left, so that nothing loops", || {
        lab.on_director("ip route show 192.0.2.10").starts_with("blackhole").then_some(())
    });
    let text = std::fs::read_to_string(lab.file("adit.toml")).unwrap();
    std::fs::write(lab.file("adit.toml"), text.replace("4096", "8192")).unwrap();
    lab.start();
    assert_eq!(lab.connections(), foretold);

    assert_eq!(lab.end(Signal::SIGTERM), Some(0));
    assert_eq!(lab.on_director("ip route show 192.0.2.10"), "");
    assert_eq!(lab.on_director("nft list ruleset"), "");
    eventually("the TAP is gone", || {
        (!lab.on_director("ip link show").contains("adit0")).then_some(())
    });
    assert!(!lab.file("adit.sock").exists());
}

#[test]
fn reload_drains_what_leaves_and_refuses_what_is_wrong() {
    let Some(mut lab) = lab() else { return };
    lab.configure(THREE);
    lab.start();
    for port in 40_000..40_030 {
        lab.datagram(&format!("198.51.100.1:{port}"), "192.0.2.10:7");
    }
    let before = eventually("30 connections", || Some(lab.connections()).filter(|c| c.len() == 30));
    let on_4 = before.iter().filter(|(_, real)| real == "10.0.0.4").count() as u64;
    assert!(on_4 > 0);

    let hash = lab.json("list")["status"]["config_hash"].clone();
    lab.configure(&THREE.replace(&real("10.0.0.4"), ""));
    let dry = lab.json("reload --dry-run");
    assert_eq!(dry["changes"][0]["connections"], on_4, "{dry}");
    assert_eq!(dry["applied"], false);
    assert_eq!(lab.json("list")["status"]["config_hash"], hash, "nothing was changed");

    lab.ok("reload");
    let state_of_4 = |lab: &lab::Lab| {
        let services = lab.json("list")["services"].clone();
        let reals = services[0]["reals"].as_array().unwrap().clone();
        reals.iter().find(|r| r["address"] == "10.0.0.4").cloned()
    };
    let draining = state_of_4(&lab).unwrap();
    assert_eq!(draining["state"], "draining");
    assert_eq!(draining["counters"]["inactive"], on_4, "its connections go on");
    assert_eq!(lab.connections(), before);
    for port in 41_000..41_030 {
        lab.datagram(&format!("198.51.100.1:{port}"), "192.0.2.10:7");
    }
    let after = eventually("30 more", || Some(lab.connections()).filter(|c| c.len() == 60));
    assert!(after.iter().all(|(port, real)| *port < 41_000 || real != "10.0.0.4"));

    let cut = lab.json("reload --now");
    assert_eq!(cut["changes"][0]["connections"], on_4, "{cut}");
    assert_eq!(state_of_4(&lab).unwrap()["state"], "cut");

    // Bad files change nothing, and say what is wrong.
    let hash = lab.json("list")["status"]["config_hash"].clone();
    lab.configure(&format!("colour = 1\n{THREE}"));
    let said = lab.refused("reload");
    assert!(said.contains("unknown key `colour`") && said.contains("the old configuration stays"));
    lab.configure(&format!("tap = \"other0\"\n{THREE}"));
    let said = lab.refused("reload");
    assert!(said.contains("`tap` cannot change while running (adit0 -> other0)"), "{said}");
    assert_eq!(lab.json("list")["status"]["config_hash"], hash);

    // A service that goes takes its VIP along only when its connections have ended.
    lab.configure("");
    lab.ok("reload");
    assert!(lab.on_director("ip route show 192.0.2.10").contains("adit0"));
    assert_eq!(lab.json("list")["services"][0]["configured"], false);

    // One that has none is led here no longer than the change takes to be everywhere.
    lab.configure(&THREE.replace("192.0.2.10", "192.0.2.11"));
    lab.ok("reload");
    lab.configure("");
    lab.ok("reload");
    eventually("the other VIP is gone", || {
        lab.on_director("ip route show 192.0.2.11").is_empty().then_some(())
    });
    assert!(lab.on_director("ip route show 192.0.2.10").contains("adit0"), "this one drains");
}

#[test]
fn signals_are_obeyed_and_systemd_is_told() {
    let Some(mut lab) = lab() else { return };
    lab.configure(THREE);
    let path = lab.file("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    let hear = || {
        let mut buffer = [0; 256];
        // With a time limit, a signal to this process ends the call whatever its handler asks for.
        let length = loop {
            match socket.recv(&mut buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                received => break received.unwrap(),
            }
        };
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };
    lab.start_with(&[("NOTIFY_SOCKET", path.to_str().unwrap())]);
    assert!(hear().contains("READY=1"));
    lab.configure(&THREE.replace("port = 7", "port = 8"));
    lab.signal(Signal::SIGHUP);
    assert!(hear().contains("RELOADING=1"));
    assert!(hear().contains("READY=1"));
    assert_eq!(lab.json("list")["services"][0]["ports"], "8");
    assert_eq!(lab.end(Signal::SIGTERM), Some(0));
    assert!(hear().contains("STOPPING=1"));
}

#[test]
fn a_second_director_is_refused_and_the_first_goes_on() {
    let Some(mut lab) = lab() else { return };
    lab.configure(THREE);
    lab.start();
    let said = lab.refused("run");
    assert!(said.contains("in use"), "{said}");
    lab.ok("list");
    // A worker without its device takes the director down loudly.
    lab.on_director("ip link del adit0");
    let code = eventually("it ends", || lab.ended());
    assert_eq!(code, Some(1));
    assert!(lab.log().contains("the worker ended"), "{}", lab.log());
}

#[test]
fn ipv6_services_are_routed_and_captured() {
    let Some(mut lab) = lab() else { return };
    let service = THREE
        .replace("192.0.2.10", "2001:db8:f::10")
        .replace(&real("10.0.0.3"), "")
        .replace(&real("10.0.0.4"), "");
    lab.configure(&service);
    lab.start();
    assert!(lab.on_director("ip -6 route show 2001:db8:f::10").contains("adit0"));
    let groups = lab.on_director("ip -6 maddr show dev eth0");
    assert!(groups.contains("ff02::1:ff00:10"), "solicitations arrive: {groups}");
    // The kernel's own solicitations reach the TAP too, so each side is looked at alone.
    for (side, is_v4) in [("outer", true), ("inner", false)] {
        let file = lab.file("capture.pcap");
        let capture =
            format!("capture --write {} --side {side} --count 4 --seconds 20", file.display());
        std::thread::scope(|scope| {
            let capturing = scope.spawn(|| lab.ok(&capture));
            // Until it has begun there is nothing to capture.
            for port in (40_000..60_000).cycle() {
                lab.datagram(&format!("[2001:db8:c::1]:{port}"), "[2001:db8:f::10]:7");
                if capturing.is_finished() {
                    break;
                }
            }
            capturing.join().unwrap();
        });
        let bytes = std::fs::read(&file).unwrap();
        let mut reader = pcap_file::pcap::PcapReader::new(bytes.as_slice()).unwrap();
        let mut count = 0;
        while let Some(packet) = reader.next_packet() {
            let packet = packet.unwrap();
            let ip = etherparse::SlicedPacket::from_ip(&packet.data).unwrap();
            assert_eq!(matches!(ip.net, Some(etherparse::NetSlice::Ipv4(_))), is_v4, "{side}");
            count += 1;
        }
        assert_eq!(count, 4, "{side}");
    }
}

#[test]
fn usage_and_missing_directors() {
    let run = |words: &[&str]| {
        let output = Command::new(ADIT).args(words).output().unwrap();
        (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    assert_eq!(run(&["frobnicate"]).0, Some(2));
    assert_eq!(run(&["explain", "nonsense", "192.0.2.1:1"]).0, Some(2));
    assert_eq!(run(&["--help"]).0, Some(0));
    assert_eq!(run(&["--config", "/nonexistent", "version"]).0, Some(0));
    let (code, said) = run(&["--config", "/nonexistent", "check"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("/nonexistent"), "{said}");
    let (code, said) = run(&["--socket", "/nonexistent", "list"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("start one with `adit run`"), "{said}");
}
