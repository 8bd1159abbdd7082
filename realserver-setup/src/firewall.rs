//! Our nftables table: tunnelled packets from directors alone, and TCP segments that leave room for
//! the outer header.
//!
//! Whoever can send a tunnelled packet can send any packet, in any client's name, past every filter on
//! the way. So what comes from others is dropped. An accept in one table does not overrule a drop in
//! another, so what somebody else's firewall drops is told by [`crate::firewall::ruleset`].

pub mod ruleset;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::net::IpAddr;

use serde::Serialize;
use serde_json::Value;

use crate::kernel::{Device, Version};

/// Name of the table, of family `inet`.
pub const TABLE: &str = "adit_realserver";

/// Before the firewalls of others, which sit at 0 (`NF_IP_PRI_FILTER`).
const INPUT_PRIORITY: i64 = -10;
/// `NF_IP_PRI_MANGLE`.
const OUTPUT_PRIORITY: i64 = -150;

/// What is to be in the table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rules {
    /// Named sets of addresses.
    sets: BTreeMap<&'static str, BTreeSet<IpAddr>>,
    /// Rules in their order.
    rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Rule {
    chain: &'static str,
    words: String,
    comment: String,
}

/// What is in the table, as far as it tells one from another: a rule is known by its comment, since
/// how `nft` prints the rest differs between its versions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Elements of the sets.
    pub sets: BTreeMap<String, BTreeSet<IpAddr>>,
    /// Hook and priority of the chains.
    pub chains: BTreeMap<String, (String, i64)>,
    /// Chain and comment of the rules, in their order.
    pub rules: Vec<(String, String)>,
}

/// A way by which tunnelled packets come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entrance {
    /// A protocol of the outer header.
    Protocol(Version, u8),
    /// A UDP port, with GUE.
    Udp(Version, u16),
}

impl Entrance {
    /// Version of the outer header.
    #[must_use]
    pub const fn version(self) -> Version {
        match self {
            Self::Protocol(version, _) | Self::Udp(version, _) => version,
        }
    }

    /// What `nft` calls it.
    #[must_use]
    pub fn words(self) -> String {
        match self {
            Self::Protocol(_, protocol) => format!("meta l4proto {protocol}"),
            Self::Udp(_, port) => format!("udp dport {port}"),
        }
    }

    /// What people call it.
    #[must_use]
    pub fn describe(self) -> String {
        let over = version_name(self.version());
        match self {
            Self::Protocol(_, protocol) => format!("protocol {protocol} over {over}"),
            Self::Udp(_, port) => format!("UDP port {port} over {over}"),
        }
    }
}

/// "IPv4" or "IPv6".
#[must_use]
pub const fn version_name(version: Version) -> &'static str {
    match version {
        Version::V4 => "IPv4",
        Version::V6 => "IPv6",
    }
}

const fn family(version: Version) -> &'static str {
    match version {
        Version::V4 => "ip",
        Version::V6 => "ip6",
    }
}

const fn directors_set(version: Version) -> &'static str {
    match version {
        Version::V4 => "directors4",
        Version::V6 => "directors6",
    }
}

const fn vips_set(version: Version) -> &'static str {
    match version {
        Version::V4 => "vips4",
        Version::V6 => "vips6",
    }
}

impl Rules {
    /// Rules for devices that unwrap: `accepted` is what directors send, of all that unwraps. `sizes` is
    /// the largest TCP segment in bytes, by version of the VIP.
    #[must_use]
    pub fn new(
        devices: &BTreeSet<Device>,
        accepted: &BTreeSet<Entrance>,
        directors: &BTreeSet<IpAddr>,
        vips: &BTreeSet<IpAddr>,
        sizes: &BTreeMap<Version, u16>,
    ) -> Self {
        let mut made = Self::default();
        let unwrapped = devices.iter().flat_map(|device| {
            let version = device.outer();
            device.protocols().iter().map(move |&number| Entrance::Protocol(version, number))
        });
        let entrances: BTreeSet<_> = unwrapped.chain(accepted.iter().copied()).collect();
        for entrance in entrances {
            let version = entrance.version();
            let (words, family, set) = (entrance.words(), family(version), directors_set(version));
            let what = entrance.describe();
            if accepted.contains(&entrance) {
                made.sets.insert(set, of_version(directors, version));
                made.rule(
                    "input",
                    format!("{words} {family} saddr @{set} accept"),
                    format!("{what} from directors"),
                );
            }
            let version = match version {
                Version::V4 => "ipv4",
                Version::V6 => "ipv6",
            };
            made.rule(
                "input",
                format!("meta nfproto {version} {words} counter drop"),
                format!("no {what} from others"),
            );
        }
        for (&version, size) in sizes {
            let (family, set) = (family(version), vips_set(version));
            made.sets.insert(set, of_version(vips, version));
            made.rule(
                "output",
                format!(
                    "{family} saddr @{set} tcp flags & (syn|ack) == (syn|ack) \
                     tcp option maxseg size > {size} tcp option maxseg size set {size}"
                ),
                segment_comment(version, *size),
            );
        }
        made
    }

    fn rule(&mut self, chain: &'static str, words: String, comment: String) {
        self.rules.push(Rule { chain, words, comment });
    }

    /// The transaction that puts them in place of whatever the table holds.
    #[must_use]
    pub fn script(&self) -> String {
        let mut text = format!("table inet {TABLE} {{}}\ndelete table inet {TABLE}\n");
        text.push_str(&self.definition());
        text
    }

    /// The table alone, for a file that is loaded into an empty ruleset.
    #[must_use]
    pub fn definition(&self) -> String {
        let mut text = format!("table inet {TABLE} {{\n");
        // Writing to a String cannot fail.
        for (name, elements) in &self.sets {
            let kind = if name.ends_with('4') { "ipv4_addr" } else { "ipv6_addr" };
            let elements = joined(elements);
            let _ = writeln!(text, "  set {name} {{ type {kind}; elements = {{ {elements} }} }}");
        }
        for (chain, priority) in CHAINS {
            let _ = writeln!(
                text,
                "  chain {chain} {{\n    type filter hook {chain} priority {priority}; policy accept;"
            );
            for rule in self.rules.iter().filter(|rule| rule.chain == chain) {
                let _ = writeln!(text, "    {} comment \"{}\"", rule.words, rule.comment);
            }
            text.push_str("  }\n");
        }
        text.push_str("}\n");
        text
    }

    /// What will be seen of them.
    #[must_use]
    pub fn table(&self) -> Table {
        let named =
            |(name, elements): (&&str, &BTreeSet<_>)| ((*name).to_owned(), elements.clone());
        let hooked =
            |(chain, priority): (&str, i64)| (chain.to_owned(), (chain.to_owned(), priority));
        let in_order = CHAINS
            .iter()
            .flat_map(|(chain, _)| self.rules.iter().filter(move |rule| rule.chain == *chain));
        Table {
            sets: self.sets.iter().map(named).collect(),
            chains: CHAINS.into_iter().map(hooked).collect(),
            rules: in_order.map(|rule| (rule.chain.to_owned(), rule.comment.clone())).collect(),
        }
    }

    /// Is there anything to do?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }
}

const CHAINS: [(&str, i64); 2] = [("input", INPUT_PRIORITY), ("output", OUTPUT_PRIORITY)];

/// Comment of the rule that limits segments.
#[must_use]
pub fn segment_comment(version: Version, size: u16) -> String {
    format!("segments to {} VIPs of at most {size} bytes", version_name(version))
}

fn of_version(addresses: &BTreeSet<IpAddr>, version: Version) -> BTreeSet<IpAddr> {
    addresses.iter().copied().filter(|address| Version::of(*address) == version).collect()
}

fn joined(addresses: &BTreeSet<IpAddr>) -> String {
    let texts: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "inet {TABLE}:")?;
        for (name, elements) in &self.sets {
            write!(f, " {name} {{ {} }};", joined(elements))?;
        }
        for (at, rule) in self.rules.iter().enumerate() {
            write!(f, "{} {}", if at == 0 { "" } else { "," }, rule.comment)?;
        }
        Ok(())
    }
}

impl Table {
    /// Our table, where the ruleset (`nft -j list ruleset`) has it.
    #[must_use]
    pub fn of_ruleset(ruleset: &Value) -> Option<Self> {
        let objects = ruleset["nftables"].as_array()?;
        let ours = |value: &&Value| value["family"] == "inet" && value["table"] == TABLE;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        objects
            .iter()
            .map(|object| &object["table"])
            .find(|table| table["family"] == "inet" && table["name"] == TABLE)?;
        let mut found = Self::default();
        for set in objects.iter().map(|object| &object["set"]).filter(ours) {
            let elements = set["elem"].as_array().map(Vec::as_slice).unwrap_or_default();
            let addresses = elements.iter().filter_map(|element| element.as_str()?.parse().ok());
            found.sets.insert(text(&set["name"]), addresses.collect());
        }
        for chain in objects.iter().map(|object| &object["chain"]).filter(ours) {
            let place = (text(&chain["hook"]), chain["prio"].as_i64().unwrap_or_default());
            found.chains.insert(text(&chain["name"]), place);
        }
        for (chain, _) in CHAINS {
            let rules = objects.iter().map(|object| &object["rule"]).filter(ours);
            for rule in rules.filter(|rule| rule["chain"] == chain) {
                found.rules.push((text(&rule["chain"]), text(&rule["comment"])));
            }
        }
        Some(found)
    }
}
