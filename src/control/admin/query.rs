//! The part of a request's address behind the question mark.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::str::FromStr;

/// A query, decoded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(BTreeMap<String, String>);

/// Why a request was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct QueryError(pub String);

impl Query {
    /// Reads a query: `a=1&b=2`, percent-encoded.
    ///
    /// # Errors
    /// When it is not one, or names something that `known` does not have.
    pub fn parse(text: &str, known: &[&str]) -> Result<Self, QueryError> {
        let mut map = BTreeMap::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let key = decode(key)?;
            if !known.contains(&key.as_str()) {
                let known = known.join(", ");
                return Err(QueryError(format!("unknown parameter `{key}`; known: {known}")));
            }
            map.insert(key, decode(value)?);
        }
        Ok(Query(map))
    }

    /// A parameter, if it is there.
    ///
    /// # Errors
    /// When it is not of the right form.
    pub fn get<T: FromStr>(&self, key: &str, right: &str) -> Result<Option<T>, QueryError> {
        let Some(text) = self.0.get(key) else { return Ok(None) };
        let wrong = || QueryError(format!("`{key}` = `{text}` is not {right}"));
        text.parse().map(Some).map_err(|_| wrong())
    }

    /// Whether a flag is set: `dry_run`, `dry_run=true`, `dry_run=1`.
    ///
    /// # Errors
    /// When it has another value.
    pub fn flag(&self, key: &str) -> Result<bool, QueryError> {
        match self.0.get(key).map(String::as_str) {
            None | Some("false" | "0") => Ok(false),
            Some("" | "true" | "1") => Ok(true),
            Some(other) => Err(QueryError(format!("`{key}` = `{other}` is not true or false"))),
        }
    }

    /// Writes a query from its parameters.
    #[must_use]
    pub fn write(parameters: &[(&str, &str)]) -> String {
        let mut out = String::new();
        for (key, value) in parameters {
            out.push(if out.is_empty() { '?' } else { '&' });
            out.push_str(key);
            out.push('=');
            for byte in value.bytes() {
                if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                    out.push(char::from(byte));
                } else {
                    // Writing to a String cannot fail.
                    let _ = write!(out, "%{byte:02X}");
                }
            }
        }
        out
    }
}

fn decode(text: &str) -> Result<String, QueryError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let pair = digit(rest.next()).zip(digit(rest.next()));
                let value = pair.and_then(|(high, low)| u8::try_from(high << 4 | low).ok());
                value.ok_or_else(|| QueryError(format!("`{text}` is not percent-encoded")))?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).map_err(|_| QueryError(format!("`{text}` is not UTF-8")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let value = "[2001:db8::1]:80 é&=%+";
        let text = Query::write(&[("vip", value), ("n", "5")]);
        let query = Query::parse(text.strip_prefix('?').unwrap(), &["vip", "n"]).unwrap();
        assert_eq!(query.get::<String>("vip", "text").unwrap().as_deref(), Some(value));
        assert_eq!(query.get::<u16>("n", "a number").unwrap(), Some(5));
        assert_eq!(query.get::<u16>("m", "a number").unwrap(), None);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for text in ["b=1", "a=%4", "a=%zz", "a=%ff"] {
            assert!(Query::parse(text, &["a"]).is_err(), "{text}");
        }
        let query = Query::parse("a=x", &["a"]).unwrap();
        assert!(query.get::<u16>("a", "a number").is_err());
        assert!(query.flag("a").is_err());
        assert!(Query::parse("a", &["a"]).unwrap().flag("a").unwrap());
    }
}
