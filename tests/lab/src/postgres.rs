//! PostgreSQL sessions from inside a host, with a source address and port of the test's choice.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpSocket;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config, NoTls};

use crate::error::{Context, LabError, Result};
use crate::namespace::Namespace;

/// The port that databases listen on, at their own addresses and the VIPs.
pub const PORT: u16 = 5432;

/// Limit for opening a session and for one query: beyond three retransmissions of a lost SYN (1, 3
/// and 7 s), and for a database in a guest on a busy computer, where a session costs 0.2 s of
/// processor time.
const ANSWER: Duration = Duration::from_secs(40);

/// An open session.
#[derive(Debug)]
pub struct Session {
    client: std::sync::Arc<Client>,
    connection: JoinHandle<()>,
    source: SocketAddr,
    server: String,
    host: Namespace,
}

impl Session {
    /// Opens a session from `host`; without `source` the kernel chooses address and port.
    ///
    /// # Errors
    /// When the source is taken, or nobody answers in time.
    pub fn open(host: &Namespace, source: Option<SocketAddr>, to: SocketAddr) -> Result<Self> {
        let opened = host.block_on(open(source, to));
        let (client, connection, source, server) = opened?;
        Ok(Self { client, connection, source, server, host: host.clone() })
    }

    /// Opens many sessions at once, at most `at_once` of them in the making, in the order of
    /// `sources`.
    ///
    /// # Errors
    /// When any of them cannot be opened.
    pub fn open_many(
        host: &Namespace,
        sources: &[SocketAddr],
        to: SocketAddr,
        at_once: usize,
    ) -> Result<Vec<Self>> {
        let mut sessions = Vec::with_capacity(sources.len());
        for part in sources.chunks(at_once.max(1)) {
            let part = part.to_vec();
            let opened = host.block_on(async move {
                let tasks: Vec<_> =
                    part.into_iter().map(|source| tokio::spawn(open(Some(source), to))).collect();
                let mut results = Vec::with_capacity(tasks.len());
                for task in tasks {
                    results.push(task.await.expect("opening does not panic"));
                }
                results
            });
            for result in opened {
                let (client, connection, source, server) = result?;
                sessions.push(Self { client, connection, source, server, host: host.clone() });
            }
        }
        Ok(sessions)
    }

    /// The session's own address and port.
    #[must_use]
    pub fn source(&self) -> SocketAddr {
        self.source
    }

    /// Name of the server that answered when the session was opened.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Asks the server for its name once more.
    ///
    /// # Errors
    /// When the session is broken, or the answer does not come in time.
    pub fn ask_name(&self) -> Result<String> {
        let client = std::sync::Arc::clone(&self.client);
        self.host.block_on(async move { server_name(&client).await })
    }

    /// The sessions of `sessions` that are broken: no answer, or another server's.
    #[must_use]
    pub fn broken(sessions: &[Self]) -> Vec<(SocketAddr, String)> {
        let mut broken = Vec::new();
        for session in sessions {
            match session.ask_name() {
                Ok(name) if name == session.server => {}
                Ok(name) => {
                    let what = format!("moved from {} to {name}", session.server);
                    broken.push((session.source, what));
                }
                Err(error) => broken.push((session.source, error.to_string())),
            }
        }
        broken
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

type Opened = (std::sync::Arc<Client>, JoinHandle<()>, SocketAddr, String);

async fn open(source: Option<SocketAddr>, to: SocketAddr) -> Result<Opened> {
    let what = || match source {
        Some(source) => format!("open a session from {source} to {to}"),
        None => format!("open a session to {to}"),
    };
    let connecting = async {
        let socket =
            if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.context(what)?;
        if let Some(source) = source {
            // A port of an earlier session that is in TIME_WAIT here may be used again.
            socket.set_reuseaddr(true).context(what)?;
            socket.bind(source).context(what)?;
        }
        let stream = socket.connect(to).await.context(what)?;
        stream.set_nodelay(true).context(what)?;
        let source = stream.local_addr().context(what)?;
        let mut config = Config::new();
        config.user("postgres").dbname("postgres").application_name("adit-lab");
        let (client, connection) = config.connect_raw(stream, NoTls).await.context(what)?;
        let connection = tokio::spawn(async move {
            // The session's next query reports it.
            let _ = connection.await;
        });
        let name = server_name(&client).await?;
        Ok((std::sync::Arc::new(client), connection, source, name))
    };
    match tokio::time::timeout(ANSWER, connecting).await {
        Ok(result) => result,
        Err(_) => Err(LabError::Timeout { what: what(), after: ANSWER }),
    }
}

async fn server_name(client: &Client) -> Result<String> {
    let what = || "ask the server's name".to_owned();
    let asking = client.query_one("select current_setting('cluster_name')", &[]);
    match tokio::time::timeout(ANSWER, asking).await {
        Ok(row) => row.context(what)?.try_get(0).context(what),
        Err(_) => Err(LabError::Timeout { what: what(), after: ANSWER }),
    }
}
