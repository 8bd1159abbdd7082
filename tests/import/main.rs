//! What `adit import` makes of real inputs, and that it drops nothing silently.

#![allow(clippy::unwrap_used, reason = "tests")]

mod checks;
mod command;
mod refused;

use adit::control::config;
use adit::control::import::{
    ImportError, Imported, Options, Source, import, keepalived::known_options, supported_schedulers,
};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// What `ipvsadm -S -n` of a 6.1 kernel printed about rules made for this test.
const IPVSADM: &str = include_str!("ipvsadm.conf");
/// What a script calls `ipvsadm` with beyond that.
const SCRIPT: &str = include_str!("script.conf");
/// Every option of virtual servers in keepalived.conf(5), as keepalived 2.2.7 reads it.
const KEEPALIVED: &str = include_str!("keepalived.conf");

const ALL: [(Source, &str); 3] =
    [(Source::Ipvsadm, IPVSADM), (Source::Ipvsadm, SCRIPT), (Source::Keepalived, KEEPALIVED)];

fn options() -> Options {
    Options { interface: Some("eth0".to_owned()), ..Options::default() }
}

fn imported(source: Source, text: &str) -> Imported {
    let file = format!("{}.conf", source.name());
    match import(source, text.as_bytes(), &file, &options()) {
        Ok(imported) => imported,
        Err(error) => panic!("{error}"),
    }
}

/// All that comes out, or why nothing does.
fn outcome(source: Source, text: &str) -> String {
    match import(source, text.as_bytes(), "f", &options()) {
        Ok(imported) => format!("{}\n{}", imported.config, imported.report.text()),
        Err(error) => error.to_string(),
    }
}

#[test]
fn ipvsadm_rules() {
    let imported = imported(Source::Ipvsadm, IPVSADM);
    insta::assert_snapshot!("ipvsadm_config", imported.config);
    insta::assert_snapshot!("ipvsadm_report", imported.report.text());
}

#[test]
fn a_script_of_ipvsadm() {
    let imported = imported(Source::Ipvsadm, SCRIPT);
    insta::assert_snapshot!("script_config", imported.config);
    insta::assert_snapshot!("script_report", imported.report.text());
}

#[test]
fn keepalived_virtual_servers() {
    let imported = imported(Source::Keepalived, KEEPALIVED);
    insta::assert_snapshot!("keepalived_config", imported.config);
    insta::assert_snapshot!("keepalived_report", imported.report.text());
}

#[test]
fn a_condition_takes_the_lines_of_one_host() {
    let of = |id: &str| {
        let options = Options { config_id: Some(id.to_owned()), ..options() };
        import(Source::Keepalived, KEEPALIVED.as_bytes(), "f", &options).unwrap().config
    };
    let reals = |config: &str| {
        let last = config.rsplit("[[service]]").next().unwrap().to_owned();
        last.lines().filter(|line| line.starts_with("address")).map(str::to_owned).collect()
    };
    let one: Vec<String> = reals(&of("one"));
    assert_eq!(one, ["address = \"10.20.0.11\"", "address = \"10.20.0.13\""]);
    let other: Vec<String> = reals(&of("other"));
    assert_eq!(other, ["address = \"10.20.0.12\"", "address = \"10.20.0.13\""]);
}

#[test]
fn the_same_input_makes_the_same_output() {
    for (source, text) in ALL {
        assert_eq!(imported(source, text), imported(source, text));
    }
}

/// What the configuration would refuse is left out, and said.
#[test]
fn what_the_configuration_refuses_is_left_out() {
    let rules = |lines: &[&str]| lines.join("\n");
    let service = "-A -t 192.0.2.1:80 -s wrr";
    let real = "-a -t 192.0.2.1:80 -r 10.0.0.1:80 -i -w 1";
    // The rules, services and real servers that are left, and what is said in which line.
    let cases = [
        (rules(&[service, real]), (1, 1), None),
        (rules(&[service, real, real]), (1, 1), Some((3, "in the service already"))),
        (rules(&[service, real, service]), (1, 1), Some((3, "already"))),
        (
            rules(&[service, real, "-a -t 192.0.2.1:80 -r 192.0.2.1:80 -i"]),
            (1, 1),
            Some((3, "is a VIP too")),
        ),
        (
            rules(&[service, real, "-a -t 192.0.2.1:80 -r 127.0.0.1:80 -i"]),
            (1, 1),
            Some((3, "a loopback address")),
        ),
        (
            rules(&["-A -t 224.0.0.1:80 -s wrr", "-a -t 224.0.0.1:80 -r 10.0.0.1:80 -i"]),
            (0, 0),
            Some((1, "a multicast address")),
        ),
        (rules(&[service]), (0, 0), Some((1, "no real server"))),
        (rules(&[service, "-a -t 192.0.2.1:80 -r 10.0.0.1:80 -g"]), (1, 1), Some((2, "(DR)"))),
        (
            rules(&[service, "-a -t 192.0.2.1:80 -r 10.0.0.1:80 -i --tun-type gue --tun-port 7"]),
            (1, 1),
            None,
        ),
        (
            rules(&[service, "-a -t 192.0.2.1:80 -r 10.0.0.1:80 -i --tun-type gue"]),
            (1, 1),
            Some((2, "6080 is taken")),
        ),
        (
            rules(&[service, "-a -t 192.0.2.1:80 -r 10.0.0.1:80 -i --tun-port 7"]),
            (1, 1),
            Some((2, "another kind of tunnel")),
        ),
        (
            rules(&[
                service,
                "-a -t 192.0.2.1:80 -r 10.0.0.1:80 -i --tun-type gre --tun-csum --tun-nocsum",
            ]),
            (1, 1),
            Some((2, "twice, or otherwise")),
        ),
        (
            rules(&[service, "-a -t 192.0.2.1:80 -r 10.0.0.1:80 -i --tun-type gre --tun-remcsum"]),
            (1, 1),
            Some((2, "remote checksum offload")),
        ),
        (rules(&[real]), (0, 0), Some((1, "no line above adds its service"))),
        (
            rules(&["-A -t 192.0.2.1:80 -s wrr -p 99999999", real]),
            (1, 1),
            Some((1, "2592000 s is taken")),
        ),
        (
            rules(&["-A -t 192.0.2.1:80 -s wrr -p -M 0.0.0.0", real]),
            (1, 1),
            Some((1, "an empty mask")),
        ),
        (rules(&["--set 10 0 300", service, real]), (1, 1), Some((1, "60 s is taken"))),
        (
            rules(&[service, "-a -t 192.0.2.1:80 -r 10.0.0.1:81 -i"]),
            (1, 1),
            Some((2, "IPVS takes the VIP's too")),
        ),
        (
            rules(&[service, real, "-a -t 192.0.2.1:80 -r 10.0.0.2:80 -i -w 2147483647"]),
            (1, 2),
            Some((3, "divided alike")),
        ),
        (
            rules(&["-A -t 192.0.2.1:80 -u 192.0.2.1:80 -s wrr", real]),
            (1, 1),
            Some((1, "twice, or otherwise")),
        ),
        (
            rules(&[service, "-a -t 192.0.2.1:80 -r 10.0.0.1:80 -i -i"]),
            (1, 1),
            Some((2, "twice, or otherwise")),
        ),
        (rules(&["-A -t 192.0.2.1:80 -s wrr -o", real]), (1, 1), Some((1, "for UDP alone"))),
        (
            rules(&["-A -u 192.0.2.1:80 -s wrr -o -p 60", "-a -u 192.0.2.1:80 -r 10.0.0.1 -i"]),
            (1, 1),
            Some((1, "exclude each other")),
        ),
        (
            rules(&[service, "-a -t 192.0.2.1:80 -r 10.0.0.1:80 -i -y 5"]),
            (1, 1),
            Some((2, "without an upper one")),
        ),
        (
            rules(&[service, "-a -t 192.0.2.1:80 -r 10.0.0.1:80 -i -x 5 -y 6"]),
            (1, 1),
            Some((2, "above the upper one")),
        ),
        (
            rules(&[service, "-a -t 192.0.2.1:80 -r 10.0.0.1:80 -i -x 4294967295"]),
            (1, 1),
            Some((2, "134217728 is taken")),
        ),
        (rules(&[service, "-a -t 192.0.2.1:80 -r 10.0.0.1:80 -i -x 0 -y 0"]), (1, 1), None),
        (rules(&["-A -t 192.0.2.1:80 -s sh -b mh-port", real]), (1, 1), Some((1, "`mh-port`"))),
        (rules(&["-A -t www:80 -s wrr"]), (0, 0), Some((1, "not one in numbers"))),
        (rules(&[service, real, "-D -t 192.0.2.1:80"]), (1, 1), Some((3, "only what is added"))),
    ];
    for (text, left, said) in cases {
        let report = imported(Source::Ipvsadm, &text).report;
        assert_eq!((report.services, report.real_servers), left, "{text}");
        assert_eq!(report.words.read, report.words.used + report.words.reported, "{text}");
        let found = |(line, why): (usize, &str)| {
            report.entries.iter().any(|e| e.line == Some(line) && e.why.contains(why))
        };
        match said {
            Some(said) => assert!(found(said), "{text}:\n{}", report.text()),
            None => assert!(report.entries.is_empty(), "{}", report.text()),
        }
    }
}

/// Each way to reach a real server, as both inputs say it, is read back by the configuration as such.
#[test]
fn tunnels_are_taken_over_as_they_are() {
    // What ipvsadm is told, what keepalived is, and what becomes of it for each address.
    let cases = [
        ("-i", "TUN", ["ipip", "ipip"]),
        ("-i --tun-type gre --tun-nocsum", "TUN type gre nocsum", ["gre", "gre"]),
        ("-i --tun-type gre --tun-csum", "TUN csum type gre", ["gre with checksum"; 2]),
        (
            "-i --tun-type gue --tun-port 7000 --tun-nocsum",
            "TUN type gue port 7000 nocsum",
            ["gue port 7000", "gue port 7000"],
        ),
        (
            "-i --tun-type gue --tun-port 7000 --tun-csum",
            "TUN port 7000 type gue csum",
            ["gue port 7000 with checksum"; 2],
        ),
        (
            "-i --tun-type gue --tun-port 7000 --tun-remcsum",
            "TUN type gue port 7000 remcsum",
            ["gue port 7000", "gue port 7000 with checksum"],
        ),
        ("-g", "DR", ["direct", "direct"]),
    ];
    for (ipvsadm, keepalived, expected) in cases {
        let rules = format!(
            "-A -t 192.0.2.1:80 -s rr\n-a -t 192.0.2.1:80 -r 10.0.0.1:80 {ipvsadm}\n\
             -a -t 192.0.2.1:80 -r [2001:db8::1]:80 {ipvsadm}\n"
        );
        let server = format!(
            "virtual_server 192.0.2.1 80 {{\nprotocol TCP\nlvs_sched rr\nlvs_method {keepalived}\n\
             real_server 10.0.0.1 80 {{\n}}\nreal_server 2001:db8::1 80 {{\n}}\n}}\n"
        );
        for (source, text) in [(Source::Ipvsadm, rules), (Source::Keepalived, server)] {
            let config = config::parse(&imported(source, &text).config, "adit.toml").unwrap();
            let reals = &config.services[0].reals;
            let tunnels: Vec<String> = reals.iter().map(|real| real.tunnel.to_string()).collect();
            assert_eq!(tunnels, expected, "{text}");
        }
    }
}

/// A name of the file's own that another service would have been given anyway.
#[test]
fn names_are_unique() {
    let server = |vip: &str, name: &str| {
        format!(
            "virtual_server {vip} 80 {{\nprotocol TCP\nlvs_sched rr\nlvs_method TUN\n{name}\n\
             real_server 10.0.0.1 80\n}}\n"
        )
    };
    let text = server("192.0.2.1", "snmp_name tcp-192.0.2.2-80")
        + &server("192.0.2.2", "")
        + &server("192.0.2.3", "snmp_name tcp-192.0.2.2-80");
    let config = imported(Source::Keepalived, &text).config;
    let names: Vec<&str> = config.lines().filter_map(|line| line.strip_prefix("name = ")).collect();
    assert_eq!(names, ["\"tcp-192.0.2.2-80\"", "\"tcp-192.0.2.2-80-2\"", "\"tcp-192.0.2.3-80\""]);
}

/// Byte ranges of the words in a text, up to comments.
fn words(text: &str) -> Vec<std::ops::Range<usize>> {
    let mut words = Vec::new();
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let code = line.split(['#', '!']).next().unwrap();
        let mut at = 0;
        for word in code.split_whitespace() {
            at = code[at..].find(word).unwrap() + at;
            words.push(start + at..start + at + word.len());
            at += word.len();
        }
        start += line.len();
    }
    words
}

/// Nothing is dropped silently: whichever word of a file says something else, something else comes
/// out, or its block was reported as a whole.
#[test]
fn every_word_counts() {
    for (source, text) in ALL {
        let before = outcome(source, text);
        let entries = imported(source, text).report.entries;
        let mut changed = 0;
        for range in words(text) {
            let word = &text[range.clone()];
            if matches!(word, "{" | "}" | "\\") {
                continue;
            }
            let line = text[..range.start].matches('\n').count() + 1;
            let whole = entries.iter().any(|entry| {
                let hidden = entry.words.ends_with("{ … }") || entry.words.contains("***");
                let lines = entry.line.unwrap_or(0)..=entry.last_line.unwrap_or(0);
                hidden && lines.contains(&line)
            });
            if whole {
                continue;
            }
            let other = format!("{}zzz{}", &text[..range.start], &text[range.end..]);
            assert_ne!(outcome(source, &other), before, "line {line}: `{word}` does not count");
            changed += 1;
        }
        assert!(changed > 80, "{changed} words of {}", source.name());
    }
}

/// A word too many is spoken of, wherever it stands.
#[test]
fn every_word_too_many_is_reported() {
    for (source, text) in ALL {
        for (index, line) in text.lines().enumerate() {
            let code = line.split(['#', '!']).next().unwrap().trim_end();
            if code.is_empty() || code.ends_with('\\') || code.contains('"') {
                continue;
            }
            let more = match code.strip_suffix('{') {
                Some(head) => format!("{head}surplus {{"),
                None => format!("{code} surplus"),
            };
            let mut lines: Vec<&str> = text.lines().collect();
            lines[index] = &more;
            let said = match import(source, lines.join("\n").as_bytes(), "f", &options()) {
                Ok(imported) => imported.report,
                Err(error) => panic!("line {}: {error}", index + 1),
            };
            let spoken_of = said.entries.iter().any(|entry| {
                let lines = entry.line.unwrap_or(0)..=entry.last_line.unwrap_or(0);
                let hidden = entry.words.ends_with("{ … }") || entry.words.contains("***");
                (hidden && lines.contains(&(index + 1))) || entry.words.contains("surplus")
            });
            // A name or a value of several words takes it in.
            let taken = code.trim_start().starts_with('$');
            assert!(spoken_of || taken, "line {}: {more}", index + 1);
            assert_eq!(said.words.read, said.words.used + said.words.reported, "{more}");
        }
    }
}

#[test]
fn every_word_is_used_or_reported() {
    for (source, text) in ALL {
        let count = imported(source, text).report.words;
        assert_eq!(count.read, count.used + count.reported, "{}", source.name());
        assert!(count.used > 30 && count.reported > 30, "{count:?}");
    }
    // Of the rules the words can be counted from outside.
    assert_eq!(imported(Source::Ipvsadm, IPVSADM).report.words.read, words(IPVSADM).len());
}

proptest! {
    /// Lines of both files in any order, with words changed: nothing is lost, and what comes out
    /// is a configuration.
    #[test]
    fn words_are_never_lost(
        is_keepalived: bool,
        picks in prop::collection::vec((0usize..400, 0usize..8, "[a-z0-9.:/{}$-]{0,8}"), 0..60),
    ) {
        let (source, text) = if is_keepalived {
            (Source::Keepalived, KEEPALIVED)
        } else {
            (Source::Ipvsadm, IPVSADM)
        };
        let lines: Vec<&str> = text.lines().collect();
        let mut input = String::new();
        for (line, word, other) in &picks {
            let words: Vec<&str> = lines[line % lines.len()].split_whitespace().collect();
            for (index, original) in words.iter().enumerate() {
                input.push_str(if index == *word { other } else { original });
                input.push(' ');
            }
            input.push('\n');
        }
        match import(source, input.as_bytes(), "f", &options()) {
            Ok(imported) => {
                let count = imported.report.words;
                prop_assert_eq!(count.read, count.used + count.reported);
                prop_assert!(config::parse(&imported.config, "adit.toml").is_ok());
            }
            Err(ImportError::Syntax(_)) => {}
            Err(error) => prop_assert!(false, "{}", error),
        }
    }
}

/// The table of docs/import.md, one row for each option.
fn documented() -> BTreeSet<String> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/import.md");
    let text = std::fs::read_to_string(path).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| "));
    let names = rows.filter_map(|row| row.split(" | ").next());
    names.flat_map(|names| names.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

#[test]
fn every_option_is_documented_and_in_the_fixture() {
    let documented = documented();
    let fixture: BTreeSet<&str> = KEEPALIVED.split_whitespace().collect();
    // Blocks of failover are all treated alike; one of each kind is enough.
    let elsewhere = adit::control::import::keepalived::TREATED_ALIKE;
    for option in known_options() {
        assert!(documented.contains(option), "docs/import.md does not say what `{option}` becomes");
        let there = fixture.contains(option) || elsewhere.contains(&option);
        assert!(there, "tests/import/keepalived.conf has no `{option}`");
    }
    for (source, text) in [(Source::Ipvsadm, IPVSADM), (Source::Keepalived, KEEPALIVED)] {
        for word in text.split_whitespace().filter(|word| word.starts_with('-') && word.len() > 1) {
            if source == Source::Ipvsadm {
                assert!(documented.contains(word), "docs/import.md does not speak of {word}");
            }
        }
    }
    for scheduler in supported_schedulers() {
        assert!(documented.contains(scheduler), "docs/import.md does not speak of {scheduler}");
    }
}
