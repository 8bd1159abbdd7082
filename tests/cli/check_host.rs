//! What `check` sees of a host, and what a start says where the host does not allow it.

use crate::THREE;
use crate::lab::{Lab, lab};
use crate::testing::{skipped, test_name};

#[test]
fn check_says_what_the_host_lacks() {
    let Some(lab) = lab() else { return };
    lab.configure(THREE);
    lab.ok("check");
    lab.on_director("sysctl -qw net.ipv4.ip_forward=0 net.ipv4.conf.eth0.forwarding=0");
    let said = lab.refused("check");
    assert!(said.contains("ERROR: IPv4 forwarding is off"), "{said}");
    lab.ok("check --offline");
    lab.on_director("sysctl -qw net.ipv4.ip_forward=1");
    lab.on_director("nft add table inet filter");
    lab.on_director(
        "nft add chain inet filter forward { type filter hook forward priority 0 ; policy drop ; }",
    );
    let said = lab.refused("check");
    let rules: Vec<&str> = said.lines().filter(|l| l.trim().starts_with("nft insert")).collect();
    assert_eq!(rules.len(), 2, "{said}");
    // What check prints is what mends it.
    for rule in rules {
        lab.on_director(&rule.trim().replace('"', ""));
    }
    lab.ok("check");
    assert_eq!(lab.json("firewall open")["changed"], false, "nothing is missing");
    assert_eq!(lab.json("firewall close")["changed"], false, "somebody else's rules stay");

    lab.on_director("nft flush chain inet filter forward");
    assert_eq!(lab.json("firewall open --dry-run")["steps"].as_array().unwrap().len(), 2);
    lab.refused("check");
    assert_eq!(lab.json("firewall open")["changed"], true);
    lab.ok("check");
    assert_eq!(lab.json("firewall close")["changed"], true);
    lab.refused("check");
}

#[test]
fn check_reads_reverse_path_advertisements_and_bridges() {
    let Some(lab) = lab() else { return };
    let six = "[[service]]\nname = \"six\"\nvip = \"2001:db8:f::10\"\nport = 7\n\
               [[service.real]]\naddress = \"2001:db8:a::2\"\n";
    lab.configure(&format!("{THREE}{six}"));
    // How a new namespace is set up is up to its host.
    lab.on_director(
        "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0 \
         net.ipv6.conf.eth0.accept_ra=0",
    );
    let silent = |lab: &Lab, word: &str| {
        let said = lab.ok("check");
        assert!(!said.contains(word), "{word}: {said}");
    };
    let warned = |lab: &Lab, word: &str, mend: &str| {
        let said = lab.ok("check");
        let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("warning:")).collect();
        assert!(lines.iter().any(|line| line.contains(word)), "{word}: {said}");
        // What check prints is what mends it.
        assert!(said.contains(mend), "{mend}: {said}");
        lab.on_director(mend);
        silent(lab, word);
    };

    silent(&lab, "reverse path");
    // The larger of the two counts.
    lab.on_director("sysctl -qw net.ipv4.conf.all.rp_filter=1");
    warned(
        &lab,
        "strict reverse path filtering is on for eth0",
        "sysctl -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=2",
    );
    silent(&lab, "router advertisements");
    lab.on_director("sysctl -qw net.ipv6.conf.eth0.accept_ra=1");
    warned(&lab, "router advertisements", "sysctl -w net.ipv6.conf.eth0.accept_ra=2");

    lab.on_director("ip link add br0 type bridge");
    if lab.has("/proc/sys/net/bridge/bridge-nf-call-iptables") {
        lab.on_director("sysctl -qw net.bridge.bridge-nf-call-iptables=1");
        silent(&lab, "bridge netfilter");
        lab.on_director("ip link set eth0 master br0");
        warned(
            &lab,
            "bridge netfilter is on and eth0 belongs to a bridge",
            "sysctl -w net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0",
        );
    } else {
        skipped(&test_name(), "this kernel has no bridge netfilter (br_netfilter)");
    }
}

#[test]
fn a_limit_of_locked_memory_is_named_by_check_and_by_run() {
    let Some(lab) = lab() else { return };
    lab.configure(THREE);
    let text = |output: std::process::Output| {
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code(), said)
    };
    let (code, said) = text(lab.adit_with_memlock(64 << 10, "check"));
    assert!(said.contains("ERROR: the memlock limit is 64 KiB"), "{said}");
    assert_eq!(code, Some(1));
    let (code, said) = text(lab.adit_with_memlock(64 << 10, "run"));
    assert!(said.contains("raise LimitMEMLOCK"), "{said}");
    assert_eq!(code, Some(1));
    // What check asks for is enough for it.
    let (code, said) = text(lab.adit_with_memlock(8 << 20, "check"));
    assert!(!said.contains("memlock"), "{said}");
    assert_eq!(code, Some(0));
}
