//! `make demo`: the director's main job on this computer, with real packets and real databases.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use adit_lab::packet::{IPIP, TCP};
use adit_lab::postgres::PORT;
use adit_lab::topology::{VIP, vip};
use adit_lab::{Config, Director, Lab, LabSpec, Namespace, RealServer, Service, Session, Sniffer};
use anyhow::{Context, ensure};

/// Sessions that each client opens at a time.
const SESSIONS: u16 = 20;

fn main() -> anyhow::Result<()> {
    let mut show = Show::new();
    show.say("Adit: database sessions to one address, carried to two data centres.")?;
    show.step("Two data centres behind routers, with a real PostgreSQL on each real server")?;
    let demo = Demo::build(&mut show)?;
    let result = demo.run(&mut show);
    show.note("Taking everything down again.")?;
    result
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
        show.note(&format!("each real server is a {}", lab.real_kind()))?;
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
        let wrapped = |dc| {
            Sniffer::start(host, lab.egress_device(dc), |frame| {
                frame.outgoing && frame.ip().is_some_and(|ip| ip.protocol == IPIP)
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
        show.step(&format!("The director takes the traffic of {VIP}"))?;
        let mut director = Director::start(self.lab.director(), &config(reals))?;
        show.block(&director.adit(&["list"])?.text)?;

        show.step("Clients open sessions to the VIP; each goes to one real server")?;
        let mut sessions = self.open(show, 40_000)?;
        ensure_spread(&sessions, reals)?;

        show.step("A real server is added in the second data centre, with all sessions open")?;
        let added = self.lab.boot_real(1)?;
        director.reload_or_fail(&config(reals.iter().chain([&added])))?;
        check(show, &sessions)?;
        show.note("new sessions:")?;
        sessions.extend(self.open(show, 41_000)?);

        show.step("real1 is taken out of the configuration; its sessions stay, new ones avoid it")?;
        let left = || reals[1..].iter().chain([&added]);
        director.reload_or_fail(&config(left()))?;
        check(show, &sessions)?;
        show.note("new sessions:")?;
        let new = self.open(show, 42_000)?;
        ensure!(new.iter().all(|session| session.server() != "real1"), "real1 got new sessions");
        sessions.extend(new);

        show.step("The director is killed with SIGKILL and started again")?;
        director.kill()?;
        let down = show.start.elapsed();
        director.start_again()?;
        let away = show.start.elapsed() - down;
        show.note(&format!("back after {:.2} s", away.as_secs_f64()))?;
        check(show, &sessions)?;

        self.summary(show, &sessions)
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
            "{} sessions to {VIP}:{PORT}; a server added, one removed, the director killed: 0 broken",
            sessions.len()
        ))?;
        show.note(&format!(
            "the director wrapped {} packets to the first data centre and {} to the second",
            wrapped[0], wrapped[1]
        ))?;
        show.note(&format!(
            "{replies} replies went through the director: databases answer clients directly"
        ))?;
        ensure!(wrapped.iter().all(|&count| count > 0), "a data centre got nothing");
        ensure!(replies == 0, "replies went through the director");
        Ok(())
    }
}

/// Refusals become errors, as the demo has nothing to say about them.
trait ReloadOrFail {
    fn reload_or_fail(&self, config: &Config) -> anyhow::Result<()>;
}

impl ReloadOrFail for Director {
    fn reload_or_fail(&self, config: &Config) -> anyhow::Result<()> {
        let said = self.reload(config).context("reload")?;
        ensure!(said.success, "reload was refused: {}", said.text);
        Ok(())
    }
}

fn config<'a>(reals: impl IntoIterator<Item = &'a RealServer>) -> Config {
    Config::new().service(Service::tcp("orders", vip(PORT)).reals(reals))
}

fn count(sessions: &[Session]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for session in sessions {
        *counts.entry(session.server()).or_default() += 1;
    }
    counts
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
            self.note(&format!("{server:<8} {count:>3} {}", "■".repeat(*count)))?;
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
