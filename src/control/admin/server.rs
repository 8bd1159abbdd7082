//! The director's end of the admin socket.

use super::api::ErrorBody;
use super::capture::{self, CaptureBody};
use super::drain;
use super::query::{Query, QueryError};
use crate::control::daemon::{ConnectionFilter, Daemon, PAGE, ProbeRequest, ReloadRequest};
use crate::control::drains::owner::Peer;
use crate::control::explain::Question;
use crate::control::health::exchange::LIVE_PORT;
use crate::control::metrics::{self, Compat};
use crate::control::runtime;
use crate::dataplane::service::Protocol;
use http_body_util::{Either, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::unistd::{Gid, Group};
use serde::Serialize;
use std::convert::Infallible;
use std::io;
use std::num::NonZeroU16;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// Conversations at a time: operators and a metrics reader, not the world. Others wait.
const CONVERSATIONS: usize = 32;
/// How long a client may take to send its request's head.
const HEAD_WITHIN: Duration = Duration::from_secs(10);

/// What a socket's clients may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    /// Everything.
    Full,
    /// Ask for what is shown: nothing is changed, and no packet's content is seen.
    Read,
}

/// Why the socket is not there.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {path}: {source}")]
pub struct ListenError {
    path: PathBuf,
    source: io::Error,
}

/// A socket on which nobody is answered yet. Its file is removed when this is dropped.
pub struct Bound {
    listener: UnixListener,
    access: Access,
    file: SocketFile,
}

/// The listening socket; it is closed, and its file removed, when this is dropped.
pub struct Listening {
    task: JoinHandle<()>,
    _file: SocketFile,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // A file that is gone already is what was wanted.
        let _ = std::fs::remove_file(&self.0);
    }
}

type Body = Either<Full<Bytes>, CaptureBody>;

/// A request that is not carried out.
pub(super) struct Refusal {
    status: StatusCode,
    body: ErrorBody,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        let body = ErrorBody { error: error.into(), problems: Vec::new(), drawn: String::new() };
        Refusal { status, body }
    }
}

impl From<QueryError> for Refusal {
    fn from(error: QueryError) -> Self {
        Refusal::new(StatusCode::BAD_REQUEST, error.to_string())
    }
}

impl Bound {
    /// Binds the socket at `path`. Only root can connect. Clients wait until they are
    /// [answered](Self::answer).
    ///
    /// # Errors
    /// When another process listens there, or the directory does not let us.
    pub fn new(path: &Path) -> Result<Self, ListenError> {
        Self::open(path, None)
    }

    /// Binds the socket beside the one at `path` that members of `group` can connect to, to look.
    ///
    /// # Errors
    /// As [`new`](Self::new), and when there is no such group.
    pub fn for_group(path: &Path, group: &str) -> Result<Self, ListenError> {
        let path = read_only_socket(path);
        let found = Group::from_name(group).map_err(io::Error::from).and_then(|found| {
            found.ok_or_else(|| io::Error::other(format!("there is no group {group}")))
        });
        let refused = |source| ListenError { path: path.clone(), source };
        Self::open(&path, Some(found.map_err(refused)?.gid))
    }

    fn open(path: &Path, group: Option<Gid>) -> Result<Self, ListenError> {
        let refused = |source| ListenError { path: path.to_owned(), source };
        let listener = bind(path).map_err(refused)?;
        let file = SocketFile(path.to_owned());
        let access = match group {
            None => Access::Full,
            Some(group) => {
                std::os::unix::fs::chown(path, None, Some(group.as_raw())).map_err(refused)?;
                let mode = std::fs::Permissions::from_mode(0o660);
                std::fs::set_permissions(path, mode).map_err(refused)?;
                Access::Read
            }
        };
        Ok(Bound { listener, access, file })
    }

    /// Answers clients from now on.
    pub fn answer(self, daemon: Rc<Daemon>) -> Listening {
        let task = runtime::spawn(accept(self.listener, self.access, daemon));
        Listening { task, _file: self.file }
    }
}

/// Path of the socket that only shows, beside the other: `adit.sock` has `adit-read.sock`.
pub fn read_only_socket(path: &Path) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push("-read");
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => return Err(io::Error::from_raw_os_error(libc::EADDRINUSE)),
        // What a killed director left behind; or a file of somebody's, which refuses too.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
                return Err(io::Error::other("this is not a socket; name another path"));
            }
            std::fs::remove_file(path)?;
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn accept(listener: UnixListener, access: Access, daemon: Rc<Daemon>) {
    let room = Arc::new(Semaphore::new(CONVERSATIONS));
    loop {
        // The semaphore is never closed.
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let daemon = Rc::clone(&daemon);
                runtime::spawn(async move {
                    converse(stream, access, daemon).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "admin socket");
                // Out of descriptors, most likely: others must close theirs first.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(stream: UnixStream, access: Access, daemon: Rc<Daemon>) {
    let peer = match stream.peer_cred() {
        Ok(credentials) => Peer { uid: credentials.uid(), pid: credentials.pid() },
        Err(error) => {
            tracing::warn!(%error, "who is at the admin socket is not known: it is not answered");
            return;
        }
    };
    let service = service_fn(move |request| {
        let daemon = Rc::clone(&daemon);
        async move { Ok::<_, Infallible>(answer(request, access, peer, &daemon).await) }
    });
    let conversation = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = conversation.await {
        tracing::debug!(%error, "admin conversation");
    }
}

async fn answer(
    request: Request<Incoming>,
    access: Access,
    peer: Peer,
    daemon: &Rc<Daemon>,
) -> Response<Body> {
    match route(&request, access, peer, daemon).await {
        Ok(response) => response,
        Err(refusal) => json(refusal.status, &refusal.body),
    }
}

async fn route(
    request: &Request<Incoming>,
    access: Access,
    peer: Peer,
    daemon: &Rc<Daemon>,
) -> Result<Response<Body>, Refusal> {
    let query = request.uri().query().unwrap_or_default();
    let path = request.uri().path();
    let changes = matches!(path, "/v1/reload" | "/v1/drain" | "/v1/undrain" | "/v1/probe");
    let method = if changes { Method::POST } else { Method::GET };
    if *request.method() != method {
        let said = format!("{path} takes {method}");
        return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, said));
    }
    if access == Access::Read && (changes || path == "/v1/capture") {
        let said = format!("{path} is not for this socket: it only shows; ask as root");
        return Err(Refusal::new(StatusCode::FORBIDDEN, said));
    }
    let ok = StatusCode::OK;
    match path {
        "/v1/status" => Query::parse(query, &[]).map(|_| json(ok, &daemon.status())),
        "/v1/services" => Query::parse(query, &[]).map(|_| json(ok, &daemon.services())),
        "/v1/drops" => Query::parse(query, &[]).map(|_| json(ok, &daemon.drops())),
        "/v1/connections" => {
            connection_filter(query).map(|filter| json(ok, &daemon.connections(&filter)))
        }
        "/v1/explain" => question(query).map(|question| json(ok, &daemon.explain(&question))),
        "/v1/metrics" => Compat::asked_by(query)
            .map(|compat| metrics(metrics::exposition(daemon.reading(), compat))),
        "/v1/reload" => return reload(query, daemon).await,
        "/v1/probe" => return probe(query, daemon).await,
        "/v1/drain" => return drain::drain(query, peer, daemon).await.map(|done| json(ok, &done)),
        "/v1/undrain" => {
            return drain::undrain(query, peer, daemon).await.map(|done| json(ok, &done));
        }
        "/v1/capture" => return capture::start(query, daemon).map(stream),
        _ => {
            let said = format!("there is no {path}; see docs/admin-api.md");
            return Err(Refusal::new(StatusCode::NOT_FOUND, said));
        }
    }
    .map_err(Refusal::from)
}

fn connection_filter(query: &str) -> Result<ConnectionFilter, QueryError> {
    let query = Query::parse(query, &["service", "client", "real", "cursor", "limit"])?;
    Ok(ConnectionFilter {
        service: query.get("service", "a name")?,
        client: query.get("client", "an address")?,
        real: query.get("real", "an address")?,
        cursor: query.get("cursor", "a number")?.unwrap_or(0),
        limit: query.get("limit", "a number")?.unwrap_or(PAGE),
    })
}

fn question(query: &str) -> Result<Question, QueryError> {
    let query = Query::parse(query, &["client", "vip", "protocol"])?;
    let right = "an address and a port, such as 192.0.2.1:5432 or [2001:db8::1]:5432";
    let missing = |key: &str| QueryError(format!("`{key}` is missing: {right}"));
    let protocol: Option<String> = query.get("protocol", "tcp or udp")?;
    Ok(Question {
        client: query.get("client", right)?.ok_or_else(|| missing("client"))?,
        vip: query.get("vip", right)?.ok_or_else(|| missing("vip"))?,
        protocol: match protocol.as_deref() {
            None | Some("tcp") => Protocol::Tcp,
            Some("udp") => Protocol::Udp,
            Some(other) => {
                return Err(QueryError(format!("`protocol` = `{other}` is not tcp or udp")));
            }
        },
    })
}

async fn reload(query: &str, daemon: &Rc<Daemon>) -> Result<Response<Body>, Refusal> {
    let query = Query::parse(query, &["dry_run", "now"])?;
    let request = ReloadRequest { dry_run: query.flag("dry_run")?, now: query.flag("now")? };
    let daemon = Rc::clone(daemon);
    // On its own: this conversation is dropped when its client goes away, and a reload must not
    // stop in its middle.
    let reloading = runtime::spawn(async move { daemon.reload(request).await });
    let reloaded = reloading.await.map_err(|error| {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the reload ended: {error}"))
    })?;
    match reloaded {
        Ok(reloaded) => Ok(json(StatusCode::OK, &reloaded)),
        Err(error) => {
            let (drawn, problems) = error.drawn().unwrap_or_default();
            let body = ErrorBody { error: error.to_string(), problems, drawn };
            Err(Refusal { status: StatusCode::UNPROCESSABLE_ENTITY, body })
        }
    }
}

async fn probe(query: &str, daemon: &Rc<Daemon>) -> Result<Response<Body>, Refusal> {
    let query = Query::parse(query, &["service", "real", "port"])?;
    let missing = |key: &str| QueryError(format!("`{key}` is missing"));
    let port: Option<NonZeroU16> = query.get("port", "a port, 1 to 65535")?;
    let request = ProbeRequest {
        service: query.get("service", "a name")?.ok_or_else(|| missing("service"))?,
        real: query.get("real", "an address")?.ok_or_else(|| missing("real"))?,
        port: port.map_or(LIVE_PORT, NonZeroU16::get),
    };
    match daemon.probe(&request).await {
        Ok(probed) => Ok(json(StatusCode::OK, &probed)),
        Err(error) => Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())),
    }
}

fn stream(body: CaptureBody) -> Response<Body> {
    respond(StatusCode::OK, "application/vnd.tcpdump.pcap", Either::Right(body))
}

fn metrics(text: String) -> Response<Body> {
    respond(StatusCode::OK, metrics::CONTENT_TYPE, Either::Left(Full::new(Bytes::from(text))))
}

fn json<T: Serialize>(status: StatusCode, value: &T) -> Response<Body> {
    let (status, mut text) = match serde_json::to_vec_pretty(value) {
        Ok(text) => (status, text),
        // All views have string keys; should one ever not, the client sees it.
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string().into_bytes()),
    };
    text.push(b'\n');
    respond(status, "application/json", Either::Left(Full::new(Bytes::from(text))))
}

/// An answer of this type.
pub(in crate::control) fn respond<B>(
    status: StatusCode,
    kind: &'static str,
    body: B,
) -> Response<B> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
