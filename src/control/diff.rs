//! What differs between two configurations, in words and in what it does to connections.

use super::admin::api::Change;
use super::config::{Check, Config, Persistence, Service};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// What only a restart can change, in words. Empty where a reload will do.
#[must_use]
pub fn fixed(old: &Config, new: &Config) -> Vec<String> {
    let (a, b) = (&old.director, &new.director);
    let mut found = Vec::new();
    let mut look = |key: &str, before: String, after: String| {
        if before != after {
            found.push(format!("`{key}` cannot change while running ({before} -> {after})"));
        }
    };
    look("tap", a.tap.clone(), b.tap.clone());
    look("interface", a.interface.clone(), b.interface.clone());
    look("workers", a.workers.to_string(), b.workers.to_string());
    look("capture", word(&a.capture), word(&b.capture));
    look("announce", word(&a.announce), word(&b.announce));
    look("io", word(&a.io), word(&b.io));
    look("max_connections", a.max_connections.to_string(), b.max_connections.to_string());
    look("state_dir", word(&a.state_dir), word(&b.state_dir));
    look("socket", word(&a.socket), word(&b.socket));
    look("admin_group", word(&a.admin_group), word(&b.admin_group));
    look("mtu", word(&a.mtu), word(&b.mtu));
    look("tap_queue_length", a.tap_queue_length.to_string(), b.tap_queue_length.to_string());
    look("metrics", word(&a.metrics), word(&b.metrics));
    look("hash_key_file", word(&a.hash_key_file), word(&b.hash_key_file));
    let limits = |c: &Config| (c.limits.emitted_per_client, c.limits.emitted_total);
    look("[limits]", word(&limits(old)), word(&limits(new)));
    found
}

fn word<T: std::fmt::Debug>(value: &T) -> String {
    format!("{value:?}").to_lowercase()
}

/// Every change, each with the connections it touches. `flows` counts those of a service, or of
/// one real server of it; `cut` says that connections to what is taken out are cut.
#[must_use]
pub fn changes(
    old: &Config,
    new: &Config,
    cut: bool,
    flows: impl Fn(&str, Option<IpAddr>) -> u64,
) -> Vec<Change> {
    let mut changes = Vec::new();
    let outer = |c: &Config| (c.tunnel.sources().collect::<Vec<_>>(), c.tunnel.ttl);
    if outer(old) != outer(new) {
        changes.push(Change {
            what: "[tunnel] differs".to_owned(),
            effect: "holds for the next packet of every connection".to_owned(),
            connections: old.services.iter().map(|s| flows(&s.name, None)).sum(),
        });
    }
    if old.health != new.health {
        changes.push(Change {
            what: "[health] differs".to_owned(),
            effect: "checks come from other addresses or ports; what is known stays".to_owned(),
            connections: 0,
        });
    }
    let leaving =
        if cut { "its connections are cut" } else { "its connections go on to their end" };
    let find = |config: &Config, name: &str| -> Option<usize> {
        config.services.iter().position(|s| s.name == name)
    };
    for service in &old.services {
        match find(new, &service.name) {
            None => changes.push(Change {
                what: format!("service {} removed", service.name),
                effect: format!("takes no new connections; {leaving}"),
                connections: flows(&service.name, None),
            }),
            Some(at) => service_changes(service, &new.services[at], leaving, &flows, &mut changes),
        }
    }
    for service in new.services.iter().filter(|s| find(old, &s.name).is_none()) {
        changes.push(Change {
            what: format!(
                "service {} added: {} {} port {}, {} real servers",
                service.name,
                service.vip,
                service.protocol,
                service.ports,
                service.reals.len()
            ),
            effect: "takes connections at once".to_owned(),
            connections: 0,
        });
    }
    changes
}

fn service_changes(
    old: &Service,
    new: &Service,
    leaving: &str,
    flows: &impl Fn(&str, Option<IpAddr>) -> u64,
    changes: &mut Vec<Change>,
) {
    let name = &old.name;
    let mut push = |what: String, effect: &str, connections: u64| {
        let what = format!("service {name}: {what}");
        changes.push(Change { what, effect: effect.to_owned(), connections });
    };
    let all = flows(name, None);
    if old.vip != new.vip {
        let what = format!("VIP {} -> {}", old.vip, new.vip);
        push(what, &format!("the old VIP takes no new connections; {leaving}"), all);
    }
    if (&old.ports, old.protocol) != (&new.ports, new.protocol) {
        let what =
            format!("{} port {} -> {} port {}", old.protocol, old.ports, new.protocol, new.ports);
        push(what, "connections to other ports go on to their end", all);
    }
    if old.scheduler != new.scheduler {
        let what = format!("scheduler {} -> {}", old.scheduler, new.scheduler);
        push(what, "holds for new connections; those there are stay where they are", 0);
    }
    if old.scheduler_flags != new.scheduler_flags {
        let show = |s: &Service| match s.scheduler_flags.as_slice() {
            [] => "none".to_owned(),
            flags => flags.iter().map(|flag| flag.name()).collect::<Vec<_>>().join(","),
        };
        let what = format!("scheduler flags {} -> {}", show(old), show(new));
        push(what, "hold for new connections; those there are stay where they are", 0);
    }
    if old.one_packet != new.one_packet {
        let what = format!("one_packet {} -> {}", old.one_packet, new.one_packet);
        push(what, "holds for datagrams without a connection; those there are go on", 0);
    }
    if old.check != new.check {
        let show = |check: &Option<Check>| {
            check.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string)
        };
        let what = format!("check {} -> {}", show(&old.check), show(&new.check));
        let effect = match (&old.check, &new.check) {
            (None, Some(_)) => {
                "real servers that are there go on until checks have failed; new ones begin as \
                 `initial` says"
            }
            (_, None) => "every real server counts as up",
            (Some(_), Some(_)) => {
                "holds from the next check on; what is known of real servers stays"
            }
        };
        push(what, effect, 0);
    }
    if old.persistence != new.persistence {
        let show = |p: &Option<Persistence>| {
            p.as_ref().map_or("none".to_owned(), |p| {
                format!(
                    "{} by /{} and /{}",
                    humantime::format_duration(p.timeout),
                    p.ipv4_prefix,
                    p.ipv6_prefix
                )
            })
        };
        let what = format!("persistence {} -> {}", show(&old.persistence), show(&new.persistence));
        push(what, "holds for new connections", 0);
    }
    if old.limits != new.limits {
        let what = format!("limits {} -> {}", old.limits, new.limits);
        push(what, "hold for new connections, counted afresh", 0);
    }
    if old.timeouts != new.timeouts {
        push("timeouts differ".to_owned(), "hold from each connection's next packet", all);
    }
    if old.df != new.df {
        push("df differs".to_owned(), "holds for the next packet of every connection", all);
    }
    real_changes(old, new, leaving, flows, &mut push);
    if let (Some(before), Some(after)) = (old.table_size(), new.table_size())
        && before != after
    {
        push(
            format!("the placement table grows or shrinks from {before} to {after} slots"),
            "nearly all clients are placed anew: known connections stay, those that a restarted \
             director has to guess may not",
            all,
        );
    }
}

fn real_changes(
    old: &Service,
    new: &Service,
    leaving: &str,
    flows: &impl Fn(&str, Option<IpAddr>) -> u64,
    push: &mut impl FnMut(String, &str, u64),
) {
    let weight = |s: &Service, address: IpAddr| {
        s.reals.iter().find(|r| r.address == address).map(|r| r.weight)
    };
    let addresses: BTreeSet<IpAddr> =
        old.reals.iter().chain(&new.reals).map(|r| r.address).collect();
    for address in addresses {
        let connections = flows(&old.name, Some(address));
        match (weight(old, address), weight(new, address)) {
            (Some(_), None) => {
                let effect = format!("takes no new connections; {leaving}");
                push(format!("real server {address} removed"), &effect, connections);
            }
            (None, Some(weight)) => {
                let what = format!("real server {address} added with weight {weight}");
                push(what, "takes its share of new connections; those there are stay", 0);
            }
            (Some(before), Some(0)) if before != 0 => {
                let what = format!("real server {address} drained (weight {before} -> 0)");
                push(what, "takes no new connections; those there are stay", connections);
            }
            (Some(before), Some(after)) if before != after => {
                let what = format!("real server {address} weight {before} -> {after}");
                push(what, "its share of new connections follows", 0);
            }
            (Some(_) | None, Some(_) | None) => {}
        }
        let tunnel = |s: &Service| s.reals.iter().find(|r| r.address == address).map(|r| r.tunnel);
        if let (Some(before), Some(after)) = (tunnel(old), tunnel(new))
            && before != after
        {
            let checked = if old.check.is_some() && new.check.is_some() {
                ", by which the next check decides alone"
            } else {
                ""
            };
            let effect = format!(
                "connections there are go on by the way they began, as draining ones; new ones go \
                 by the new one{checked}"
            );
            push(format!("real server {address} tunnel {before} -> {after}"), &effect, connections);
        }
        let thresholds = |s: &Service| {
            let real = s.reals.iter().find(|r| r.address == address)?;
            Some((real.max_connections, real.min_connections))
        };
        if let (Some(before), Some(after)) = (thresholds(old), thresholds(new))
            && before != after
        {
            let show = |(upper, lower): (Option<u32>, Option<u32>)| match (upper, lower) {
                (None, _) => "none".to_owned(),
                (Some(upper), None) => upper.to_string(),
                (Some(upper), Some(lower)) => format!("{upper} down to {lower}"),
            };
            let (before, after) = (show(before), show(after));
            let what = format!("real server {address} threshold {before} -> {after}");
            push(what, "holds for new connections", 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::parse;

    const OLD: &str = "[director]\ninterface = \"eth0\"\n\
        [[service]]\nname = \"db\"\nvip = \"192.0.2.1\"\nport = 5432\n\
        [[service.real]]\naddress = \"10.0.0.1\"\n[[service.real]]\naddress = \"10.0.0.2\"\n\
        [[service]]\nname = \"web\"\nvip = \"192.0.2.1\"\nport = 80\n";

    fn config(text: &str) -> Config {
        parse(text, "t").unwrap()
    }

    fn lines(from: &str, to: &str) -> Vec<String> {
        let new = config(&OLD.replace(from, to));
        changes(&config(OLD), &new, false, |_, real| if real.is_some() { 3 } else { 7 })
            .into_iter()
            .map(|c| format!("{} [{}] {}", c.what, c.connections, c.effect))
            .collect()
    }

    #[test]
    fn each_change_is_named_with_what_it_touches() {
        let real = "[[service.real]]\naddress = \"10.0.0.2\"\n";
        let cases = [
            ("5432", "5433", "tcp port 5432 -> tcp port 5433 [7]"),
            (real, "", "real server 10.0.0.2 removed [3]"),
            ("10.0.0.2\"", "10.0.0.2\"\nweight = 0", "10.0.0.2 drained (weight 100 -> 0) [3]"),
            ("10.0.0.2\"", "10.0.0.2\"\nweight = 5", "10.0.0.2 weight 100 -> 5 [0]"),
            (
                "10.0.0.2\"",
                "10.0.0.2\"\nmax_connections = 9\nmin_connections = 5",
                "real server 10.0.0.2 threshold none -> 9 down to 5 [0]",
            ),
            (
                "10.0.0.2\"",
                "10.0.0.2\"\ntunnel = \"gue\"",
                "real server 10.0.0.2 tunnel ipip -> gue port 6080 [3] connections there are go on",
            ),
            (
                "\"eth0\"\n",
                "\"eth0\"\n[tunnel]\nsource = [\"10.9.0.1\", \"10.9.0.2\"]\n",
                "[tunnel] differs [14]",
            ),
            ("port = 80", "port = 80\nscheduler = \"wrr\"", "web: scheduler maglev -> wrr [0]"),
            ("port = 80", "port = 80\ntimeouts = { udp = \"9s\" }", "web: timeouts differ [7]"),
            ("port = 80", "port = 80\ndf = \"clear\"", "web: df differs [7]"),
            ("port = 80", "port = 80\nscheduler = \"wlc\"", "web: scheduler maglev -> wlc [0]"),
            ("port = 80", "port = 80\npersistence = {}", "persistence none -> 5m by /32 and /64"),
            (
                "port = 80",
                "port = 80\ncheck = { kind = \"tcp\" }",
                "web: check none -> tcp port 80 every 2s within 1s, rise 2, fall 3, down every 5s, \
                 initial down [0] real servers that are there go on until checks have failed",
            ),
            (
                "[[service]]\nname = \"db\"",
                "[health]\nports = \"62000-65000\"\n[[service]]\nname = \"db\"",
                "[health] differs [0]",
            ),
        ];
        for (from, to, expected) in cases {
            let lines = lines(from, to);
            assert_eq!(lines.len(), 1, "{lines:?}");
            assert!(lines[0].contains(expected), "{lines:?} has no {expected}");
        }
        let udp = lines(
            "port = 80",
            "port = 80\nprotocol = \"udp\"\none_packet = true\nscheduler = \"sh\"\n\
             scheduler_flags = [\"sh-port\", \"sh-fallback\"]",
        );
        assert_eq!(udp.len(), 4, "{udp:?}");
        assert!(udp[2].contains("scheduler flags none -> sh-port,sh-fallback"), "{udp:?}");
        assert!(udp[3].contains("one_packet false -> true [0]"), "{udp:?}");
        let renamed = lines("\"web\"", "\"www\"");
        assert_eq!(renamed.len(), 2, "{renamed:?}");
        assert!(lines("eth0", "eth0").is_empty());
    }

    #[test]
    fn what_becomes_of_checked_servers_is_said() {
        let check = "port = 5432\ncheck = { kind = \"tcp\" }";
        let checked = OLD.replace("port = 5432", check);
        let effect = |from: &str, to: &str| {
            let found =
                changes(&config(&checked), &config(&checked.replace(from, to)), false, |_, _| 0);
            assert_eq!(found.len(), 1, "{found:?}");
            found[0].effect.clone()
        };
        assert_eq!(effect(check, "port = 5432"), "every real server counts as up");
        let other = effect("\"tcp\" }", "\"tcp\", fall = 9 }");
        assert!(other.contains("what is known of real servers stays"), "{other}");
        let tunnel = effect("10.0.0.2\"", "10.0.0.2\"\ntunnel = \"gue\"");
        assert!(tunnel.ends_with("by which the next check decides alone"), "{tunnel}");
    }

    #[test]
    fn a_table_of_another_size_is_announced() {
        let mut text = OLD.to_owned();
        for n in 0..700 {
            let address = format!("10.1.{}.{}", n / 250, n % 250 + 1);
            text = text.replace(
                "[[service]]\nname = \"web\"",
                &format!("[[service.real]]\naddress = \"{address}\"\n[[service]]\nname = \"web\""),
            );
        }
        let found = changes(&config(OLD), &config(&text), false, |_, _| 0);
        assert!(found.iter().any(|c| c.what.contains("65537 to 131101")), "{:?}", found.last());
    }

    #[test]
    fn what_a_reload_cannot_do_is_named() {
        let new = |from: &str, to: &str| fixed(&config(OLD), &config(&OLD.replace(from, to)));
        assert_eq!(new("5432", "5433"), Vec::<String>::new());
        assert!(
            new("\"eth0\"\n", "\"eth0\"\nmax_connections = 2000\n")[0].contains("1000000 -> 2000")
        );
        assert!(new("\"eth0\"\n", "\"eth0\"\ntap = \"t\"\n")[0].contains("`tap`"));
        assert!(new("\"eth0\"\n", "\"eth0\"\nstate_dir = \"/x\"\n")[0].contains("state_dir"));
        assert!(new("\"eth0\"\n", "\"eth0\"\nmetrics = \"[::1]:9105\"\n")[0].contains("`metrics`"));
        assert!(new("\"eth0\"\n", "\"eth0\"\nhash_key_file = \"/x\"\n")[0].contains("hash_key"));
    }
}
