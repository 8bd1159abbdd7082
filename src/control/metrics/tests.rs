//! What is exposed, held against the views, the documents and the files in packaging/.

use super::*;
use crate::control::admin::api::{
    DrainView, FailuresView, HealthView, OwnedFinding, RealView, ServiceView, Services,
    SessionsView, Status, VipView, WorkerView, sample,
};
use crate::control::config::{ClientLimit, NewFlows, ServiceLimits};
use crate::control::netlink::egress::KernelReason;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

fn real(address: &str, state: &str, egress: &str) -> RealView {
    let word = |word: &str| Some(format!("{word}-{state}"));
    RealView {
        max_connections: Some(0),
        min_connections: Some(0),
        state: state.to_owned(),
        tunnel: format!("gre-{state}"),
        source: "10.0.0.1".parse().ok(),
        more_sources: vec![IpAddr::from([10, 0, 0, 2])],
        interface: word("eth"),
        next_hop: "10.0.0.254".parse().ok(),
        egress: egress.to_owned(),
        health: Some(HealthView {
            check: word("tcp").unwrap(),
            state: state.to_owned(),
            since_seconds: 0,
            last: word("ok"),
            latency_us: Some(0),
            age_seconds: Some(0),
            passed: 0,
            failures: FailuresView::default(),
            reason: String::new(),
        }),
        drain: Some(DrainView {
            owner: format!("root-{state}"),
            reason: word("kernel"),
            since: format!("2026-{state}"),
            age_seconds: 0,
            all_services: true,
            remaining: Some(0),
            sessions: Some(SessionsView::default()),
        }),
        ..sample::real(address)
    }
}

fn service(name: &str, vip: &str, configured: bool, reals: Vec<RealView>) -> ServiceView {
    ServiceView {
        table_size: Some(0),
        persistence_seconds: Some(0),
        limits: ServiceLimits {
            total: Some(NewFlows { per_second: 0, burst: 0 }),
            client: Some(ClientLimit {
                new: NewFlows { per_second: 0, burst: 0 },
                ipv4_prefix: 0,
                ipv6_prefix: 0,
            }),
            half_open: Some(0),
        },
        configured,
        ..sample::service(name, vip, reals)
    }
}

fn worker(number: usize) -> WorkerView {
    WorkerView {
        dropped: ["not_vip", "no_egress"].map(|reason| (reason.to_owned(), 0)).into(),
        last_send_error: Some(format!("EPERM of {number}")),
        ..sample::worker(number)
    }
}

fn status() -> Status {
    let word = |word: &str| word.to_owned();
    Status {
        version: word("9.9.9"),
        config_file: word("/etc/adit/a \"b\" \\ c\nd.toml"),
        config_hash: word("c0"),
        services_hash: word("50"),
        key_fingerprint: word("f0"),
        engine: word("poll"),
        engine_reason: word("as asked"),
        ring: word("single-issuer"),
        last_send_error: Some(word("EPERM")),
        steering: word("by flow"),
        workers: vec![worker(0), worker(1)],
        vips: vec![VipView {
            vip: "192.0.2.1".parse().unwrap(),
            announced: false,
            reason: Some(word("no way")),
            withdrawals: 0,
        }],
        warnings: vec![OwnedFinding {
            severity: word("warning"),
            message: word("m"),
            help: word("h"),
        }],
        ..sample::status()
    }
}

/// Gives every number below `value` a value of its own, from `next` on.
fn number(value: &mut Value, next: &mut u64) {
    match value {
        Value::Number(number) => {
            *number = (*next).into();
            *next += 1;
        }
        Value::Array(values) => values.iter_mut().for_each(|value| number(value, next)),
        Value::Object(fields) => fields.values_mut().for_each(|value| number(value, next)),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

/// Lengths of prefixes as they can be, none of which is another number.
fn lengthen(value: &mut Value, next: &mut u64) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                if key.ends_with("_prefix") {
                    *value = (*next).into();
                    *next += 1;
                } else {
                    lengthen(value, next);
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| lengthen(value, next)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A view that has been changed as JSON.
fn through_json<T: Serialize + DeserializeOwned>(view: &T, change: impl FnOnce(&mut Value)) -> T {
    let mut value = serde_json::to_value(view).unwrap();
    change(&mut value);
    serde_json::from_value(value).unwrap()
}

/// A director in which no two numbers are the same.
fn sample() -> Reading {
    let direct = real("10.0.0.2", "up", "direct");
    let kernel = real("2001:db8::3", "draining", "kernel (no route)");
    let reals = vec![direct.clone(), kernel];
    let services = vec![
        service("orders", "192.0.2.1", true, reals),
        service("old", "2001:db8::1", false, vec![real("10.0.0.4", "cut", "none")]),
    ];
    let mut next = 1001;
    let mut length = 11;
    let mut numbered = |value: &mut Value| {
        number(value, &mut next);
        lengthen(value, &mut length);
    };
    Reading {
        status: through_json(&status(), &mut numbered),
        services: through_json(&Services { services }, &mut numbered),
        findings: vec![(Seen::Config, Severity::Warning, 1), (Seen::Now, Severity::Error, 2)],
    }
}

/// A family of an exposition.
#[derive(Debug, Default, PartialEq)]
struct Family {
    help: String,
    kind: String,
    series: Vec<(BTreeMap<String, String>, f64)>,
}

/// Labels of a series: `a="b",c="d"`, escaped.
fn labels(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut rest = text;
    while let Some((name, after)) = rest.split_once("=\"") {
        let (mut value, mut characters) = (String::new(), after.chars());
        loop {
            match characters.next().unwrap() {
                '"' => break,
                '\\' => value.push(match characters.next().unwrap() {
                    'n' => '\n',
                    other => other,
                }),
                other => value.push(other),
            }
        }
        assert!(found.insert(name.to_owned(), value).is_none(), "{text}: {name} is there twice");
        rest = characters.as_str().trim_start_matches(',');
    }
    assert_eq!(rest, "", "{text}");
    found
}

/// The families by name, in the order in which they are written.
fn families(text: &str) -> Vec<(String, Family)> {
    let mut found: Vec<(String, Family)> = Vec::new();
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').unwrap();
            found.push((name.to_owned(), Family { help: help.to_owned(), ..Family::default() }));
            continue;
        }
        let (name, family) = found.last_mut().unwrap();
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (of, kind) = kind.split_once(' ').unwrap();
            assert_eq!(of, name);
            family.kind = kind.to_owned();
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let series = series.strip_prefix(name.as_str()).expect("a series of its family");
            let inner = series.strip_prefix('{').and_then(|s| s.strip_suffix('}'));
            family.series.push((labels(inner.unwrap_or_default()), value.parse().unwrap()));
        }
    }
    found
}

fn expose(reading: &Reading) -> String {
    exposition(reading.clone(), None)
}

/// Every leaf of a tree with its place.
fn leaves(at: String, value: &Value, found: &mut Vec<(String, Value)>) {
    match value {
        Value::Array(values) => {
            (0..).zip(values).for_each(|(n, v): (u32, _)| leaves(format!("{at}/{n}"), v, found));
        }
        Value::Object(fields) => {
            fields.iter().for_each(|(key, v)| leaves(format!("{at}/{key}"), v, found));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            found.push((at, value.clone()));
        }
    }
}

/// What metrics leave out of the views: the time since the start, what is the sum (or the longest
/// silence) of the workers, and words for people.
fn left_out(at: &str) -> bool {
    let sums =
        ["/dropped", "/totals/", "/flows/", "/io/", "/last_send_error", "/worker_silence_ms"];
    at == "/uptime_seconds"
        // A worker's number is a label.
        || (at.starts_with("/workers/") && at.ends_with("/worker"))
        || sums.iter().any(|sum| at.starts_with(sum))
        || at.starts_with("/warnings/")
        || at.starts_with("/conditions/")
        || at.ends_with("/health/reason")
}

/// Holds that each number of a view is a value (or a label: a process's number), and that each other leaf makes a difference.
fn all_of<T: Serialize + DeserializeOwned>(
    view: &T,
    reading: &Reading,
    put: impl Fn(&mut Reading, T),
) {
    let text = expose(reading);
    let (mut values, mut words) = (BTreeSet::new(), BTreeSet::new());
    for (labels, value) in families(&text).into_iter().flat_map(|(_, family)| family.series) {
        values.insert(format!("{value:.6}"));
        words.extend(labels.into_values());
    }
    let mut found = Vec::new();
    leaves(String::new(), &serde_json::to_value(view).unwrap(), &mut found);
    assert!(!found.is_empty());
    for (at, value) in found.into_iter().filter(|(at, _)| !left_out(at)) {
        if let Some(number) = value.as_u64() {
            let part = match at.rsplit('_').next() {
                Some("ms") => 1e3,
                Some("us") => 1e6,
                Some(_) | None => 1.0,
            };
            let there = values.contains(&format!("{:.6}", number as f64 / part))
                || words.contains(&number.to_string());
            assert!(there, "{at} = {number} is in no metric:\n{text}");
            continue;
        }
        let other = match &value {
            Value::Bool(value) => Value::Bool(!value),
            Value::String(text) if text.parse::<IpAddr>().is_ok() => "203.0.113.7".into(),
            Value::String(text) => format!("{text}x").into(),
            Value::Null | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                panic!("{at}: the sample has no value here")
            }
        };
        let changed = through_json(view, |tree| *tree.pointer_mut(&at).unwrap() = other);
        let mut other = reading.clone();
        put(&mut other, changed);
        assert_ne!(expose(&other), text, "{at} is in no metric");
    }
}

#[test]
fn nothing_that_the_admin_interface_shows_is_missing() {
    let reading = sample();
    all_of(&reading.status, &reading, |reading, status| reading.status = status);
    all_of(&reading.services, &reading, |reading, services| reading.services = services);
}

#[test]
fn names_types_and_series_follow_the_rules_of_prometheus() {
    let text = exposition(sample(), Some(Compat::Ipvs));
    let mut names = BTreeSet::new();
    for (name, family) in families(&text) {
        let own = name.starts_with("adit_");
        assert!(own || name.starts_with("node_ipvs_"), "{name}");
        assert!(names.insert(name.clone()), "{name} is there twice");
        assert!(!family.help.is_empty() && family.help.ends_with('.'), "{name}: {}", family.help);
        assert_eq!(family.kind == "counter", name.ends_with("_total"), "{name}: {}", family.kind);
        assert!(["counter", "gauge"].contains(&family.kind.as_str()), "{name}: {}", family.kind);
        assert!(!family.series.is_empty(), "{name}: the sample has none");
        let distinct: BTreeSet<_> = family.series.iter().map(|(labels, _)| labels).collect();
        assert_eq!(distinct.len(), family.series.len(), "{name}: a series is there twice");
    }
}

#[test]
fn words_are_labels_and_real_servers_of_several_services_have_one_way() {
    let mut reading = sample();
    let mut again = reading.services.services[0].clone();
    again.name = "orders-write".to_owned();
    again.ports = "any".to_owned();
    reading.services.services.push(again);
    let text = exposition(reading, Some(Compat::Ipvs));
    let families: BTreeMap<_, _> = families(&text).into_iter().collect();
    let label = |name: &str, label: &str| -> Vec<String> {
        families[name].series.iter().map(|(labels, _)| labels[label].clone()).collect()
    };
    assert_eq!(label("adit_director_info", "config_file"), ["/etc/adit/a \"b\" \\ c\nd.toml"]);
    assert_eq!(label("adit_egress_info", "egress"), ["direct", "none", "kernel"]);
    assert_eq!(label("adit_egress_info", "reason"), ["", "", "no route"]);
    assert_eq!(
        label("adit_path_mtu_bytes", "real_server"),
        ["10.0.0.2", "10.0.0.4", "2001:db8::3"]
    );
    assert_eq!(families["adit_real_server_weight"].series.len(), 5);
    let eligible = &families["adit_service_eligible_real_servers"].series;
    // One of each is up; that which drains is not, nor is that which is cut.
    assert_eq!(eligible.iter().map(|(_, n)| *n).collect::<Vec<_>>(), [1.0, 0.0, 1.0]);
    // A service that was removed is none of IPVS's.
    let ports = label("node_ipvs_backend_weight", "local_port");
    assert_eq!(ports, ["5432", "5432", "0", "0"]);
    assert_eq!(label("node_ipvs_backend_weight", "proto")[0], "TCP");
    assert_eq!(families["node_ipvs_outgoing_bytes_total"].series, [(BTreeMap::new(), 0.0)]);
}

#[test]
fn names_of_ipvs_come_when_they_are_asked_for() {
    assert!(!expose(&sample()).contains("node_ipvs_"));
    assert_eq!("ipvs".parse(), Ok(Compat::Ipvs));
    assert_eq!("lvs".parse::<Compat>(), Err(()));
}

fn file(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

#[test]
fn the_document_lists_every_name() {
    let row = |(name, family): &(String, Family)| {
        let labels = &family.series[0].0;
        let mut labels: Vec<String> = labels.keys().map(|label| format!("`{label}`")).collect();
        if labels.is_empty() {
            labels.push("–".to_owned());
        }
        format!("| `{name}` | {} | {} | {} |", family.kind, labels.join(" "), family.help)
    };
    let wanted: Vec<String> =
        families(&exposition(sample(), Some(Compat::Ipvs))).iter().map(row).collect();
    let document = file("docs/metrics.md");
    let listed: Vec<&str> = document.lines().filter(|line| line.starts_with("| `")).collect();
    assert_eq!(listed, wanted, "docs/metrics.md should have:\n{}", wanted.join("\n"));
}

/// Words of a text that look like names of metrics.
fn named_in(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("adit_") || word.starts_with("node_ipvs_"))
        .collect()
}

#[test]
fn dashboard_and_rules_name_metrics_that_there_are() {
    let text = exposition(sample(), None);
    let names: BTreeSet<String> = families(&text).into_iter().map(|(name, _)| name).collect();
    for name in ["packaging/adit.grafana.json", "packaging/adit.rules.yml"] {
        let text = file(name);
        let named = named_in(&text);
        assert!(named.len() > 5, "{name}: {named:?}");
        for word in named {
            assert!(names.contains(word), "{name}: there is no metric {word}");
        }
    }
    // The one reason for which the kernel sends that is meant.
    let meant = format!("reason!=\"{}\"", KernelReason::Ipsec);
    assert!(file("packaging/adit.rules.yml").contains(&meant), "{meant}");
    let dashboard: Value = serde_json::from_str(&file("packaging/adit.grafana.json")).unwrap();
    assert!(dashboard["panels"].as_array().unwrap().len() > 5);
}
