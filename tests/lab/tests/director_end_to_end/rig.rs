//! The lab and the engine that a scenario runs on. Tests of one lab take turns.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use adit_lab::postgres::PORT;
use adit_lab::skip::{has_guests, has_root};
use adit_lab::topology::vip;
use adit_lab::views::placed;
use adit_lab::{
    Caller, Config, Conversation, Director, Engine, Kind, Lab, LabSpec, Namespace, RealServer,
    SERVE_PORT, Service, Session, report, wait_until,
};
use tokio::net::TcpSocket;

/// What is in no scenario's configuration from the start: the server that is added.
const SPARE: usize = 3;

/// Sessions in the making at a time: more only queue for the guests' one core each.
const AT_ONCE: usize = 8;

/// Connections made at a time that databases only log.
const KNOCKS: usize = 50;

/// Limit for these, on a busy computer.
const KNOCK: Duration = Duration::from_secs(40);

// A lab of a test process goes with the process, by its reaper.
static HERE: LazyLock<Mutex<Lab>> = LazyLock::new(|| build(Kind::Namespace));
static IN_A_GUEST: LazyLock<Mutex<Lab>> = LazyLock::new(|| build(Kind::Guest));

/// Every scenario has a client of its own, so that no packet, session or line of a database's log
/// that another has left behind is taken for its own.
static NEXT_CLIENT: AtomicU8 = AtomicU8::new(20);

/// Sessions with databases, and flows whose place is looked at.
type Size = (usize, u16);

/// For the engine that directors use by themselves here.
const FULL: Size = (100, 1000);

/// The first port of a client that is given out; below those that the kernel gives out.
const FIRST_PORT: u16 = 10_000;

fn build(director: Kind) -> Mutex<Lab> {
    // Real servers clamp what clients send, as in production, so that uploads need no discovery.
    let spec = LabSpec { reals: [2, 2], director, clamp_mtu: 1500, ..LabSpec::default() };
    let lab = Lab::build(spec).unwrap();
    let release = lab.director().sh("uname -r").unwrap();
    let (release, real_kind) = (release.trim(), lab.real_kind());
    report(&format!("director: {director}, Linux {release}; real servers: {real_kind}"));
    Mutex::new(lab)
}

/// A lab for one scenario, and how its director is to read.
pub(crate) struct Rig {
    lab: MutexGuard<'static, Lab>,
    engine: Engine,
    /// How many sessions of hundreds are with databases: one costs a guest 0.2 s of processor time
    /// to open, so not every engine has to pay for as many.
    pub(crate) databases: usize,
    /// Of how many flows the place is looked at, for the same reason.
    pub(crate) flows: u16,
    pub(crate) client: Namespace,
    address: IpAddr,
    next_port: Cell<u16>,
}

impl Rig {
    /// Multishot reads on this computer's kernel, where a director has these.
    pub(crate) fn multishot() -> Option<Self> {
        (has_root() && Engine::Multishot.works_here())
            .then(|| Self::on(&HERE, Engine::Multishot, FULL))
    }

    /// The poll engine on this computer's kernel.
    pub(crate) fn poll() -> Option<Self> {
        let size = if Engine::Multishot.works_here() { (30, 200) } else { FULL };
        has_root().then(|| Self::on(&HERE, Engine::Poll, size))
    }

    /// The poll engine on the older kernel of a guest, where there are guests.
    pub(crate) fn poll_in_a_guest() -> Option<Self> {
        (has_root() && has_guests()).then(|| Self::on(&IN_A_GUEST, Engine::Poll, (15, 200)))
    }

    fn on(lab: &'static Mutex<Lab>, engine: Engine, (databases, flows): Size) -> Self {
        // A scenario that failed has left nothing that the next one looks at.
        let lab = lab.lock().unwrap_or_else(PoisonError::into_inner);
        let number = NEXT_CLIENT.fetch_add(1, Ordering::Relaxed);
        let client = lab.add_client(number).unwrap();
        let address = Ipv4Addr::new(10, 1, 0, number).into();
        Self { lab, engine, databases, flows, client, address, next_port: Cell::new(FIRST_PORT) }
    }

    pub(crate) fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The real servers that are configured from the start.
    pub(crate) fn reals(&self) -> &[RealServer] {
        &self.lab.reals[..SPARE]
    }

    /// The real server that is added.
    pub(crate) fn spare(&self) -> &RealServer {
        &self.lab.reals[SPARE]
    }

    /// Name of the real server with this address.
    pub(crate) fn name(&self, address: IpAddr) -> String {
        let real = self.lab.reals.iter().find(|real| real.address(false) == address);
        real.unwrap_or_else(|| panic!("no real server has {address}")).name().to_owned()
    }

    /// A configuration for this rig's engine.
    pub(crate) fn config(&self, service: Service) -> Config {
        self.engine.config().service(service)
    }

    /// Databases and byte services of these real servers, each as a service.
    pub(crate) fn both<'a>(
        &self,
        scheduler: &str,
        reals: impl IntoIterator<Item = &'a RealServer> + Clone,
    ) -> Config {
        let service =
            |name, port| Service::tcp(name, vip(port)).scheduler(scheduler).reals(reals.clone());
        self.config(service("orders", PORT)).service(service("bytes", SERVE_PORT))
    }

    /// Starts a director that knows nothing of the ones before.
    pub(crate) fn start(&self, config: &Config) -> Director {
        for real in &self.lab.reals {
            real.end_sessions().unwrap();
        }
        let host = self.lab.director();
        host.run(&["rm", "-rf", &host.path("state")]).unwrap();
        let director = Director::start(host, config).unwrap();
        assert_eq!(director.status().unwrap()["engine"], self.engine.name());
        director
    }

    /// The client's address with ports that were not used yet.
    pub(crate) fn sources(&self, count: u16) -> Vec<SocketAddr> {
        let first = self.next_port.get();
        self.next_port.set(first + count);
        (first..first + count).map(|port| SocketAddr::new(self.address, port)).collect()
    }

    /// Opens sessions: the first `databases` of them with databases, the others with the byte
    /// services.
    pub(crate) fn open(&self, sources: &[SocketAddr], databases: usize) -> Vec<Open> {
        let (theirs, rest) = sources.split_at(databases.min(sources.len()));
        let sessions = Session::open_many(&self.client, theirs, vip(PORT), AT_ONCE).unwrap();
        let mut open: Vec<_> = sessions.into_iter().map(Open::Database).collect();
        open.extend(rest.iter().map(|source| {
            let caller = Caller::new(&self.client, vip(SERVE_PORT)).from(*source);
            Open::Bytes(caller.converse().unwrap())
        }));
        open
    }

    /// Connects to the databases' VIP from each source, and closes: enough for their logs. Waits
    /// for these now and then: a database needs a process for each connection.
    pub(crate) fn knock(&self, sources: &[SocketAddr]) {
        for part in sources.chunks(KNOCKS) {
            let part = part.to_vec();
            let theirs: BTreeSet<_> = part.iter().copied().collect();
            let connected = self.client.block_on(async move {
                let connect = |source| async move {
                    let socket = TcpSocket::new_v4()?;
                    socket.bind(source)?;
                    let connecting = socket.connect(vip(PORT));
                    tokio::time::timeout(KNOCK, connecting).await?.map(drop)
                };
                let tasks: Vec<_> = part.into_iter().map(|s| tokio::spawn(connect(s))).collect();
                for task in tasks {
                    task.await??;
                }
                Ok::<_, std::io::Error>(())
            });
            connected.unwrap();
            let logged = || -> usize {
                let logs = self.lab.reals.iter().map(|real| real.database_connections().unwrap());
                logs.flatten().filter(|client| theirs.contains(client)).count()
            };
            wait_until(KNOCK, "the databases' logs", || logged() >= theirs.len()).unwrap();
        }
    }

    /// Names of the servers that new sessions go to by `adit explain`, without any director.
    pub(crate) fn placed(
        &self,
        config: &Config,
        clients: &[SocketAddr],
        port: u16,
    ) -> BTreeMap<SocketAddr, String> {
        let places = placed(&self.client, config, clients, vip(port)).unwrap();
        places.into_iter().map(|(client, real)| (client, self.name(real))).collect()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // What its kernel would send again and again in closing connections, or answer to real
        // servers that do so, ends here. Where that fails, later scenarios count strange packets.
        let _ = self.client.ip("route replace blackhole default");
    }
}

/// A session that stays open.
#[derive(Debug)]
pub(crate) enum Open {
    Database(Session),
    Bytes(Conversation),
}

impl Open {
    pub(crate) fn source(&self) -> SocketAddr {
        match self {
            Self::Database(session) => session.source(),
            Self::Bytes(session) => session.source(),
        }
    }

    pub(crate) fn server(&self) -> &str {
        match self {
            Self::Database(session) => session.server(),
            Self::Bytes(session) => session.server(),
        }
    }

    pub(crate) fn ask_name(&mut self) -> adit_lab::Result<String> {
        match self {
            Self::Database(session) => session.ask_name(),
            Self::Bytes(session) => session.ask_name(),
        }
    }
}

/// Asserts that every session answers, and from the server where it was opened.
pub(crate) fn none_broken(sessions: &mut [Open], after: &str) {
    let all = sessions.len();
    let mut broken = Vec::new();
    for session in sessions {
        match session.ask_name() {
            Ok(name) if name == session.server() => {}
            other => broken.push((session.source(), session.server().to_owned(), other)),
        }
    }
    assert!(broken.is_empty(), "{} of {all} broken {after}: {broken:?}", broken.len());
}
