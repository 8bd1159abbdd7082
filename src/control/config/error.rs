//! What is wrong with a configuration file, and where.

use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteDiagnostic, NamedSource};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;

/// One thing that is wrong, with its place and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What is wrong, in one line.
    pub message: String,
    /// What would be right, or what to do.
    pub help: String,
    /// Line, counted from 1.
    pub line: usize,
    /// Column in characters, counted from 1.
    pub column: usize,
    /// Byte range in the file.
    #[serde(skip)]
    pub span: Range<usize>,
    /// A second place that belongs to the problem, and what it is: the other of two duplicates.
    #[serde(skip)]
    pub other: Option<(Range<usize>, String)>,
}

/// How errors are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenderStyle {
    /// For a terminal that shows colours.
    Coloured,
    /// For files, pipes and tests.
    Plain,
}

/// Everything that is wrong with one file. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    file: String,
    text: String,
    problems: Vec<Problem>,
}

impl ConfigErrors {
    pub(super) fn new(file: &str, text: &str, mut problems: Vec<Problem>) -> Self {
        for problem in &mut problems {
            (problem.line, problem.column) = position(text, problem.span.start);
        }
        problems.sort_by_key(|p| p.span.start);
        ConfigErrors { file: file.to_owned(), text: text.to_owned(), problems }
    }

    /// One problem of a text that is not a configuration of ours but becomes one.
    pub(in crate::control) fn one(
        file: &str,
        text: &str,
        span: Range<usize>,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        let (message, help) = (message.into(), help.into());
        Self::new(
            file,
            text,
            vec![Problem { message, help, line: 0, column: 0, span, other: None }],
        )
    }

    /// The problems, in the order of the file.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The file's name as it was given to `parse`.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Draws each problem with the line it is in and what would be right.
    #[must_use]
    pub fn render(&self, style: RenderStyle) -> String {
        let theme = match style {
            RenderStyle::Coloured => GraphicalTheme::unicode(),
            RenderStyle::Plain => GraphicalTheme::unicode_nocolor(),
        };
        let handler = GraphicalReportHandler::new_themed(theme).with_links(false).with_width(100);
        let mut out = String::new();
        for problem in &self.problems {
            let mut labels = vec![LabeledSpan::new_with_span(None, problem.span.clone())];
            if let Some((span, what)) = &problem.other {
                labels.push(LabeledSpan::new_with_span(Some(what.clone()), span.clone()));
            }
            let diagnostic = MietteDiagnostic::new(problem.message.clone())
                .with_labels(labels)
                .with_help(problem.help.clone());
            let report = miette::Report::new(diagnostic)
                .with_source_code(NamedSource::new(&self.file, self.text.clone()));
            // Writing to a String fails only when a Display implementation does; the one-line
            // form still says what is wrong.
            if handler.render_report(&mut out, report.as_ref()).is_err() {
                out.push_str(&self.one_line(problem));
            }
            out.push('\n');
        }
        out
    }

    fn one_line(&self, p: &Problem) -> String {
        format!("{}:{}:{}: {} ({})", self.file, p.line, p.column, p.message, p.help)
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            f.write_str(&self.one_line(problem))?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// Line and column (characters, both from 1) of a byte offset. An offset beyond the end or inside
/// a character counts as the next boundary before it.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let mut end = offset.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let before = &text[..end];
    let line = before.matches('\n').count() + 1;
    let start = before.rfind('\n').map_or(0, |at| at + 1);
    (line, before[start..].chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use super::position;

    #[test]
    fn positions_count_characters_from_one() {
        let text = "a\nbé = 1\n";
        assert_eq!(position(text, 0), (1, 1));
        assert_eq!(position(text, 2), (2, 1));
        assert_eq!(position(text, 3), (2, 2));
        assert_eq!(position(text, 4), (2, 2), "inside é");
        assert_eq!(position(text, 5), (2, 3));
        assert_eq!(position(text, 1000), (3, 1));
    }
}
