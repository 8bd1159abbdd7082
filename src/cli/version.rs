//! `adit version`.

use super::{CommandError, Global, Outcome, load_config, output};
use crate::control::config::{LoadedKey, config_hash, services_hash};
use serde::Serialize;

#[derive(Serialize)]
struct Version {
    version: &'static str,
    config: Option<ConfigFacts>,
    /// Why nothing is told of a configuration that is there.
    config_problem: Option<String>,
}

#[derive(Serialize)]
struct ConfigFacts {
    file: String,
    hash: String,
    services_hash: String,
    /// Absent where the key cannot be read.
    key_fingerprint: Option<String>,
}

pub(super) fn run(global: &Global) -> Result<Outcome, CommandError> {
    // A host without a configuration, or with a wrong one, has a version all the same.
    let (config, config_problem) = if global.config.exists() {
        match load_config(&global.config) {
            Ok(config) => (Some(config), None),
            Err(CommandError::Config(errors)) => {
                (None, Some(format!("{} is refused", errors.file())))
            }
            Err(error) => (None, Some(error.to_string())),
        }
    } else {
        (None, None)
    };
    let facts = config.map(|config| ConfigFacts {
        file: global.config.display().to_string(),
        hash: config_hash(&config).to_string(),
        services_hash: services_hash(&config.services).to_string(),
        key_fingerprint: LoadedKey::load(config.director.hash_key_file.as_deref())
            .ok()
            .map(|key| key.fingerprint()),
    });
    let version = Version { version: env!("CARGO_PKG_VERSION"), config: facts, config_problem };
    if global.json {
        output::json(&version);
        return Ok(Outcome::Fine);
    }
    output::line(&format!("adit {}", version.version));
    if let Some(facts) = version.config {
        output::line(&format!("config      {} ({})", facts.hash, facts.file));
        output::line(&format!("services    {}", facts.services_hash));
        let key = facts.key_fingerprint.as_deref().unwrap_or("not readable");
        output::line(&format!("hash key    {key}"));
    }
    if let Some(problem) = version.config_problem {
        output::line(&format!("config      {problem}; `adit check` says more"));
    }
    Ok(Outcome::Fine)
}
