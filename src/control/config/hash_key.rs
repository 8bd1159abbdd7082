//! The 128-bit key of the placement hash.

use crate::control::finding::Finding;
use crate::dataplane::hash::HashKey;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Bytes of a key file that are looked at; more is not a key.
const MAX_FILE: usize = 64;

/// The key of the placement hash, and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedKey {
    /// The key. Directors with the same key and services choose alike.
    pub key: HashKey,
    /// Where it came from.
    pub origin: HashKeyOrigin,
}

/// Where a key came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashKeyOrigin {
    /// The documented constant.
    Public,
    /// A file.
    File(PathBuf),
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum HashKeyError {
    /// The file cannot be read.
    #[error("hash_key_file {path}: {source}; make one with: openssl rand -hex 16 > {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file holds something else.
    #[error(
        "hash_key_file {path} holds {found} and must hold 32 hexadecimal digits or 16 raw bytes; \
         make one with: openssl rand -hex 16 > {path}"
    )]
    Content {
        /// The file.
        path: PathBuf,
        /// What was found, without quoting it.
        found: String,
    },
}

impl LoadedKey {
    /// The key of the configuration: its file, or the documented constant where none is named.
    ///
    /// # Errors
    /// When the file cannot be read or holds no key.
    pub fn load(file: Option<&Path>) -> Result<Self, HashKeyError> {
        let Some(path) = file else {
            return Ok(LoadedKey { key: HashKey::DEFAULT, origin: HashKeyOrigin::Public });
        };
        let content = std::fs::read(path)
            .map_err(|source| HashKeyError::Read { path: path.to_owned(), source })?;
        let bytes = parse(&content)
            .map_err(|found| HashKeyError::Content { path: path.to_owned(), found })?;
        Ok(LoadedKey { key: HashKey(bytes), origin: HashKeyOrigin::File(path.to_owned()) })
    }

    /// Why the key is no secret, if so.
    #[must_use]
    pub fn exposed(&self) -> Option<Finding> {
        let HashKeyOrigin::File(path) = &self.origin else { return None };
        let mode = std::fs::metadata(path).ok()?.permissions().mode();
        // Readable or writable by others than its owner and group.
        let path = path.display();
        (mode & 0o006 != 0).then(|| {
            Finding::warning(
                format!("hash_key_file {path} can be read by everybody"),
                format!(
                    "whoever knows the key can aim connections at one real server:\nchmod 0600 {path}"
                ),
            )
        })
    }

    /// What tells keys apart without showing them, as 16 hexadecimal digits.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        self.key.fingerprint().to_string()
    }
}

fn parse(content: &[u8]) -> Result<[u8; 16], String> {
    // 16 bytes are taken as they are, even when they happen to end in a newline.
    if let Ok(raw) = <[u8; 16]>::try_from(content) {
        return Ok(raw);
    }
    if content.len() > MAX_FILE {
        return Err(format!("{} bytes", content.len()));
    }
    let text = content.trim_ascii();
    let Ok(digits) = <&[u8; 32]>::try_from(text) else {
        return Err(format!("{} characters", text.len()));
    };
    let mut key = [0u8; 16];
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).map_err(|_| "other characters".to_owned())?;
        // from_str_radix would take a sign.
        if !pair.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err("other characters".to_owned());
        }
        *byte = u8::from_str_radix(pair, 16).map_err(|_| "other characters".to_owned())?;
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_hex_and_raw_and_nothing_else() {
        let hex = b"000102030405060708090a0b0c0d0e0f\n";
        let raw: Vec<u8> = (0..16).collect();
        assert_eq!(parse(hex), parse(&raw));
        assert!(parse(hex).is_ok());
        let bad: [&[u8]; 5] =
            [b"", b"0001", b"+00102030405060708090a0b0c0d0e0f", &[0; 17], &[b'0'; 100]];
        for content in bad {
            assert!(parse(content).is_err(), "{content:?}");
        }
    }

    #[test]
    fn a_key_that_everybody_can_read_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        std::fs::write(&path, [7; 16]).unwrap();
        let mode = |mode| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            LoadedKey::load(Some(&path)).unwrap().exposed().is_some()
        };
        assert!(mode(0o644) && mode(0o602) && !mode(0o640) && !mode(0o600));
    }

    #[test]
    fn a_missing_file_says_how_to_make_one() {
        let error = LoadedKey::load(Some(Path::new("/nonexistent/key"))).unwrap_err();
        assert!(error.to_string().contains("openssl rand -hex 16"), "{error}");
    }
}
