//! Lines of a keepalived.conf: comments taken away, definitions put in, conditions decided.

use super::super::ledger::{Ledger, MAX_WORDS, Word};
use super::super::report::Remark;
use super::Problem;
use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

/// How deep definitions may name definitions. Those of keepalived.conf(5) go three deep; one that
/// names itself would have no end.
const MAX_DEFINITION_DEPTH: usize = 16;
/// Bytes that definitions may put in, in all: a generated file of some thousand services.
const MAX_EXPANSION: usize = 4 << 20;

/// A line of options.
pub(super) struct Line<'t> {
    pub(super) text: Cow<'t, str>,
    /// Counted from 1.
    pub(super) number: usize,
    /// Where it stands in the file; for what a definition put in, the line that names it.
    pub(super) span: Range<usize>,
}

struct Definition<'t> {
    value: String,
    words: Vec<Word<'t>>,
    used: bool,
}

pub(super) struct Lines<'t, 'l> {
    config_id: Option<&'l str>,
    ledger: &'l mut Ledger,
    definitions: HashMap<String, Definition<'t>>,
    expanded: usize,
    lines: Vec<Line<'t>>,
}

/// The lines of a file.
pub(super) fn read<'t>(
    text: &'t str,
    config_id: Option<&str>,
    ledger: &mut Ledger,
) -> Result<Vec<Line<'t>>, Problem> {
    let mut lines =
        Lines { config_id, ledger, definitions: HashMap::new(), expanded: 0, lines: Vec::new() };
    let mut offset = 0;
    let mut physical = text.split('\n').enumerate();
    while let Some((index, line)) = physical.next() {
        let start = offset;
        offset += line.len() + 1;
        let line = without_comment(line);
        let span = trimmed_span(line, start);
        if let Some((name, first)) = definition(line.trim())
            && first.trim_end().ends_with('\\')
        {
            // It goes on as long as lines end in a backslash; empty ones do not end it.
            let mut source = vec![(index + 1, line)];
            for (index, line) in physical.by_ref() {
                offset += line.len() + 1;
                let line = without_comment(line);
                source.push((index + 1, line));
                if !line.trim().is_empty() && !line.trim_end().ends_with('\\') {
                    break;
                }
            }
            lines.define(name, &source, span)?;
        } else {
            lines.line(Cow::Borrowed(line), index + 1, span, 0)?;
        }
    }
    lines.finish()
}

impl<'t> Lines<'t, '_> {
    fn line(
        &mut self,
        text: Cow<'t, str>,
        number: usize,
        span: Range<usize>,
        depth: usize,
    ) -> Result<(), Problem> {
        if text.trim().is_empty() {
            return Ok(());
        }
        if depth > MAX_DEFINITION_DEPTH || self.expanded > MAX_EXPANSION {
            return Err(Problem {
                span,
                message: "definitions put too much into this line".to_owned(),
                help: format!(
                    "they may name each other {MAX_DEFINITION_DEPTH} deep and make \
                     {MAX_EXPANSION} bytes in all; does one name itself?"
                ),
            });
        }
        if text.trim_start().starts_with('@') {
            return self.conditional(text, number, span, depth);
        }
        let trimmed = text.trim();
        if trimmed.starts_with("~SEQ") || trimmed.starts_with("~LST") {
            let remark = Remark::left_out(
                "sequence and list blocks are not written out",
                "write the lines out and import again",
            );
            return self.reported(&text, number, span, remark);
        }
        if is_include(trimmed) {
            let remark = Remark::left_out(
                "included files are not followed",
                "import them too, or put all files into one first; definitions hold across them",
            );
            return self.reported(&text, number, span, remark);
        }
        if let Some((name, value)) = definition(trimmed) {
            let words = self.words(trimmed, number, &span)?;
            self.enter(name.to_owned(), value.trim_end().to_owned(), words);
            return Ok(());
        }
        match self.substitute(&text) {
            Some(put_in) => {
                self.expanded += put_in.len();
                for line in put_in.split('\n') {
                    let line = Cow::Owned(without_comment(line).to_owned());
                    self.line(line, number, span.clone(), depth + 1)?;
                }
                Ok(())
            }
            None => {
                self.lines.push(Line { text, number, span });
                Ok(())
            }
        }
    }

    /// A line that only some hosts read: `@name …` or, on all others, `@^name …`.
    fn conditional(
        &mut self,
        text: Cow<'t, str>,
        number: usize,
        span: Range<usize>,
        depth: usize,
    ) -> Result<(), Problem> {
        let trimmed = text.trim();
        let condition = trimmed.split_whitespace().next().unwrap_or_default();
        let (host, wanted) = match condition.strip_prefix("@^") {
            Some(host) => (host, false),
            None => (condition.trim_start_matches('@'), true),
        };
        let remark = match self.config_id {
            Some(id) if (id == host) == wanted => {
                let condition_word = self.words(condition, number, &span)?;
                self.ledger.used(&condition_word);
                let rest = trimmed[condition.len()..].to_owned();
                return self.line(Cow::Owned(rest), number, span, depth + 1);
            }
            Some(id) => Remark::left_out(
                format!("the line is not for `{}`", super::super::report::visible(id)),
                "import again with another --config-id for another host",
            ),
            None => Remark::left_out(
                "the line holds on some hosts only",
                "import again with --config-id and this host's name",
            ),
        };
        self.reported(&text, number, span, remark)
    }

    /// A definition of several lines.
    fn define(
        &mut self,
        name: &str,
        source: &[(usize, &'t str)],
        span: Range<usize>,
    ) -> Result<(), Problem> {
        let mut words = Vec::new();
        let mut value = String::new();
        for (index, (number, line)) in source.iter().enumerate() {
            let line = line.trim();
            let line = line.strip_suffix('\\').unwrap_or(line);
            words.extend(self.words(line, *number, &span)?);
            let body = match definition(line) {
                Some((_, body)) if index == 0 => body,
                _ => line,
            };
            if index > 0 {
                value.push('\n');
            }
            value.push_str(body);
        }
        self.enter(name.to_owned(), value, words);
        Ok(())
    }

    fn enter(&mut self, name: String, value: String, words: Vec<Word<'t>>) {
        let definition = Definition { value, words, used: false };
        if let Some(before) = self.definitions.insert(name, definition) {
            account(before, self.ledger);
        }
    }

    /// The text with every definition it names put in, or `None` where it names none.
    fn substitute(&mut self, text: &str) -> Option<String> {
        let mut out = String::new();
        let mut copied = 0;
        let mut from = 0;
        while let Some(at) = text[from..].find('$').map(|at| from + at) {
            from = at + 1;
            let rest = &text[from..];
            let (name, end) = match rest.strip_prefix('{') {
                Some(braced) => {
                    let length = name_length(braced);
                    let closed = braced[length..].starts_with('}');
                    (if closed { &braced[..length] } else { "" }, from + length + 2)
                }
                None => {
                    let length = name_length(rest);
                    let ends = rest[length..].chars().next().is_none_or(char::is_whitespace);
                    (if ends { &rest[..length] } else { "" }, from + length)
                }
            };
            if let Some(definition) = self.definitions.get_mut(name) {
                definition.used = true;
                out.push_str(&text[copied..at]);
                out.push_str(&definition.value);
                (copied, from) = (end, end);
                // Enough to be refused; more would only cost memory.
                if out.len() > MAX_EXPANSION {
                    break;
                }
            }
        }
        if copied == 0 {
            return None;
        }
        out.push_str(&text[copied..]);
        Some(out)
    }

    fn reported(
        &mut self,
        text: &str,
        number: usize,
        span: Range<usize>,
        remark: Remark,
    ) -> Result<(), Problem> {
        let words = self.words(text, number, &span)?;
        self.ledger.report(&words, remark);
        Ok(())
    }

    /// Words of a line that is not read for options.
    fn words(
        &mut self,
        text: &str,
        number: usize,
        span: &Range<usize>,
    ) -> Result<Vec<Word<'t>>, Problem> {
        text.split_whitespace()
            .map(|word| {
                self.ledger
                    .word(word.to_owned(), number)
                    .ok_or_else(|| too_many_words(span.clone()))
            })
            .collect()
    }

    fn finish(self) -> Result<Vec<Line<'t>>, Problem> {
        // In the order of the file, whatever order the map has.
        let mut left: Vec<_> = self.definitions.into_values().collect();
        left.sort_by_key(|definition| definition.words.first().map_or(0, |word| word.line));
        for definition in left {
            account(definition, self.ledger);
        }
        Ok(self.lines)
    }
}

fn account(definition: Definition<'_>, ledger: &mut Ledger) {
    if definition.used {
        ledger.used(&definition.words);
    } else {
        ledger.report(
            &definition.words,
            Remark::left_out("the definition is not used by what follows", "nothing"),
        );
    }
}

pub(super) fn too_many_words(span: Range<usize>) -> Problem {
    Problem {
        span,
        message: format!("the file has more than {MAX_WORDS} words up to here"),
        help: "a director cannot hold as many services".to_owned(),
    }
}

/// `$NAME=value`: the name and the value.
fn definition(line: &str) -> Option<(&str, &str)> {
    let rest = line.strip_prefix('$')?;
    let length = name_length(rest);
    let value = rest[length..].strip_prefix('=')?;
    (length > 0).then_some((&rest[..length], value))
}

/// Length of the definition's name at the beginning of a text; 0 when there is none.
fn name_length(text: &str) -> usize {
    let other = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    let length = text.find(other).unwrap_or(text.len());
    if text.starts_with(|c: char| c.is_ascii_digit()) { 0 } else { length }
}

/// `include` and the variants that differ in how they complain.
fn is_include(line: &str) -> bool {
    let word = line.split_whitespace().next().unwrap_or_default();
    matches!(
        word,
        "include" | "includer" | "includem" | "includew" | "includeb" | "includea" | "includet"
    )
}

/// A line up to its comment: `#` or `!` anywhere. In quotes too (keepalived 2.2.7 was asked); only
/// a backslash in front lets them be.
fn without_comment(line: &str) -> &str {
    let mut escaped = false;
    for (at, c) in line.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '#' | '!' => return &line[..at],
            _ => {}
        }
    }
    line
}

fn trimmed_span(line: &str, start: usize) -> Range<usize> {
    let from = start + line.len() - line.trim_start().len();
    from..from + line.trim().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str, id: Option<&str>) -> Vec<String> {
        let read = read(text, id, &mut Ledger::default()).map_err(|problem| problem.message);
        read.unwrap().into_iter().map(|line| line.text.trim().to_owned()).collect()
    }

    #[test]
    fn comments_end_lines_in_quotes_too() {
        let cases = [
            ("weight 1 # one", "weight 1"),
            ("weight 1! one", "weight 1"),
            ("path \"a # b\" ! c", "path \"a"),
            ("path a\\#b # c", "path a\\#b"),
            ("! all", ""),
        ];
        for (text, right) in cases {
            assert_eq!(without_comment(text).trim(), right, "{text}");
        }
    }

    #[test]
    fn definitions_are_put_in_where_they_are_named() {
        // The example of keepalived.conf(5), in other words.
        let text = "$NET=10.${SUB}.0\n$SUB=1\na ${NET}.5\n$SUB=2\nb ${NET}.5 $SUB\nc $SUBx $NOT";
        assert_eq!(lines(text, None), ["a 10.1.0.5", "b 10.2.0.5 2", "c $SUBx $NOT"]);
        let block =
            "$RS= \\\nreal_server 10.0.0.${N} 80 { \\\n\n weight ${N} \\\n}\n$N=4\n$RS\n$N=5\n$RS";
        let right = ["real_server 10.0.0.4 80 {", "weight 4", "}"];
        let lines = lines(block, None);
        assert_eq!(lines[..3], right, "{lines:?}");
        assert_eq!(lines[3], "real_server 10.0.0.5 80 {");
    }

    #[test]
    fn conditions_are_decided_or_reported() {
        let text = "@one a\n@two b\n@^one c\nd";
        assert_eq!(lines(text, None), ["d"]);
        assert_eq!(lines(text, Some("one")), ["a", "d"]);
        assert_eq!(lines(text, Some("two")), ["b", "c", "d"]);
        assert_eq!(lines("$IF=@one\n$IF e", Some("one")), ["e"]);
    }

    #[test]
    fn definitions_without_end_are_refused() {
        for text in ["$A=$A\n$A", "$A=${B}${B}\n$B=${A}${A}\n$A"] {
            assert!(read(text, None, &mut Ledger::default()).is_err(), "{text}");
        }
    }
}
