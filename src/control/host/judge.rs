//! What the host's state means for a director. Pure: facts in, findings out.

use super::checks;
use super::firewall::{Hook, HookChain};
use super::observe::HostFacts;
use crate::control::config::{Announce, Capture, Config, Ports, RealTunnel, VipPrefix};
use crate::control::cores;
use crate::control::finding::Finding;
use crate::control::flow_region::PERSISTENCE_CAPACITY;
use crate::control::netlink::egress::{Egress, KernelReason, RealPath};
use crate::control::netlink::links::Link;
use crate::control::netlink::routes::RouteKind;
use crate::control::netlink::vip_routes::{ROUTE_PROTOCOL, TAP_METRIC};
use crate::dataplane::conntrack;
use crate::dataplane::region::{Geometry, RegionLayout};
use std::collections::BTreeSet;
use std::net::IpAddr;

// linux/capability.h
const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;
const CAP_IPC_LOCK: u32 = 14;

/// What io_uring may pin for buffer slots without CAP_IPC_LOCK: the usual default, and enough
/// for the slots of one worker at an MTU of 1500.
const ENOUGH_MEMLOCK: u64 = 8 << 20;

/// All findings about a host, the gravest first.
#[must_use]
pub fn judge(config: &Config, facts: &HostFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    privileges(facts, &mut findings);
    admin_group(facts, &mut findings);
    devices(config, facts, &mut findings);
    match config.director.capture {
        Capture::Route => {
            forwarding(config, facts, &mut findings);
            reverse_path(config, facts, &mut findings);
        }
        Capture::Manual => reverse_path_of_tap(config, facts, &mut findings),
        // What crosses a bridge is not routed.
        Capture::Bridge => {}
    }
    firewalls(config, facts, &mut findings);
    processors(config, facts, &mut findings);
    memory(config, facts, &mut findings);
    vips(config, facts, &mut findings);
    announcement(config, facts, &mut findings);
    real_servers(facts, &mut findings);
    checks::judge(config, facts, &mut findings);
    findings.sort_by_key(|f| f.severity);
    findings
}

fn admin_group(facts: &HostFacts, findings: &mut Vec<Finding>) {
    if let Some(group) = &facts.missing_group {
        findings.push(Finding::error(
            format!("`admin_group` = \"{group}\": this host has no such group"),
            format!("groupadd --system {group}"),
        ));
    }
}

/// Capabilities that a director cannot do without and does not have.
#[must_use]
pub fn missing_capabilities(effective: Option<u64>) -> Vec<Finding> {
    let has = |bit: u32| effective.is_none_or(|set| set >> bit & 1 == 1);
    let needed = [
        (CAP_NET_ADMIN, "CAP_NET_ADMIN", "the TAP, routes and firewall rules"),
        (CAP_NET_RAW, "CAP_NET_RAW", "sending tunnel packets"),
    ];
    needed
        .into_iter()
        .filter(|(bit, ..)| !has(*bit))
        .map(|(_, name, use_)| {
            Finding::error(
                format!("{name} is missing"),
                format!(
                    "it is needed for {use_}: run as root, or under systemd with \
                     AmbientCapabilities={name}"
                ),
            )
        })
        .collect()
}

fn privileges(facts: &HostFacts, findings: &mut Vec<Finding>) {
    let has = |bit: u32| facts.capabilities.is_none_or(|set| set >> bit & 1 == 1);
    findings.extend(missing_capabilities(facts.capabilities));
    if let Some(error) = &facts.tun_refused {
        findings.push(Finding::error(
            format!("/dev/net/tun cannot be opened: {error}"),
            "load the module with `modprobe tun`; in a container pass the device in \
             (--device /dev/net/tun)",
        ));
    }
    match facts.io_uring_disabled {
        Some(2) => findings.push(Finding::error(
            "io_uring is disabled on this host",
            "Adit reads and sends through it:\nsysctl -w kernel.io_uring_disabled=0",
        )),
        Some(1) => findings.push(Finding::warning(
            "io_uring is restricted on this host (kernel.io_uring_disabled = 1)",
            "only CAP_SYS_ADMIN or the group in kernel.io_uring_group may use it; otherwise:\n\
             sysctl -w kernel.io_uring_disabled=0",
        )),
        Some(_) | None => {}
    }
    if let Some(bytes) = facts.memlock
        && bytes < ENOUGH_MEMLOCK
        && !has(CAP_IPC_LOCK)
    {
        findings.push(Finding::error(
            format!("the memlock limit is {} KiB", bytes >> 10),
            format!(
                "buffers shared with the kernel are locked memory: allow {} MiB with \
                 LimitMEMLOCK= in the unit or `ulimit -l`",
                ENOUGH_MEMLOCK >> 20
            ),
        ));
    }
}

fn devices(config: &Config, facts: &HostFacts, findings: &mut Vec<Finding>) {
    let name = &config.director.interface;
    let Some(link) = &facts.interface else {
        findings.push(Finding::error(
            format!("there is no interface {name}"),
            "set `interface` to the one that faces the clients (ip link shows them)",
        ));
        return;
    };
    if !link.up {
        findings.push(Finding::error(
            format!("the interface {name} is down"),
            format!("ip link set {name} up"),
        ));
    }
    findings.extend(narrow_tap(config, link));
    let bridged = config.director.capture == Capture::Bridge;
    if bridged && !link.is_bridge {
        findings.push(Finding::error(
            format!("{name} is not a bridge"),
            format!(
                "in bridge capture `interface` is the bridge that faces the clients, whose port the \
                 TAP becomes:\nip link add br0 type bridge && ip link set {name} master br0"
            ),
        ));
    }
    if (link.in_bridge || bridged) && facts.bridge_netfilter == Some(true) {
        findings.push(Finding::warning(
            format!("bridge netfilter is on and {name} belongs to a bridge"),
            "bridged packets pass the IP firewall, which sees one-sided sessions as invalid:\n\
             sysctl -w net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0",
        ));
    }
}

/// An MTU of the TAP that packets from the client-facing interface would not fit.
#[must_use]
pub fn narrow_tap(config: &Config, interface: &Link) -> Option<Finding> {
    let mtu = config.director.mtu.filter(|mtu| u32::from(*mtu) < interface.mtu)?;
    Some(Finding::error(
        format!("`mtu` = {mtu} is less than the {} of {}", interface.mtu, interface.name),
        "packets of clients would not fit the TAP: leave the line out",
    ))
}

fn forwarding(config: &Config, facts: &HostFacts, findings: &mut Vec<Finding>) {
    let interface = &config.director.interface;
    let vips = config.vips();
    if vips.iter().any(VipPrefix::is_ipv4) && facts.forwarding_v4 == Some(false) {
        findings.push(Finding::error(
            format!("IPv4 forwarding is off on {interface}"),
            format!(
                "the kernel routes clients' packets to the TAP only when it forwards:\n\
                 sysctl -w net.ipv4.ip_forward=1 (or net.ipv4.conf.{interface}.forwarding=1)"
            ),
        ));
    }
    if !vips.iter().any(VipPrefix::is_ipv6) {
        return;
    }
    if facts.forwarding_v6 == Some(false) {
        findings.push(Finding::error(
            "IPv6 forwarding is off",
            "the kernel routes clients' packets to the TAP only when it forwards:\n\
             sysctl -w net.ipv6.conf.all.forwarding=1",
        ));
    }
    if facts.ipv6_off_for_new == Some(true) {
        findings.push(Finding::error(
            "new devices have no IPv6 (net.ipv6.conf.default.disable_ipv6 = 1)",
            "IPv6 VIPs cannot be routed to the TAP:\nsysctl -w net.ipv6.conf.default.disable_ipv6=0",
        ));
    }
    if facts.accept_ra == Some(1) {
        findings.push(Finding::warning(
            format!("{interface} takes router advertisements only while it does not forward"),
            format!(
                "with forwarding on, a default route that came from an advertisement is lost:\n\
                 sysctl -w net.ipv6.conf.{interface}.accept_ra=2"
            ),
        ));
    }
}

fn reverse_path(config: &Config, facts: &HostFacts, findings: &mut Vec<Finding>) {
    let interface = &config.director.interface;
    if facts.rp_filter_interface == Some(1) {
        findings.push(Finding::warning(
            format!("strict reverse path filtering is on for {interface}"),
            format!(
                "clients whose way back leads by another interface are dropped, and so is what \
                 real servers send to this host from a VIP; the larger of `all` and the \
                 interface's own value counts:\n\
                 sysctl -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.{interface}.rp_filter=2"
            ),
        ));
    }
}

/// Where the operator leads packets to the TAP, there may be no route of the VIP to it, and then
/// what Adit answers through the TAP fails a strict check.
fn reverse_path_of_tap(config: &Config, facts: &HostFacts, findings: &mut Vec<Finding>) {
    let tap = &config.director.tap;
    if facts.rp_filter_new == Some(1) {
        findings.push(Finding::warning(
            format!("strict reverse path filtering will be on for {tap}"),
            format!(
                "without a route for the VIP to {tap}, Adit's own answers (ICMP errors, echo) are \
                 dropped:\nsysctl -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0"
            ),
        ));
    }
}

fn firewalls(config: &Config, facts: &HostFacts, findings: &mut Vec<Finding>) {
    if facts.nft_missing {
        findings.push(Finding::error(
            "nft is not installed",
            "Adit keeps packets to VIPs out of conntrack by nftables: install the nftables \
             package",
        ));
    }
    if let Some(reason) = &facts.chains_unseen {
        findings.push(Finding::warning(
            format!("the firewall's rules cannot be seen: {reason}"),
            "run check as root to have them looked at",
        ));
    }
    findings.extend(refusing_chains(config, facts).into_iter().map(|(finding, _)| finding));
}

/// The accept rules that a director needs and other people's chains seem not to have, as commands.
#[must_use]
pub fn missing_accepts(config: &Config, facts: &HostFacts) -> Vec<String> {
    refusing_chains(config, facts).into_iter().flat_map(|(_, rules)| rules).collect()
}

/// What is to be said of each chain that seems to drop a director's packets, and the commands that
/// mend it.
fn refusing_chains(config: &Config, facts: &HostFacts) -> Vec<(Finding, Vec<String>)> {
    let tap = &config.director.tap;
    let vips = config.vips();
    // As nft prints them in JSON and iptables in its own form.
    let mut words = vec![format!("\"{tap}\""), format!(" {tap} ")];
    words.extend(vips.iter().map(|vip| vip.address().to_string()));
    let mut found = Vec::new();
    for chain in facts.chains.iter().chain(&facts.legacy_forward) {
        let finding = match chain.hook {
            Hook::Forward if config.director.capture == Capture::Route => {
                (!chain.seems_to_accept(&words)).then(|| forward_rules(config, chain))
            }
            Hook::Forward => None,
            Hook::Output => output_rules(config, facts, chain),
        };
        found.extend(finding);
    }
    found
}

fn forward_rules(config: &Config, chain: &HookChain) -> (Finding, Vec<String>) {
    let (tap, interface) = (&config.director.tap, &config.director.interface);
    let rules = if let Some(program) = chain.name.strip_suffix(" FORWARD") {
        vec![
            format!("{program} -I FORWARD -i {interface} -o {tap} -j ACCEPT"),
            format!("{program} -I FORWARD -i {tap} -o {interface} -j ACCEPT"),
        ]
    } else {
        // iptables-nft shows up here too; nft can add to its chains as well.
        let insert = format!("nft insert rule {}", chain.name);
        vec![
            format!("{insert} iifname \"{interface}\" oifname \"{tap}\" accept"),
            format!("{insert} iifname \"{tap}\" oifname \"{interface}\" accept"),
        ]
    };
    let finding = Finding::error(
        format!("the firewall chain {} drops what it does not accept", chain.name),
        format!(
            "clients' packets to VIPs, and Adit's answers to them, are forwarded between \
             {interface} and {tap}, and no rule seems to accept them:\n{}\n`adit firewall open` \
             does it",
            rules.join("\n")
        ),
    );
    (finding, rules)
}

/// A kind of outer packet, in the words of firewalls.
struct OuterKind {
    /// Those of a rule that seems to accept it.
    words: Vec<String>,
    nft: String,
    iptables: Vec<String>,
}

/// The kinds of outer packets that the kernel may have to send. None for direct mode: those packets
/// never pass it.
fn outer_kinds(config: &Config) -> Vec<OuterKind> {
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
    let tunnels: BTreeSet<RealTunnel> =
        config.real_tunnels().into_iter().map(|(_, tunnel)| tunnel).collect();
    let ipip = OuterKind {
        words: words(&["ipip", "ipencap", "ipv6", "\"right\": 4", "\"right\": 41"]),
        nft: "meta l4proto { ipip, ipv6 }".to_owned(),
        iptables: words(&["-p ipencap", "-p ipv6"]),
    };
    if tunnels.is_empty() {
        return vec![ipip];
    }
    let mut kinds = Vec::new();
    if tunnels.contains(&RealTunnel::Ipip) {
        kinds.push(ipip);
    }
    if tunnels.iter().any(|tunnel| matches!(tunnel, RealTunnel::Gre { .. })) {
        kinds.push(OuterKind {
            words: words(&["gre", "\"right\": 47"]),
            nft: "meta l4proto gre".to_owned(),
            iptables: words(&["-p gre"]),
        });
    }
    let port = |tunnel: &RealTunnel| match tunnel {
        RealTunnel::Gue { port, .. } => Some(*port),
        RealTunnel::Ipip | RealTunnel::Gre { .. } | RealTunnel::Direct => None,
    };
    for port in tunnels.iter().filter_map(port).collect::<BTreeSet<u16>>() {
        kinds.push(OuterKind {
            words: vec![port.to_string()],
            nft: format!("udp dport {port}"),
            iptables: vec![format!("-p udp --dport {port}")],
        });
    }
    kinds
}

/// Outer packets pass the output hook where the kernel routes them; directly sent ones do not.
fn output_rules(
    config: &Config,
    facts: &HostFacts,
    chain: &HookChain,
) -> Option<(Finding, Vec<String>)> {
    let missing =
        outer_kinds(config).into_iter().filter(|kind| !chain.seems_to_accept(&kind.words));
    let rule = |kind: OuterKind| {
        if let Some(program) = chain.name.strip_suffix(" OUTPUT") {
            let rules = kind.iptables.iter();
            rules.map(|rule| format!("{program} -I OUTPUT {rule} -j ACCEPT")).collect::<Vec<_>>()
        } else {
            vec![format!("nft insert rule {} {} accept", chain.name, kind.nft)]
        }
    };
    let rules: Vec<String> = missing.flat_map(rule).collect();
    if rules.is_empty() {
        return None;
    }
    let routed =
        facts.survey.paths.iter().any(
            |p| matches!(p.egress, Egress::Kernel(reason) if reason != KernelReason::Unresolved),
        );
    let message = format!("the firewall chain {} may drop tunnel packets", chain.name);
    let help = format!(
        "those that the kernel routes pass it (direct ones do not, but any real server may come \
         to need the kernel):\n{}",
        rules.join("\n")
    );
    let finding =
        if routed { Finding::error(message, help) } else { Finding::warning(message, help) };
    Some((finding, rules))
}

/// Workers are to have a core each: more of them only take turns.
fn processors(config: &Config, facts: &HostFacts, findings: &mut Vec<Finding>) {
    let workers = usize::from(config.director.workers);
    if let Some(cores) = facts.cores.filter(|cores| workers > *cores) {
        findings.push(Finding::warning(
            format!("workers = {workers}, and there are cores for {cores}"),
            "they take turns, none has a core of its own, and packets wait for whichever is not \
             running: lower it, or 0 for one per core (`taskset`, AllowedCPUs= and CPUAffinity= of a \
             unit take cores away)",
        ));
    }
}

/// What the flow table takes: slots in the region's file (a tmpfs counts as memory), its index
/// and lists in this process.
fn memory(config: &Config, facts: &HostFacts, findings: &mut Vec<Finding>) {
    let max = config.director.max_connections;
    let needs = MemoryNeeds::of(config);
    if !facts.region_usable && facts.state_dir_free.is_some_and(|free| free < needs.region) {
        findings.push(Finding::error(
            format!("no room for the flow region in {}", config.director.state_dir.display()),
            format!(
                "max_connections = {max} takes {} MiB there, and {} MiB are free",
                mebibytes(needs.region),
                mebibytes(facts.state_dir_free.unwrap_or(0)),
            ),
        ));
    }
    if facts.memory_available.is_some_and(|available| available < needs.total()) {
        findings.push(Finding::error(
            format!("max_connections = {max} takes {} MiB", mebibytes(needs.total())),
            format!(
                "{} MiB of memory are available: lower max_connections",
                mebibytes(facts.memory_available.unwrap_or(0))
            ),
        ));
    }
}

fn mebibytes(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// Sizes of the region that `config` asks for.
#[must_use]
pub fn geometry(config: &Config) -> Geometry {
    let workers = u32::from(cores::workers(config));
    Geometry::new(config.director.max_connections, workers, PERSISTENCE_CAPACITY)
}

/// Memory that a configuration takes at start, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryNeeds {
    /// The region's file: flow slots, directories, persistence.
    pub region: u64,
    /// The flow table's index and lists.
    pub index: u64,
}

impl MemoryNeeds {
    /// What `config` takes.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let max = config.director.max_connections;
        let table = conntrack::memory_for(max as usize);
        MemoryNeeds {
            region: RegionLayout::new(&geometry(config)).length as u64,
            index: (table.total() - table.slots) as u64,
        }
    }

    /// All of it.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.region + self.index
    }
}

fn vips(config: &Config, facts: &HostFacts, findings: &mut Vec<Finding>) {
    for (vip, route) in &facts.vip_routes {
        if route.kind == RouteKind::Local {
            findings.push(Finding::error(
                format!("the VIP {vip} is an address of this host"),
                format!(
                    "its packets would be taken in by the host and never reach the TAP:\n\
                     ip addr del {vip}/{} dev <its device>",
                    if vip.is_ipv4() { 32 } else { 128 }
                ),
            ));
        }
    }
    for vip in &facts.foreign_routes {
        if config.director.capture == Capture::Route {
            findings.push(Finding::error(
                format!("there is a route for the VIP {vip} already"),
                format!(
                    "Adit does not replace it, and it may lead packets past the TAP:\n\
                     ip route show root {vip}"
                ),
            ));
        }
    }
    findings.extend(facts.foreign_sources.iter().copied().map(foreign_source));
    for service in &config.services {
        if matches!(service.ports, Ports::Any) && service.protocol.to_string() == "udp" {
            findings.push(Finding::note(
                format!("service {} takes every UDP port of {}", service.name, service.vip),
                "traceroute to the VIP ends at a real server",
            ));
        }
    }
}

/// An outer source that is not an address of this host.
#[must_use]
pub fn foreign_source(source: IpAddr) -> Finding {
    Finding::error(
        format!("the tunnel `source` {source} is not an address of this host"),
        "errors about tunnel packets would go elsewhere, and reverse path filters drop such \
         packets: name an address that `ip addr` shows, or leave it to the route",
    )
}

/// Why nobody sends the packets to a real server, where its kind of tunnel leaves none that could.
#[must_use]
pub fn no_way(path: &RealPath) -> Option<Finding> {
    let Egress::None(reason) = path.egress else { return None };
    let (address, tunnel) = (path.address, path.tunnel);
    let help = match reason {
        KernelReason::Ipsec | KernelReason::IpsecUnknown if tunnel == RealTunnel::Direct => {
            "frames of Adit's own would go around the policy, so none are sent: write tunnel = \
             \"ipip\", which goes through policies"
        }
        KernelReason::Ipsec | KernelReason::IpsecUnknown => {
            "headers of Adit's own would go around the policy, so none are sent: write tunnel = \
             \"ipip\", whose outer headers the kernel writes where policies may apply"
        }
        KernelReason::BehindRouter => {
            "direct mode is for real servers on an Ethernet segment of this host: write tunnel = \
             \"ipip\", \"gre\" or \"gue\""
        }
        KernelReason::Unresolved => "it does not answer ARP or neighbour solicitations: is it up?",
        KernelReason::NoRoute
        | KernelReason::Refused
        | KernelReason::Local
        | KernelReason::SpecialRoute
        | KernelReason::NotEthernet
        | KernelReason::LinkDown => {
            "direct mode needs a real server on an Ethernet segment of this host that is up: look \
             at `ip route get` and `ip link`, or write tunnel = \"ipip\""
        }
    };
    Some(Finding::error(
        format!("packets to real server {address} cannot be sent ({tunnel}): {reason}"),
        format!("they are dropped (no_egress); {help}"),
    ))
}

fn announcement(config: &Config, facts: &HostFacts, findings: &mut Vec<Finding>) {
    if config.director.announce != Announce::Route || facts.routing_daemon != Some(false) {
        return;
    }
    findings.push(Finding::warning(
        "announce = \"route\", and no routing daemon is seen here",
        format!(
            "Adit puts the routes of VIPs into the main table (protocol {ROUTE_PROTOCOL}, metric \
             {TAP_METRIC}, device {}), and a daemon has to export those, and none of worse metric, to \
             your routers; for BIRD:\n\
             protocol kernel {{ learn; ipv4 {{ preference 200; import where krt_source = \
             {ROUTE_PROTOCOL} && krt_metric = {TAP_METRIC}; export all; }}; }}\n\
             docs/announce.md has the whole, also for FRR",
            config.director.tap
        ),
    ));
}

fn real_servers(facts: &HostFacts, findings: &mut Vec<Finding>) {
    for path in &facts.survey.paths {
        let address = path.address;
        let finding = match path.egress {
            // Before a director asks, nobody may have answered.
            Egress::Direct(_)
            | Egress::Kernel(KernelReason::Unresolved)
            | Egress::None(KernelReason::Unresolved) => continue,
            Egress::None(_) => {
                findings.extend(no_way(path));
                continue;
            }
            Egress::Kernel(KernelReason::NoRoute) => Finding::error(
                format!("there is no route to real server {address}"),
                "new connections to it are lost: add a route, or set its weight to 0",
            ),
            Egress::Kernel(KernelReason::Refused) => Finding::error(
                format!("the route to real server {address} refuses packets"),
                format!("look at `ip route get {address}` and `ip rule`"),
            ),
            Egress::Kernel(KernelReason::Local) => Finding::error(
                format!("real server {address} is this host"),
                "a director cannot be its own real server",
            ),
            Egress::Kernel(KernelReason::LinkDown) => Finding::error(
                format!("the device towards real server {address} is down"),
                format!("ip link set {} up", path.interface.as_deref().unwrap_or("<device>")),
            ),
            Egress::Kernel(
                reason @ (KernelReason::SpecialRoute
                | KernelReason::NotEthernet
                | KernelReason::BehindRouter
                | KernelReason::Ipsec
                | KernelReason::IpsecUnknown),
            ) => Finding::note(
                format!("packets to real server {address} go through the kernel: {reason}"),
                "they are routed as any other packet of this host, a little slower",
            ),
        };
        findings.push(finding);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::parse;
    use crate::control::finding::Severity;
    use std::net::IpAddr;

    fn config() -> Config {
        let text = "[director]\ninterface = \"eth0\"\n[[service]]\nname = \"db\"\n\
                    vip = \"192.0.2.1\"\nport = 5432\n[[service]]\nname = \"db6\"\n\
                    vip = \"2001:db8::1\"\nport = 5432\n";
        parse(text, "t").unwrap()
    }

    fn good() -> HostFacts {
        HostFacts {
            interface: Some(Link {
                index: 2,
                name: "eth0".into(),
                mtu: 1500,
                ethernet: true,
                mac: Some([2; 6]),
                up: true,
                is_bridge: false,
                controller: None,
                in_bridge: false,
                tx_dropped: 0,
            }),
            forwarding_v4: Some(true),
            forwarding_v6: Some(true),
            capabilities: Some(u64::MAX),
            io_uring_disabled: Some(0),
            ..HostFacts::default()
        }
    }

    fn drop_chain(accepts: &[&str]) -> HookChain {
        HookChain {
            name: "inet filter forward".into(),
            family: "inet".into(),
            hook: Hook::Forward,
            drops_rest: true,
            accepts: accepts.iter().map(|&s| s.to_owned()).collect(),
        }
    }

    #[test]
    fn a_good_host_has_no_findings() {
        assert_eq!(judge(&config(), &good()), []);
    }

    /// What is changed on the good host, the gravity expected, and a word of the message.
    type Case = (fn(&mut HostFacts), Severity, &'static str);

    #[test]
    fn each_fault_is_named() {
        use Severity::{Error, Warning};
        let cases: [Case; 21] = [
            (|f| f.missing_group = Some("dba".into()), Error, "no such group"),
            (|f| f.interface = None, Error, "no interface eth0"),
            (|f| f.interface.as_mut().unwrap().up = false, Error, "eth0 is down"),
            (|f| f.forwarding_v4 = Some(false), Error, "IPv4 forwarding is off"),
            (|f| f.forwarding_v6 = Some(false), Error, "IPv6 forwarding is off"),
            (|f| f.ipv6_off_for_new = Some(true), Error, "no IPv6"),
            (|f| f.accept_ra = Some(1), Warning, "router advertisements"),
            (|f| f.rp_filter_interface = Some(1), Warning, "reverse path"),
            (|f| f.capabilities = Some(!(1 << CAP_NET_RAW)), Error, "CAP_NET_RAW"),
            (|f| f.tun_refused = Some("no".into()), Error, "/dev/net/tun"),
            (|f| f.io_uring_disabled = Some(2), Error, "io_uring is disabled"),
            (|f| f.io_uring_disabled = Some(1), Warning, "io_uring is restricted"),
            (
                |f| {
                    f.capabilities = Some(!(1 << CAP_IPC_LOCK));
                    f.memlock = Some(64 << 10);
                },
                Error,
                "the memlock limit is 64 KiB",
            ),
            (|f| f.nft_missing = true, Error, "nft"),
            (|f| f.memory_available = Some(1 << 20), Error, "max_connections"),
            (|f| f.state_dir_free = Some(1 << 20), Error, "/run/adit"),
            (
                |f| f.foreign_routes = vec![IpAddr::from([192, 0, 2, 1]).into()],
                Error,
                "a route for the VIP",
            ),
            (|f| f.chains_unseen = Some("no".into()), Warning, "cannot be seen"),
            (|f| f.chains = vec![drop_chain(&[])], Error, "inet filter forward"),
            (|f| f.foreign_sources = vec![IpAddr::from([10, 0, 0, 1])], Error, "10.0.0.1"),
            (
                |f| {
                    f.interface.as_mut().expect("it has one").in_bridge = true;
                    f.bridge_netfilter = Some(true);
                },
                Warning,
                "bridge netfilter",
            ),
        ];
        for (change, severity, word) in cases {
            let mut facts = good();
            change(&mut facts);
            let findings = judge(&config(), &facts);
            assert_eq!(findings.len(), 1, "{word}: {findings:?}");
            assert_eq!(findings[0].severity, severity, "{word}");
            assert!(findings[0].message.contains(word), "{word}: {findings:?}");
            assert!(!findings[0].help.is_empty(), "{word}: says not what to do");
        }
    }

    #[test]
    fn more_workers_than_cores_are_warned_of() {
        let with = |workers, cores| {
            let mut config = config();
            config.director.workers = workers;
            judge(&config, &HostFacts { cores, ..good() })
        };
        for (workers, cores) in [(0, Some(1)), (1, Some(1)), (4, Some(4)), (4, None)] {
            assert_eq!(with(workers, cores), [], "{workers} of {cores:?}");
        }
        let findings = with(4, Some(3));
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert_eq!(findings[0].severity, Severity::Warning);
        assert_eq!(findings[0].message, "workers = 4, and there are cores for 3");
    }

    #[test]
    fn routes_that_announce_need_a_daemon_that_exports_them() {
        let mut config = config();
        let seen = |seen| HostFacts { routing_daemon: seen, ..good() };
        assert_eq!(judge(&config, &seen(Some(false))), []);
        config.director.announce = Announce::Route;
        assert_eq!(judge(&config, &seen(Some(true))), []);
        assert_eq!(judge(&config, &seen(None)), [], "nobody knows");
        let findings = judge(&config, &seen(Some(false)));
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert_eq!(findings[0].severity, Severity::Warning);
        assert!(findings[0].help.contains("krt_source = 173 && krt_metric = 1"), "{findings:?}");
    }

    #[test]
    fn bridge_capture_needs_a_bridge_and_no_forwarding() {
        let mut config = config();
        config.director.capture = Capture::Bridge;
        let bridge = |is_bridge| {
            let link = Link { is_bridge, ..good().interface.expect("it has one") };
            HostFacts { interface: Some(link), forwarding_v4: Some(false), ..good() }
        };
        assert_eq!(judge(&config, &bridge(true)), []);
        let findings = judge(&config, &bridge(false));
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(findings[0].message.contains("not a bridge"), "{findings:?}");
    }

    #[test]
    fn locked_memory_has_a_limit_only_for_those_without_the_capability() {
        let facts = HostFacts { memlock: Some(64 << 10), ..good() };
        assert_eq!(judge(&config(), &facts), []);
        let capabilities = Some(!(1 << CAP_IPC_LOCK));
        for memlock in [Some(ENOUGH_MEMLOCK), None] {
            let facts = HostFacts { memlock, capabilities, ..good() };
            assert_eq!(judge(&config(), &facts), [], "{memlock:?}");
        }
    }

    #[test]
    fn a_chain_that_accepts_the_tap_is_in_order() {
        let facts =
            HostFacts { chains: vec![drop_chain(&[r#"{"right": "adit0"} accept"#])], ..good() };
        assert_eq!(judge(&config(), &facts), []);
    }
}
