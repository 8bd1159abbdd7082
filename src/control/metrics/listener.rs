//! Metrics over HTTP, where the configuration asks for it: `GET /metrics` and nothing else.
//!
//! On control's thread, like the admin socket, and with bounds that no reader can exceed: of
//! conversations, of their time, of renderings a second and so of what waits to be read.

use super::{CONTENT_TYPE, Compat, exposition};
use crate::control::admin::server::respond;
use crate::control::daemon::{Daemon, now};
use crate::control::runtime;
use crate::dataplane::time::Time;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Conversations at a time. One more ends the oldest: whoever reads in time is never in the way of
/// others, and whoever does not is the first to go.
const CONVERSATIONS: usize = 16;
/// How long a conversation may take, from its first byte to its last. Prometheus itself gives up
/// after 10 s, unless told otherwise.
const ENDS_WITHIN: Duration = Duration::from_secs(10);
/// How long a rendering is given to others who ask, so that many readers cost no more than one.
/// Shorter than anybody scrapes.
const FRESH: Duration = Duration::from_millis(250);

/// Why nobody can listen there.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for `metrics`: {source}")]
pub struct ListenError {
    address: SocketAddr,
    source: io::Error,
}

/// A socket on which nobody is answered yet.
pub struct Bound(TcpListener);

/// The listening socket; it is closed when this is dropped.
pub struct Listening(JoinHandle<()>);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Bound {
    /// Binds the socket. Clients wait until they are [answered](Self::answer).
    ///
    /// # Errors
    /// When the address is not this host's, or another process listens there.
    pub async fn new(address: SocketAddr) -> Result<Self, ListenError> {
        let refused = |source| ListenError { address, source };
        Ok(Bound(TcpListener::bind(address).await.map_err(refused)?))
    }

    /// Answers clients from now on.
    pub fn answer(self, daemon: Rc<Daemon>) -> Listening {
        Listening(runtime::spawn(accept(self.0, Rc::new(Pages::new(daemon)))))
    }
}

/// Renderings: what there is to read.
struct Pages {
    daemon: Rc<Daemon>,
    /// The last one without and with the names of IPVS.
    last: RefCell<[Option<(Time, Bytes)>; 2]>,
}

impl Pages {
    fn new(daemon: Rc<Daemon>) -> Self {
        Pages { daemon, last: RefCell::default() }
    }

    fn get(&self, compat: Option<Compat>) -> Bytes {
        let mut last = self.last.borrow_mut();
        let place = &mut last[usize::from(compat.is_some())];
        let now = now();
        if let Some((at, text)) = place
            && now.saturating_since(*at) < FRESH
        {
            return text.clone();
        }
        let text = Bytes::from(exposition(self.daemon.reading(), compat));
        *place = Some((now, text.clone()));
        text
    }
}

async fn accept(listener: TcpListener, pages: Rc<Pages>) {
    let mut conversations: VecDeque<JoinHandle<()>> = VecDeque::with_capacity(CONVERSATIONS);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                conversations.retain(|conversation| !conversation.is_finished());
                if conversations.len() >= CONVERSATIONS
                    && let Some(oldest) = conversations.pop_front()
                {
                    oldest.abort();
                }
                conversations.push_back(runtime::spawn(converse(stream, Rc::clone(&pages))));
            }
            Err(error) => {
                tracing::warn!(%error, "metrics listener");
                // Out of descriptors, most likely: others must close theirs first.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// One request and its answer.
async fn converse(stream: TcpStream, pages: Rc<Pages>) {
    let service = service_fn(move |request| {
        let response = answer(&request, &pages);
        async move { Ok::<_, Infallible>(response) }
    });
    let conversation =
        http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(ENDS_WITHIN, conversation).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "metrics conversation"),
        Err(_) => tracing::debug!("a reader of metrics was too slow"),
    }
}

fn answer(request: &Request<Incoming>, pages: &Pages) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    if path != "/metrics" {
        return refusal(StatusCode::NOT_FOUND, &format!("there is no {path}; metrics: /metrics"));
    }
    if *request.method() != Method::GET {
        let mut response = refusal(StatusCode::METHOD_NOT_ALLOWED, "/metrics takes GET");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        return response;
    }
    match Compat::asked_by(request.uri().query().unwrap_or_default()) {
        Ok(compat) => respond(StatusCode::OK, CONTENT_TYPE, Full::new(pages.get(compat))),
        Err(error) => refusal(StatusCode::BAD_REQUEST, &error.to_string()),
    }
}

fn refusal(status: StatusCode, said: &str) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", Full::new(Bytes::from(format!("{said}\n"))))
}
