//! The words of the input and what became of each: used, or reported. Nothing is dropped
//! silently.

use super::report::{Entry, Remark, WordCount, visible};
use std::borrow::Cow;

/// Words of one input. A million would be four thousand services with two hundred words each and
/// more than fit; the bound keeps what is remembered about them below some hundred megabytes.
pub(super) const MAX_WORDS: usize = 1_000_000;

/// Words of a block that are shown in full; of longer ones the head is enough to find them.
const SHOWN_IN_FULL: usize = 24;

/// Characters that are shown of one place: some lines of a terminal.
const SHOWN_CHARACTERS: usize = 400;

/// A word of the input.
#[derive(Debug, Clone)]
pub(super) struct Word<'t> {
    pub(super) text: Cow<'t, str>,
    /// Counted from 1.
    pub(super) line: usize,
    id: usize,
}

impl Word<'_> {
    pub(super) fn is(&self, text: &str) -> bool {
        self.text == text
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Open,
    Used,
    Reported,
}

/// What became of each word.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    fates: Vec<Fate>,
    entries: Vec<Entry>,
}

impl Ledger {
    /// Enters a word. `None` when there are too many.
    pub(super) fn word<'t>(
        &mut self,
        text: impl Into<Cow<'t, str>>,
        line: usize,
    ) -> Option<Word<'t>> {
        let id = self.fates.len();
        if id >= MAX_WORDS {
            return None;
        }
        self.fates.push(Fate::Open);
        Some(Word { text: text.into(), line, id })
    }

    /// The configuration is made of these words.
    pub(super) fn used<'a, 't: 'a>(&mut self, words: impl IntoIterator<Item = &'a Word<'t>>) {
        for word in words {
            // What is used and means something else stays reported.
            if self.fates[word.id] == Fate::Open {
                self.fates[word.id] = Fate::Used;
            }
        }
    }

    /// An entry of the report about these words.
    pub(super) fn report<'a, 't: 'a>(
        &mut self,
        words: impl IntoIterator<Item = &'a Word<'t>>,
        remark: Remark,
    ) {
        let words: Vec<&Word<'_>> = words.into_iter().collect();
        self.report_as(shown(&words), words, remark);
    }

    /// Likewise of a block, shown by its head when it is long.
    pub(super) fn report_block<'a, 't: 'a>(
        &mut self,
        head: &'a [Word<'t>],
        body: Vec<&'a Word<'t>>,
        last_line: usize,
        remark: Remark,
    ) {
        let head: Vec<&Word<'_>> = head.iter().collect();
        let text = if body.is_empty() {
            format!("{} {{ }}", shown(&head))
        } else if body.len() <= SHOWN_IN_FULL {
            format!("{} {{ {} }}", shown(&head), shown(&body))
        } else {
            format!("{} {{ … }}", shown(&head))
        };
        self.report_as(text, head.into_iter().chain(body).collect(), remark);
        if let Some(entry) = self.entries.last_mut() {
            entry.last_line = entry.last_line.max(Some(last_line));
        }
    }

    fn report_as(&mut self, text: String, words: Vec<&Word<'_>>, remark: Remark) {
        for word in &words {
            self.fates[word.id] = Fate::Reported;
        }
        let line = words.first().map(|word| word.line);
        let last_line = words.last().map(|word| word.line);
        self.note(line, last_line, text, remark);
    }

    /// An entry about something whose words are accounted for already, or that has none.
    pub(super) fn note(
        &mut self,
        line: Option<usize>,
        last_line: Option<usize>,
        words: String,
        remark: Remark,
    ) {
        let Remark { kind, why, instead } = remark;
        self.entries.push(Entry { line, last_line, words, kind, why, instead });
    }

    /// The report's entries in the order of the file, and what became of the words.
    ///
    /// A word that nobody took or spoke of would be a mistake of this program; the count shows it.
    pub(super) fn close(mut self) -> (Vec<Entry>, WordCount) {
        // Stable: entries of one line stay in the order in which they were found.
        self.entries.sort_by_key(|entry| entry.line.unwrap_or(0));
        let count = |fate| self.fates.iter().filter(|found| **found == fate).count();
        let words = WordCount {
            read: self.fates.len(),
            used: count(Fate::Used),
            reported: count(Fate::Reported),
        };
        (self.entries, words)
    }
}

/// Words as they are shown: those with spaces in quotes, what follows a word for a secret starred.
pub(super) fn shown(words: &[&Word<'_>]) -> String {
    let mut text = String::new();
    let mut secret = false;
    for word in words {
        if !text.is_empty() {
            text.push(' ');
        }
        if secret {
            text.push_str("***");
        } else if word.text.is_empty() || word.text.contains(char::is_whitespace) {
            text.push_str(&format!("\"{}\"", visible(&word.text)));
        } else {
            text.push_str(&visible(&word.text));
        }
        secret = word.is("auth_pass") || word.is("password");
        if let Some((end, _)) = text.char_indices().nth(SHOWN_CHARACTERS) {
            text.truncate(end);
            text.push('…');
            break;
        }
    }
    text
}
