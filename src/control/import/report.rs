//! What an import could not take over as it was: where it stood, why, and what to do instead.

use serde::Serialize;
use std::borrow::Cow;
use std::fmt::Write as _;

/// What became of words that were not simply taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Imported, and means something else here.
    Changed,
    /// Left out: there is nothing like it, or it cannot be taken over.
    LeftOut,
    /// Left out for now: it belongs to what a later release brings.
    Later,
    /// Left out: not understood.
    Unknown,
    /// To be filled in: the file does not say it.
    Missing,
}

impl Kind {
    /// As the report says it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Changed => "changed",
            Kind::LeftOut => "left out",
            Kind::Later => "not imported yet",
            Kind::Unknown => "not understood",
            Kind::Missing => "to be filled in",
        }
    }
}

/// Why words were not simply taken over.
#[derive(Debug, Clone)]
pub(super) struct Remark {
    pub(super) kind: Kind,
    pub(super) why: Cow<'static, str>,
    pub(super) instead: Cow<'static, str>,
}

impl Remark {
    pub(super) fn new(
        kind: Kind,
        why: impl Into<Cow<'static, str>>,
        instead: impl Into<Cow<'static, str>>,
    ) -> Self {
        Remark { kind, why: why.into(), instead: instead.into() }
    }

    pub(super) fn changed(
        why: impl Into<Cow<'static, str>>,
        instead: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::new(Kind::Changed, why, instead)
    }

    pub(super) fn left_out(
        why: impl Into<Cow<'static, str>>,
        instead: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::new(Kind::LeftOut, why, instead)
    }

    pub(super) fn unknown(
        why: impl Into<Cow<'static, str>>,
        instead: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::new(Kind::Unknown, why, instead)
    }
}

/// One thing that was not simply taken over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Line of its first word, counted from 1; none where the file says nothing of it.
    pub line: Option<usize>,
    /// Line of its last word.
    pub last_line: Option<usize>,
    /// The original words; of a long block the first line. Passwords are starred.
    pub words: String,
    /// What became of it.
    pub kind: Kind,
    /// Why it was not simply taken over.
    pub why: Cow<'static, str>,
    /// What to do instead.
    pub instead: Cow<'static, str>,
}

/// How many words the input had and what became of them: none is lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct WordCount {
    /// Words of the input, comments and braces left aside.
    pub read: usize,
    /// Those the configuration was made of.
    pub used: usize,
    /// Those an [`Entry`] speaks of.
    pub reported: usize,
}

/// Everything that was not simply taken over from one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The file, as it was named.
    pub file: String,
    /// Services in the configuration, those in comments left aside.
    pub services: usize,
    /// Entries of real servers in it, likewise.
    pub real_servers: usize,
    /// What became of the words.
    pub words: WordCount,
    /// What was not simply taken over, in the order of the file.
    pub entries: Vec<Entry>,
}

impl Report {
    /// One line that says how much was imported and how much was not.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut text = format!(
            "{}: {} imported with {}",
            visible(&self.file),
            counted(self.services, "service"),
            counted(self.real_servers, "real server")
        );
        let kinds = [Kind::Changed, Kind::LeftOut, Kind::Later, Kind::Unknown, Kind::Missing];
        for kind in kinds {
            let count = self.entries.iter().filter(|entry| entry.kind == kind).count();
            if count > 0 {
                // Writing to a String cannot fail.
                let _ = write!(text, ", {count} {}", kind.name());
            }
        }
        text
    }

    /// The report for people, each line ended.
    #[must_use]
    pub fn text(&self) -> String {
        let file = visible(&self.file);
        let mut text = String::new();
        for entry in &self.entries {
            let place = match (entry.line, entry.last_line) {
                (Some(line), Some(last)) if last > line => format!("{file}:{line}-{last}"),
                (Some(line), _) => format!("{file}:{line}"),
                (None, _) => file.clone(),
            };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{place}: {}", entry.words);
            let _ = writeln!(text, "    {}: {}", entry.kind.name(), entry.why);
            let _ = writeln!(text, "    instead: {}", entry.instead);
        }
        let _ = writeln!(text, "{}", self.summary());
        text
    }
}

fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// Text of the input as it may be shown: what would move a terminal's cursor, or end a comment of
/// the configuration, is escaped.
pub(super) fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}
