//! The Debian packages on hosts with systemd: what they start, what their units let the programs do, and
//! what is left when they go.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use adit_lab::skip::{has_guests, has_program, has_root};
use adit_lab::topology::vip;
use adit_lab::{
    Caller, Conversation, Host, Kind, Lab, LabSpec, SERVE_PORT, binaries, report, wait_until,
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);

/// The exposure that `systemd-analyze security` may find, in tenths.
const MOST_EXPOSURE: &str = "30";

/// CAP_CHOWN, CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF, as a mask.
const CAPABILITIES: u64 = 1 | 1 << 12 | 1 << 13 | 1 << 39;

/// Where a package may leave something behind.
const PLACES: &str = "/etc /usr/lib/systemd /usr/sbin /usr/share/adit /usr/share/doc /var/lib/systemd \
                      /run/adit /run/adit-realserver";

/// Makes packages of the programs that are tested here.
fn make_packages(output: &Path) {
    let program = binaries::adit().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/build-deb.sh");
    let mut make = Command::new(script);
    make.arg(program.parent().unwrap()).arg(output);
    let made = make.env("DEB_COMPRESSION", "none").output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// The package of a program, as a guest sees it among this computer's files.
fn package(output: &Path, program: &str) -> String {
    let names = output.read_dir().unwrap().map(|entry| entry.unwrap().file_name());
    let mut names = names.map(|name| name.into_string().unwrap());
    let name = names
        .find(|name| name.starts_with(&format!("{program}_")) && name.ends_with(".deb"))
        .unwrap();
    format!("/host{}/{name}", output.display())
}

/// Every file and directory there.
fn files(host: &dyn Host) -> Vec<String> {
    let find = format!("find {PLACES} 2>/dev/null || true");
    let mut found: Vec<String> = host.sh(&find).unwrap().lines().map(str::to_owned).collect();
    found.sort();
    found
}

/// What `systemctl show` says of a unit.
fn property(host: &dyn Host, unit: &str, name: &str) -> String {
    host.run(&["systemctl", "show", "--value", "-p", name, unit]).unwrap().trim().to_owned()
}

/// Installs a package: its unit is there and nothing else has happened.
fn install(host: &dyn Host, package: &str, unit: &str) {
    let rules = "ip -o link | cut -d' ' -f2; ip addr show scope global; sysctl net.ipv4.conf.all";
    let before = host.sh(rules).unwrap();
    host.run(&["dpkg", "-i", package]).unwrap();
    assert_eq!(property(host, unit, "LoadState"), "loaded");
    assert_eq!(property(host, unit, "ActiveState"), "inactive");
    assert_eq!(property(host, unit, "UnitFileState"), "disabled");
    assert_eq!(host.sh(rules).unwrap(), before, "nothing on the host has changed");
    let most = format!("--threshold={MOST_EXPOSURE}");
    let judged = host.run(&["systemd-analyze", "security", "--no-pager", &most, unit]).unwrap();
    report(judged.lines().last().unwrap_or_default());
}

/// Removes a package and what it leaves until a purge.
fn purge(host: &dyn Host, program: &str, before: &[String]) {
    // What an operator has written is an operator's.
    host.sh("rm -rf /etc/systemd/system/adit*.d /etc/adit/*.toml").unwrap();
    host.run(&["dpkg", "-r", program]).unwrap();
    assert_eq!(property(host, program, "ActiveState"), "inactive");
    host.run(&["dpkg", "-P", program]).unwrap();
    let left: Vec<_> = files(host).into_iter().filter(|file| !before.contains(file)).collect();
    assert!(left.is_empty(), "{program} leaves {left:?}");
}

fn configure(director: &dyn Host, real: &str, weight: &str) {
    let text = format!(
        "[director]\ninterface = \"eth0\"\nworkers = 2\nadmin_group = \"adm\"\n\
         metrics = \"127.0.0.1:9105\"\nmax_connections = 10_000\n\
         [[service]]\nname = \"bytes\"\nvip = \"198.51.100.10\"\nport = {SERVE_PORT}\n\
         protocol = \"tcp\"\ncheck = {{ kind = \"tcp\", interval = \"500ms\" }}\n\
         [[service.real]]\naddress = \"{real}\"\nweight = {weight}\n"
    );
    director.sh(&format!("cat >/etc/adit/adit.toml <<'END'\n{text}END")).unwrap();
}

fn listed(director: &dyn Host) -> Value {
    serde_json::from_str(&director.run(&["adit", "list", "--json"]).unwrap()).unwrap()
}

fn weight(director: &dyn Host) -> Value {
    listed(director)["services"][0]["reals"][0]["weight"].clone()
}

/// Starts it with its unit, made stricter.
fn start_director(director: &dyn Host) {
    // A call that is forbidden is an error to the program, which may live with it. Here it must not.
    director
        .sh("mkdir -p /etc/systemd/system/adit.service.d
             printf '[Service]\\nSystemCallErrorNumber=\\nWatchdogSec=6\\n' \
                 >/etc/systemd/system/adit.service.d/strict.conf
             systemctl daemon-reload")
        .unwrap();
    director.run(&["systemctl", "start", "adit"]).unwrap();
}

fn has_what_it_needs(director: &dyn Host) {
    let process = property(director, "adit", "MainPID");
    let status = director.sh(&format!("cat /proc/{process}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:\t")));
        line.unwrap_or_else(|| panic!("no {name} in {status}")).to_owned()
    };
    assert_eq!(u64::from_str_radix(&field("CapBnd"), 16).unwrap(), CAPABILITIES);
    assert_eq!(u64::from_str_radix(&field("CapEff"), 16).unwrap(), CAPABILITIES);
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(field("Seccomp"), "2", "a filter");

    let status = listed(director)["status"].clone();
    assert_eq!(status["steering"], "by flow", "bpf(2) and CAP_BPF");
    assert_eq!(director.sh("stat -c %G /run/adit/adit-read.sock").unwrap().trim(), "adm");
    let route = director.sh("ip route show 198.51.100.10").unwrap();
    assert!(route.contains("dev adit0"), "{route}");
    let scrape =
        "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9105/metrics').status)";
    assert_eq!(director.run(&["python3", "-c", scrape]).unwrap().trim(), "200");
    let way = &listed(director)["services"][0]["reals"][0]["egress"];
    assert_eq!(*way, "direct", "frames of the director's own, by CAP_NET_RAW");
}

fn reloads(director: &dyn Host, real: &str) {
    configure(director, real, "50");
    director.run(&["systemctl", "reload", "adit"]).unwrap();
    assert_eq!(weight(director), 50);
    configure(director, real, "heavy");
    director.run(&["systemctl", "reload", "adit"]).expect_err("the file is refused");
    assert_eq!(property(director, "adit", "ActiveState"), "active");
    assert_eq!(weight(director), 50);
    configure(director, real, "70");
    director.run(&["systemctl", "kill", "-s", "HUP", "adit"]).unwrap();
    wait_until(SOON, "a reload by SIGHUP", || weight(director) == 70).unwrap();
}

/// A director that hangs is ended by the watchdog and started again, and sessions outlive it.
fn outlives_hanging(director: &dyn Host, session: &mut Conversation) {
    assert_eq!(property(director, "adit", "NRestarts"), "0");
    let process = property(director, "adit", "MainPID");
    director.run(&["kill", "-STOP", &process]).unwrap();
    wait_until(SOON, "the watchdog's restart", || {
        property(director, "adit", "NRestarts") == "1"
            && property(director, "adit", "ActiveState") == "active"
    })
    .unwrap();
    let adopted = listed(director)["status"]["adopted"].clone();
    assert!(adopted.as_u64().unwrap() > 0, "{adopted}");
    assert_eq!(session.ask_name().unwrap(), "real1");
}

#[test]
#[ignore = "two guests with systemd, a minute of two cores: make test-deb"]
fn packages_start_nothing_and_their_units_allow_what_the_programs_need() {
    if !has_root() || !has_guests() || !has_program("dh_builddeb") {
        return;
    }
    let made = tempfile::tempdir().unwrap();
    let output = made.path().join("packages");
    let (made, lab) = std::thread::scope(|scope| {
        let making = scope.spawn(|| make_packages(&output));
        let spec =
            LabSpec { reals: [1, 0], bare: true, director: Kind::Guest, ..LabSpec::default() };
        (making.join(), Lab::build(spec))
    });
    made.unwrap();
    let lab = lab.unwrap();
    let (director, real) = (lab.director(), &lab.reals[0]);
    let (director, machine) = (director.as_ref(), real.machine() as &dyn Host);
    let before = [director, machine].map(files);

    install(machine, &package(&output, "adit-realserver"), "adit-realserver.service");
    let after = property(machine, "postgresql@15-main.service", "After");
    assert!(after.contains("adit-realserver.service"), "the database would not wait: {after}");
    machine
        .sh("mkdir -p /etc/systemd/system/adit-realserver.service.d
             printf '[Service]\\nSystemCallErrorNumber=\\n' \
                 >/etc/systemd/system/adit-realserver.service.d/strict.conf
             printf 'vips = [\"198.51.100.10\"]\\ndirectors = [\"10.3.1.5\"]\\n' >/etc/adit/realserver.toml
             systemctl daemon-reload
             systemctl start adit-realserver")
        .unwrap();

    install(director, &package(&output, "adit"), "adit.service");
    let address = real.address(false).to_string();
    configure(director, &address, "100");
    start_director(director);
    director.run(&["adit", "list", "--health", "--wait", "30s"]).unwrap();
    let caller = Caller::new(&lab.client, vip(SERVE_PORT));
    assert_eq!(caller.whoami().unwrap(), "real1");
    has_what_it_needs(director);
    let mut session = caller.converse().unwrap();
    reloads(director, &address);
    // Restarting the preparation takes no VIP away, not for a moment.
    machine.run(&["systemctl", "restart", "adit-realserver"]).unwrap();
    assert_eq!(session.ask_name().unwrap(), "real1");
    outlives_hanging(director, &mut session);

    drop(session);
    machine.run(&["adit-realserver", "remove"]).unwrap();
    purge(machine, "adit-realserver", &before[1]);
    purge(director, "adit", &before[0]);
    assert!(!director.sh("ip -o link").unwrap().contains("adit0"));
}
