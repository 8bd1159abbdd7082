//! Tables of configurations: what is taken, what is refused and how it is said.

use super::*;
use crate::dataplane::scheduler::SchedulerFlag;
use std::net::IpAddr;
use std::time::Duration;

/// The file of README and DESIGN.
const EXAMPLE: &str = r#"
[director]
tap = "adit0"
interface = "eth0"            # faces the clients
workers = 1
capture = "route"
max_connections = 1_000_000   # allocated at start
hash_key_file = "/etc/adit/hash.key"
io = "auto"

[tunnel]
kind = "ipip"
source = ["10.0.0.5"]

[timeouts]
tcp_established = "2h15m"

[[service]]
name = "orders-read"
vip = "198.51.100.10"
port = 5432
protocol = "tcp"
scheduler = "maglev"
persistence = { timeout = "10m", ipv4_prefix = 32 }

[[service.real]]
address = "10.20.0.11"
weight = 100

[[service.real]]
address = "10.10.0.12"
"#;

const HEAD: &str = "[director]\ninterface = \"eth0\"\n";

fn ok(text: &str) -> Config {
    match parse(text, "adit.toml") {
        Ok(config) => config,
        Err(errors) => panic!("refused:\n{}", errors.render(RenderStyle::Plain)),
    }
}

/// Two services, the second given by `second`, on one VIP.
fn two(first_port: &str, second_port: &str) -> String {
    let service = |name: &str, port: &str| {
        format!("[[service]]\nname = \"{name}\"\nvip = \"192.0.2.1\"\nport = {port}\n")
    };
    format!("{HEAD}{}{}", service("a", first_port), service("b", second_port))
}

#[test]
fn the_example_is_taken() {
    let config = ok(EXAMPLE);
    assert_eq!(config.director.max_connections, 1_000_000);
    let service = &config.services[0];
    assert_eq!(service.timeouts.tcp_established, Duration::from_secs(8100));
    assert_eq!(service.timeouts.tcp_half_open, Duration::from_secs(30));
    assert_eq!(service.ports, Ports::Exact(5432));
    // By address, whatever the order in the file.
    let addresses: Vec<String> = service.reals.iter().map(|r| r.address.to_string()).collect();
    assert_eq!(addresses, ["10.10.0.12", "10.20.0.11"]);
    assert_eq!(service.reals[0].weight, 100, "default weight");
    assert_eq!(config.warnings(), []);
}

#[test]
fn routes_that_announce_are_withdrawn_some_time_before_the_end() {
    let wait = |extra: &str| ok(&format!("{HEAD}{extra}")).director.withdraw_wait;
    assert_eq!(wait(""), None);
    assert_eq!(wait("announce = \"none\"\n"), None);
    assert_eq!(wait("announce = \"route\"\n"), Some(Duration::from_secs(2)));
    let given = "announce = \"route\"\nwithdraw_wait = \"25s\"\n";
    assert_eq!(wait(given), Some(Duration::from_secs(25)));
    // It is part of the configuration's hash.
    let hash = |extra: &str| config_hash(&ok(&format!("{HEAD}{extra}"))).to_string();
    assert_ne!(hash(given), hash(&given.replace("25", "26")));
}

#[test]
fn refusals() {
    let service = |extra: &str| {
        format!("{HEAD}[[service]]\nname = \"db\"\nvip = \"192.0.2.1\"\nport = 5432\n{extra}")
    };
    let cases: Vec<(&str, String)> = vec![
        ("empty", String::new()),
        ("not_toml", "[director\ninterface = eth0\n".into()),
        ("unknown_key", format!("{HEAD}tapp = \"x\"\ncolour = 1\n")),
        ("unknown_section", format!("{HEAD}[servce]\n")),
        ("service_not_a_list", format!("{HEAD}[service]\nname = \"a\"\n")),
        ("wrong_types", "[director]\ninterface = 5\ntap = [\"a\"]\nworkers = \"1\"\n".into()),
        (
            "later",
            format!(
                "{HEAD}workers = 300\ncapture = \"bridge\"\nannounce = \"route\"\nio = \"pol\"\n"
            ),
        ),
        (
            "director_values",
            "[director]\ninterface = \"adit0\"\ntap = \"adit0\"\nmax_connections = 10\n\
             hash_key_file = \"hash.key\"\nmtu = 500\ntap_queue_length = -1\n"
                .into(),
        ),
        (
            "route_manual",
            format!("{HEAD}capture = \"manual\"\nannounce = \"route\"\nwithdraw_wait = \"61s\"\n"),
        ),
        ("withdraw_wait", format!("{HEAD}announce = \"none\"\nwithdraw_wait = \"1s\"\n")),
        ("metrics_name", format!("{HEAD}metrics = \"localhost:9105\"\n")),
        ("metrics_port", format!("{HEAD}metrics = \"[::1]:0\"\n")),
        ("interface_is_default_tap", "[director]\ninterface = \"adit0\"\n".into()),
        ("device_name", "[director]\ninterface = \"a-name-that-is-too-long\"\n".into()),
        (
            "tunnel",
            format!(
                "{HEAD}[tunnel]\nkind = \"vxlan\"\nttl = 0\ndf = \"set\"\n\
                 source = [\"10.0.0.5\", \"10.0.0.6\", \"10.0.0.5\", \"127.0.0.1\", \"eth0\"]\n"
            ),
        ),
        (
            "timeouts",
            format!(
                "{HEAD}[timeouts]\ntcp_established = \"1s\"\nudp = 30\ntcp_fin = \"soon\"\ntcp_rst = \"1500ms\"\n"
            ),
        ),
        ("limits", format!("{HEAD}[limits]\nemitted_total = 0\nemited_per_client = 5\n")),
        ("service_empty", format!("{HEAD}[[service]]\n")),
        (
            "service_values",
            format!(
                "{HEAD}[[service]]\nname = \"a b\"\nvip = \"192.0.2.1/33\"\nport = 0\n\
                 protocol = \"sctp\"\nscheduler = \"maglv\"\n"
            ),
        ),
        (
            "scheduler_flags",
            format!(
                "{}{}{}{}",
                service("scheduler = \"wlc\"\nscheduler_flags = [\"sh-port\"]\n"),
                "[[service]]\nname = \"b\"\nvip = \"192.0.2.2\"\nport = 1\nscheduler = \"sh\"\n\
                 scheduler_flags = [\"sh-port\", \"mh-port\", \"sh-prt\", \"sh-port\", 7]\n",
                "[[service]]\nname = \"c\"\nvip = \"192.0.2.3\"\nport = 1\n\
                 scheduler_flags = \"mh-port\"\n",
                "[[service]]\nname = \"d\"\nvip = \"192.0.2.4\"\nport = 1\n\
                 scheduler_flags = [\"mh-fallback\"]\n",
            ),
        ),
        (
            "one_packet",
            format!(
                "{}{}{}",
                service("one_packet = true\n"),
                "[[service]]\nname = \"b\"\nvip = \"192.0.2.2\"\nport = 1\nprotocol = \"udp\"\n\
                 one_packet = true\npersistence = {}\n",
                "[[service]]\nname = \"c\"\nvip = \"192.0.2.3\"\nport = 1\nprotocol = \"udp\"\n\
                 one_packet = 1\n",
            ),
        ),
        ("vip_multicast", format!("{HEAD}[[service]]\nname=\"a\"\nvip = \"ff02::1\"\nport = 1\n")),
        (
            "vip_prefix",
            ["192.0.2.1/28", "10.0.0.0/22", "2001:db8::/118", "192.0.2.0/28x"]
                .iter()
                .enumerate()
                .fold(HEAD.to_owned(), |text, (number, vip)| {
                    format!("{text}[[service]]\nname = \"s{number}\"\nvip = \"{vip}\"\nport = 1\n")
                }),
        ),
        (
            "vip_prefix_overlaps",
            format!(
                "{HEAD}[[service]]\nname = \"a\"\nvip = \"192.0.2.16/28\"\nport = \"any\"\n\
                 [[service]]\nname = \"b\"\nvip = \"192.0.2.16/28\"\nport = \"any\"\n\
                 [[service.real]]\naddress = \"192.0.2.31\"\n"
            ),
        ),
        (
            "vip_too_many",
            format!(
                "{HEAD}[[service]]\nname = \"a\"\nvip = \"10.0.0.0/23\"\nport = 1\n\
                 [[service]]\nname = \"b\"\nvip = \"10.0.1.1\"\nport = 2\n\
                 [[service]]\nname = \"c\"\nvip = \"10.0.2.1\"\nport = 1\n"
            ),
        ),
        ("port_range", two("\"20-10\"", "\"http\"")),
        ("port_list", two("[80, \"81\"]", "[80, 80]")),
        ("same_port", two("5432", "5432")),
        ("ranges_overlap", two("\"10-20\"", "\"20-30\"")),
        ("lists_overlap", two("[1, 2, 3]", "[3, 4]")),
        ("two_any", two("\"any\"", "\"any\"")),
        (
            "same_name",
            format!(
                "{}{}",
                service(""),
                "[[service]]\nname = \"db\"\nvip = \"192.0.2.2\"\nport = 1\n"
            ),
        ),
        ("real_empty", service("[[service.real]]\nweigth = 1\n")),
        ("real_values", service("[[service.real]]\naddress = \"db1.example\"\nweight = 70000\n")),
        (
            "real_twice",
            service(
                "[[service.real]]\naddress = \"10.0.0.9\"\n[[service.real]]\naddress = \"10.0.0.9\"\n",
            ),
        ),
        ("real_is_vip", service("[[service.real]]\naddress = \"192.0.2.1\"\n")),
        (
            "real_is_source",
            format!(
                "{}[tunnel]\nsource = [\"10.0.0.9\"]\n",
                service("[[service.real]]\naddress = \"10.0.0.9\"\n")
            ),
        ),
        (
            "thresholds",
            service(
                "[[service.real]]\naddress = \"10.0.0.1\"\nmin_connections = 5\n\
                 [[service.real]]\naddress = \"10.0.0.2\"\nmax_connections = 5\nmin_connections = 6\n\
                 [[service.real]]\naddress = \"10.0.0.3\"\nmax_connections = 0\nmin_connections = 1\n",
            ),
        ),
        (
            "service_limits",
            format!(
                "{}{}{}{}",
                service("limits = { new_per_second = 0, half_open = 0, burst = 5 }\n"),
                "[[service]]\nname = \"b\"\nvip = \"192.0.2.2\"\nport = 1\n\
                 limits = { new_burst = 5, client_new_burst = 6, client_ipv4_prefix = 24 }\n",
                "[[service]]\nname = \"c\"\nvip = \"192.0.2.3\"\nport = 1\nprotocol = \"udp\"\n\
                 limits = { new_per_second = 10, half_open = 10 }\n",
                "[[service]]\nname = \"d\"\nvip = \"192.0.2.4\"\nport = 1\nlimits = 5\n",
            ),
        ),
        ("persistence", service("persistence = { timout = \"1h\", ipv4_prefix = 33 }\n")),
        (
            "group_differs",
            format!(
                "{}{}",
                service("persistence = { group = \"g\" }\n"),
                "[[service]]\nname = \"web\"\nvip = \"192.0.2.1\"\nport = 80\n\
                 persistence = { group = \"g\", timeout = \"1h\" }\n"
            ),
        ),
    ];
    for (name, text) in cases {
        let Err(errors) = parse(&text, "adit.toml") else { panic!("{name} was taken:\n{text}") };
        assert!(!errors.problems().is_empty());
        insta::with_settings!({ omit_expression => true }, {
            insta::assert_snapshot!(name, errors.render(RenderStyle::Plain));
        });
    }
}

#[test]
fn every_scheduler_and_its_flags_are_taken() {
    for kind in Scheduler::ALL {
        let own = SchedulerFlag::ALL.into_iter().filter(|flag| flag.scheduler() == kind);
        // In the order of the file it is the same configuration.
        let flags: Vec<String> = own.clone().map(|flag| format!("\"{flag}\"")).rev().collect();
        let text = format!(
            "{HEAD}[[service]]\nname = \"a\"\nvip = \"192.0.2.1\"\nport = 53\nprotocol = \"udp\"\n\
             one_packet = true\nscheduler = \"{kind}\"\nscheduler_flags = [{}]\n",
            flags.join(", ")
        );
        let service = &ok(&text).services[0];
        assert_eq!((service.scheduler, service.one_packet), (kind, true));
        assert_eq!(service.scheduler_flags, own.collect::<Vec<_>>(), "{kind}");
    }
}

#[test]
fn limits_of_a_service_have_defaults_for_what_follows_from_them() {
    let limits = |text: &str| {
        let service = EXAMPLE.replace("port = 5432", &format!("port = 5432\nlimits = {text}"));
        ok(&service).services[0].limits
    };
    assert_eq!(limits("{}"), ServiceLimits::default());
    let rate = |per_second, burst| NewFlows { per_second, burst };
    let all = limits("{ new_per_second = 900, client_new_per_second = 7, half_open = 50 }");
    let client = ClientLimit { new: rate(7, 7), ipv4_prefix: 32, ipv6_prefix: 64 };
    let expected =
        ServiceLimits { total: Some(rate(900, 900)), client: Some(client), half_open: Some(50) };
    assert_eq!(all, expected);
    let shown = "900 new/s (burst 900), 7 new/s (burst 7) per /32 and /64, 50 half-open";
    assert_eq!((all.to_string().as_str(), limits("{}").to_string().as_str()), (shown, "none"));
    let given = limits(
        "{ new_per_second = 9, new_burst = 2, client_new_per_second = 3, client_new_burst = 4, \
         client_ipv4_prefix = 24, client_ipv6_prefix = 56 }",
    );
    let client = ClientLimit { new: rate(3, 4), ipv4_prefix: 24, ipv6_prefix: 56 };
    assert_eq!((given.total, given.client), (Some(rate(9, 2)), Some(client)));
}

#[test]
fn overlaps_of_different_kinds_follow_precedence() {
    let vip: IpAddr = "192.0.2.1".parse().unwrap();
    let mut text = HEAD.to_owned();
    for (name, port) in
        [("any", "\"any\""), ("range", "\"1000-2000\""), ("list", "[1500, 9]"), ("one", "1500")]
    {
        text.push_str(&format!("[[service]]\nname = \"{name}\"\nvip = \"{vip}\"\nport = {port}\n"));
    }
    let config = ok(&text);
    for (port, name) in [(1500, "one"), (9, "list"), (1501, "range"), (80, "any")] {
        let service = config.service_for(vip, port, Protocol::Tcp).unwrap();
        assert_eq!(service.name, name, "port {port}");
    }
    assert!(config.service_for(vip, 80, Protocol::Udp).is_none());
}

#[test]
fn an_address_goes_before_a_prefix_and_a_long_prefix_before_a_short_one() {
    let mut text = HEAD.to_owned();
    let services = [
        ("net", "198.51.100.16/28", "5432"),
        ("half", "198.51.100.24/29", "\"1000-9000\""),
        ("one", "198.51.100.20", "\"any\""),
        ("one_too", "198.51.100.25/32", "[5432, 80]"),
    ];
    for (name, vip, port) in services {
        text.push_str(&format!("[[service]]\nname = \"{name}\"\nvip = \"{vip}\"\nport = {port}\n"));
    }
    let config = ok(&text);
    let name = |last: u8, port| {
        let vip = IpAddr::from([198, 51, 100, last]);
        config.service_for(vip, port, Protocol::Tcp).map(|s| s.name.as_str())
    };
    assert_eq!(
        [16, 31, 32, 15].map(|last| name(last, 5432)),
        [Some("net"), Some("half"), None, None]
    );
    assert_eq!([name(20, 5432), name(20, 80)], [Some("one"), Some("one")]);
    assert_eq!(
        [name(25, 5432), name(25, 2000), name(25, 80)],
        [Some("one_too"), Some("half"), Some("one_too")]
    );
    // What is one address is the same whether its length is written or not.
    let short = ok(&text.replace("/32", ""));
    assert_eq!(config_hash(&short), config_hash(&config));
}

#[test]
fn common_ports_agree_with_looking_at_each() {
    let all = [
        Ports::Exact(5),
        Ports::Exact(6),
        Ports::List(vec![1, 5]),
        Ports::List(vec![2, 6]),
        Ports::Range(1, 4),
        Ports::Range(4, 9),
        Ports::Range(10, 11),
        Ports::Any,
    ];
    for a in &all {
        for b in &all {
            let by_hand = (0..=20).any(|p| a.contains(p) && b.contains(p));
            assert_eq!(a.common(b).is_some(), by_hand, "{a} and {b}");
            assert!(a.common(b).is_none_or(|p| a.contains(p) && b.contains(p)), "{a} and {b}");
        }
    }
}

#[test]
fn the_hash_sees_meaning_and_nothing_else() {
    let base = config_hash(&ok(EXAMPLE));
    // Comments, order and defaults written out are the same configuration.
    let same = [
        format!("# a comment\n{EXAMPLE}"),
        EXAMPLE.replace("[tunnel]\n", "[tunnel]\nttl = 64\n"),
        EXAMPLE.replace("port = 5432", "port = [5432]"),
        EXAMPLE.replace("10.20.0.11\"\nweight = 100", "10.10.0.12\"").replacen(
            "[[service.real]]\naddress = \"10.10.0.12\"\n",
            "[[service.real]]\naddress = \"10.20.0.11\"\nweight = 100\n",
            1,
        ),
    ];
    for text in &same {
        assert_eq!(config_hash(&ok(text)), base, "{text}");
    }
    for (from, to) in [
        ("port = 5432", "port = 5433"),
        ("weight = 100", "weight = 101"),
        ("weight = 100", "weight = 100\nmax_connections = 7"),
        ("2h15m", "2h16m"),
        ("10.20.0.11", "10.20.0.13"),
        ("\"10m\"", "\"11m\""),
        ("eth0", "eth1"),
        ("scheduler = \"maglev\"", "scheduler = \"mh\""),
        ("scheduler = \"maglev\"", "limits = { new_per_second = 9 }"),
        ("198.51.100.10", "198.51.100.0/28"),
    ] {
        let text = EXAMPLE.replace(from, to);
        assert_ne!(config_hash(&ok(&text)), base, "{from} -> {to}");
    }
    // What is not said is not hashed, so that keys that came later change no old file's hash.
    let with = |key: &str| {
        let service = EXAMPLE.replace("\"tcp\"", "\"udp\"").replace("persistence", "#");
        config_hash(&ok(&service.replace("port = 5432", &format!("port = 5432\n{key}"))))
    };
    assert_eq!(with("one_packet = false\nscheduler_flags = []"), with(""));
    assert_ne!(with("one_packet = true"), with(""));
    // Another interface is another file and the same services.
    let elsewhere = ok(&EXAMPLE.replace("eth0", "eth1"));
    assert_eq!(services_hash(&elsewhere.services), services_hash(&ok(EXAMPLE).services));
}

#[test]
fn warnings_name_what_is_perhaps_not_meant() {
    let config = ok(&format!(
        "{HEAD}[timeouts]\ntcp_established = \"15m\"\n[[service]]\nname = \"db\"\n\
         vip = \"192.0.2.1\"\nport = 1\n[[service.real]]\naddress = \"10.0.0.1\"\nweight = 0\n"
    ));
    let messages: Vec<String> = config.warnings().into_iter().map(|w| w.message).collect();
    assert_eq!(messages.len(), 3, "{messages:?}");
    assert!(messages[0].contains("hash_key_file"));
    assert!(messages[1].contains("weight 0"));
    assert!(messages[2].contains("tcp_established is 15m"));
}

#[test]
fn a_group_whose_services_place_a_client_differently_is_perhaps_not_meant() {
    let warnings = |one: &str, other: &str| -> Vec<String> {
        let service = |name: &str, scheduler: &str, weight: &str| {
            format!(
                "[[service]]\nname = \"{name}\"\nvip = \"192.0.2.1\"\nport = {}\n\
                 persistence = {{ group = \"g\" }}\nscheduler = \"{scheduler}\"\n\
                 [[service.real]]\naddress = \"10.0.0.1\"\nweight = {weight}\n",
                name.len()
            )
        };
        let split = |text: &str| -> (String, String) {
            let (scheduler, weight) = text.split_once(' ').unwrap();
            (scheduler.to_owned(), weight.to_owned())
        };
        let ((a, b), (c, d)) = (split(one), split(other));
        let config = ok(&format!(
            "{HEAD}hash_key_file = \"/k\"\n{}{}",
            service("http", &a, &b),
            service("https", &c, &d)
        ));
        config.warnings().into_iter().map(|w| w.message).collect()
    };
    assert_eq!(warnings("maglev 5", "maglev 5"), [""; 0]);
    let differ =
        |what| [format!("services http and https of one persistence group differ in {what}")];
    assert_eq!(warnings("maglev 5", "maglev 6"), differ("weights"));
    assert_eq!(warnings("maglev 5", "sh 5"), differ("scheduler"));
    assert_eq!(warnings("wrr 5", "wrr 5"), differ("whom their schedulers choose"));
}

#[test]
fn counting_connections_where_there_are_none_is_perhaps_not_meant() {
    let warnings = |scheduler: Scheduler, real: &str| -> Vec<String> {
        let config = ok(&format!(
            "{HEAD}hash_key_file = \"/k\"\n[[service]]\nname = \"dns\"\nvip = \"192.0.2.1\"\nport = 53\n\
             protocol = \"udp\"\none_packet = true\nscheduler = \"{scheduler}\"\n\
             [[service.real]]\naddress = \"10.0.0.1\"\n{real}"
        ));
        config.warnings().into_iter().map(|w| w.message).collect()
    };
    assert_eq!(warnings(Scheduler::Rr, ""), [""; 0]);
    assert_eq!(warnings(Scheduler::Wlc, ""), ["service dns: wlc counts connections"]);
    let bounded = warnings(Scheduler::Rr, "max_connections = 5\n");
    assert_eq!(bounded, ["service dns: max_connections counts connections"]);
}

#[test]
fn hostile_texts_are_refused_and_not_fatal() {
    let deep = format!("a = {}", "[".repeat(10_000));
    let long = "x".repeat(20 << 20);
    for text in [deep.as_str(), long.as_str(), "\u{feff}", "\0", "é = \"é", "[director]\r\né"] {
        assert!(parse(text, "f").is_err());
    }
}
