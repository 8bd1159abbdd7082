//! `make demo`: the director's main job on this computer, with real packets and real databases.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use adit_lab::packet::{IPIP, TCP};
use adit_lab::postgres::PORT;
use adit_lab::topology::{VIP, vip};
use adit_lab::{
    Config, Director, Lab, LabSpec, Namespace, RealServer, Service, Session, Sniffer, wait_until,
};
use anyhow::{Context, ensure};

/// Sessions that each client opens at a time: a database's session costs a guest 0.2 s of
/// processor time.
const SESSIONS: u16 = 8;

/// Limit for the next hops to answer.
const DIRECT: Duration = Duration::from_secs(10);

/// What the demo builds, for people who have never seen direct return.
const PICTURE: &str = "
   3 clients ──▶ 198.51.100.10 ──▶ director ══ IP in IP ══▶ real servers in 2 data centres
       ▲                          (adit run)                PostgreSQL, in other subnets
       └───────────── the databases answer the clients directly ─────────────┘
";

fn main() -> anyhow::Result<()> {
    let mut show = Show::new();
    show.say("Adit carries database sessions from one address to servers in any data centre.")?;
    writeln!(std::io::stdout(), "{PICTURE}").context("print")?;
    show.note(
        "All of it is built on this computer, apart from its own network, and goes away again.",
    )?;
    show.step("Building the networks, and booting a PostgreSQL on each real server")?;
    let demo = Demo::build(&mut show)?;
    let result = demo.run(&mut show);
    show.note("Taking everything down again.")?;
    result?;
    show.note("Next: README.md for a configuration of your own; `make test` for the proofs.")
}

/// The networks, and what the summary will say.
struct Demo {
    lab: Lab,
    clients: Vec<Namespace>,
    replies_through_director: Sniffer,
    wrapped: [Sniffer; 2],
}

impl Demo {
    fn build(show: &mut Show) -> anyhow::Result<Self> {
        let lab = Lab::build(LabSpec { reals: [2, 1], clamp_mtu: 1500, ..LabSpec::default() })?;
        let clients = vec![lab.client.clone(), lab.add_client(11)?, lab.add_client(12)?];
        show.note(&format!("each real server is a {} with a tunl0 device", lab.real_kind()))?;
        for real in &lab.reals {
            show.note(&format!(
                "{} in dc{} at {}: PostgreSQL answers after {:.1} s",
                real.name(),
                lab.data_centre(real) + 1,
                real.address(false),
                real.ready_after().as_secs_f64()
            ))?;
        }
        let director = lab.director();
        let host = director.namespace();
        // At the routers: what a director sends past its queues is invisible on its own host.
        let wrapped = |dc: usize| {
            Sniffer::start(&lab.dc_routers[dc], "director", |frame| {
                !frame.outgoing && frame.ip().is_some_and(|ip| ip.protocol == IPIP)
            })
        };
        let from_vip = |frame: &adit_lab::Frame| {
            frame.ip().is_some_and(|ip| ip.source == VIP && ip.protocol == TCP)
        };
        Ok(Self {
            clients,
            replies_through_director: Sniffer::start(host, "eth0", from_vip)?,
            wrapped: [wrapped(0)?, wrapped(1)?],
            lab,
        })
    }

    fn run(&self, show: &mut Show) -> anyhow::Result<()> {
        let reals = &self.lab.reals;
        show.step(&format!("The director starts: packets to the virtual IP {VIP} now come to it"))?;
        let mut director = Director::start(self.lab.director(), &self.config(reals)?)?;
        wait_until(DIRECT, "the next hops", || {
            director.adit(&["list"]).is_ok_and(|said| !said.text.contains("has not answered"))
        })?;
        show.note("$ adit list")?;
        show.block(&director.adit(&["list"])?.text)?;
        show.note(
            "Each client's session goes to one of the three by a hash of its address and port",
        )?;
        show.note("(maglev), through a tunnel, by the next hop towards that data centre.")?;

        show.step("Three clients open sessions to the virtual IP; each goes to one real server")?;
        show.note("real server, its sessions, and whose they are (■: a session of that client):")?;
        let mut sessions = self.open(show, 40_000)?;
        ensure_spread(&sessions, reals)?;
        show.note("the databases' own logs have the same sessions")?;
        show.note("booting one more real server, real4 ...")?;
        let added = self.lab.boot_real(1)?;

        show.step("A real server is added in the second data centre, with all sessions open")?;
        self.reload(show, &director, &self.config(reals.iter().chain([&added]))?)?;
        check(show, &sessions)?;
        show.note("24 more sessions:")?;
        sessions.extend(self.open(show, 41_000)?);

        show.step("real1 is taken out of the configuration; its sessions stay, new ones avoid it")?;
        self.reload(show, &director, &self.config(reals[1..].iter().chain([&added]))?)?;
        check(show, &sessions)?;
        show.note("24 more sessions:")?;
        let new = self.open(show, 42_000)?;
        ensure!(new.iter().all(|session| session.server() != "real1"), "real1 got new sessions");
        sessions.extend(new);

        show.step(
            "The director is killed with SIGKILL, in the middle of all that, and started again",
        )?;
        director.kill()?;
        let down = show.start.elapsed();
        director.start_again()?;
        let away = show.start.elapsed() - down;
        show.note(&format!("it forwards again after {:.2} s", away.as_secs_f64()))?;
        check(show, &sessions)?;

        self.summary(show, &sessions)
    }

    /// The configuration with these real servers, and a key of its own for the placement hash.
    fn config<'a>(
        &self,
        reals: impl IntoIterator<Item = &'a RealServer>,
    ) -> anyhow::Result<Config> {
        let host = self.lab.director();
        let key = host.namespace().dir().join("hash.key");
        std::fs::write(&key, "5ca1ab1e0ddba11c0ffee0123456789a\n").context("write a key")?;
        let service = Service::tcp("orders", vip(PORT)).reals(reals);
        Ok(Config::new().set("hash_key_file", &format!("{key:?}")).service(service))
    }

    fn reload(&self, show: &mut Show, director: &Director, config: &Config) -> anyhow::Result<()> {
        let said = director.reload(config).context("reload")?;
        ensure!(said.success, "reload was refused: {}", said.text);
        show.note("$ adit reload")?;
        show.block(&said.text)
    }

    /// Opens sessions from all clients and shows where they went.
    fn open(&self, show: &mut Show, first_port: u16) -> anyhow::Result<Vec<Session>> {
        let mut sessions = Vec::new();
        for (index, client) in (10..).zip(&self.clients) {
            let address = IpAddr::from(Ipv4Addr::new(10, 1, 0, index));
            let sources: Vec<_> =
                (first_port..first_port + SESSIONS).map(|p| SocketAddr::new(address, p)).collect();
            for part in sources.chunks(4) {
                sessions.extend(Session::open_many(client, part, vip(PORT), 4)?);
                show.places(&sessions, false)?;
            }
        }
        show.places(&sessions, true)?;
        Ok(sessions)
    }

    fn summary(&self, show: &mut Show, sessions: &[Session]) -> anyhow::Result<()> {
        let wrapped: Vec<_> = self.wrapped.iter().map(|wire| wire.frames().len()).collect();
        let replies = self.replies_through_director.frames().len();
        show.step("What you saw")?;
        show.note(&format!(
            "✔ {} sessions to one address: a server came, one went, the director was killed, 0 broke",
            sessions.len()
        ))?;
        show.note(&format!(
            "✔ the director wrapped {} packets, IP in IP, to the first data centre, {} to the second",
            wrapped[0], wrapped[1]
        ))?;
        show.note(&format!(
            "✔ the databases answered the clients directly: {replies} answers came through the director"
        ))?;
        ensure!(wrapped.iter().all(|&count| count > 0), "a data centre got nothing");
        ensure!(replies == 0, "replies went through the director");
        Ok(())
    }
}

fn count(sessions: &[Session]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for session in sessions {
        *counts.entry(session.server()).or_default() += 1;
    }
    counts
}

/// Which clients' sessions a server has: a block for each, in the client's row.
fn clients_of(sessions: &[Session], server: &str) -> String {
    let mut clients: BTreeMap<IpAddr, usize> = BTreeMap::new();
    for session in sessions.iter().filter(|session| session.server() == server) {
        *clients.entry(session.source().ip()).or_default() += 1;
    }
    let row = clients.iter().map(|(client, count)| {
        format!("{client} {:<width$}", "■".repeat(*count), width = usize::from(SESSIONS))
    });
    row.collect::<Vec<_>>().join("  ")
}

fn ensure_spread(sessions: &[Session], reals: &[RealServer]) -> anyhow::Result<()> {
    let counts = count(sessions);
    for real in reals {
        ensure!(counts.contains_key(real.name()), "{} got no session: {counts:?}", real.name());
        // The servers' own word, beside what they told the sessions.
        let logged = real.database_connections()?;
        let missing = sessions
            .iter()
            .filter(|session| session.server() == real.name())
            .find(|session| !logged.contains(&session.source()));
        ensure!(missing.is_none(), "{missing:?} is not in the log of {}", real.name());
    }
    Ok(())
}

/// Every session is asked for its server once more.
fn check(show: &mut Show, sessions: &[Session]) -> anyhow::Result<()> {
    let broken = Session::broken(sessions);
    show.note(&format!(
        "{} sessions asked again: {} answered as before, {} broken",
        sessions.len(),
        sessions.len() - broken.len(),
        broken.len()
    ))?;
    ensure!(broken.is_empty(), "broken: {broken:?}");
    Ok(())
}

/// What the person in front of it sees.
struct Show {
    start: Instant,
    terminal: bool,
    /// Lines of a live picture that the next one overwrites.
    live: usize,
}

impl Show {
    #[allow(clippy::disallowed_methods, reason = "people want to know how long it takes")]
    fn new() -> Self {
        Self { start: Instant::now(), terminal: std::io::stdout().is_terminal(), live: 0 }
    }

    fn say(&mut self, text: &str) -> anyhow::Result<()> {
        let (bold, plain) = if self.terminal { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        writeln!(std::io::stdout(), "{bold}{text}{plain}").context("print")
    }

    fn step(&mut self, text: &str) -> anyhow::Result<()> {
        let seconds = Duration::as_secs(&self.start.elapsed());
        self.say(&format!("\n[{seconds:>3} s] {text}"))
    }

    fn note(&mut self, text: &str) -> anyhow::Result<()> {
        writeln!(std::io::stdout(), "        {text}").context("print")
    }

    fn block(&mut self, text: &str) -> anyhow::Result<()> {
        text.lines().try_for_each(|line| self.note(line))
    }

    /// Sessions per server, and the last one that came; live on a terminal, else only at the end.
    fn places(&mut self, sessions: &[Session], last: bool) -> anyhow::Result<()> {
        if !self.terminal && !last {
            return Ok(());
        }
        let mut out = std::io::stdout();
        if self.live > 0 {
            // Back to the start of the picture, clear from there.
            write!(out, "\x1b[{}A\x1b[J", self.live)?;
        }
        let counts = count(sessions);
        for (server, count) in &counts {
            self.note(&format!("{server:<8} {count:>3} {}", clients_of(sessions, server)))?;
        }
        self.live = counts.len();
        if let (false, Some(session)) = (last, sessions.last()) {
            self.note(&format!("{} → {}", session.source(), session.server()))?;
            self.live += 1;
        }
        if last {
            self.live = 0;
        }
        out.flush().context("print")
    }
}
