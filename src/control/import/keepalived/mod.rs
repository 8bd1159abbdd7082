//! keepalived.conf(5): its virtual servers. What else is in it is recognised and reported.

mod check;
mod group;
mod lines;
mod options;
mod tree;
mod virtual_server;

pub use options::{TREATED_ALIKE, known as known_options};

use super::Found;
use super::choices;
use super::ledger::{Ledger, Word};
use super::report::Remark;
use crate::control::config::ConfigErrors;
use group::Group;
use std::collections::HashMap;
use std::ops::Range;
use tree::Statement;

/// What makes the file no keepalived.conf, with its place.
#[derive(Debug)]
struct Problem {
    span: Range<usize>,
    message: String,
    help: String,
}

/// Reads a keepalived.conf. `config_id` says which host's conditional lines are taken.
pub(super) fn read(
    text: &str,
    file: &str,
    config_id: Option<&str>,
    ledger: &mut Ledger,
) -> Result<Found, ConfigErrors> {
    let statements =
        lines::read(text, config_id, ledger).and_then(|lines| tree::build(lines, ledger)).map_err(
            |Problem { span, message, help }| ConfigErrors::one(file, text, span, message, help),
        )?;
    let groups = groups(&statements, ledger);
    let mut found = Found::default();
    for statement in &statements {
        match statement.name() {
            "virtual_server_group" => {}
            "virtual_server" => {
                virtual_server::read(statement, &groups, &mut found.services, ledger);
            }
            "global_defs" => global(statement, &mut found, ledger),
            name => {
                if name == "vrrp_instance" {
                    note_interface(statement, &mut found.interfaces);
                }
                other(statement, ledger);
            }
        }
    }
    Ok(found)
}

/// The groups, wherever they stand: servers may name those further down.
fn groups(statements: &[Statement<'_>], ledger: &mut Ledger) -> HashMap<String, Group> {
    let mut groups: HashMap<String, Group> = HashMap::new();
    let mut room = group::MAX_ADDRESSES;
    for statement in statements.iter().filter(|s| s.name() == "virtual_server_group") {
        let name = statement.words.get(1).map_or("", |word| &word.text);
        if let Some(before) = groups.get(name) {
            let why =
                format!("the group in line {} has this name, and the first counts", before.line);
            report(statement, Remark::left_out(why, "give it another name"), ledger);
        } else if let Some(group) = group::read(statement, &mut room, ledger) {
            groups.insert(name.to_owned(), group);
        }
    }
    groups
}

/// `global_defs`: all that is taken over are the timeouts.
fn global(statement: &Statement<'_>, found: &mut Found, ledger: &mut Ledger) {
    let (head, extra) = statement.words.split_at(1);
    ledger.used(head);
    extra_words(extra, ledger);
    for option in statement.options() {
        if option.name() == "lvs_timeouts" && option.block.is_none() {
            timeouts(option, found, ledger);
        } else {
            report(option, options::GLOBAL_OPTION.remark(), ledger);
        }
    }
}

/// `lvs_timeouts [tcp N] [tcpfin N] [udp N]`.
fn timeouts(option: &Statement<'_>, found: &mut Found, ledger: &mut Ledger) {
    let (head, rest) = option.words.split_at(1);
    ledger.used(head);
    for pair in rest.chunks(2) {
        let [name, value] = pair else {
            extra_words(pair, ledger);
            continue;
        };
        let position = ["tcp", "tcpfin", "udp"].iter().position(|field| name.is(field));
        match position {
            Some(position) => {
                ledger.used([name]);
                choices::timeout(&mut found.timeouts, position, value, ledger);
            }
            None => extra_words(pair, ledger),
        }
    }
}

/// Anything else outside of blocks.
fn other(statement: &Statement<'_>, ledger: &mut Ledger) {
    let known = options::TOP.iter().find(|(name, _)| *name == statement.name());
    let remark = match known {
        Some((_, reason)) => reason.remark(),
        None => Remark::unknown(
            "keepalived.conf(5) has nothing of this name here",
            "look at the line; keepalived ignores it too",
        ),
    };
    report(statement, remark, ledger);
}

/// The interface of a VRRP instance may be the one that faces the clients.
fn note_interface(statement: &Statement<'_>, interfaces: &mut Vec<String>) {
    let named = statement.options().iter().find(|option| option.name() == "interface");
    if let Some(word) = named.and_then(|option| option.words.get(1))
        && let Ok(name) = super::interface(&word.text)
        && !interfaces.contains(&name)
    {
        interfaces.push(name);
    }
}

/// Reports an option, with its block and all that is in it if it has one.
fn report(statement: &Statement<'_>, remark: Remark, ledger: &mut Ledger) {
    if statement.block.is_some() {
        let inner = statement.inner_words();
        ledger.report_block(&statement.words, inner, statement.last_line, remark);
    } else {
        ledger.report(&statement.words, remark);
    }
}

/// Words behind those that an option takes.
fn extra_words<'a, 't: 'a>(words: impl IntoIterator<Item = &'a Word<'t>>, ledger: &mut Ledger) {
    let mut words = words.into_iter().peekable();
    if words.peek().is_some() {
        ledger.report(words, Remark::unknown("the option takes no such words", "take them away"));
    }
}

/// The one value of an option, whose words are then used; or `None` with its report.
fn single<'s, 't>(option: &'s Statement<'t>, ledger: &mut Ledger) -> Option<&'s Word<'t>> {
    match option.words.as_slice() {
        [_, value, extra @ ..] => {
            ledger.used(&option.words[..2]);
            extra_words(extra, ledger);
            Some(value)
        }
        _ => {
            ledger.report(
                &option.words,
                Remark::unknown("the option has no value", "write it behind the option"),
            );
            None
        }
    }
}
