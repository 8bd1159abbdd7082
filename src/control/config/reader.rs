//! Reads one TOML table key by key, and collects what is wrong instead of stopping at it.
//!
//! serde would stop at the first error and know nothing of the second, so the tree is walked by
//! hand: a file with three mistakes is mended in one go.

use super::error::{ConfigErrors, Problem};
use super::limits::DurationBounds;
use std::cell::RefCell;
use std::fmt::Display;
use std::net::IpAddr;
use std::ops::{Range, RangeInclusive};
use std::str::FromStr;
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A value and where it stands in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) span: Range<usize>,
}

/// What is wrong so far.
#[derive(Debug, Default)]
pub(super) struct Problems(RefCell<Vec<Problem>>);

impl Problems {
    pub(super) fn at(
        &self,
        span: Range<usize>,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.push(span, message.into(), help.into(), None);
    }

    /// A problem between two places; `span` is the one that should change.
    pub(super) fn between(
        &self,
        span: Range<usize>,
        message: impl Into<String>,
        other: (Range<usize>, &str),
        help: impl Into<String>,
    ) {
        let (other_span, what) = other;
        self.push(span, message.into(), help.into(), Some((other_span, what.to_owned())));
    }

    pub(super) fn syntax(&self, error: &toml::de::Error) {
        let span = error.span().unwrap_or(0..0);
        self.at(span, format!("not TOML: {}", error.message()), "see https://toml.io");
    }

    fn push(
        &self,
        span: Range<usize>,
        message: String,
        help: String,
        other: Option<(Range<usize>, String)>,
    ) {
        // The place in lines and columns is filled in when all problems are known.
        self.0.borrow_mut().push(Problem { message, help, line: 0, column: 0, span, other });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    pub(super) fn into_errors(self, file: &str, text: &str) -> ConfigErrors {
        ConfigErrors::new(file, text, self.0.into_inner())
    }
}

/// One word a key may have.
pub(super) enum Word<T> {
    Is(&'static str, T),
}

/// A table whose keys are taken one by one; what is left when it is finished is unknown.
pub(super) struct Table<'t> {
    map: &'t DeTable<'t>,
    span: Range<usize>,
    /// How errors name the table: empty for the root, else `[director]`, `[[service]]` ….
    title: String,
    known: Vec<&'static str>,
    problems: &'t Problems,
}

impl<'t> Table<'t> {
    pub(super) fn new(
        map: &'t DeTable<'t>,
        span: Range<usize>,
        title: String,
        problems: &'t Problems,
    ) -> Self {
        Table { map, span, title, known: Vec::new(), problems }
    }

    /// The value's table, if it is one.
    pub(super) fn of_value(
        value: &'t Spanned<DeValue<'t>>,
        title: &str,
        problems: &'t Problems,
    ) -> Option<Self> {
        let DeValue::Table(map) = value.get_ref() else {
            wrong_type(problems, value.span(), title, "a table", value.get_ref());
            return None;
        };
        Some(Table::new(map, value.span(), title.to_owned(), problems))
    }

    pub(super) fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    pub(super) fn get(&mut self, key: &'static str) -> Option<&'t Spanned<DeValue<'t>>> {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
        self.map.get(key)
    }

    pub(super) fn table(&mut self, key: &'static str, title: &str) -> Option<Table<'t>> {
        let value = self.get(key)?;
        Table::of_value(value, title, self.problems)
    }

    /// The elements of an array of tables, such as `[[service]]`.
    pub(super) fn tables(&mut self, key: &'static str, title: &str) -> Vec<Table<'t>> {
        let Some(value) = self.get(key) else { return Vec::new() };
        let DeValue::Array(items) = value.get_ref() else {
            self.problems.at(
                value.span(),
                format!("`{key}` is not a list of tables"),
                format!("begin each one with {title}, in double brackets"),
            );
            return Vec::new();
        };
        items.iter().filter_map(|item| Table::of_value(item, title, self.problems)).collect()
    }

    pub(super) fn string(&mut self, key: &'static str) -> Option<At<&'t str>> {
        let value = self.get(key)?;
        self.as_string(key, value)
    }

    fn as_string(&self, key: &str, value: &'t Spanned<DeValue<'t>>) -> Option<At<&'t str>> {
        let DeValue::String(text) = value.get_ref() else {
            let what = format!("`{key}`");
            wrong_type(self.problems, value.span(), &what, "a string", value.get_ref());
            return None;
        };
        Some(At { value: text.as_ref(), span: value.span() })
    }

    /// A string that `parse` makes something of; it says what is wrong and what would be right.
    pub(super) fn parsed<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, (String, String)>,
    ) -> Option<At<T>> {
        let text = self.string(key)?;
        match parse(text.value) {
            Ok(value) => Some(At { value, span: text.span }),
            Err((message, help)) => {
                self.problems.at(text.span, message, help);
                None
            }
        }
    }

    pub(super) fn integer<T>(
        &mut self,
        key: &'static str,
        range: &RangeInclusive<T>,
        why: &str,
    ) -> Option<T>
    where
        T: TryFrom<u64> + PartialOrd + Display,
    {
        let value = self.get(key)?;
        let right = format!("a whole number from {} to {}", range.start(), range.end());
        let DeValue::Integer(number) = value.get_ref() else {
            wrong_type(self.problems, value.span(), &format!("`{key}`"), &right, value.get_ref());
            return None;
        };
        let parsed = u64::from_str_radix(number.as_str(), number.radix()).ok();
        match parsed.and_then(|n| T::try_from(n).ok()).filter(|n| range.contains(n)) {
            Some(n) => Some(n),
            None => {
                self.problems.at(
                    value.span(),
                    format!("`{key}` = {number} is out of range"),
                    format!("{right}: {why}"),
                );
                None
            }
        }
    }

    pub(super) fn boolean(&mut self, key: &'static str) -> Option<At<bool>> {
        let value = self.get(key)?;
        let DeValue::Boolean(boolean) = value.get_ref() else {
            let what = format!("`{key}`");
            wrong_type(self.problems, value.span(), &what, "true or false", value.get_ref());
            return None;
        };
        Some(At { value: *boolean, span: value.span() })
    }

    /// Refuses a duration that is a bare number.
    fn has_unit(&mut self, key: &'static str) -> Option<()> {
        let value = self.get(key)?;
        let DeValue::Integer(number) = value.get_ref() else { return Some(()) };
        let help = format!("say which unit, in quotes: {key} = \"{number}s\"");
        self.problems.at(value.span(), format!("`{key}` = {number} has no unit"), help);
        None
    }

    pub(super) fn duration(
        &mut self,
        key: &'static str,
        bounds: &DurationBounds,
    ) -> Option<Duration> {
        self.has_unit(key)?;
        self.parsed(key, |text| whole_seconds(key, parse_duration(key, text, bounds)?))
            .map(|at| at.value)
    }

    /// A duration that may be a fraction of a second, down to milliseconds.
    pub(super) fn short_duration(
        &mut self,
        key: &'static str,
        bounds: &DurationBounds,
    ) -> Option<Duration> {
        self.has_unit(key)?;
        let whole = |duration: Duration| duration.subsec_nanos().is_multiple_of(1_000_000);
        self.parsed(key, |text| {
            let duration = parse_duration(key, text, bounds)?;
            let message = format!("`{key}` = {text} is not a whole number of milliseconds");
            let fine = || (message, "nothing is timed more finely".to_owned());
            whole(duration).then_some(duration).ok_or_else(fine)
        })
        .map(|at| at.value)
    }

    pub(super) fn address(&mut self, key: &'static str) -> Option<At<IpAddr>> {
        self.parsed(key, |text| parse_address(key, text))
    }

    pub(super) fn addresses(&mut self, key: &'static str) -> Vec<At<IpAddr>> {
        let Some(value) = self.get(key) else { return Vec::new() };
        let DeValue::Array(items) = value.get_ref() else {
            let right = "a list of addresses, such as [\"10.0.0.5\"]";
            wrong_type(self.problems, value.span(), &format!("`{key}`"), right, value.get_ref());
            return Vec::new();
        };
        let mut found = Vec::new();
        for item in items {
            let Some(text) = self.as_string(key, item) else { continue };
            match parse_address(key, text.value) {
                Ok(value) => found.push(At { value, span: text.span }),
                Err((message, help)) => self.problems.at(text.span, message, help),
            }
        }
        found
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(&mut self, key: &'static str, words: &[Word<T>]) -> Option<T> {
        let text = self.string(key)?;
        self.one_of(key, &text, words)
    }

    /// A list of words, each where it stands.
    pub(super) fn words<T: Copy>(&mut self, key: &'static str, words: &[Word<T>]) -> Vec<At<T>> {
        let Some(value) = self.get(key) else { return Vec::new() };
        let DeValue::Array(items) = value.get_ref() else {
            let what = format!("`{key}`");
            wrong_type(self.problems, value.span(), &what, "a list of words", value.get_ref());
            return Vec::new();
        };
        let word = |item| {
            let text = self.as_string(key, item)?;
            let value = self.one_of(key, &text, words)?;
            Some(At { value, span: text.span })
        };
        items.iter().filter_map(word).collect()
    }

    fn one_of<T: Copy>(&self, key: &str, text: &At<&str>, words: &[Word<T>]) -> Option<T> {
        let mut right = Vec::new();
        for word in words {
            match *word {
                Word::Is(name, value) if name == text.value => return Some(value),
                Word::Is(name, _) => right.push(name),
            }
        }
        let message = format!("`{key}` cannot be \"{}\"", text.value);
        self.problems.at(text.span.clone(), message, suggest(text.value, &right, "one of "));
        None
    }

    /// Says that `key` must be there.
    pub(super) fn missing(&self, key: &str, example: &str) {
        // A table's span covers its header line, which is the line to show.
        let title = if self.title.is_empty() { "the file" } else { &self.title };
        self.problems.at(
            self.span.clone(),
            format!("{title} has no `{key}`"),
            format!("add, for example: {example}"),
        );
    }

    /// Reports every key nobody asked for.
    pub(super) fn finish(self) {
        for (key, _) in self.map {
            let name: &str = key.get_ref();
            if !self.known.contains(&name) {
                let place = if self.title.is_empty() {
                    String::new()
                } else {
                    format!(" in {}", self.title)
                };
                self.problems.at(
                    key.span(),
                    format!("unknown key `{name}`{place}"),
                    suggest(name, &self.known, "known keys: "),
                );
            }
        }
    }
}

fn wrong_type(
    problems: &Problems,
    span: Range<usize>,
    what: &str,
    right: &str,
    found: &DeValue<'_>,
) {
    problems.at(span, format!("{what} is {}", type_name(found)), format!("it must be {right}"));
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// "did you mean" where one of `right` is near, else all of them.
fn suggest(wrong: &str, right: &[&str], lead: &str) -> String {
    let nearest = right
        .iter()
        .map(|word| (strsim::damerau_levenshtein(wrong, word), word))
        .min_by_key(|(distance, _)| *distance);
    match nearest {
        // A third of the letters may be wrong: more, and the suggestion is a guess.
        Some((distance, word)) if distance <= wrong.chars().count().max(3) / 3 => {
            format!("did you mean `{word}`?")
        }
        _ => format!("{lead}{}", right.join(", ")),
    }
}

fn parse_duration(
    key: &str,
    text: &str,
    bounds: &DurationBounds,
) -> Result<Duration, (String, String)> {
    let show = humantime::format_duration;
    let duration = humantime::parse_duration(text).map_err(|error| {
        let message = format!("`{key}` is not a duration: {error}");
        (message, format!("write it like \"{}\"", show(bounds.default)))
    })?;
    if duration < bounds.least || duration > bounds.most {
        return Err((
            format!("`{key}` = {} is out of range", show(duration)),
            format!("from {} to {}: {}", show(bounds.least), show(bounds.most), bounds.reason),
        ));
    }
    Ok(duration)
}

fn whole_seconds(key: &str, duration: Duration) -> Result<Duration, (String, String)> {
    if duration.subsec_nanos() != 0 {
        let shown = humantime::format_duration(duration);
        let message = format!("`{key}` = {shown} is not a whole number of seconds");
        return Err((message, "timers run in whole seconds".to_owned()));
    }
    Ok(duration)
}

fn parse_address(key: &str, text: &str) -> Result<IpAddr, (String, String)> {
    IpAddr::from_str(text).map_err(|error| {
        let help = if text.contains('/') {
            "an address without a prefix length"
        } else {
            "an IPv4 or IPv6 address, such as \"10.20.0.11\" or \"2001:db8::11\"; names are not \
             looked up"
        };
        (invalid(key, text, &error), help.to_owned())
    })
}

fn invalid(key: &str, text: &str, error: &dyn Display) -> String {
    format!("`{key}` = \"{text}\": {error}")
}
