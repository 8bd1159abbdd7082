//! What an operator does with the playbooks, on bare hosts with systemd and sshd: two real servers in
//! two data centres, and a director on a kernel of its own.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use adit_lab::ansible::Operator;
use adit_lab::skip::{has_guests, has_program, has_root};
use adit_lab::topology::{DIRECTOR, VIP, vip};
use adit_lab::wait::pause;
use adit_lab::{
    Caller, Conversation, Host, Kind, Lab, LabSpec, Namespace, SERVE_PORT, Session, binaries,
    report, wait_until,
};
use serde_json::{Value, json};

const POSTGRES: u16 = adit_lab::postgres::PORT;
const SOON: Duration = Duration::from_secs(60);

/// Hosts that are as their hoster leaves them, and somebody who works on them.
struct Site {
    lab: Lab,
    operator: Operator,
    /// Where the operator comes from.
    desk: Namespace,
}

impl Site {
    /// `None` where there are no guests.
    fn build() -> Option<Self> {
        if !has_root() || !has_guests() || !has_program("ssh") || !has_program("dpkg-deb") {
            return None;
        }
        let spec = LabSpec {
            reals: [1, 1],
            director: Kind::Guest,
            bare: true,
            vips: vec![VIP],
            ..LabSpec::default()
        };
        let lab = Lab::build(spec).unwrap();
        let desk = lab.add_client(9).unwrap();
        let director = lab.director();
        let mut hosts: Vec<(IpAddr, &Namespace)> = vec![(DIRECTOR, director.namespace())];
        hosts.extend(lab.reals.iter().map(|r| (r.address(false), r.machine().namespace())));
        let operator = Operator::create(&desk, lab.access().unwrap(), &hosts).unwrap();
        let boots: Vec<_> = lab.reals.iter().map(|r| r.ready_after().as_secs()).collect();
        report(&format!("bare hosts are ready after {boots:?} s; director in a guest of its own"));
        let site = Self { lab, operator, desk };
        site.inventory(&json!({}));
        Some(site)
    }

    /// Writes the inventory, with these settings of the real servers.
    fn inventory(&self, realserver: &Value) {
        let binaries = stripped(&self.desk);
        let reals: serde_json::Map<_, _> = self
            .lab
            .reals
            .iter()
            .map(|real| (real.name().to_owned(), json!({"ansible_host": real.address(false)})))
            .collect();
        let check = json!({"kind": "tcp", "interval": "1s", "timeout": "900ms", "rise": 1});
        let service = |name: &str, port: u16| {
            json!({
                "name": name, "vip": VIP, "port": port, "check": check,
                "real": "{{ director_real_servers }}",
            })
        };
        let inventory = json!({"all": {
            "vars": {
                "ansible_user": "root",
                "director_binary_dir": binaries,
                "realserver_binary_dir": binaries,
            },
            "children": {
                "directors": {
                    "hosts": {"director": {"ansible_host": DIRECTOR}},
                    "vars": {
                        // One towards each data centre.
                        "director_addresses": ["10.3.1.5", "10.3.2.5"],
                        "director_config": {
                            "director": {
                                "interface": "eth0",
                                "max_connections": 10_000,
                                "hash_key_file": "/etc/adit/hash.key",
                            },
                            "service": [service("orders", POSTGRES), service("bytes", SERVE_PORT)],
                        },
                        "director_hash_key": "000102030405060708090a0b0c0d0e0f",
                    },
                },
                "realservers": {
                    "hosts": reals,
                    "vars": {"realserver_vips": [VIP], "realserver_settings": realserver},
                },
            },
        }});
        self.operator.inventory(&inventory.to_string()).unwrap();
    }

    /// Everything of a host that the playbooks may change, as text.
    fn found(&self, host: &dyn Host) -> String {
        // What is not there says so, and that is compared too.
        let script = "set +e; exec 2>&1; sysctl -a --pattern '^net[.]'; ip -br link; ip -br addr; \
             ip rule; ip route show table all; ip -6 route show table all; nft list ruleset; \
             ls -d /etc/adit* /run/adit*; ls /usr/local/sbin /etc/modules-load.d /etc/sysctl.d; \
             ls -lR --time-style=+ /etc/systemd/system; dpkg-query -W 'adit*'; true";
        let text = host.sh(script).unwrap();
        text.lines().filter(|line| !moves_by_itself(line)).map(|l| format!("{l}\n")).collect()
    }

    fn dumps(&self) -> Vec<String> {
        let mut dumps = vec![self.found(self.lab.director().as_ref())];
        dumps.extend(self.lab.reals.iter().map(|real| self.found(real.machine())));
        dumps
    }

    /// The real servers that new database sessions reach.
    fn served_by(&self) -> BTreeMap<String, usize> {
        let mut names = BTreeMap::new();
        for _ in 0..12 {
            let session = Session::open(&self.lab.client, None, vip(POSTGRES)).unwrap();
            *names.entry(session.server().to_owned()).or_default() += 1;
        }
        names
    }

    fn director_json(&self, command: &str) -> Value {
        let said =
            self.lab.director().sh(&format!("/usr/local/sbin/adit {command} --json")).unwrap();
        serde_json::from_str(&said).unwrap()
    }
}

/// Counters and clocks of the kernel, which nobody sets.
fn moves_by_itself(line: &str) -> bool {
    ["nf_conntrack_count", "permission denied", "random"].iter().any(|word| line.contains(word))
}

/// The project's programs as a package has them: without what debuggers want.
fn stripped(desk: &Namespace) -> String {
    let dir = desk.dir().join("programs");
    if !dir.exists() {
        fs::create_dir(&dir).unwrap();
        for program in [binaries::adit().unwrap(), binaries::realserver().unwrap()] {
            let to = dir.join(program.file_name().unwrap());
            let done = Command::new("strip").arg("-o").arg(&to).arg(&program).status().unwrap();
            assert!(done.success(), "strip {}", program.display());
        }
    }
    dir.display().to_string()
}

/// What clients saw.
#[derive(Default)]
struct Seen {
    /// New sessions of the byte services: who answered, in their order.
    answered: Vec<String>,
    /// New sessions of the databases.
    databases: Vec<String>,
    /// Sessions that could not be opened, and why.
    failed: Vec<String>,
    /// Sessions that were held and broke, and why.
    broken: Vec<String>,
}

impl Seen {
    /// The most sessions in a row that one server got, of those that did not get the others'.
    fn longest_run(&self, server: &str) -> usize {
        self.answered.split(|name| name != server).map(<[String]>::len).max().unwrap_or(0)
    }
}

/// Clients hold 50 sessions, half of them busy, and open 20 new ones a second and a database's each
/// second, while `work` is under way.
fn under_load<T: Send>(lab: &Lab, work: impl FnOnce() -> T + Send) -> (T, Seen) {
    let held: Vec<_> =
        (0..50).map(|_| Caller::new(&lab.client, vip(SERVE_PORT)).converse().unwrap()).collect();
    let mut halves = held.into_iter();
    let busy: Vec<_> = halves.by_ref().take(25).collect();
    let idle: Vec<_> = halves.collect();
    let over = AtomicBool::new(false);
    let over = &over;
    std::thread::scope(|scope| {
        let opener = scope.spawn(move || {
            let (mut answered, mut failed) = (Vec::new(), Vec::new());
            let mut pending = Vec::new();
            while !over.load(Ordering::Relaxed) {
                pending.push(scope.spawn(|| Caller::new(&lab.client, vip(SERVE_PORT)).whoami()));
                pause(Duration::from_millis(50));
            }
            for one in pending {
                match one.join().unwrap() {
                    Ok(name) => answered.push(name),
                    Err(error) => failed.push(error.to_string()),
                }
            }
            (answered, failed)
        });
        let databases = scope.spawn(move || {
            let (mut opened, mut failed) = (Vec::new(), Vec::new());
            while !over.load(Ordering::Relaxed) {
                match Session::open(&lab.client, None, vip(POSTGRES)) {
                    Ok(session) => opened.push(session.server().to_owned()),
                    Err(error) => failed.push(error.to_string()),
                }
                pause(Duration::from_secs(1));
            }
            (opened, failed)
        });
        let busy = scope.spawn(move || hold(busy, Duration::from_millis(40), over));
        // Shorter than the server's patience with a silent client.
        let idle = scope.spawn(move || hold(idle, Duration::from_millis(600), over));
        let done = work();
        over.store(true, Ordering::Relaxed);
        let mut seen = Seen::default();
        (seen.answered, seen.failed) = opener.join().unwrap();
        let (opened, failed) = databases.join().unwrap();
        seen.databases = opened;
        seen.failed.extend(failed);
        seen.broken = [busy.join().unwrap(), idle.join().unwrap()].concat();
        (done, seen)
    })
}

/// Asks each session in turn, with this time between two questions, and at the end all once more.
fn hold(mut sessions: Vec<Conversation>, between: Duration, over: &AtomicBool) -> Vec<String> {
    let mut broken = BTreeMap::new();
    let mut ask = |index: usize, session: &mut Conversation| {
        let server = session.server().to_owned();
        let answer = session.ask_name().map_err(|error| error.to_string());
        if answer.as_ref() != Ok(&server) {
            broken.entry(index).or_insert_with(|| format!("of {server}: {answer:?}"));
        }
    };
    while !over.load(Ordering::Relaxed) {
        for (index, session) in sessions.iter_mut().enumerate() {
            ask(index, session);
            pause(between);
        }
    }
    for (index, session) in sessions.iter_mut().enumerate() {
        ask(index, session);
    }
    broken.into_values().collect()
}

/// Stops the database for a while, as its upgrade does.
const UPGRADE: &str = "---\n\
    - name: Stop the database\n  \
      ansible.builtin.systemd_service: {name: postgresql@15-main.service, state: stopped}\n\
    - name: Start the database\n  \
      ansible.builtin.systemd_service: {name: postgresql@15-main.service, state: started}\n";

#[test]
fn from_bare_hosts_to_traffic_and_a_rollout_that_nobody_sees() {
    let Some(site) = Site::build() else { return };
    site.operator.expect("site.yml", &[]).unwrap();
    let names = site.served_by();
    assert_eq!(names.len(), 2, "both real servers have sessions: {names:?}");

    let upgrade = site.desk.dir().join("upgrade.yml");
    fs::write(&upgrade, UPGRADE).unwrap();
    let hook = format!("rollout_tasks={}", upgrade.display());
    site.inventory(&json!({"path_mtu": 1400}));
    let arguments = ["-e", &hook, "-e", "rollout_deadline=3s", "-e", "rollout_canary_seconds=1"];
    let (played, seen) = under_load(&site.lab, || site.operator.expect("rollout.yml", &arguments));
    let played = played.unwrap();
    report(&format!(
        "during the rollout: {} new sessions and {} of databases, {} failed; 50 held, {} broken",
        seen.answered.len(),
        seen.databases.len(),
        seen.failed.len(),
        seen.broken.len()
    ));
    assert!(seen.failed.is_empty(), "{:?}\n{}", seen.failed, played.text);
    assert!(seen.broken.is_empty(), "{:?}\n{}", seen.broken, played.text);
    for real in &site.lab.reals {
        let name = real.name();
        assert!(played.recap[name].changed > 0, "{}", played.text);
        // Fair placement gives neither so many in a row once in a million sessions.
        assert!(seen.longest_run(name) >= 30, "{name} was alone while the other was changed");
        let config = real.machine().sh("cat /etc/adit/realserver.toml").unwrap();
        assert!(config.contains("path_mtu = 1400"), "{config}");
    }
    assert_eq!(site.served_by().len(), 2, "nobody stays drained");
}

#[test]
#[ignore = "some minutes: make test-rollout"]
fn what_is_looked_at_is_not_changed_and_what_was_done_is_taken_back() {
    let Some(site) = Site::build() else { return };
    let before = site.dumps();

    let dry = site.operator.expect("site.yml", &["--check", "--diff"]).unwrap();
    assert!(dry.recap.values().all(|recap| recap.changed > 0), "{}", dry.text);
    assert!(dry.text.contains(&format!("+vips = [\"{VIP}\"]")), "{}", dry.text);
    assert!(dry.text.contains("+[[service.real]]"), "{}", dry.text);
    assert_same(&before, &site.dumps(), "a look changes nothing");

    let first = site.operator.expect("site.yml", &[]).unwrap();
    for (host, recap) in &dry.recap {
        assert!(first.recap[host].changed >= recap.changed, "{}\n{}", dry.text, first.text);
    }
    assert_eq!(site.served_by().len(), 2);
    let second = site.operator.expect("site.yml", &["--diff"]).unwrap();
    assert_eq!(second.changed(), 0, "{}", second.text);
    let dry = site.operator.expect("site.yml", &["--check"]).unwrap();
    assert_eq!(dry.changed(), 0, "{}", dry.text);
    assert_ne!(before, site.dumps(), "the comparison sees what was done");

    // Of a change, --check shows what the program would do, from the new configuration.
    site.inventory(&json!({"path_mtu": 1300}));
    let dry = site.operator.expect("site.yml", &["--check", "--diff"]).unwrap();
    assert!(dry.text.contains("+path_mtu = 1300"), "{}", dry.text);
    assert!(dry.recap["real1"].changed >= 2, "{}", dry.text);

    // Without Ansible.
    for real in &site.lab.reals {
        real.machine().reboot().unwrap();
        let name = real.name();
        wait_until(SOON, &format!("{name} to have sessions after its reboot"), || {
            // One that began while it went down is nobody's.
            Session::open(&site.lab.client, None, vip(POSTGRES)).is_ok_and(|s| s.server() == name)
        })
        .unwrap();
    }

    site.operator.expect("remove.yml", &[]).unwrap();
    assert_same(&before, &site.dumps(), "all is as it was found");
    let again = site.operator.expect("remove.yml", &[]).unwrap();
    assert_eq!(again.changed(), 0, "{}", again.text);
}

#[test]
#[ignore = "some minutes: make test-rollout"]
fn a_canary_that_fails_ends_the_rollout() {
    let Some(site) = Site::build() else { return };
    site.operator.expect("site.yml", &[]).unwrap();
    let broken = site.desk.dir().join("broken.yml");
    let tasks = "---\n- name: Stop the database\n  ansible.builtin.systemd_service: \
        {name: postgresql@15-main.service, state: stopped}\n";
    fs::write(&broken, tasks).unwrap();
    let hook = format!("rollout_tasks={}", broken.display());
    site.inventory(&json!({"path_mtu": 1400}));
    let arguments = ["-e", &hook, "-e", "rollout_deadline=1s", "-e", "director_wait=4s"];
    let played = site.operator.play("rollout.yml", &arguments).unwrap();
    assert!(!played.success, "{}", played.text);

    let drains = site.director_json("list").to_string();
    assert!(drains.contains("rollout.yml"), "the canary stays drained: {drains}");
    let second = &site.lab.reals[1];
    let config = second.machine().sh("cat /etc/adit/realserver.toml").unwrap();
    assert!(!config.contains("1400"), "the second real server was not touched");
    assert_eq!(site.served_by().into_keys().collect::<Vec<_>>(), [second.name()]);
}

/// Lines that are in one dump and not in the other, of each host.
fn assert_same(before: &[String], after: &[String], what: &str) {
    for (before, after) in before.iter().zip(after) {
        let gone = before.lines().filter(|line| !after.lines().any(|other| other == *line));
        let new = after.lines().filter(|line| !before.lines().any(|other| other == *line));
        let differences: Vec<_> =
            gone.map(|l| format!("- {l}")).chain(new.map(|l| format!("+ {l}"))).collect();
        assert!(differences.is_empty(), "{what}:\n{}", differences.join("\n"));
    }
}
