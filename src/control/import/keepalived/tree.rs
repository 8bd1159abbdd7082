//! Blocks of a keepalived.conf: options, each with its words and perhaps a block of more options.

use super::super::ledger::{Ledger, Word};
use super::Problem;
use super::lines::{Line, too_many_words};
use std::borrow::Cow;
use std::ops::Range;

/// How deep blocks may lie in each other. keepalived's own go four deep (`virtual_server`,
/// `real_server`, `HTTP_GET`, `url`).
const MAX_DEPTH: usize = 16;

/// An option, or a block.
#[derive(Debug)]
pub(super) struct Statement<'t> {
    /// At least one.
    pub(super) words: Vec<Word<'t>>,
    pub(super) block: Option<Vec<Statement<'t>>>,
    /// Where its last word stands, or its block ends.
    pub(super) last_line: usize,
}

impl<'t> Statement<'t> {
    pub(super) fn name(&self) -> &str {
        self.words.first().map_or("", |word| &word.text)
    }

    pub(super) fn line(&self) -> usize {
        self.words.first().map_or(0, |word| word.line)
    }

    pub(super) fn options(&self) -> &[Statement<'t>] {
        self.block.as_deref().unwrap_or_default()
    }

    /// Every word of its block, in order.
    pub(super) fn inner_words(&self) -> Vec<&Word<'t>> {
        let mut words = Vec::new();
        self.collect(&mut words);
        words
    }

    // No deeper than MAX_DEPTH.
    fn collect<'s>(&'s self, words: &mut Vec<&'s Word<'t>>) {
        for option in self.options() {
            words.extend(&option.words);
            option.collect(words);
        }
    }
}

enum Token {
    Word(String),
    Open,
    Close,
}

/// A block that is not closed yet, and where it begins.
struct Open<'t> {
    statement: Statement<'t>,
    span: Range<usize>,
    options: Vec<Statement<'t>>,
}

pub(super) fn build<'t>(
    lines: Vec<Line<'t>>,
    ledger: &mut Ledger,
) -> Result<Vec<Statement<'t>>, Problem> {
    let mut open: Vec<Open<'t>> = Vec::new();
    let mut top: Vec<Statement<'t>> = Vec::new();
    for line in lines {
        // Words of this line that belong to no block yet.
        let mut words: Vec<Word<'t>> = Vec::new();
        let borrowed = matches!(line.text, Cow::Borrowed(_));
        for (token, place) in tokens(&line)? {
            // In a line made by definitions only the line itself has a place.
            let place = if borrowed { place } else { line.span.clone() };
            match token {
                Token::Word(text) => {
                    let word = ledger.word(text, line.number);
                    words.push(word.ok_or_else(|| too_many_words(place))?);
                }
                Token::Open => {
                    let options = open.last_mut().map_or(&mut top, |block| &mut block.options);
                    let statement = if words.is_empty() {
                        // The brace may stand in the line after its option.
                        options.pop_if(|statement| statement.block.is_none())
                    } else {
                        let words = std::mem::take(&mut words);
                        Some(Statement { words, block: None, last_line: line.number })
                    };
                    let Some(statement) = statement else {
                        return Err(problem(
                            place,
                            "a block without a name",
                            "name it in front of `{`",
                        ));
                    };
                    if open.len() == MAX_DEPTH {
                        return Err(problem(
                            place,
                            &format!("more than {MAX_DEPTH} blocks lie in each other here"),
                            "keepalived's own go four deep: is a `}` missing further up?",
                        ));
                    }
                    open.push(Open { statement, span: place, options: Vec::new() });
                }
                Token::Close => {
                    let Some(mut block) = open.pop() else {
                        return Err(problem(
                            place,
                            "a `}` that closes nothing",
                            "take it away, or look for a missing `{` further up",
                        ));
                    };
                    if !words.is_empty() {
                        let words = std::mem::take(&mut words);
                        block.options.push(Statement {
                            words,
                            block: None,
                            last_line: line.number,
                        });
                    }
                    block.statement.block = Some(block.options);
                    block.statement.last_line = line.number;
                    open.last_mut()
                        .map_or(&mut top, |outer| &mut outer.options)
                        .push(block.statement);
                }
            }
        }
        if !words.is_empty() {
            let options = open.last_mut().map_or(&mut top, |block| &mut block.options);
            options.push(Statement { words, block: None, last_line: line.number });
        }
    }
    match open.pop() {
        Some(block) => Err(problem(
            block.span,
            &format!("the block `{}` is not closed", block.statement.name()),
            "put its `}` where it ends",
        )),
        None => Ok(top),
    }
}

fn problem(span: Range<usize>, message: &str, help: &str) -> Problem {
    Problem { span, message: message.to_owned(), help: help.to_owned() }
}

/// Words and braces of a line, with their places in the file.
///
/// A brace inside a word belongs to it (`a{3}`, `${X}`); at its beginning or end it does not.
fn tokens(line: &Line<'_>) -> Result<Vec<(Token, Range<usize>)>, Problem> {
    let text = line.text.as_ref();
    // The span begins at the first word.
    let origin = line.span.start - (text.len() - text.trim_start().len()).min(line.span.start);
    let mut tokens = Vec::new();
    let mut word: Option<(usize, String)> = None;
    let mut quote: Option<(usize, char)> = None;
    let mut inner_braces = 0usize;
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let next = chars.peek().map(|(_, next)| *next);
        let ends = next.is_none_or(|next| next.is_whitespace() || matches!(next, '{' | '}'));
        if c == '\\' {
            // The character behind it means nothing special.
            let escaped = chars.next().map(|(_, escaped)| escaped);
            word.get_or_insert_with(|| (at, String::new())).1.extend(escaped);
        } else if let Some((_, open)) = quote {
            if c == open {
                quote = None;
            } else {
                word.get_or_insert_with(|| (at, String::new())).1.push(c);
            }
        } else if c == '"' || c == '\'' {
            quote = Some((at, c));
            word.get_or_insert_with(|| (at, String::new()));
        } else if c.is_whitespace() {
            push_word(&mut tokens, word.take(), origin, at);
            inner_braces = 0;
        } else if c == '{' && (word.is_none() || (ends && inner_braces == 0)) {
            push_word(&mut tokens, word.take(), origin, at);
            tokens.push((Token::Open, origin + at..origin + at + 1));
        } else if c == '}' && inner_braces == 0 && (word.is_none() || ends) {
            push_word(&mut tokens, word.take(), origin, at);
            tokens.push((Token::Close, origin + at..origin + at + 1));
        } else {
            match c {
                '{' => inner_braces += 1,
                '}' => inner_braces = inner_braces.saturating_sub(1),
                _ => {}
            }
            word.get_or_insert_with(|| (at, String::new())).1.push(c);
        }
    }
    if let Some((at, _)) = quote {
        let place = match line.text {
            Cow::Borrowed(_) => origin + at..origin + at + 1,
            Cow::Owned(_) => line.span.clone(),
        };
        return Err(problem(
            place,
            "a quote that is not closed",
            "close it in the same line; `#` and `!` begin a comment even in quotes",
        ));
    }
    push_word(&mut tokens, word.take(), origin, text.len());
    Ok(tokens)
}

fn push_word(
    tokens: &mut Vec<(Token, Range<usize>)>,
    word: Option<(usize, String)>,
    origin: usize,
    end: usize,
) {
    if let Some((start, text)) = word {
        tokens.push((Token::Word(text), origin + start..origin + end));
    }
}

#[cfg(test)]
mod tests {
    use super::super::lines;
    use super::*;

    /// The tree in one line: words separated by spaces, blocks in braces, options ended by `;`.
    fn show(statements: &[Statement<'_>]) -> String {
        let mut text = String::new();
        for statement in statements {
            let words: Vec<_> = statement.words.iter().map(|word| word.text.to_string()).collect();
            text.push_str(&words.join(" "));
            match &statement.block {
                Some(block) => text.push_str(&format!("{{{}}}", show(block))),
                None => text.push(';'),
            }
        }
        text
    }

    fn tree(text: &str) -> Result<String, String> {
        let mut ledger = Ledger::default();
        let built =
            lines::read(text, None, &mut ledger).and_then(|lines| build(lines, &mut ledger));
        built
            .map(|tree| show(&tree))
            .map_err(|problem| format!("{:?} {}", problem.span, problem.message))
    }

    #[test]
    fn blocks_are_found_however_they_are_laid_out() {
        let cases = [
            ("a 1 {\n b 2\n c\n}\nd", "a 1{b 2;c;}d;"),
            ("a 1 { b 2 }", "a 1{b 2;}"),
            ("a 1\n{\nb 2}", "a 1{b 2;}"),
            ("a 80{\nb}", "a 80{b;}"),
            ("a { b { c } d { } }", "a{b{c;}d{}}"),
            ("a { } }", "13:a `}` that closes nothing"),
            ("regex a{3}b x{2}", "regex a{3}b x{2};"),
            ("path ${_PWD}/x", "path ${_PWD}/x;"),
            ("p \"a b\" 'c \\# d' e\\ f g\"h i\"j", "p a b c # d e f gh ij;"),
            ("p \"\" x", "p  x;"),
        ];
        for (text, right) in cases {
            match tree(text) {
                Ok(shown) => assert_eq!(shown, right, "{text}"),
                Err(said) => {
                    assert!(right.ends_with(said.split_once(' ').unwrap().1), "{text}: {said}")
                }
            }
        }
    }

    #[test]
    fn places_of_mistakes_are_exact() {
        let deep = "a {\n".repeat(17);
        let cases = [
            ("ab {\n c\n", "3..4 the block `ab` is not closed"),
            ("  }", "2..3 a `}` that closes nothing"),
            ("a\n b \"c", "5..6 a quote that is not closed"),
            ("{", "0..1 a block without a name"),
            (&deep, "66..67 more than 16 blocks lie in each other here"),
            ("$B=} \n a $B", "7..11 a `}` that closes nothing"),
        ];
        for (text, right) in cases {
            assert_eq!(tree(text).unwrap_err(), right, "{text}");
        }
    }
}
