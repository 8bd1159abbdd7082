//! `virtual_server_group`: addresses that share one definition.

use super::super::address::{ANY_PORT, Range, as_prefix, number, range};
use super::super::ledger::Ledger;
use super::super::remarks::firewall_mark;
use super::super::report::Remark;
use super::tree::Statement;
use crate::control::config::{MAX_SERVICES, VipPrefix};

/// Addresses of all groups together. A director has fewer services; groups that no server names
/// have some room too.
pub(super) const MAX_ADDRESSES: usize = 4 * MAX_SERVICES;

/// A group of addresses.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) line: usize,
    /// What a line of the file names as one is one here, where it is a whole prefix.
    pub(super) addresses: Vec<(VipPrefix, u16)>,
}

/// Reads a group; what is in it and is no address is reported.
pub(super) fn read(
    statement: &Statement<'_>,
    room: &mut usize,
    ledger: &mut Ledger,
) -> Option<Group> {
    let [head, name, extra @ ..] = statement.words.as_slice() else {
        let remark =
            Remark::unknown("the group has no name", "name it behind virtual_server_group");
        super::report(statement, remark, ledger);
        return None;
    };
    ledger.used([head, name]);
    super::extra_words(extra, ledger);
    let mut addresses = Vec::new();
    for entry in statement.options() {
        let remark = if entry.block.is_some() {
            Some(Remark::unknown("a group has no blocks", "take it away"))
        } else if entry.name() == "fwmark" {
            Some(firewall_mark())
        } else {
            member(entry, room, &mut addresses).err()
        };
        match remark {
            Some(remark) => super::report(entry, remark, ledger),
            None => ledger.used(&entry.words),
        }
    }
    Some(Group { line: statement.line(), addresses })
}

/// Adds the addresses of one line.
fn member(
    entry: &Statement<'_>,
    room: &mut usize,
    addresses: &mut Vec<(VipPrefix, u16)>,
) -> Result<(), Remark> {
    let port = match entry.words.as_slice() {
        [_] => Some(ANY_PORT),
        [_, port] => number(&port.text),
        _ => None,
    };
    let wrong = || {
        Remark::unknown(
            "it is no address or range with a port behind it, all in numbers",
            "write it as 192.0.2.1, 192.0.2.1-9 or 192.0.2.8/29, and the port behind it",
        )
    };
    let port = port.ok_or_else(wrong)?;
    match range(entry.name(), *room).ok_or_else(wrong)? {
        Range::Of(all) => {
            *room -= all.len();
            match as_prefix(&all) {
                Some(prefix) => addresses.push((prefix, port)),
                None => addresses.extend(all.into_iter().map(|one| (VipPrefix::host(one), port))),
            }
            Ok(())
        }
        Range::TooMany => Err(Remark::left_out(
            format!("a director has at most {MAX_SERVICES} services, and this would be more"),
            "spread the addresses over several directors",
        )),
    }
}
