//! `adit probe` on the director and `adit-realserver verify --live` on a real server, with real faults in
//! between: each is named, by what it is, and the sound case is fine.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::BTreeSet;
use std::time::Duration;

use adit_lab::neighbour::first_answer;
use adit_lab::topology::{DIRECTOR_ADDRESSES, VIP, VIP6, vip, vip6};
use adit_lab::{
    Config, Director, Host, Lab, LabSpec, RealServer, SERVE_PORT, Service, binaries, report, skip,
    wait_until,
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);
/// How long both sides try where something is wrong: what was not seen by then is taken for lost. On a
/// computer that is busy with other things, longer.
const TRIES: [(&str, &str); 2] = [("6s", "1s"), ("25s", "20s")];
/// MTU in bytes of the hop to the real servers, for which they are prepared.
const HOP_MTU: u16 = 1400;

/// Where something is done, and what.
#[derive(Clone, Copy)]
enum At {
    /// On the real server.
    Real(&'static str),
    /// On the router of its data centre. `DIRECTOR` stands for the director's address on its wire.
    Router(&'static str),
}

struct Case {
    name: &'static str,
    spoil: &'static [At],
    mend: &'static [At],
    /// Names of the errors that were seen live, and no others.
    found: &'static [&'static str],
    /// The step of the probe that fails, and how.
    step: (&'static str, &'static str),
}

/// Has the router drop what its chain's hook sees and the rule says.
macro_rules! filter {
    ($hook:literal, $rule:literal) => {
        At::Router(concat!(
            "nft add table ip t; nft add chain ip t c '{ type filter hook ",
            $hook,
            " priority 0; }'; nft add rule ip t c ",
            $rule
        ))
    };
}

const NO_FILTER: At = At::Router("nft delete table ip t");
/// "Fragmentation needed" never leaves the router.
const NO_ERRORS: At = filter!("output", "icmp type destination-unreachable drop");
/// The tool mends its host.
const APPLY: At = At::Real("APPLY");

#[rustfmt::skip]
const CASES: [Case; 12] = [
    Case {
        name: "IP protocol 4 is filtered on the way",
        spoil: &[filter!("forward", "ip protocol 4 drop")], mend: &[NO_FILTER],
        found: &["live_never_arrives"], step: ("connect", "timeout"),
    },
    Case {
        name: "the real server's own firewall drops it",
        spoil: &[At::Real(
            "tc qdisc add dev eth0 ingress; tc filter add dev eth0 parent ffff: protocol ip u32 match ip protocol 4 0xff action drop",
        )],
        mend: &[At::Real("tc qdisc del dev eth0 ingress")],
        found: &["live_firewall"], step: ("connect", "timeout"),
    },
    Case {
        name: "the device that unwraps is down",
        spoil: &[At::Real("ip link set tunl0 down")], mend: &[APPLY],
        found: &["live_not_unwrapped"], step: ("connect", "timeout"),
    },
    Case {
        name: "the module is missing",
        spoil: &[At::Real("modprobe -r ipip")], mend: &[APPLY],
        found: &["live_not_unwrapped"], step: ("connect", "timeout"),
    },
    Case {
        name: "the VIP is gone",
        spoil: &[At::Real("ip addr del 198.51.100.10/32 dev tunl0")], mend: &[APPLY],
        found: &["live_vip_missing"], step: ("connect", "timeout"),
    },
    Case {
        name: "the reverse-path filter is on",
        spoil: &[At::Real("sysctl -qw net.ipv4.conf.all.rp_filter=1")], mend: &[APPLY],
        found: &["live_rp_filter"], step: ("connect", "timeout"),
    },
    Case {
        name: "the service has stopped",
        spoil: &[At::Real("pkill -STOP -f 'serve [-]-name'; pkill -KILL -f 'serve [-]-name'")],
        mend: &[At::Real("SERVE")],
        found: &["live_nobody_listens"], step: ("connect", "refused"),
    },
    Case {
        name: "answers from the VIP are filtered on their way",
        spoil: &[filter!("forward", "ip saddr 198.51.100.10 drop")], mend: &[NO_FILTER],
        found: &["live_reply_lost"], step: ("connect", "timeout"),
    },
    Case {
        name: "segments are not limited, and the path is narrow without saying so",
        spoil: &[At::Real("ip rule del from 198.51.100.10 lookup 7705"), NO_ERRORS],
        mend: &[APPLY, NO_FILTER],
        found: &["live_segment_size"], step: ("upload", "timeout"),
    },
    Case {
        name: "the path is narrower than was said",
        spoil: &[At::Router("ip route replace NETWORK dev dc mtu lock 1200"), NO_ERRORS],
        mend: &[At::Router("ip route replace NETWORK dev dc mtu lock 1400"), NO_FILTER],
        found: &["live_path_narrow"], step: ("upload", "timeout"),
    },
    Case {
        name: "the way back is narrow without saying so",
        spoil: &[At::Router("ip route add DIRECTOR/32 dev director mtu lock 1000"), NO_ERRORS],
        mend: &[At::Router("ip route del DIRECTOR/32 dev director"), NO_FILTER],
        found: &["live_reply_too_large"], step: ("download", "timeout"),
    },
    Case {
        name: "the VIP is told of by ARP",
        spoil: &[At::Real("sysctl -qw net.ipv4.conf.all.arp_ignore=0")], mend: &[APPLY],
        // All else works, which is why nobody notices.
        found: &["live_arp_leak"], step: ("", ""),
    },
];

/// One real server, the network to it, and the director.
struct Site<'a> {
    lab: &'a Lab,
    director: &'a Director,
    real: &'a RealServer,
}

/// What both sides said of one try.
struct Said {
    errors: BTreeSet<String>,
    code: i32,
    verify: Value,
    probe: Value,
}

impl Site<'_> {
    fn data_centre(&self) -> usize {
        self.lab.data_centre(self.real)
    }

    fn target(&self, vip: &str) -> String {
        let directors = DIRECTOR_ADDRESSES.iter().map(|address| format!(" --director {address}"));
        format!("--vip {vip} --path-mtu {HOP_MTU}{}", directors.collect::<String>())
    }

    fn program(&self) -> String {
        self.real.machine().program(&binaries::realserver().unwrap()).unwrap().join(" ")
    }

    fn act(&self, at: At) {
        let number = self.data_centre() + 1;
        match at {
            At::Real("APPLY") => {
                // As the lab has prepared it: for both VIPs.
                let target = self.target(&format!("{VIP} --vip {VIP6}"));
                self.real.machine().sh(&format!("{} apply {target}", self.program())).unwrap();
            }
            At::Real("SERVE") => {
                let program = self.real.machine().program(&binaries::lab_guest().unwrap()).unwrap();
                let port = SERVE_PORT.to_string();
                let mut argv: Vec<&str> = program.iter().map(String::as_str).collect();
                argv.extend(["serve", "--name", self.real.name(), "--port", &port]);
                // It goes with its machine.
                std::mem::forget(self.real.machine().start("serve-again", &argv).unwrap());
            }
            At::Real(lines) => drop(self.real.machine().sh(lines).unwrap()),
            At::Router(lines) => {
                let lines = lines
                    .replace("DIRECTOR", &format!("10.3.{number}.5"))
                    .replace("NETWORK", ["10.20.0.0/24", "10.30.0.0/24"][number - 1]);
                self.lab.dc_routers[self.data_centre()].sh(&lines).unwrap();
            }
        }
    }

    /// Has the real server listen and the director probe, each for so long at most.
    fn look(&self, vip: &str, limits: (&str, &str), meanwhile: impl FnOnce()) -> Said {
        let (listen, probe) = limits;
        let line = format!(
            "exec {} verify --live --for {listen} --json {}",
            self.program(),
            self.target(vip)
        );
        let machine = self.real.machine();
        let log = format!("live-{}", self.data_centre());
        machine.sh(&format!("rm -f /lab/{log}.log")).unwrap();
        let process = machine.start(&log, &["sh", "-c", &line]).unwrap();
        wait_until(SOON, "that it listens", || process.log().contains("listening for")).unwrap();
        meanwhile();
        let real = self.real.address(vip.contains(':')).to_string();
        let socket = self.director.host().path("adit.sock");
        let mut argv = self.director.host().program(&binaries::adit().unwrap()).unwrap();
        argv.extend(
            ["probe", &real, "--for", probe, "--json", "--socket", &socket].map(str::to_owned),
        );
        let line = format!("{} 2>/dev/null || test $? = 1", argv.join(" "));
        let probe = self.director.host().sh(&line).unwrap();
        let status = process.wait_exit(SOON).unwrap();
        let text = process.log();
        let json =
            text.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("{text}"));
        let verify: Value = serde_json::from_str(json).unwrap();
        let live = |finding: &&Value| {
            finding["severity"] == "error" && finding["name"].as_str().unwrap().starts_with("live_")
        };
        let findings = verify["findings"].as_array().unwrap().clone();
        let errors = findings.iter().filter(live);
        Said {
            errors: errors.map(|finding| finding["name"].as_str().unwrap().to_owned()).collect(),
            code: status.code().unwrap(),
            probe: serde_json::from_str(&probe).unwrap_or_else(|error| panic!("{error}: {probe}")),
            verify,
        }
    }

    /// Without a fault both sides say that all is well.
    fn assert_fine(&self, vip: &str, when: &str) {
        let said = self.look(vip, ("40s", "40s"), || {});
        assert_eq!(said.code, 0, "{when}: {:#} {:#}", said.verify, said.probe);
        assert_eq!(said.verify["ok"], true, "{when}: {:#}", said.verify);
        let exchange = said.verify["findings"].to_string();
        assert!(exchange.contains("live_exchange"), "{when}: {exchange}");
        let steps: Vec<&Value> = said.probe[0]["steps"].as_array().unwrap().iter().collect();
        let names: Vec<_> = steps.iter().map(|step| step["step"].as_str().unwrap()).collect();
        assert_eq!(names, ["connect", "live", "download", "upload"], "{when}");
        assert!(steps.iter().all(|step| step["outcome"] == "ok"), "{when}: {:#}", said.probe);
    }

    fn try_case(&self, case: &Case) {
        case.spoil.iter().for_each(|at| self.act(*at));
        let leak = case.found == ["live_arp_leak"];
        let ask_by_arp = || {
            let router = &self.lab.dc_routers[self.data_centre()];
            let answer = first_answer(router, "dc", VIP, SOON).unwrap();
            assert!(answer.is_some(), "{}: nobody has answered", case.name);
        };
        let expected: BTreeSet<_> = case.found.iter().map(|name| (*name).to_owned()).collect();
        let vip = VIP.to_string();
        let look = |limits| {
            self.look(&vip, limits, || {
                if leak {
                    ask_by_arp()
                }
            })
        };
        let mut said = look(TRIES[0]);
        if said.errors != expected {
            report(&format!("{}: once more, after {:?}", case.name, said.errors));
            said = look(TRIES[1]);
        }
        let Said { errors, code, verify, probe } = said;
        report(&format!("{}: {errors:?}", case.name));
        assert_eq!(errors, expected, "{}: {verify:#} {probe:#}", case.name);
        assert_eq!(code, 1, "{}: {verify:#}", case.name);
        let steps = probe[0]["steps"].as_array().unwrap();
        let failed = |step: &&Value| step["outcome"] != "ok";
        let first = steps
            .iter()
            .find(failed)
            .map(|step| (step["step"].as_str().unwrap(), step["outcome"].as_str().unwrap()));
        assert_eq!(first.unwrap_or_default(), case.step, "{}: {probe:#}", case.name);
        case.mend.iter().for_each(|at| self.act(*at));
    }
}

#[test]
fn every_fault_on_the_way_to_a_real_server_and_back_has_its_name() {
    if !skip::has_root() || !skip::has_guests() {
        return;
    }
    let spec = LabSpec {
        reals: [1, 1],
        postgres: false,
        hop_mtu: [HOP_MTU, HOP_MTU],
        clamp_mtu: HOP_MTU,
        ..LabSpec::default()
    };
    let lab = Lab::build(spec).unwrap();
    // Nothing is checked: a probe makes its own way.
    let config = Config::new()
        .service(Service::tcp("bytes", vip(SERVE_PORT)).reals(&lab.reals))
        .service(Service::tcp("bytes6", vip6(SERVE_PORT)).reals(&lab.reals));
    let director = Director::start(lab.director(), &config).unwrap();
    let site = |real| Site { lab: &lab, director: &director, real };
    // Faults of one data centre are not those of the other.
    std::thread::scope(|scope| {
        for (number, real) in lab.reals.iter().enumerate() {
            let site = site(real);
            scope.spawn(move || {
                let vip = [VIP, VIP6][number].to_string();
                site.assert_fine(&vip, "at first");
                CASES.iter().skip(number).step_by(2).for_each(|case| site.try_case(case));
                site.assert_fine(&VIP.to_string(), "at last");
            });
        }
    });
    // Nothing of it was a client's.
    let totals = director.totals().unwrap();
    assert!(totals["probe_packets"] > 100 && totals["scheduled"] == 0, "{totals:?}");
    assert_eq!(director.json(&["connections"]).unwrap(), Value::Array(Vec::new()));
    let unknown = director.adit(&["probe", "192.0.2.99"]).unwrap();
    let words = "no service has the real server 192.0.2.99";
    assert!(!unknown.success && unknown.text.contains(words), "{}", unknown.text);
}
