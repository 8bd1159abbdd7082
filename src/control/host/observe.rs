//! Looking at the host. Nothing here changes anything, and nothing here decides what is good.

use super::checks::CheckFacts;
use super::firewall::{self, HookChain};
use super::judge::geometry;
use crate::control::config::{Announce, Config, VipPrefix};
use crate::control::cores;
use crate::control::flow_region;
use crate::control::netlink::egress::{Survey, Wanted};
use crate::control::netlink::links::Link;
use crate::control::netlink::routes::Route;
use crate::control::netlink::vip_routes::CHECKED_RESERVE_METRIC;
use crate::control::netlink::{Netlink, NetlinkError};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

/// What was seen. `None` where the kernel has no such thing or does not tell.
#[derive(Debug, Clone, Default)]
pub struct HostFacts {
    /// The client-facing interface.
    pub interface: Option<Link>,
    /// The TAP, where one of that name exists already.
    pub tap: Option<Link>,
    /// `net.ipv4.conf.<interface>.forwarding`
    pub forwarding_v4: Option<bool>,
    /// `net.ipv6.conf.<interface>.forwarding` and `all`: both must be on.
    pub forwarding_v6: Option<bool>,
    /// `net.ipv6.conf.<interface>.accept_ra`
    pub accept_ra: Option<u8>,
    /// `net.ipv6.conf.default.disable_ipv6`, which a new TAP inherits.
    pub ipv6_off_for_new: Option<bool>,
    /// Effective `rp_filter` of the interface: the maximum of `all` and its own.
    pub rp_filter_interface: Option<u8>,
    /// What a new TAP gets: the maximum of `all` and `default`.
    pub rp_filter_new: Option<u8>,
    /// `net.bridge.bridge-nf-call-iptables`
    pub bridge_netfilter: Option<bool>,
    /// Base chains of the forward and output hooks of nftables.
    pub chains: Vec<HookChain>,
    /// Why they cannot be seen, where they cannot.
    pub chains_unseen: Option<String>,
    /// `iptables-legacy` filter policy and rules of FORWARD, where that table is in use.
    pub legacy_forward: Vec<HookChain>,
    /// `nft` is not installed.
    pub nft_missing: bool,
    /// Why `/dev/net/tun` cannot be opened, where it cannot.
    pub tun_refused: Option<String>,
    /// Effective capabilities, as a bit set.
    pub capabilities: Option<u64>,
    /// `kernel.io_uring_disabled`
    pub io_uring_disabled: Option<u8>,
    /// `RLIMIT_MEMLOCK` in bytes; `None`: unlimited.
    pub memlock: Option<u64>,
    /// Processors that this process may use; `None` where that cannot be seen.
    pub cores: Option<usize>,
    /// Bytes of memory that can be had without swapping.
    pub memory_available: Option<u64>,
    /// The way to each real server.
    pub survey: Survey,
    /// The route to each VIP, those of prefixes one by one.
    pub vip_routes: Vec<(IpAddr, Route)>,
    /// VIPs for which, or within whose prefix, there is a route that Adit did not make.
    pub foreign_routes: Vec<VipPrefix>,
    /// Bytes free in the state directory's file system; `None` where there is no such directory.
    pub state_dir_free: Option<u64>,
    /// Whether the region is there already and is used as it is.
    pub region_usable: bool,
    /// The group of `admin_group`, where this host has none of that name.
    pub missing_group: Option<String>,
    /// Whether a routing daemon runs here, where routes announce VIPs; `None` where that cannot be
    /// seen.
    pub routing_daemon: Option<bool>,
    /// Configured outer sources that are not addresses of this host.
    pub foreign_sources: Vec<IpAddr>,
    /// What health checks need.
    pub checks: CheckFacts,
}

/// Looks at the host.
///
/// # Errors
/// When netlink does not answer. What else cannot be seen is noted as such.
pub async fn observe(config: &Config) -> Result<HostFacts, NetlinkError> {
    let netlink = Netlink::open()?;
    let director = &config.director;
    let for_local = config.clone();
    // Reads files and may run a program, which takes a while: beside the runtime.
    let mut facts = tokio::task::spawn_blocking(move || local(&for_local))
        .await
        .map_err(|error| NetlinkError::new("cannot look at the host", io::Error::other(error)))?;
    match firewall::nft_chains().await {
        Ok(chains) => facts.chains = chains,
        Err(error) if error.kind() == io::ErrorKind::NotFound => facts.nft_missing = true,
        Err(error) => facts.chains_unseen = Some(error.to_string()),
    }
    facts.interface = netlink.link_by_name(&director.interface).await?;
    facts.tap = netlink.link_by_name(&director.tap).await?;
    let wanted = Wanted {
        reals: config.real_tunnels(),
        sources: config.tunnel.sources().collect(),
        vips: config.vips().iter().flat_map(VipPrefix::addresses).collect(),
    };
    facts.survey = netlink.survey(&wanted).await?;
    facts.checks = check_facts(&facts.survey);
    let addresses: BTreeSet<IpAddr> = config.vips().iter().flat_map(VipPrefix::addresses).collect();
    for vip in addresses {
        facts.vip_routes.push((vip, netlink.route_to(vip, None).await?));
    }
    // Where routes announce VIPs, a routing daemon may have learnt the same from another director.
    let by_routes = director.announce == Announce::Route;
    let worst = if by_routes { CHECKED_RESERVE_METRIC } else { u32::MAX };
    let routed = netlink.foreign_routes(worst).await?;
    let leads_past = |vip: &VipPrefix| routed.iter().any(|route| vip.covers(route));
    facts.foreign_routes = config.vips().into_iter().filter(leads_past).collect();
    facts.foreign_sources = netlink.foreign(config.tunnel.sources()).await?;
    Ok(facts)
}

/// What needs no netlink.
fn local(config: &Config) -> HostFacts {
    let interface = &config.director.interface;
    let sysctl = |path: &str| number(&format!("/proc/sys/{path}"));
    let flag = |path: &str| sysctl(path).map(|n| n != 0);
    let maximum = effective_rp_filter;
    let forwarding =
        |family: &str, name: &str| flag(&format!("net/{family}/conf/{name}/forwarding"));
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_MEMLOCK);
    let missing = |group: &String| matches!(nix::unistd::Group::from_name(group), Ok(None));
    HostFacts {
        missing_group: config.director.admin_group.clone().filter(missing),
        forwarding_v4: forwarding("ipv4", interface),
        forwarding_v6: match (forwarding("ipv6", interface), forwarding("ipv6", "all")) {
            (Some(own), Some(all)) => Some(own && all),
            (own, all) => own.or(all),
        },
        accept_ra: sysctl(&format!("net/ipv6/conf/{interface}/accept_ra")),
        ipv6_off_for_new: flag("net/ipv6/conf/default/disable_ipv6"),
        rp_filter_interface: maximum("all", interface),
        rp_filter_new: maximum("all", "default"),
        bridge_netfilter: flag("net/bridge/bridge-nf-call-iptables"),
        legacy_forward: firewall::legacy_chains(),
        tun_refused: fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
            .err()
            .map(|error| error.to_string()),
        capabilities: capabilities(),
        io_uring_disabled: sysctl("kernel/io_uring_disabled"),
        memlock: limit.ok().map(|(soft, _)| soft).filter(|soft| *soft != libc::RLIM_INFINITY),
        cores: cores::available(),
        memory_available: memory_available(),
        state_dir_free: free_in(&config.director.state_dir),
        region_usable: flow_region::is_usable(&config.director.state_dir, &geometry(config)),
        routing_daemon: (config.director.announce == Announce::Route)
            .then(routing_daemon)
            .flatten(),
        ..HostFacts::default()
    }
}

/// Whether a process has the name of a daemon that exports the kernel's routes: BIRD, FRR's and
/// Quagga's zebra, GoBGP, OpenBGPD.
fn routing_daemon() -> Option<bool> {
    const NAMES: [&str; 5] = ["bird", "bird6", "zebra", "gobgpd", "bgpd"];
    let here = fs::read_link("/proc/self/ns/net").ok()?;
    let is_one = |process: &fs::DirEntry| {
        // Most entries are no processes, and others end meanwhile.
        let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        // Where this may not be seen it may well be.
        let there = || fs::read_link(process.path().join("ns/net"));
        NAMES.contains(&name.trim()) && there().map_or(true, |there| there == here)
    };
    Some(fs::read_dir("/proc").ok()?.flatten().any(|process| is_one(&process)))
}

/// The larger of two devices' `rp_filter`: that is the one in force where one of them is `all`.
fn effective_rp_filter(a: &str, b: &str) -> Option<u8> {
    let own = |name: &str| number(&format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"));
    Some(own(a)?.max(own(b)?))
}

fn check_facts(survey: &Survey) -> CheckFacts {
    let mut devices: Vec<&str> =
        survey.paths.iter().filter_map(|path| path.interface.as_deref()).collect();
    devices.sort_unstable();
    devices.dedup();
    let way = |device: &str| Some((device.to_owned(), effective_rp_filter("all", device)?));
    let read = |name: &str| fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).ok();
    let range = read("ip_local_port_range");
    let mut bounds = range.iter().flat_map(|text| text.split_whitespace()).flat_map(str::parse);
    let reserved = read("ip_local_reserved_ports").unwrap_or_default();
    // `8080,9000-9010`
    let span = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Some((first.parse().ok()?, last.parse().ok()?))
    };
    CheckFacts {
        ways: devices.into_iter().filter_map(way).collect(),
        local_ports: bounds.next().zip(bounds.next()),
        reserved_ports: reserved.trim().split(',').filter_map(span).collect(),
    }
}

/// Bytes that are free where `directory` is or would be made.
fn free_in(directory: &Path) -> Option<u64> {
    let existing = directory.ancestors().find(|path| path.exists())?;
    let system = nix::sys::statvfs::statvfs(existing).ok()?;
    system.blocks_available().checked_mul(system.fragment_size())
}

/// A single number in a file of /proc.
fn number(path: &str) -> Option<u8> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Effective capabilities of this process, as a bit set.
pub(crate) fn capabilities() -> Option<u64> {
    status_field("CapEff:").and_then(|hex| u64::from_str_radix(&hex, 16).ok())
}

fn status_field(name: &str) -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(name))?;
    Some(line[name.len()..].trim().to_owned())
}

fn memory_available() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kib.checked_mul(1024)
}
