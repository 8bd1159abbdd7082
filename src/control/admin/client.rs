//! The command line's end of the admin socket.

use super::api::ErrorBody;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;

/// How long a director may take for an answer. A reload with the largest tables takes a second;
/// beyond this it is stuck.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no director listens on {path}: {source}{}", hint(source))]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The conversation broke off.
    #[error("the director at {path} does not answer: {reason}")]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What happened.
        reason: String,
    },
    /// The director refused.
    #[error("{}", .0.error)]
    Refused(Box<ErrorBody>),
}

fn hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ECONNREFUSED) => {
            "; start one with `adit run`, or name its socket with --socket"
        }
        Some(libc::EACCES | libc::EPERM) => "; run this as root",
        _ => "",
    }
}

/// A director's admin socket.
#[derive(Debug, Clone)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// The director that listens at `path`. Nothing is opened yet.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Client { path: path.to_owned() }
    }

    /// Asks, and reads the whole answer as JSON.
    ///
    /// # Errors
    /// When nobody listens, the answer is broken, or it is a refusal.
    pub async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        target: &str,
    ) -> Result<T, ClientError> {
        let body = self.whole(method, target).await?;
        serde_json::from_slice(&body).map_err(|error| self.broken(&error))
    }

    /// Asks, and reads the whole answer as it is.
    ///
    /// # Errors
    /// When nobody listens, the answer breaks off, or it is a refusal.
    pub async fn whole(&self, method: Method, target: &str) -> Result<Bytes, ClientError> {
        let asking = async {
            let response = self.send(method, target).await?;
            let body = response.into_body().collect().await;
            body.map(http_body_util::Collected::to_bytes).map_err(|error| self.broken(&error))
        };
        match tokio::time::timeout(ANSWER_WITHIN, asking).await {
            Ok(body) => body,
            Err(_) => Err(self.broken(&"no answer within 30 seconds")),
        }
    }

    /// Asks, and gives the answer's body as it arrives.
    ///
    /// # Errors
    /// When nobody listens, or the answer is a refusal.
    pub async fn stream(&self, target: &str) -> Result<Incoming, ClientError> {
        Ok(self.send(Method::GET, target).await?.into_body())
    }

    async fn send(&self, method: Method, target: &str) -> Result<Response<Incoming>, ClientError> {
        let stream = UnixStream::connect(&self.path)
            .await
            .map_err(|source| ClientError::Connect { path: self.path.clone(), source })?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(&error))?;
        // Ends with the conversation; what goes wrong in it reaches the request as well.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(target)
            .header("host", "adit")
            .body(Empty::<Bytes>::new())
            .map_err(|error| self.broken(&error))?;
        let response = sender.send_request(request).await.map_err(|error| self.broken(&error))?;
        if response.status() == StatusCode::OK {
            return Ok(response);
        }
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|error| self.broken(&error))?;
        Err(match serde_json::from_slice(&body.to_bytes()) {
            Ok(refusal) => ClientError::Refused(Box::new(refusal)),
            Err(_) => self.broken(&format!("HTTP status {status}")),
        })
    }

    fn broken(&self, reason: &dyn std::fmt::Display) -> ClientError {
        ClientError::Broken { path: self.path.clone(), reason: reason.to_string() }
    }
}
