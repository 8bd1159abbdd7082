//! What a director says of itself, in the shape in which tests ask.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde_json::Value;

use crate::director::{Config, Director, adit};
use crate::error::{Context, LabError, Result};
use crate::host::Host;

impl Director {
    /// `status` of `adit list --json`.
    ///
    /// # Errors
    /// As [`Director::json`].
    pub fn status(&self) -> Result<Value> {
        Ok(self.json(&["list"])?["status"].take())
    }

    /// The worker's counters by name, the ledger among them.
    ///
    /// # Errors
    /// As [`Director::json`], or when a counter is not a number.
    pub fn totals(&self) -> Result<BTreeMap<String, u64>> {
        numbers(&self.status()?["totals"])
    }

    /// Packets dropped, by reason, as `adit drops` has them.
    ///
    /// # Errors
    /// As [`Director::json`].
    pub fn drops(&self) -> Result<BTreeMap<String, u64>> {
        let answer = self.json(&["drops", "--all"])?;
        let drops = answer.as_array().cloned().unwrap_or_default();
        let pair =
            |drop: &Value| Some((drop["reason"].as_str()?.to_owned(), drop["count"].as_u64()?));
        drops
            .iter()
            .map(pair)
            .collect::<Option<_>>()
            .ok_or_else(|| LabError::failed("read the drops", answer.to_string()))
    }

    /// One real server of a service, of `adit list --json`; `None` when the service has it not.
    ///
    /// # Errors
    /// As [`Director::json`].
    pub fn real(&self, service: &str, address: IpAddr) -> Result<Option<Value>> {
        let answer = self.json(&["list"])?;
        let empty = Vec::new();
        let services = answer["services"].as_array().unwrap_or(&empty);
        let reals = services
            .iter()
            .filter(|candidate| candidate["name"] == service)
            .flat_map(|service| service["reals"].as_array().unwrap_or(&empty));
        let address = address.to_string();
        Ok(reals.into_iter().find(|real| real["address"] == address.as_str()).cloned())
    }

    /// The real server that persistence remembers for a client.
    ///
    /// # Errors
    /// As [`Director::json`].
    pub fn persisted(&self, client: SocketAddr, vip: SocketAddr) -> Result<Option<IpAddr>> {
        let answer = self.json(&["explain", &client.to_string(), &vip.to_string()])?;
        Ok(answer["persisted"].as_str().and_then(|text| text.parse().ok()))
    }
}

/// Where `adit explain` says that a new flow of each client goes, from the configuration alone:
/// no director is asked.
///
/// # Errors
/// When the command is refused.
pub fn placed(
    host: &dyn Host,
    config: &Config,
    clients: &[SocketAddr],
    vip: SocketAddr,
) -> Result<BTreeMap<SocketAddr, IpAddr>> {
    let path = config.write(host, "offline.toml")?;
    let mut places = BTreeMap::new();
    for client in clients {
        let (from, to) = (client.to_string(), vip.to_string());
        let arguments = ["explain", &from, &to, "--offline", "--config", &path, "--json"];
        let said = adit(host, &arguments)?;
        let what = || format!("explain {from} offline");
        if !said.success {
            return Err(LabError::failed(what(), said.text));
        }
        let answer: Value = serde_json::from_str(&said.text).context(what)?;
        let real = answer["real"].as_str().and_then(|text| text.parse().ok());
        places.insert(*client, real.ok_or_else(|| LabError::failed(what(), said.text))?);
    }
    Ok(places)
}

fn numbers(object: &Value) -> Result<BTreeMap<String, u64>> {
    let entries = object.as_object().into_iter().flatten();
    let pairs = entries.map(|(name, value)| Some((name.clone(), value.as_u64()?)));
    match pairs.collect::<Option<BTreeMap<_, _>>>() {
        Some(numbers) if !numbers.is_empty() => Ok(numbers),
        _ => Err(LabError::failed("read counters", object.to_string())),
    }
}
