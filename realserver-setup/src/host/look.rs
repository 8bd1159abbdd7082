//! Looks at the host.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use serde_json::Value;

use super::HostError;
use super::command::{list, run};
use super::store;
use crate::firewall::Table;
use crate::kernel::{GuePort, Module, Parameter, ParameterName, Version};
use crate::observed::{Announced, Link, Observed};
use crate::step::MSS_TABLE;

/// The host's state.
///
/// # Errors
/// When something cannot be looked at.
pub fn look() -> Result<Observed, HostError> {
    let links = links()?;
    let modules = modules(&links);
    let ports = if modules.contains(&Module::Fou) { ports()? } else { BTreeSet::new() };
    let ruleset = ruleset()?;
    let versions: &[Version] = if Path::new("/proc/net/if_inet6").exists() {
        &[Version::V4, Version::V6]
    } else {
        &[Version::V4]
    };
    let mut routes = Announced::default();
    let mut default_ways = BTreeMap::new();
    for &version in versions {
        if let Some(way) = routes_of(version, &mut routes)? {
            default_ways.insert(version, way);
        }
    }
    Ok(Observed {
        parameters: parameters()?,
        nftables: ruleset.is_some(),
        table: ruleset.as_ref().and_then(Table::of_ruleset),
        ruleset: ruleset.unwrap_or(Value::Null),
        old_tables: old_tables(),
        memory: store::read()?,
        links,
        modules,
        ports,
        routes,
        default_ways,
    })
}

fn links() -> Result<BTreeMap<String, Link>, HostError> {
    let mut found = BTreeMap::new();
    for link in list("-j -d addr show")? {
        let Some(name) = link["ifname"].as_str() else { continue };
        let flag = |wanted: &str| {
            link["flags"].as_array().is_some_and(|flags| flags.iter().any(|flag| flag == wanted))
        };
        let info = &link["linkinfo"];
        let end = |name: &str| info["info_data"][name].as_str().and_then(|end| end.parse().ok());
        let own: Option<IpAddr> = end("local");
        let entries = link["addr_info"].as_array().map(Vec::as_slice).unwrap_or_default();
        let addresses = entries.iter().filter_map(|entry| entry["local"].as_str()?.parse().ok());
        let kind = info["info_kind"].as_str().unwrap_or_default().to_owned();
        found.insert(
            name.to_owned(),
            Link {
                up: flag("UP"),
                arp: !flag("NOARP") && !flag("LOOPBACK"),
                local: own.filter(|local| !local.is_unspecified()),
                remote: end("remote").filter(|remote: &IpAddr| !remote.is_unspecified()),
                // As `ip` shows the mode "any".
                both_versions: info["info_data"]["proto"] == "any",
                addresses: addresses.filter(|address| !is_given(*address, &kind)).collect(),
                kind,
            },
        );
    }
    Ok(found)
}

/// Does the kernel give this address by itself? Link-local ones, and on a `sit` device one for each
/// IPv4 address of the host (`sit_add_v4_addrs` in net/ipv6/addrconf.c).
fn is_given(address: IpAddr, kind: &str) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => {
            let compatible = address.segments()[..6] == [0; 6];
            address.is_unicast_link_local() || (kind == "sit" && compatible)
        }
    }
}

/// What is loaded, built in, or known by the device that comes with it.
fn modules(links: &BTreeMap<String, Link>) -> BTreeSet<Module> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let list = format!("/lib/modules/{}/modules.builtin", release.trim());
    // Without the list a module that is built in is asked of modprobe, which knows it too.
    let built_in = fs::read_to_string(list).unwrap_or_default().replace('-', "_");
    let is_there = |module: &Module| {
        let file = format!("/{}.ko", module.name());
        Path::new("/sys/module").join(module.name()).exists()
            || module.devices().first().is_some_and(|device| links.contains_key(*device))
            || built_in.lines().any(|line| line.ends_with(&file))
    };
    Module::ALL.into_iter().filter(is_there).collect()
}

fn parameters() -> Result<BTreeMap<Parameter, i32>, HostError> {
    let directory = Path::new("/proc/sys/net/ipv4/conf");
    let failed = |path: &Path| {
        let path = path.display().to_string();
        |source| HostError::File { path, source }
    };
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).map_err(failed(directory))? {
        let scope = entry.map_err(failed(directory))?.file_name();
        let Some(scope) = scope.to_str() else { continue };
        for name in ParameterName::ALL {
            let parameter = name.of(scope);
            // An interface may go at any time.
            let value = fs::read_to_string(parameter.path()).ok();
            if let Some(Ok(value)) = value.map(|text| text.trim().parse()) {
                found.insert(parameter, value);
            }
        }
    }
    Ok(found)
}

fn ports() -> Result<BTreeSet<GuePort>, HostError> {
    let port = |entry: &Value| {
        // Shown by its name alone; plain FOU is another thing.
        entry.get("gue")?;
        let version = if entry["family"] == "inet6" { Version::V6 } else { Version::V4 };
        Some(GuePort { version, port: entry["port"].as_u64()?.try_into().ok()? })
    };
    Ok(list("-j fou show")?.iter().filter_map(port).collect())
}

/// Everybody's rules; `None` where nftables does not work for the family `inet` and TCP's segment
/// size, or is missing.
fn ruleset() -> Result<Option<Value>, HostError> {
    // One statement a line: `nft` wants an end behind each closing brace.
    let probe = "add table inet adit_probe\n\
                 add chain inet adit_probe out { type filter hook output priority -150; }\n\
                 add rule inet adit_probe out tcp option maxseg size set 1440\n";
    match run("nft", &["-c", "-f", "-"], Some(probe)) {
        Ok(_) => {}
        Err(error @ HostError::Rights(_)) => return Err(error),
        Err(_) => return Ok(None),
    }
    let text = run("nft", &["-j", "list", "ruleset"], None)?;
    serde_json::from_str(&text).map(Some).map_err(|error| HostError::Refused {
        command: "nft -j list ruleset".to_owned(),
        reason: error.to_string(),
    })
}

/// Names of the old iptables' tables; the files are there where it is.
fn old_tables() -> Vec<String> {
    let mut found = Vec::new();
    for (path, family) in
        [("/proc/net/ip_tables_names", "ip"), ("/proc/net/ip6_tables_names", "ip6")]
    {
        let names = fs::read_to_string(path).unwrap_or_default();
        found.extend(names.lines().map(|name| format!("{family} {name}")));
    }
    found
}

/// What our own routing table holds, and who uses it; returns how the host's default route goes.
fn routes_of(version: Version, found: &mut Announced) -> Result<Option<String>, HostError> {
    let name = MSS_TABLE.to_string();
    let ours = |entry: &&Value| entry["table"] == name.as_str();
    let rules = list(&format!("{} -j rule show", version.option()))?;
    let sources = rules.iter().filter(ours).filter_map(|rule| rule["src"].as_str()?.parse().ok());
    found.sources.extend::<Vec<IpAddr>>(sources.collect());
    // Asking for a table that is not there is an error.
    let routes = list(&format!("{} -j route show table all", version.option()))?;
    // The first of a table is the one in use; that of the main table is shown without its name.
    let (ours, others): (Vec<_>, Vec<_>) =
        routes.iter().filter(|route| route["dst"] == "default").partition(ours);
    for route in ours {
        let size = route["metrics"][0]["advmss"].as_u64().and_then(|size| size.try_into().ok());
        if let Some(way) = way(route) {
            found.routes.insert(version, (way, size.unwrap_or_default()));
        }
    }
    let main = others.into_iter().filter(|route| route.get("table").is_none());
    Ok(main.filter(|route| route.get("type").is_none()).find_map(way))
}

/// Gateway and device of a route, as `ip` takes them.
fn way(route: &Value) -> Option<String> {
    let device = route["dev"].as_str()?;
    Some(match route["gateway"].as_str() {
        Some(gateway) => format!("via {gateway} dev {device}"),
        None => format!("dev {device}"),
    })
}
