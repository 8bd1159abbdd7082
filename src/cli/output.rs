//! The only place that writes to standard output and standard error.
//!
//! Results go to standard output, what went wrong to standard error, so that pipes carry results
//! alone.

use crate::control::finding::Finding;
use serde::Serialize;
use std::io::{self, IsTerminal, Write};
use std::net::IpAddr;

/// Prints a line of a result.
///
/// A reader that has gone away (`adit list | head`) ends the program quietly, as it does for
/// other tools.
pub fn line(text: &str) {
    raw(format!("{text}\n").as_bytes());
}

/// Writes bytes of a result as they are.
pub fn raw(bytes: &[u8]) {
    let mut out = io::stdout().lock();
    if let Err(error) = out.write_all(bytes).and_then(|()| out.flush()) {
        if error.kind() == io::ErrorKind::BrokenPipe {
            std::process::exit(0);
        }
        // Nothing can be said on standard output any more.
        self::error(&format!("cannot write to standard output: {error}"));
        std::process::exit(1);
    }
}

/// Findings, each with its help below it.
pub fn findings(findings: &[Finding]) {
    for finding in findings {
        line(&format!("{}: {}", finding.severity, finding.message));
        for help in finding.help.lines() {
            line(&format!("    {help}"));
        }
    }
}

/// Prints a result as indented JSON.
pub fn json<T: Serialize>(value: &T) {
    match serde_json::to_string_pretty(value) {
        Ok(text) => line(&text),
        Err(e) => error(&format!("cannot show the result as JSON: {e}")),
    }
}

/// Says on standard error what went wrong.
pub fn error(text: &str) {
    // Where standard error is closed there is nobody to tell.
    let _ = writeln!(io::stderr().lock(), "adit: {text}");
}

/// Says on standard error how far something has come that takes a while.
pub fn progress(text: &str) {
    error(text);
}

/// Writes a text that is already laid out, such as drawn configuration errors, to standard error.
pub fn error_block(text: &str) {
    let _ = write!(io::stderr().lock(), "{text}");
}

/// Whether standard error shows colours.
#[must_use]
pub fn coloured_errors() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// A table with aligned columns; columns of numbers are aligned to the right.
#[derive(Debug, Default)]
pub struct TextTable {
    rows: Vec<Vec<String>>,
    right: Vec<bool>,
}

impl TextTable {
    /// A table with a head. A head that begins with `>` aligns its column to the right.
    #[must_use]
    pub fn new(head: &[&str]) -> Self {
        let right = head.iter().map(|h| h.starts_with('>')).collect();
        let head = head.iter().map(|h| h.trim_start_matches('>').to_owned()).collect();
        TextTable { rows: vec![head], right }
    }

    /// Adds a row.
    pub fn row<I: IntoIterator<Item = S>, S: Into<String>>(&mut self, cells: I) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// The table as text, each line ended.
    #[must_use]
    pub fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut out = String::new();
        for row in &self.rows {
            let mut text = String::new();
            for (column, cell) in row.iter().enumerate() {
                let pad = widths[column].saturating_sub(cell.chars().count());
                let pad = " ".repeat(pad);
                if self.right.get(column).copied().unwrap_or(false) {
                    text.push_str(&pad);
                    text.push_str(cell);
                } else {
                    text.push_str(cell);
                    text.push_str(&pad);
                }
                text.push_str("  ");
            }
            out.push_str(text.trim_end());
            out.push('\n');
        }
        out
    }
}

/// The outer sources towards a real server, in the width of one address. Unwrapped packets have none.
pub(super) fn sources(unwrapped: bool, first: Option<IpAddr>, more: usize) -> String {
    match (first, more) {
        _ if unwrapped => "-".to_owned(),
        (None, _) => "-".to_owned(),
        (Some(first), 0) => first.to_string(),
        (Some(first), more) => format!("{first} +{more}"),
    }
}

#[cfg(test)]
mod tests {
    use super::TextTable;

    #[test]
    fn tables_line_up() {
        let mut table = TextTable::new(&["name", ">count"]);
        table.row(["a", "1"]);
        table.row(["longer", "1000"]);
        assert_eq!(table.render(), "name    count\na           1\nlonger   1000\n");
    }
}
