//! `adit version`.

use super::{CommandError, Global, Outcome, load_config, output};
use crate::control::config::{LoadedKey, config_hash, services_hash};
use serde::Serialize;

#[derive(Serialize)]
struct Version {
    version: &'static str,
    config: Option<ConfigFacts>,
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
    // A host without a configuration has a version all the same.
    let config = if global.config.exists() { Some(load_config(&global.config)?) } else { None };
    let facts = config.map(|config| ConfigFacts {
        file: global.config.display().to_string(),
        hash: config_hash(&config).to_string(),
        services_hash: services_hash(&config.services).to_string(),
        key_fingerprint: LoadedKey::load(config.director.hash_key_file.as_deref())
            .ok()
            .map(|key| key.fingerprint()),
    });
    let version = Version { version: env!("CARGO_PKG_VERSION"), config: facts };
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
    Ok(Outcome::Fine)
}
