//! What somebody else's firewall does with a tunnelled packet.
//!
//! Rules can be anything, so there are three answers. Only what is dropped beyond doubt is reported: a
//! rule that this does not understand makes the answer unclear.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::{Entrance, TABLE};
use crate::kernel::Version;

/// A packet from a director.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Outer source.
    pub source: IpAddr,
    /// Protocol or port.
    pub entrance: Entrance,
}

/// A base chain that drops a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// nftables family.
    pub family: String,
    /// Table.
    pub table: String,
    /// Chain.
    pub chain: String,
}

/// The chains on the way in that drop the packet beyond doubt, in a ruleset as `nft -j list ruleset`
/// prints it. Our own table is left out.
#[must_use]
pub fn obstacles(ruleset: &Value, packet: Packet) -> Vec<Obstacle> {
    let objects = ruleset["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let rules = Objects(objects);
    let chains = objects.iter().map(|object| &object["chain"]);
    chains
        .filter(|chain| chain["type"] == "filter" && chain["hook"] == "input")
        .filter_map(|chain| {
            let text = |key: &str| chain[key].as_str().map(str::to_owned);
            let place =
                Obstacle { family: text("family")?, table: text("table")?, chain: text("name")? };
            let concerned = match (place.family.as_str(), packet.entrance.version()) {
                ("inet", _) | ("ip", Version::V4) | ("ip6", Version::V6) => place.table != TABLE,
                _ => false,
            };
            let drops = match rules.fate(&place, &place.chain, packet, DEPTH) {
                Fate::Dropped => true,
                Fate::Through => chain["policy"] == "drop",
                Fate::Accepted | Fate::Unclear => false,
            };
            (concerned && drops).then_some(place)
        })
        .collect()
}

/// Jumps from chain to chain that are followed; the kernel allows 16 (`NFT_JUMP_STACK_SIZE`).
const DEPTH: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Accepted,
    Dropped,
    /// No rule took it.
    Through,
    Unclear,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Met {
    Yes,
    No,
    Perhaps,
}

impl Met {
    const fn known(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }

    const fn not(self) -> Self {
        match self {
            Self::Yes => Self::No,
            Self::No => Self::Yes,
            Self::Perhaps => Self::Perhaps,
        }
    }
}

struct Objects<'r>(&'r [Value]);

impl Objects<'_> {
    fn fate(&self, place: &Obstacle, chain: &str, packet: Packet, depth: usize) -> Fate {
        if depth == 0 {
            return Fate::Unclear;
        }
        let mut clear = true;
        let sure = |fate, clear| if clear { fate } else { Fate::Unclear };
        let rules = self.0.iter().map(|object| &object["rule"]).filter(|rule| {
            rule["family"] == place.family.as_str()
                && rule["table"] == place.table.as_str()
                && rule["chain"] == chain
        });
        for rule in rules {
            let statements = rule["expr"].as_array().map(Vec::as_slice).unwrap_or_default();
            let mut met = Met::Yes;
            for statement in statements {
                match self.statement(place, statement, packet) {
                    Met::No => met = Met::No,
                    Met::Perhaps if met == Met::Yes => met = Met::Perhaps,
                    Met::Yes | Met::Perhaps => {}
                }
            }
            if met == Met::No {
                continue;
            }
            let Some((verdict, target)) = verdict(statements) else { continue };
            let fate = match (verdict, target) {
                (Verdict::Accept, _) => Fate::Accepted,
                (Verdict::Drop, _) => Fate::Dropped,
                (Verdict::Return, _) => Fate::Through,
                (Verdict::Jump | Verdict::Goto, Some(target)) => {
                    let fate = self.fate(place, target, packet, depth - 1);
                    if fate == Fate::Through && verdict == Verdict::Jump {
                        continue;
                    }
                    fate
                }
                (Verdict::Jump | Verdict::Goto, None) | (Verdict::Other, _) => Fate::Unclear,
            };
            if met == Met::Yes && fate != Fate::Unclear {
                return sure(fate, clear);
            }
            clear = false;
        }
        sure(Fate::Through, clear)
    }

    /// Does a statement let the rule go on?
    fn statement(&self, place: &Obstacle, statement: &Value, packet: Packet) -> Met {
        if let Some(condition) = statement.get("match") {
            let met = self.condition(place, condition, packet);
            return if condition["op"] == "!=" { met.not() } else { met };
        }
        // A limit may be used up, and what iptables translates badly may be any condition.
        let doubtful = ["limit", "xt", "quota", "connlimit", "ct count"];
        if doubtful.iter().any(|word| statement.get(word).is_some()) {
            Met::Perhaps
        } else {
            Met::Yes
        }
    }

    fn condition(&self, place: &Obstacle, condition: &Value, packet: Packet) -> Met {
        let (left, right) = (&condition["left"], &condition["right"]);
        let one_of = |test: &dyn Fn(&Value) -> bool| self.contains(place, right, test);
        let protocol = match packet.entrance {
            Entrance::Protocol(_, number) => number,
            Entrance::Udp(..) => 17,
        };
        let version = packet.entrance.version();
        if let Some(payload) = left.get("payload") {
            let of =
                |name: &str, field: &str| payload["protocol"] == name && payload["field"] == field;
            let (own, other) = match version {
                Version::V4 => ("ip", "ip6"),
                Version::V6 => ("ip6", "ip"),
            };
            return match packet.entrance {
                _ if payload["protocol"] == other => Met::No,
                _ if of("ip", "protocol") || of("ip6", "nexthdr") => {
                    one_of(&|value| protocol_number(value) == Some(protocol))
                }
                _ if of(own, "saddr") => one_of(&|value| covers(value, packet.source)),
                _ if payload["protocol"] == own => Met::Perhaps,
                Entrance::Udp(_, port) if of("udp", "dport") || of("th", "dport") => {
                    one_of(&|value| within(value, u64::from(port)))
                }
                Entrance::Udp(..) if payload["protocol"] == "udp" => Met::Perhaps,
                // Another protocol's header.
                Entrance::Udp(..) | Entrance::Protocol(..) => {
                    if payload["base"].is_string() {
                        Met::Perhaps
                    } else {
                        Met::No
                    }
                }
            };
        }
        match left["meta"]["key"].as_str() {
            Some("l4proto") => one_of(&|value| protocol_number(value) == Some(protocol)),
            Some("nfproto") => {
                let name = if version == Version::V4 { "ipv4" } else { "ipv6" };
                one_of(&|value| value == name)
            }
            // It does not come from this host itself; which device it comes by is not known.
            Some("iif" | "iifname") if right == "lo" => Met::No,
            Some(_) => Met::Perhaps,
            // A flow's first packet.
            None if left["ct"]["key"] == "state" => {
                one_of(&|value| value == "new" || value == "untracked")
            }
            None => Met::Perhaps,
        }
    }

    /// Is an element of `right`, a value or a set, what the test looks for?
    fn contains(&self, place: &Obstacle, right: &Value, test: &dyn Fn(&Value) -> bool) -> Met {
        let any = |elements: &[Value]| {
            Met::known(elements.iter().map(|e| e["elem"].get("val").unwrap_or(e)).any(test))
        };
        if let Some(name) = right.as_str().and_then(|text| text.strip_prefix('@')) {
            let set = self.0.iter().map(|object| &object["set"]).find(|set| {
                set["family"] == place.family.as_str()
                    && set["table"] == place.table.as_str()
                    && set["name"] == name
            });
            return match set {
                Some(set) => any(set["elem"].as_array().map(Vec::as_slice).unwrap_or_default()),
                None => Met::Perhaps,
            };
        }
        match right.get("set").unwrap_or(right).as_array() {
            Some(elements) => any(elements),
            None => Met::known(test(right)),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Accept,
    Drop,
    Return,
    Jump,
    Goto,
    Other,
}

/// What a rule does with what it takes; none: it only counts or marks.
fn verdict(statements: &[Value]) -> Option<(Verdict, Option<&str>)> {
    const WORDS: [(&str, Verdict); 9] = [
        ("accept", Verdict::Accept),
        ("drop", Verdict::Drop),
        ("reject", Verdict::Drop),
        ("return", Verdict::Return),
        ("jump", Verdict::Jump),
        ("goto", Verdict::Goto),
        ("queue", Verdict::Other),
        ("vmap", Verdict::Other),
        // A target of iptables that nftables has no word for.
        ("xt", Verdict::Other),
    ];
    statements.iter().find_map(|statement| {
        let (word, verdict) = WORDS.iter().find(|(word, _)| statement.get(word).is_some())?;
        Some((*verdict, statement[word]["target"].as_str()))
    })
}

/// By number, or as /etc/protocols names those that matter; every other name is another protocol.
fn protocol_number(value: &Value) -> Option<u8> {
    match value.as_str() {
        Some("ipencap" | "ipip" | "IP-ENCAP") => Some(4),
        Some("udp") => Some(17),
        Some("ipv6") => Some(41),
        Some("gre") => Some(47),
        Some(number) => number.parse().ok(),
        None => value.as_u64().and_then(|number| number.try_into().ok()),
    }
}

fn covers(value: &Value, address: IpAddr) -> bool {
    if let Some(prefix) = value.get("prefix") {
        let (Some(start), Some(length)) = (prefix["addr"].as_str(), prefix["len"].as_u64()) else {
            return false;
        };
        return format!("{start}/{length}")
            .parse::<IpNet>()
            .is_ok_and(|net| net.contains(&address));
    }
    if let Some([first, last]) = value["range"].as_array().map(Vec::as_slice) {
        let parsed = |end: &Value| end.as_str()?.parse::<IpAddr>().ok();
        return match (parsed(first), parsed(last)) {
            (Some(first), Some(last)) => (first..=last).contains(&address),
            _ => false,
        };
    }
    value.as_str().is_some_and(|text| text.parse() == Ok(address))
}

fn within(value: &Value, number: u64) -> bool {
    if let Some([first, last]) = value["range"].as_array().map(Vec::as_slice) {
        return first.as_u64() <= Some(number) && Some(number) <= last.as_u64();
    }
    value.as_u64() == Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn chain(policy: &str) -> Value {
        json!({"chain": {"family": "inet", "table": "filter", "name": "input", "type": "filter",
            "hook": "input", "prio": 0, "policy": policy}})
    }

    fn rule(chain: &str, expr: &Value) -> Value {
        json!({"rule": {"family": "inet", "table": "filter", "chain": chain, "expr": expr}})
    }

    fn dropped(objects: &[Value], entrance: Entrance) -> bool {
        let source = match entrance.version() {
            Version::V4 => "10.0.0.5",
            Version::V6 => "2001:db8::5",
        };
        let packet = Packet { source: source.parse().unwrap(), entrance };
        !obstacles(&json!({ "nftables": objects }), packet).is_empty()
    }

    fn is(key: &str, right: &Value) -> Value {
        json!({"match": {"op": "==", "left": {"meta": {"key": key}}, "right": right}})
    }

    fn field(protocol: &str, field: &str, right: &Value) -> Value {
        json!({"match": {"op": "==", "right": right,
            "left": {"payload": {"protocol": protocol, "field": field}}}})
    }

    const IPIP: Entrance = Entrance::Protocol(Version::V4, 4);
    const GUE: Entrance = Entrance::Udp(Version::V4, 6080);

    #[test]
    fn a_policy_drops_what_no_rule_accepts() {
        let accept = json!({"accept": null});
        let established = json!([{"match": {"op": "in", "left": {"ct": {"key": "state"}},
            "right": ["established", "related"]}}, accept]);
        let mut rules = vec![
            chain("drop"),
            rule("input", &established),
            rule("input", &json!([is("iifname", &json!("lo")), accept])),
            rule("input", &json!([field("tcp", "dport", &json!(22)), accept])),
        ];
        assert!(dropped(&rules, IPIP));
        assert!(dropped(&rules, GUE));
        assert!(dropped(&rules, Entrance::Protocol(Version::V6, 41)));

        let from = field("ip", "saddr", &json!({"prefix": {"addr": "10.0.0.0", "len": 24}}));
        for other in ["10.1.0.0", "192.0.2.0"] {
            let from = field("ip", "saddr", &json!({"prefix": {"addr": other, "len": 24}}));
            rules.push(rule("input", &json!([from, is("l4proto", &json!("ipencap")), accept])));
            assert!(dropped(&rules, IPIP), "from {other}");
        }
        rules.push(rule("input", &json!([from, is("l4proto", &json!("ipencap")), accept])));
        assert!(!dropped(&rules, IPIP));
        assert!(dropped(&rules, GUE));
        rules.push(rule(
            "input",
            &json!([field("udp", "dport", &json!({"set": [53, 6080]})), accept]),
        ));
        assert!(!dropped(&rules, GUE));
    }

    #[test]
    fn sets_jumps_and_last_rules_are_followed() {
        let set = json!({"set": {"family": "inet", "table": "filter", "name": "trusted",
            "elem": [{"elem": {"val": "10.0.0.5"}}]}});
        let jump = json!([{"jump": {"target": "tunnels"}}]);
        let mut rules = vec![
            chain("accept"),
            rule("input", &jump),
            rule("input", &json!([{"counter": null}, {"drop": null}])),
        ];
        assert!(dropped(&rules, IPIP), "by a last rule");
        let from = field("ip", "saddr", &json!("@trusted"));
        rules.push(rule("tunnels", &json!([from, is("l4proto", &json!(4)), {"accept": null}])));
        assert!(!dropped(&rules, IPIP), "an unknown set may hold it");
        rules.push(set);
        assert!(!dropped(&rules, IPIP));
        rules.pop();
        rules.push(json!({"set": {"family": "inet", "table": "filter", "name": "trusted"}}));
        assert!(dropped(&rules, IPIP), "an empty set");
    }

    #[test]
    fn what_is_not_understood_is_not_reported() {
        let strange =
            json!([{"match": {"op": "==", "left": {"fib": {}}, "right": 1}}, {"accept": null}]);
        for expr in [
            strange,
            json!([{"xt": null}]),
            json!([is("iifname", &json!("eth0")), {"accept": null}]),
            json!([{"limit": {"rate": 5}}, {"accept": null}]),
        ] {
            assert!(!dropped(&[chain("drop"), rule("input", &expr)], IPIP), "{expr}");
        }
        assert!(!dropped(&[chain("accept")], IPIP));
        assert!(dropped(&[chain("drop"), rule("input", &json!([{"counter": null}]))], IPIP));
    }

    #[test]
    fn other_tables_of_other_versions_do_not_matter() {
        let mut table = chain("drop");
        table["chain"]["family"] = json!("ip6");
        assert!(!dropped(std::slice::from_ref(&table), IPIP));
        assert!(dropped(&[table.clone()], Entrance::Protocol(Version::V6, 41)));
        table["chain"]["family"] = json!("inet");
        table["chain"]["table"] = json!(TABLE);
        assert!(!dropped(&[table], IPIP), "our own");
    }
}
