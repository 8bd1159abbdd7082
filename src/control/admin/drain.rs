//! `POST /v1/drain` and `POST /v1/undrain`.

use super::api::Drained;
use super::query::{Query, QueryError};
use super::server::Refusal;
use crate::control::daemon::{Daemon, DrainError};
use crate::control::drains::owner::Peer;
use crate::control::drains::{DrainKey, check_reason};
use crate::control::runtime;
use hyper::StatusCode;
use std::rc::Rc;

impl From<DrainError> for Refusal {
    fn from(error: DrainError) -> Self {
        let status = match &error {
            DrainError::NoService(_) | DrainError::NoReal(_) => StatusCode::NOT_FOUND,
            DrainError::Empties(_) | DrainError::HeldInAll { .. } => StatusCode::CONFLICT,
            DrainError::TooMany | DrainError::Store { .. } => StatusCode::INSUFFICIENT_STORAGE,
            DrainError::Change(_) | DrainError::Unpublished(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Refusal::new(status, error.to_string())
    }
}

/// What is meant: `real`, and `service` or all services.
fn key(query: &Query) -> Result<DrainKey, QueryError> {
    let service: Option<String> = query.get("service", "a name")?;
    let all = query.flag("all")?;
    if service.is_some() == all {
        return Err(QueryError("name one `service`, or say `all=true`".to_owned()));
    }
    let real = query.get("real", "an address")?;
    let real = real.ok_or_else(|| QueryError("`real` is missing: an address".to_owned()))?;
    Ok(DrainKey { service, real })
}

/// The name of who asks. Looked up beside the runtime: a directory of users may be slow.
async fn name(peer: Peer) -> Result<String, Refusal> {
    tokio::task::spawn_blocking(move || peer.name()).await.map_err(|error| {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("who asks is not known: {error}"))
    })
}

/// Keeps a real server from new flows.
pub(super) async fn drain(
    query: &str,
    peer: Peer,
    daemon: &Rc<Daemon>,
) -> Result<Drained, Refusal> {
    let query = Query::parse(query, &["service", "all", "real", "reason", "force"])?;
    let (key, force) = (key(&query)?, query.flag("force")?);
    let reason: Option<String> = query.get("reason", "a text")?;
    let reason = reason.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
    if let Some(reason) = &reason {
        check_reason(reason).map_err(|error| QueryError(error.to_string()))?;
    }
    let (daemon, owner) = (Rc::clone(daemon), name(peer).await?);
    // On its own: this conversation is dropped when its client goes away, and a drain that is
    // recorded must also come in force.
    let asked = runtime::spawn(async move { daemon.drain(key, owner, reason, force).await });
    ended(asked.await)
}

/// Takes a drain back.
pub(super) async fn undrain(
    query: &str,
    peer: Peer,
    daemon: &Rc<Daemon>,
) -> Result<Drained, Refusal> {
    let key = key(&Query::parse(query, &["service", "all", "real"])?)?;
    let (daemon, by) = (Rc::clone(daemon), name(peer).await?);
    ended(runtime::spawn(async move { daemon.undrain(key, by).await }).await)
}

fn ended(
    end: Result<Result<Drained, DrainError>, tokio::task::JoinError>,
) -> Result<Drained, Refusal> {
    let broken = |error| {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the request ended: {error}"))
    };
    Ok(end.map_err(broken)??)
}
