//! `adit-realserver` on real kernels: in a guest whose kernel has every tunnel but no nftables, and in a
//! namespace of this kernel, which has nftables.

#![allow(clippy::unwrap_used, reason = "what tests share is test code too")]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use adit_lab::network::{address_lines, make_router};
use adit_lab::packet::{echo_request, encapsulate, syn};
use adit_lab::{
    Host, Kind, Machine, MachineSpec, Namespace, RawSender, Run, Segment, Sniffer, binaries, skip,
    wait_for, wait_until,
};
use etherparse::TcpOptionElement;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);
const VIP: &str = "198.51.100.10";
const ADDRESS: &str = "10.20.0.11";
const DIRECTOR: &str = "10.20.0.5";

/// A bare host on a segment with a router, which plays directors and clients.
struct Bench {
    machine: Machine,
    router: Namespace,
    program: String,
    _segment: Segment,
}

impl Bench {
    fn new(kind: Kind, setup: &str) -> Self {
        let run = Arc::new(Run::new().unwrap());
        let router = Namespace::create(&run, "router").unwrap();
        make_router(&router).unwrap();
        let own = ["10.20.0.1/24", "10.20.0.5/24", "10.20.0.6/24", "fd00:20::1/64"];
        let segment = Segment::create(&router, "dc", &own).unwrap();
        router.ip(&format!("route add {VIP}/32 via {ADDRESS}")).unwrap();
        let namespace = Namespace::create(&run, "bare").unwrap();
        segment.plug(&namespace, "eth0").unwrap();
        let addresses = address_lines("eth0", &[&format!("{ADDRESS}/24"), "fd00:20::11/64"]);
        let setup = format!(
            "ip -batch - <<END\n{addresses}route add default via 10.20.0.1\n\
             route add default via fd00:20::1\nEND\n{setup}\n"
        );
        let machine =
            Machine::boot(namespace, &MachineSpec { kind, setup, ..MachineSpec::default() })
                .unwrap();
        // Else what is found now is not what is there a second later.
        wait_until(SOON, "duplicate address detection to end", || {
            machine.sh("ip -6 -o addr show tentative").unwrap().is_empty()
        })
        .unwrap();
        let program = machine.program(&binaries::realserver().unwrap()).unwrap().join(" ");
        Self { machine, router, program, _segment: segment }
    }

    /// Runs the program; its exit status and what it printed as JSON.
    fn realserver(&self, words: &str) -> (i32, Value) {
        let script =
            format!("{} {words} --json && code=0 || code=$?; echo; echo $code", self.program);
        let said = self.machine.sh(&script).unwrap();
        let (json, code) = said.trim_end().rsplit_once('\n').unwrap();
        (code.parse().unwrap(), serde_json::from_str(json).unwrap_or(Value::Null))
    }

    /// As [`Self::realserver`]; it must end well.
    fn good(&self, words: &str) -> Value {
        let (code, json) = self.realserver(words);
        assert_eq!(code, 0, "{words}: {json}");
        json
    }

    /// Names of what `verify` finds wrong.
    fn wrong(&self, target: &str) -> BTreeSet<String> {
        let (code, json) = self.realserver(&format!("verify {target}"));
        let findings = json["findings"].as_array().unwrap_or_else(|| panic!("{code}: {json}"));
        let errors = findings.iter().filter(|finding| finding["severity"] == "error");
        let errors: BTreeSet<_> =
            errors.map(|finding| finding["name"].as_str().unwrap().to_owned()).collect();
        assert_eq!(code, i32::from(!errors.is_empty()), "{json}");
        assert_eq!(json["ok"], errors.is_empty(), "{json}");
        errors
    }

    /// Makes these mistakes, sees each named and nothing else, and mends them by `apply`.
    fn mistakes(&self, target: &str, mistakes: &[(&str, &str)]) {
        let lines: Vec<_> = mistakes.iter().map(|(mistake, _)| *mistake).collect();
        self.machine.sh(&lines.join("\n")).unwrap();
        let names: BTreeSet<_> = mistakes.iter().map(|(_, name)| (*name).to_owned()).collect();
        assert_eq!(self.wrong(target), names);
        assert_eq!(self.good(&format!("apply {target}"))["changed"], true);
        assert_eq!(self.wrong(target), BTreeSet::new(), "mended");
    }

    /// Everything that a real server's preparation may touch, and all that is near it.
    fn dump(&self) -> String {
        // Not how many connections are tracked.
        let parameters =
            "sysctl -a 2>/dev/null | grep ^net | grep -v conntrack_count; nft list ruleset";
        format!("{}{}", self.machine.sh(parameters).unwrap(), self.sketch())
    }

    /// As [`Self::dump`], of what is touched alone: quick in a guest.
    fn sketch(&self) -> String {
        // Not that a device has been up once, nor a bridge's timers.
        let sketch =
            "grep . /proc/sys/net/ipv4/conf/*/*; ip -d addr | sed 's/qdisc noop/qdisc noqueue/' | grep -v gc_timer
            for v in -4 -6; do ip $v rule; ip $v route show table all; done
            grep -oE '^(ipip|sit|ip6_tunnel|ip_gre|ip6_gre|fou6?) ' /proc/modules || true
            ls /run/adit-realserver 2>/dev/null | grep -v ^lock || true";
        self.machine.sh(sketch).unwrap()
    }

    /// No IPv4 VIP while the host tells of it by ARP.
    fn assert_silent(&self, when: &str) {
        let state = self
            .machine
            .sh("sysctl -n net.ipv4.conf.all.arp_ignore net.ipv4.conf.all.arp_announce; ip -4 addr")
            .unwrap();
        assert!(!state.contains(VIP) || state.starts_with("1\n2\n"), "{when}: {state}");
    }

    /// Puts programs in front of `ip`, `nft` and `modprobe` that kill who called them once they have
    /// made the n-th change of the host.
    fn lay_mines(&self) {
        let mine = r#"#!/bin/sh
program=${0##*/}
PATH=/usr/sbin:/usr/bin:/sbin:/bin
"$program" "$@"
status=$?
case "$program $*" in
    *show*|*"nft -j"*|*"nft -c"*) exit $status ;;
esac
echo "$program $*" >>/run/changes
[ "$(wc -l </run/changes)" != "$(cat /run/kill)" ] || kill -9 $PPID
exit $status
"#;
        let lines = format!(
            "mkdir -p /run/mines; cd /run/mines; cat >ip <<'END'\n{mine}END\n\
             chmod +x ip; cp ip nft; cp ip modprobe"
        );
        self.machine.sh(&lines).unwrap();
    }

    /// Runs the program, which is killed behind its n-th change; did it come to that?
    fn killed(&self, words: &str, at: usize) -> bool {
        let script = format!(
            "rm -f /run/changes; echo {at} >/run/kill; export PATH=/run/mines:$PATH\n\
             {} {words} >/dev/null && code=0 || code=$?; echo $code",
            self.program
        );
        match self.machine.sh(&script).unwrap().trim() {
            "0" => false,
            "137" => true,
            other => panic!("{words}, killed at {at}: exit {other}"),
        }
    }
}

/// Are two dumps the same?
fn assert_same(found: &str, now: &str, when: &str) {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let (found, now) = (lines(found), lines(now));
    let (lost, new): (Vec<_>, Vec<_>) =
        (found.difference(&now).collect(), now.difference(&found).collect());
    assert!(lost.is_empty() && new.is_empty(), "{when}: lost {lost:#?}, new {new:#?}");
}

#[test]
fn a_guest_becomes_a_real_server_and_an_ordinary_host_again() {
    if !skip::has_root() || !skip::has_guests() {
        return;
    }
    let bench = Bench::new(
        Kind::Guest,
        "sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.eth0.rp_filter=0",
    );
    // What nft loads stays loaded.
    let _ = bench.machine.sh("nft list ruleset");
    let found = bench.dump();

    // Every kind of tunnel, over both IP versions.
    let all = format!(
        "--vip {VIP} --vip 2001:db8:100::10 --director {DIRECTOR} --director fd00:20::5 --tunnel ipip \
         --tunnel sit --tunnel ip6tnl --tunnel gre --tunnel gue"
    );
    let planned = bench.good(&format!("plan {all}"));
    assert_same(&found, &bench.dump(), "after plan");
    let done = bench.good(&format!("apply {all}"));
    assert_eq!((&planned["changed"], &done["changed"]), (&Value::Bool(true), &Value::Bool(true)));
    assert_eq!(planned["steps"], done["steps"]);
    let again = bench.good(&format!("apply {all}"));
    assert_eq!(
        (&again["changed"], again["steps"].as_array().unwrap().len()),
        (&Value::Bool(false), 0)
    );
    assert_eq!(bench.wrong(&all), BTreeSet::new());
    // All of it is exchanged for less.
    let one = format!("--vip {VIP} --director {DIRECTOR}");
    assert_eq!(bench.good(&format!("apply {one}"))["changed"], true);
    let left = bench.machine.sh("ip -br addr; lsmod").unwrap();
    assert!(!left.contains("2001:db8:100::10") && !left.contains("adit-"), "{left}");
    bench.mistakes(
        &one,
        &[
            ("sysctl -qw net.ipv4.conf.all.rp_filter=1", "rp_filter"),
            ("ip addr del 198.51.100.10/32 dev tunl0", "vip"),
            ("sysctl -qw net.ipv4.conf.all.arp_ignore=0", "arp_ignore"),
            ("sysctl -qw net.ipv4.conf.all.arp_announce=0", "arp_announce"),
            ("ip link set tunl0 down", "tunnel_device"),
            ("ip rule del from 198.51.100.10 lookup 7705", "segment_size"),
        ],
    );
    bench.mistakes(
        &one,
        &[
            ("sysctl -qw net.ipv4.conf.tunl0.rp_filter=1", "rp_filter"),
            ("sysctl -qw net.ipv4.conf.eth0.arp_ignore=3", "arp_ignore"),
        ],
    );
    // What somebody else changed stays as he wants it.
    bench.machine.sh("sysctl -qw net.ipv4.conf.all.rp_filter=2").unwrap();
    let removed = bench.good("remove");
    let notes = removed["notes"].to_string();
    assert!(notes.contains("net.ipv4.conf.all.rp_filter stays 2"), "{removed}");
    assert_eq!(bench.good("remove")["changed"], false);
    bench
        .machine
        .sh("sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.eth0.arp_ignore=0 \
        net.ipv4.conf.all.arp_ignore=0 net.ipv4.conf.all.arp_announce=0")
        .unwrap();
    assert_same(&found, &bench.dump(), "after remove");
}

/// Kills `apply` behind each of its changes, then goes back, or for some first on; and `remove` behind some
/// of its own. Returns how many changes `apply` makes.
fn sweep(bench: &Bench, target: &str, goes_on: fn(usize) -> bool, removes: &[usize]) -> usize {
    bench.lay_mines();
    let found = bench.sketch();
    let apply = format!("apply {target}");
    let mut at = 1;
    while bench.killed(&apply, at) {
        let when = format!("apply killed behind change {at}");
        bench.assert_silent(&when);
        if goes_on(at) {
            bench.good(&apply);
            assert_eq!(bench.good(&apply)["changed"], false, "{when}");
            assert_eq!(bench.wrong(target), BTreeSet::new(), "{when}");
        }
        bench.good("remove");
        assert_same(&found, &bench.sketch(), &when);
        at += 1;
    }
    for &at in removes {
        bench.good(&apply);
        assert!(bench.killed("remove", at), "{at}");
        let when = format!("remove killed behind change {at}");
        bench.assert_silent(&when);
        bench.good("remove");
        assert_same(&found, &bench.sketch(), &when);
    }
    at - 1
}

#[test]
#[ignore = "a minute or two: make test-rollout"]
fn killed_at_any_change_a_guest_goes_on_or_goes_back() {
    if !skip::has_root() || !skip::has_guests() {
        return;
    }
    let bench = Bench::new(Kind::Guest, "sysctl -qw net.ipv4.conf.all.rp_filter=1");
    let target = format!("--vip {VIP} --director {DIRECTOR} --tunnel ipip --tunnel gue");
    // Two modules, the VIP, a route and its rule, a port, the device. A guest's commands are slow.
    assert_eq!(sweep(&bench, &target, |at| at == 4, &[2, 5]), 7);
}

#[test]
fn killed_at_any_change_it_goes_on_or_goes_back() {
    if !skip::has_root() {
        return;
    }
    let stand_in = format!("{STAND_IN}\nsysctl -qw net.ipv4.conf.all.rp_filter=1");
    let bench = Bench::new(Kind::Namespace, &stand_in);
    let vips = "--vip 198.51.100.10 --vip 198.51.100.16/30";
    let target = format!("{vips} --director {DIRECTOR}");
    // The VIPs, the rules, the device; and back.
    assert_eq!(sweep(&bench, &target, |_| true, &[1, 2, 3, 4, 5, 6, 7]), 7);
}

/// Where the kernel has no `ipip`, a bridge that has its device's name: addresses, parameters and rules
/// are the same to it, only that it unwraps nothing.
const STAND_IN: &str = "modprobe -q ipip || true; ip link show tunl0 >/dev/null 2>&1 || {
    ip link add tunl0 type bridge; ip link set tunl0 arp off; }";

#[test]
fn rules_keep_others_out_and_segments_small() {
    if !skip::has_root() {
        return;
    }
    let bench = Bench::new(Kind::Namespace, STAND_IN);
    bench
        .machine
        .sh("nft add table inet mine; nft add set inet mine own '{ type ipv4_addr; }'")
        .unwrap();
    let found = bench.dump();
    let target = format!("--vip {VIP} --director {DIRECTOR}");
    bench.good(&format!("apply {target}"));
    assert_eq!(bench.good(&format!("apply {target}"))["changed"], false);

    // From the director, and three from somebody else; what comes through is counted behind our rules.
    bench
        .machine
        .sh("nft add chain inet mine behind '{ type filter hook input priority 100; }'
             nft add rule inet mine behind meta l4proto 4 counter")
        .unwrap();
    let sender = RawSender::new(&bench.router).unwrap();
    let vip: IpAddr = VIP.parse().unwrap();
    let client: IpAddr = "10.20.0.1".parse().unwrap();
    let ping = echo_request(client, vip, 5, b"in a tunnel");
    for source in [DIRECTOR, "10.20.0.6", "10.20.0.6", "10.20.0.6"] {
        let outer = encapsulate(source.parse().unwrap(), ADDRESS.parse().unwrap(), &ping);
        sender.send(&outer).unwrap();
    }
    let mut seen = String::new();
    wait_until(SOON, "three dropped packets", || {
        seen = bench.machine.sh("nft list chain inet adit_realserver input").unwrap();
        seen.contains("packets 3 ")
    })
    .unwrap_or_else(|error| panic!("{error}: {seen}"));
    let through = bench.machine.sh("nft list chain inet mine behind").unwrap();
    assert!(through.contains("packets 1 "), "{through}");
    bench.machine.sh("nft delete chain inet mine behind").unwrap();

    // The SYN-ACK of something that listens.
    let _listener = bench.machine.start("listen", &["nc", "-l", "-k", "-p", "5432"]).unwrap();
    let sniffer = Sniffer::start(&bench.router, "dc", |frame| !frame.outgoing).unwrap();
    let offered = wait_for(SOON, "a SYN-ACK", || {
        let packet = syn(SocketAddr::new(client, 40_000), SocketAddr::new(vip, 5432), 1);
        sender.send(&packet).unwrap();
        sniffer.packets().iter().find_map(|ip| {
            let tcp = ip.tcp().filter(|tcp| tcp.syn && tcp.ack && ip.source == vip)?;
            tcp.options_iterator().flatten().find_map(|option| {
                let TcpOptionElement::MaximumSegmentSize(size) = option else { return None };
                Some(size)
            })
        })
    })
    .unwrap();
    assert_eq!(offered, 1440);
    drop(_listener);

    for mistake in [
        ("nft flush chain inet adit_realserver output", "segment_size"),
        ("nft flush chain inet adit_realserver input", "accept_rules"),
        ("nft delete element inet adit_realserver directors4 '{ 10.20.0.5 }'", "accept_rules"),
    ] {
        bench.mistakes(&target, &[mistake]);
    }
    bench
        .machine
        .sh("nft add chain inet mine input '{ type filter hook input priority 0; policy drop; }'
             nft add rule inet mine input ct state established,related accept
             nft add rule inet mine input iifname lo accept
             nft add rule inet mine input ip protocol icmp accept")
        .unwrap();
    assert_eq!(bench.wrong(&target), BTreeSet::from(["foreign_drop".to_owned()]));
    // By the rule that it prints.
    let (_, report) = bench.realserver(&format!("verify {target}"));
    let findings = report["findings"].as_array().unwrap();
    let finding = findings.iter().find(|finding| finding["name"] == "foreign_drop").unwrap();
    let rule = finding["mend"].as_str().unwrap().split("   (").next().unwrap();
    bench.machine.sh(rule.replace('{', "'{").replace('}', "}'").as_str()).unwrap();
    assert_eq!(bench.wrong(&target), BTreeSet::new(), "after {rule}");
    bench.machine.sh("nft delete chain inet mine input").unwrap();
    bench.good("remove");
    assert_same(&found, &bench.dump(), "after remove");
}

#[test]
fn a_vip_that_the_host_answers_for_is_refused() {
    if !skip::has_root() {
        return;
    }
    let bench = Bench::new(Kind::Namespace, STAND_IN);
    bench.machine.sh(&format!("ip addr add {VIP}/24 dev eth0")).unwrap();
    let found = bench.dump();
    let target = format!("--vip {VIP} --director {DIRECTOR}");
    for task in ["plan", "apply"] {
        assert_eq!(bench.realserver(&format!("{task} {target}")).0, 1);
    }
    assert_same(&found, &bench.dump(), "after a refusal");
    assert!(bench.wrong(&target).contains("vip_elsewhere"));
}
