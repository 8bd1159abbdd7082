//! Starts that must be refused: each with an error that says what to do, exit status 1, and
//! nothing left behind.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "what tests share is test code too")]

mod network;

use std::fs;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use adit_lab::skip::has_root;
use adit_lab::topology::{CLIENT_DEVICE, TAP, VIP, vip};
use adit_lab::{
    Config, Director, Host, Lab, LabSpec, Namespace, SERVE_PORT, Service, binaries, wait_until,
};

use network::{SOON, status};

/// A lab without real servers: nothing here gets as far as a packet.
static LAB: LazyLock<Lab> = LazyLock::new(|| {
    let spec = LabSpec { reals: [0, 0], postgres: false, ..LabSpec::default() };
    Lab::build(spec).expect("the lab comes up")
});

/// A host like the director's that a test has for itself.
fn host(label: &str) -> Namespace {
    let host = Namespace::create(LAB.run(), label).expect("a host");
    LAB.edge.plug(&host, CLIENT_DEVICE).expect("a cable");
    host.ip("addr add 10.2.0.6/24 dev eth0\nroute add default via 10.2.0.1").expect("an address");
    host.sysctl("net.ipv4.ip_forward", "1").expect("a router");
    host
}

fn config() -> Config {
    let real: IpAddr = "10.20.0.11".parse().expect("an address");
    Config::new().service(Service::tcp("orders", vip(SERVE_PORT)).address(real, 100))
}

/// Everything of the host that a director changes: devices, routes, rules, sockets, state.
fn traces(host: &Namespace) -> String {
    let list = host
        .sh("ip -br link | cut -d' ' -f1; ip route show table all; ip -6 route show table all; \
         nft list ruleset");
    let mut text: Vec<String> = list.expect("a listing").lines().map(str::to_owned).collect();
    // Link-local multicast routes come and go with the kernel's own timing.
    text.retain(|line| {
        line.contains(TAP) || line.contains("adit") || line.contains(&VIP.to_string())
    });
    if host.dir().join("adit.sock").exists() {
        text.push("adit.sock".to_owned());
    }
    text.join("\n")
}

/// The TAP is gone when the kernel has ended the ring, a moment after the process.
fn assert_leaves_nothing(host: &Namespace, log: &str) {
    let mut left = String::new();
    wait_until(SOON, "nothing to be left", || {
        left = traces(host);
        left.is_empty()
    })
    .unwrap_or_else(|error| panic!("{error}: {left} after\n{log}"));
}

/// Starts `adit run` behind other words, waits for its end, and returns what it printed.
fn refused(host: &Namespace, config: &Config, before: &str) -> String {
    let file = config.write(host, "adit.toml").expect("a file");
    let adit = binaries::adit().expect("built").display().to_string();
    let script = format!("{before} {adit} run --config {file}");
    let _ = fs::remove_file(host.dir().join("refused.log"));
    let process = host.start("refused", &["sh", "-c", &script]).expect("a shell");
    let status =
        process.wait_exit(SOON).unwrap_or_else(|error| panic!("{error}: {}", process.log()));
    let log = process.log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(!log.contains("panicked"), "{log}");
    assert_leaves_nothing(host, &log);
    for table in ["flows", "flows.new"] {
        assert!(!host.dir().join("state").join(table).exists(), "left {table} after:\n{log}");
    }
    log
}

fn assert_says(log: &str, words: &[&str]) {
    for word in words {
        assert!(log.contains(word), "no `{word}` in:\n{log}");
    }
}

#[test]
fn without_privileges_it_says_which_are_missing() {
    if !has_root() {
        return;
    }
    let host = host("weak");
    // The state directory is the user's, so that privileges alone are missing.
    host.sh(&format!("mkdir -m 777 {}; chmod 777 {}", host.path("state"), host.path("."))).unwrap();
    for before in [
        "exec setpriv --reuid=65534 --regid=65534 --clear-groups",
        "exec setpriv --bounding-set=-net_admin",
    ] {
        assert_says(&refused(&host, &config(), before), &["CAP_NET_ADMIN"]);
    }
    let raw = refused(&host, &config(), "exec setpriv --bounding-set=-net_raw");
    assert_says(&raw, &["CAP_NET_RAW"]);
}

#[test]
fn without_the_tun_device_it_says_how_to_get_it() {
    if !has_root() {
        return;
    }
    let host = host("notun");
    let hide = "exec unshare --mount sh -c 'mount -t tmpfs none /dev/net; exec \"$@\"' sh";
    assert_says(&refused(&host, &config(), hide), &["/dev/net/tun", "modprobe tun"]);
}

#[test]
fn without_room_for_the_flow_table_it_does_not_start() {
    if !has_root() {
        return;
    }
    let host = host("full");
    let state = host.path("state");
    fs::create_dir(&state).unwrap();
    let small = format!(
        "exec unshare --mount sh -c 'mount -t tmpfs -o size=1m none {state}; exec \"$@\"' sh"
    );
    let log = refused(&host, &config(), &small);
    assert_says(&log, &["no room for", &state, "max_connections"]);
}

#[test]
fn a_state_directory_has_one_director() {
    if !has_root() {
        return;
    }
    let (first, second) = (host("first"), host("second"));
    let director = Director::start(Arc::new(first.clone()), &config()).unwrap();
    let text = config().text(&second).replace(&second.path("state"), &first.path("state"));
    fs::write(second.dir().join("shared.toml"), text).unwrap();
    let pid = status(&director)["pid"].clone();

    let adit = binaries::adit().unwrap().display().to_string();
    let file = second.path("shared.toml");
    let process = second.start("second", &[&adit, "run", "--config", &file]).unwrap();
    assert_eq!(process.wait_exit(SOON).unwrap().code(), Some(1), "{}", process.log());
    assert_says(&process.log(), &[&first.path("state"), "another director", "state_dir"]);
    assert_leaves_nothing(&second, &process.log());
    assert_eq!(status(&director)["pid"], pid);
}

#[test]
fn a_state_file_of_garbage_is_named_and_replaced() {
    if !has_root() {
        return;
    }
    let host = host("garbage");
    let state = host.dir().join("state");
    fs::create_dir(&state).unwrap();
    let mut director = Director::start(Arc::new(host.clone()), &config()).unwrap();
    assert!(director.terminate().unwrap().success());
    let mut cut = fs::read(state.join("flows")).unwrap();
    cut.truncate(1 << 20);
    for garbage in [vec![0x5a; 100], vec![0x5a; 40 << 20], vec![0; 40 << 20], cut] {
        fs::write(state.join("flows"), &garbage).unwrap();
        director.start_again().unwrap();
        assert_eq!(status(&director)["adopted"], 0);
        assert_eq!(status(&director)["ledger_balances"], true);
        assert!(director.terminate().unwrap().success());
        assert_leaves_nothing(&host, &director.log());
    }
    let log = director.log();
    println!("{log}");
    assert_eq!(log.matches("not a whole flow table").count(), 4, "{log}");
}
