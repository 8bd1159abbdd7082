//! What `adit import` makes of real inputs, and that it drops nothing silently.

#![allow(clippy::unwrap_used, reason = "tests")]

mod command;
mod refused;

use adit::control::config;
use adit::control::import::{
    Imported, Options, Source, import, keepalived::known_options, supported_schedulers,
};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// What `ipvsadm -S -n` of a 6.1 kernel printed about rules made for this test.
const IPVSADM: &str = include_str!("ipvsadm.conf");
/// Every option of virtual servers in keepalived.conf(5), as keepalived 2.2.7 reads it.
const KEEPALIVED: &str = include_str!("keepalived.conf");

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
    for (source, text) in [(Source::Ipvsadm, IPVSADM), (Source::Keepalived, KEEPALIVED)] {
        assert_eq!(imported(source, text), imported(source, text));
    }
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
    for (source, text) in [(Source::Ipvsadm, IPVSADM), (Source::Keepalived, KEEPALIVED)] {
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
        assert!(changed > 150, "{changed} words of {}", source.name());
    }
}

/// A word too many is spoken of, wherever it stands.
#[test]
fn every_word_too_many_is_reported() {
    for (source, text) in [(Source::Ipvsadm, IPVSADM), (Source::Keepalived, KEEPALIVED)] {
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
    for (source, text) in [(Source::Ipvsadm, IPVSADM), (Source::Keepalived, KEEPALIVED)] {
        let count = imported(source, text).report.words;
        assert_eq!(count.read, count.used + count.reported, "{}", source.name());
        assert!(count.used > 100 && count.reported > 50, "{count:?}");
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
        if let Ok(imported) = import(source, input.as_bytes(), "f", &options()) {
            let count = imported.report.words;
            prop_assert_eq!(count.read, count.used + count.reported);
            prop_assert!(config::parse(&imported.config, "adit.toml").is_ok());
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
