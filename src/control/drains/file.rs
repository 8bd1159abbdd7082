//! Drains in the state directory: they outlive the process, however it ends.
//!
//! One JSON file, written beside its place, synchronised and renamed: at any instant the old or the
//! new one is there as a whole. What is read is not trusted; a file that is not right is set aside,
//! never a reason not to start.

use super::{Drain, DrainKey, Drains, MOST, check_reason};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Name of the file in the state directory.
const NAME: &str = "drains.json";
/// Where a file goes that is not right, in the place of an earlier one.
const ASIDE: &str = "drains.json.bad";
/// What is not finished; the next one begins it anew.
const UNFINISHED: &str = "drains.json.new";
/// The form that this version writes.
const VERSION: u32 = 1;
/// Bytes that are read at most: [`MOST`] drains with the longest names there are.
const LONGEST: u64 = 8 << 20;
/// Characters of a name in the file.
const LONGEST_NAME: usize = 256;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Whole {
    version: u32,
    drains: Vec<Line>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    /// Absent for all services.
    service: Option<String>,
    real: IpAddr,
    owner: String,
    reason: Option<String>,
    since: u64,
}

/// Why the drains of an earlier process are lost.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not right. It was set aside, if that was possible.
    #[error("{path} is damaged ({why}); {aside}", path = .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
        /// Where it is now.
        aside: String,
    },
}

/// Writes the drains into the state directory.
///
/// # Errors
/// When the file system does not let us; the earlier file is then still there.
pub fn store(directory: &Path, drains: &Drains) -> io::Result<()> {
    let line = |(key, drain): (&DrainKey, &Drain)| Line {
        service: key.service.clone(),
        real: key.real,
        owner: drain.owner.clone(),
        reason: drain.reason.clone(),
        since: drain.since,
    };
    let whole = Whole { version: VERSION, drains: drains.iter().map(line).collect() };
    let mut text = serde_json::to_vec_pretty(&whole)?;
    text.push(b'\n');
    let unfinished = directory.join(UNFINISHED);
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    file.write_all(&text)?;
    file.sync_all()?;
    std::fs::rename(&unfinished, directory.join(NAME))?;
    File::open(directory)?.sync_all()
}

/// Reads what [`store`] has written; no drains where there is no file.
///
/// # Errors
/// When it cannot be read, or is not right: then it is out of the way, and nobody is drained.
pub fn load(directory: &Path) -> Result<Drains, Lost> {
    let path = directory.join(NAME);
    let mut text = Vec::new();
    let read = File::open(&path).and_then(|file| file.take(LONGEST + 1).read_to_end(&mut text));
    match read {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Drains::default()),
        Err(source) => return Err(Lost::Read { path, source }),
        Ok(_) => {}
    }
    parse(&text).map_err(|why| {
        let aside = match std::fs::rename(&path, directory.join(ASIDE)) {
            Ok(()) => format!("it was set aside as {ASIDE}"),
            Err(error) => format!("it cannot be set aside: {error}"),
        };
        Lost::Damaged { path, why, aside }
    })
}

fn parse(text: &[u8]) -> Result<Drains, String> {
    if text.len() as u64 > LONGEST {
        return Err(format!("it has more than {LONGEST} bytes"));
    }
    let whole: Whole = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if whole.version != VERSION {
        return Err(format!("its form is {}, known is {VERSION}", whole.version));
    }
    if whole.drains.len() > MOST {
        return Err(format!("it has more than {MOST} drains"));
    }
    let mut drains = Vec::with_capacity(whole.drains.len());
    for line in whole.drains {
        let Line { service, real, owner, reason, since } = line;
        for name in service.iter().chain([&owner]) {
            if name.chars().count() > LONGEST_NAME || name.chars().any(char::is_control) {
                return Err(format!("a name in the drain of {real} is none"));
            }
        }
        if let Some(reason) = &reason {
            check_reason(reason).map_err(|error| format!("the drain of {real}: {error}"))?;
        }
        drains.push((DrainKey { service, real }, Drain { owner, reason, since }));
    }
    Ok(Drains::of(drains))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drains() -> Drains {
        let drain = |owner: &str, reason: Option<&str>| Drain {
            owner: owner.to_owned(),
            reason: reason.map(str::to_owned),
            since: 1_700_000_000,
        };
        let key = |service: Option<&str>, real: &str| DrainKey {
            service: service.map(str::to_owned),
            real: real.parse().unwrap(),
        };
        Drains::of([
            (key(Some("db"), "10.0.0.1"), drain("root", Some("kernel \"6.1\", ticket 7"))),
            (key(None, "2001:db8::1"), drain("root (logged in as alice)", None)),
        ])
    }

    #[test]
    fn what_is_stored_is_loaded() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(load(directory.path()).unwrap(), Drains::default(), "there is no file");
        store(directory.path(), &drains()).unwrap();
        assert_eq!(load(directory.path()).unwrap(), drains());
        // What a process that was killed in the middle of it has left does not matter.
        std::fs::write(directory.path().join(UNFINISHED), "{\"ver").unwrap();
        assert_eq!(load(directory.path()).unwrap(), drains());
        store(directory.path(), &Drains::default()).unwrap();
        assert_eq!(load(directory.path()).unwrap(), Drains::default());
        let names: Vec<_> = directory.path().read_dir().unwrap().collect();
        assert_eq!(names.len(), 1, "nothing lies about: {names:?}");
    }

    #[test]
    fn a_file_that_is_not_right_is_set_aside_and_said() {
        let line = |service: &str, reason: &str| {
            format!(
                "{{\"version\":1,\"drains\":[{{\"service\":{service},\"real\":\"10.0.0.1\",\
                 \"owner\":\"root\",\"reason\":{reason},\"since\":7}}]}}"
            )
        };
        let right = line("\"db\"", "null");
        assert_eq!(parse(right.as_bytes()).unwrap().len(), 1);
        let long = format!("\"{}\"", "x".repeat(LONGEST_NAME + 1));
        let cases = [
            (String::new(), "EOF"),
            (right[..right.len() - 3].to_owned(), "EOF"),
            ("\0".repeat(right.len()), "expected value"),
            (right.replace("\"version\":1", "\"version\":2"), "its form is 2"),
            (right.replace("10.0.0.1", "10.0.0.999"), "invalid IP address"),
            (right.replace("\"since\":7", "\"since\":-7"), "invalid value"),
            (right.replace("\"since\":7", "\"since\":7,\"colour\":1"), "unknown field"),
            (line("\"db\"", "\"a\\nb\""), "no control characters"),
            (line("\"d\\u001b[2Jb\"", "null"), "a name"),
            (line(&long, "null"), "a name"),
            (line("\"db\"", &format!("\"{}\"", "x".repeat(201))), "200 characters"),
            (" ".repeat(usize::try_from(LONGEST).unwrap() + 1), "bytes"),
        ];
        for (text, said) in cases {
            let directory = tempfile::tempdir().unwrap();
            std::fs::write(directory.path().join(NAME), &text).unwrap();
            let error = load(directory.path()).unwrap_err().to_string();
            assert!(error.contains(said) && error.contains("set aside"), "{error} has no {said}");
            assert_eq!(load(directory.path()).unwrap(), Drains::default(), "the next start");
            assert!(directory.path().join(ASIDE).exists());
        }
    }

    #[test]
    fn any_bytes_are_either_drains_or_a_reason_why_not() {
        use proptest::prelude::*;
        let right = {
            let directory = tempfile::tempdir().unwrap();
            store(directory.path(), &drains()).unwrap();
            std::fs::read(directory.path().join(NAME)).unwrap()
        };
        let length = right.len();
        proptest!(|(at in 0..length, byte: u8, cut in 0..=length)| {
            let mut text = right.clone();
            text[at] = byte;
            text.truncate(cut);
            if let Ok(found) = parse(&text) {
                // What is taken is of the form that can be written and read again.
                let directory = tempfile::tempdir().unwrap();
                store(directory.path(), &found).unwrap();
                prop_assert_eq!(load(directory.path()).unwrap(), found);
            }
        });
    }

    #[test]
    fn where_nothing_can_be_written_the_earlier_file_stays() {
        let directory = tempfile::tempdir().unwrap();
        store(directory.path(), &drains()).unwrap();
        // A directory is in the way of what is not finished.
        std::fs::create_dir(directory.path().join(UNFINISHED)).unwrap();
        assert!(store(directory.path(), &Drains::default()).is_err());
        assert_eq!(load(directory.path()).unwrap(), drains());
    }
}
