//! A director and its host: what others do to the host while it runs, and what it leaves behind.

use crate::lab::{Lab, eventually, lab};
use crate::{THREE, real};
use nix::sys::signal::Signal;
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

/// `THREE`, and `count` more services at VIPs from 192.0.2.20 on.
fn many(count: u8) -> String {
    let mut text = THREE.to_owned();
    for number in 0..count {
        let vip = 20 + number;
        write!(
            text,
            "[[service]]\nname = \"more{number}\"\nvip = \"192.0.2.{vip}\"\nport = 7\n\
             protocol = \"udp\"\n{}",
            real("10.0.0.2"),
        )
        .unwrap();
    }
    text
}

fn edit(lab: &Lab, from: &str, to: &str) {
    let text = std::fs::read_to_string(lab.file("adit.toml")).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(lab.file("adit.toml"), text.replace(from, to)).unwrap();
}

fn warnings(lab: &Lab) -> String {
    lab.json("list")["status"]["warnings"].to_string()
}

/// Nothing of a director is on its host: neither routes, nor blackholes, nor firewall rules.
fn assert_untouched(lab: &Lab) {
    assert_eq!(lab.on_director("ip route show proto 173"), "");
    assert_eq!(lab.on_director("ip -6 route show proto 173"), "");
    assert_eq!(lab.on_director("nft list ruleset"), "");
}

#[test]
fn a_reload_whose_client_goes_away_is_carried_out_whole() {
    let Some(mut lab) = lab() else { return };
    lab.configure(THREE);
    let (hold, held) = start_with_slow_nft(&mut lab);
    lab.configure(&many(60));
    std::fs::write(&hold, "").unwrap();
    let mut client = UnixStream::connect(lab.file("adit.sock")).unwrap();
    client.write_all(b"POST /v1/reload HTTP/1.1\r\nhost: adit\r\n\r\n").unwrap();
    eventually("the reload changes the firewall", || held.exists().then_some(()));
    drop(client);
    std::fs::remove_file(&held).unwrap();
    eventually("the last VIP is led here", || {
        lab.on_director("ip route show 192.0.2.79").contains("adit0").then_some(())
    });
    assert_eq!(lab.json("list")["services"].as_array().unwrap().len(), 61);
}

#[test]
fn what_others_remove_from_the_host_is_put_back() {
    let Some(mut lab) = lab() else { return };
    lab.configure(THREE);
    lab.start();
    let led = |lab: &Lab| {
        let routes = lab.on_director("ip route show 192.0.2.10");
        (routes.contains("dev adit0") && routes.contains("blackhole")).then_some(())
    };
    assert!(led(&lab).is_some());

    lab.on_director("ip route del 192.0.2.10 dev adit0");
    eventually("the route to the TAP is back", || led(&lab));
    lab.on_director("ip route del blackhole 192.0.2.10 metric 4294967295");
    eventually("the blackhole route is back", || led(&lab));
    assert!(lab.log().contains("192.0.2.10"), "it is said: {}", lab.log());

    // While it cannot be put back, `list` says so.
    lab.on_director("ip link set adit0 down");
    eventually("list warns", || warnings(&lab).contains("192.0.2.10").then_some(()));
    lab.on_director("ip link set adit0 up");
    eventually("the route to the TAP is back", || led(&lab));
    eventually("list is content", || (!warnings(&lab).contains("192.0.2.10")).then_some(()));

    // What `systemctl reload nftables` does.
    lab.on_director("nft flush ruleset");
    eventually("the rules are back", || {
        lab.on_director("nft list ruleset").contains("192.0.2.10").then_some(())
    });
    eventually("it is said", || lab.log().contains("adit_adit0").then_some(()));

    // Rules of another time, as a saved ruleset that is loaded again has them.
    lab.on_director("nft flush table inet adit_adit0");
    eventually("the rules are back", || {
        lab.on_director("nft list ruleset").contains("192.0.2.10").then_some(())
    });
}

#[test]
fn a_start_without_its_socket_leaves_the_host_alone() {
    let Some(lab) = lab() else { return };
    lab.configure(THREE);
    let socket = lab.file("adit.sock").display().to_string();
    edit(&lab, &socket, "/proc/nowhere/adit.sock");
    let said = lab.refused("run");
    assert!(said.contains("/proc/nowhere/adit.sock"), "{said}");
    assert_untouched(&lab);

    // A file that is no socket is somebody's.
    let mistaken = lab.file("precious");
    std::fs::write(&mistaken, "data").unwrap();
    edit(&lab, "/proc/nowhere/adit.sock", mistaken.to_str().unwrap());
    let said = lab.refused("run");
    assert!(said.contains("precious") && said.contains("not a socket"), "{said}");
    assert_eq!(std::fs::read_to_string(&mistaken).unwrap(), "data");
    assert_untouched(&lab);
}

/// Makes an nft that lets a call wait whose first word is `option`: the first one that finds the first
/// of the returned files, for as long as the second is there. Last the PATH on which it is found.
fn slow_nft(lab: &Lab, option: &str) -> (PathBuf, PathBuf, String) {
    let (hold, held) = (lab.file("hold"), lab.file("held"));
    let path = std::env::var("PATH").unwrap();
    let script = format!(
        "#!/bin/sh\nif [ $1 = {option} ] && mv {0} {1} 2>/dev/null; then while [ -e {1} ]; do sleep 0.1; done; fi\n\
         PATH={path} exec nft \"$@\"\n",
        hold.display(),
        held.display(),
    );
    let programs = lab.file("bin");
    std::fs::create_dir(&programs).unwrap();
    std::fs::write(programs.join("nft"), script).unwrap();
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(programs.join("nft"), executable).unwrap();
    (hold, held, format!("{}:{path}", programs.display()))
}

/// Starts a director whose changes of rules can be held up: see [`slow_nft`].
fn start_with_slow_nft(lab: &mut Lab) -> (PathBuf, PathBuf) {
    let (hold, held, path) = slow_nft(lab, "-f");
    lab.start_with(&[("PATH", &path)]);
    (hold, held)
}

#[test]
fn rules_that_cannot_be_listed_delay_no_stop() {
    let Some(mut lab) = lab() else { return };
    lab.configure(THREE);
    // What the look at the host's firewall asks, after the start.
    let (hold, held, path) = slow_nft(&lab, "-j");
    std::fs::write(&hold, "").unwrap();
    lab.start_with(&[("PATH", &path)]);
    eventually("the firewall is looked at", || held.exists().then_some(()));
    assert_eq!(lab.end(Signal::SIGTERM), Some(0), "{}", lab.log());
    assert!(held.exists(), "only when nft had ended");
    assert_untouched(&lab);
}

#[test]
fn a_slow_host_does_not_hide_that_the_worker_ended() {
    let Some(mut lab) = lab() else { return };
    lab.configure(THREE);
    let (hold, held) = start_with_slow_nft(&mut lab);
    std::fs::write(&hold, "").unwrap();
    lab.signal(Signal::SIGHUP);
    eventually("the reload changes the firewall", || held.exists().then_some(()));
    // Meanwhile looks at the host and at what drains come due, and have to wait for the reload.
    let now = || adit::io::clock::boottime_ns();
    let since = now();
    eventually("two looks are due", || (now() - since >= 2_000_000_000).then_some(()));
    lab.on_director("ip link del adit0");
    eventually("it is seen", || lab.log().contains("stopping").then_some(()));
    assert!(!lab.log().contains("has not ended"), "only when nft was given up: {}", lab.log());
    std::fs::remove_file(&held).unwrap();
    let code = eventually("it ends", || lab.ended());
    assert_eq!(code, Some(1), "{}", lab.log());
    assert_untouched(&lab);
}

#[test]
fn a_stop_in_the_middle_of_a_reload_leaves_nothing_behind() {
    let Some(mut lab) = lab() else { return };
    lab.configure(THREE);
    let (hold, held) = start_with_slow_nft(&mut lab);

    lab.configure(&many(1));
    std::fs::write(&hold, "").unwrap();
    lab.signal(Signal::SIGHUP);
    eventually("the reload changes the firewall", || held.exists().then_some(()));
    lab.signal(Signal::SIGTERM);
    eventually("the stop has begun", || lab.log().contains("stopping").then_some(()));
    std::fs::remove_file(&held).unwrap();
    let code = eventually("it ends", || lab.ended());
    assert_eq!(code, Some(0), "{}", lab.log());
    assert_untouched(&lab);
}

#[test]
fn a_next_hop_that_was_flushed_is_looked_after_again() {
    let Some(mut lab) = lab() else { return };
    lab.configure(THREE);
    lab.start();
    let managed =
        |lab: &Lab| lab.on_director("ip neigh show 10.0.0.2").contains("managed").then_some(());
    eventually("the next hop is managed", || managed(&lab));
    lab.on_director("ip neigh flush to 10.0.0.2");
    eventually("the next hop is managed again", || managed(&lab));
    lab.on_director("ip link set eth1 down");
    lab.on_director("ip link set eth1 up");
    eventually("the next hop is managed after a flap", || managed(&lab));
}

#[test]
fn an_administrators_neighbour_is_never_deleted() {
    let Some(mut lab) = lab() else { return };
    lab.configure(THREE);
    lab.start();
    let permanent =
        |lab: &Lab| lab.on_director("ip neigh show 10.0.0.3").contains("PERMANENT").then_some(());
    eventually("the next hop is managed", || {
        lab.on_director("ip neigh show 10.0.0.3").contains("managed").then_some(())
    });
    lab.on_director("ip neigh replace 10.0.0.3 lladdr 02:00:00:00:00:03 dev eth1 nud permanent");
    // A reload looks at all next hops and lets go of those that need no care.
    lab.configure(&many(1));
    lab.ok("reload");
    assert!(permanent(&lab).is_some(), "{}", lab.on_director("ip neigh show"));
    assert_eq!(lab.end(Signal::SIGTERM), Some(0));
    assert!(permanent(&lab).is_some(), "{}", lab.on_director("ip neigh show"));
}

#[test]
fn connections_of_a_reload_that_was_rolled_back_drain() {
    let Some(mut lab) = lab() else { return };
    lab.configure(THREE);
    lab.start();
    // Somebody else's route is in the place of the last VIP, so that all before are led here for a
    // moment.
    lab.on_director("ip route add 192.0.2.219 dev lo metric 1");
    lab.configure(&many(200));
    let to_more = |lab: &Lab| {
        let found = lab.json("connections");
        found.as_array().unwrap().iter().find(|c| c["vip"] == "192.0.2.20").cloned()
    };
    let found = AtomicBool::new(false);
    let connection = std::thread::scope(|scope| {
        let lab = &lab;
        scope.spawn(|| {
            // Not for ever: should none be found, the test must end.
            for port in (40_000..60_000).take_while(|_| !found.load(Ordering::Relaxed)) {
                lab.datagram(&format!("198.51.100.1:{port}"), "192.0.2.20:7");
            }
        });
        let connection = eventually("a connection that began in a reload", || {
            let said = lab.refused("reload");
            assert!(said.contains("192.0.2.219"), "{said}");
            to_more(lab)
        });
        found.store(true, Ordering::Relaxed);
        connection
    });
    assert_eq!(connection["service"], "more0", "{connection}");
    eventually("its real server drains", || {
        let services = lab.json("list")["services"].clone();
        let more = services.as_array()?.iter().find(|s| s["name"] == "more0").cloned()?;
        (more["reals"][0]["state"] == "draining").then_some(())
    });
    assert!(lab.on_director("ip route show 192.0.2.10").contains("adit0"));
    // Those that had none are not led here any more, and none stands in the way of the next reload.
    eventually("the other VIPs are gone", || {
        lab.on_director("ip route show 192.0.2.100").is_empty().then_some(())
    });
    lab.configure(THREE);
    lab.ok("reload");
}

#[test]
fn a_tap_narrower_than_the_clients_interface_is_refused_and_warned_of() {
    let Some(mut lab) = lab() else { return };
    lab.configure(THREE);
    edit(&lab, "[director]\n", "[director]\nmtu = 1400\n");
    for command in ["check", "run"] {
        let said = lab.refused(command);
        assert!(said.contains("`mtu` = 1400 is less than the 1500 of eth0"), "{command}: {said}");
    }
    assert_untouched(&lab);

    lab.configure(THREE);
    lab.start();
    assert!(!warnings(&lab).contains("eth0"), "{}", warnings(&lab));
    lab.on_director("ip link set eth0 mtu 3000");
    eventually("list warns", || warnings(&lab).contains("MTU of eth0").then_some(()));
    lab.on_director("ip link set eth0 mtu 1500");
    eventually("list is content", || (!warnings(&lab).contains("MTU of eth0")).then_some(()));
}

#[test]
fn a_failing_egress_shows_its_error() {
    let Some(mut lab) = lab() else { return };
    // Nobody has that address, so that packets to it go through the kernel and its output hook.
    lab.configure(&THREE.replace("10.0.0.2", "10.0.0.99").replace("10.0.0.3", "10.0.0.98"));
    lab.start();
    let status = lab.json("list --stats")["status"].clone();
    assert_eq!(status["last_send_error"], serde_json::Value::Null, "{status}");
    assert!(!status["ring"].as_str().unwrap().is_empty(), "{status}");
    lab.on_director("nft add table inet block");
    lab.on_director(
        "nft add chain inet block output { type filter hook output priority 0 ; policy drop ; }",
    );
    eventually("a send fails", || {
        for port in 40_000..40_010 {
            lab.datagram(&format!("198.51.100.1:{port}"), "192.0.2.10:7");
        }
        let status = lab.json("list")["status"].clone();
        status["last_send_error"].as_str().map(str::to_owned)
    });
    let shown = lab.ok("list --stats");
    assert!(shown.contains("last send error E"), "{shown}");
    let io = lab.json("list")["status"]["io"].clone();
    assert!(io["tap_frames"].as_u64().unwrap() > 0, "{io}");
    assert!(shown.contains("out of slots 0"), "{shown}");
}

#[test]
fn a_way_that_cannot_be_opened_is_shown_and_said_once() {
    let Some(mut lab) = lab() else { return };
    lab.configure(THREE);
    lab.start();
    lab.on_director(
        "ip xfrm policy add src 0.0.0.0/0 dst 10.0.0.0/24 dir out action block priority 1",
    );
    eventually("list warns", || warnings(&lab).contains("to 10.0.0.2 through IPsec").then_some(()));
    // A look that sees something else tries again.
    lab.on_director("ip link set eth1 mtu 1450");
    eventually("another look", || {
        let real = lab.json("list")["services"][0]["reals"][0].clone();
        (real["link_mtu"] == 1450).then_some(())
    });
    assert_eq!(lab.log().matches("protocol 4 from 10.0.0.1 to 10.0.0.2").count(), 1);
    lab.on_director("ip xfrm policy flush");
    eventually("list is content", || (!warnings(&lab).contains("IPsec")).then_some(()));
}

#[test]
fn the_room_for_the_region_is_judged_as_the_start_does() {
    let Some(mut lab) = lab() else { return };
    lab.configure(THREE);
    let state = lab.file("state");
    std::fs::create_dir(&state).unwrap();
    // Room for one region and a half: 256 KiB of flows, 16 MiB of persistence and the directories.
    lab.mount_small(&state, "26m");
    lab.ok("check");
    lab.start();
    lab.ok("check");
    assert_eq!(lab.end(Signal::SIGTERM), Some(0));

    // One of another size is made beside the old one.
    edit(&lab, "max_connections = 4096", "max_connections = 8192");
    let said = lab.refused("run");
    assert!(said.contains("no room"), "{said}");
    let said = lab.refused("check");
    assert!(said.contains("no room for the flow region"), "{said}");
}
