//! Real servers: machines with `tunl0`, the VIPs, and a database.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::agent::AGENT;
use crate::binaries;
use crate::error::{Context, LabError, Result};
use crate::host::{Host, Process};
use crate::machine::{Kind, Machine, MachineSpec};
use crate::namespace::Namespace;
use crate::network::{Segment, address_lines};
use crate::postgres;
use crate::run::Run;
use crate::serve::Caller;
use crate::wait::wait_for;

/// Port of [`RealServer`]'s byte services, TCP and UDP; see [`crate::serve`].
pub const SERVE_PORT: u16 = 7000;

/// Limit for a database to answer after its machine's boot.
const DATABASE: Duration = Duration::from_secs(60);

/// Limit for the byte services to answer after their start.
const SERVE: Duration = Duration::from_secs(30);

/// A real server to boot.
#[derive(Clone, Debug)]
pub struct RealServerSpec {
    /// Name; the database and the byte services say it.
    pub name: String,
    /// On which kernel.
    pub kind: Kind,
    /// Own addresses with prefix lengths, IPv4 first.
    pub addresses: Vec<String>,
    /// Default gateways, one per IP version.
    pub gateways: Vec<IpAddr>,
    /// VIPs to serve.
    pub vips: Vec<IpAddr>,
    /// Where tunnelled packets may come from.
    pub directors: Vec<IpAddr>,
    /// MTU of the path from the director, which clamps segments; 0 leaves them alone.
    pub path_mtu: u16,
    /// Start a PostgreSQL on port 5432?
    pub postgres: bool,
}

/// A running real server.
#[derive(Debug)]
pub struct RealServer {
    spec: RealServerSpec,
    machine: Machine,
    ready_after: Duration,
    _serve: Process,
}

impl RealServer {
    /// Boots a real server on a segment and waits until its database answers and the VIPs are
    /// on its tunnel devices.
    ///
    /// # Errors
    /// When one of these does not come up.
    #[allow(clippy::disallowed_methods, reason = "boot times are reported")]
    pub fn boot(run: &Arc<Run>, segment: &Segment, spec: RealServerSpec) -> Result<Self> {
        let start = Instant::now();
        let namespace = Namespace::create(run, &spec.name)?;
        segment.plug(&namespace, "eth0")?;
        let machine_spec =
            MachineSpec { kind: spec.kind, setup: setup(&spec), ..MachineSpec::default() };
        let machine = Machine::boot(namespace, &machine_spec)?;
        apply(&machine, &spec)?;
        let serve = start_serve(&machine, &spec, SERVE_PORT)?;
        wait_for_serve(&machine, SERVE_PORT)?;
        if spec.postgres {
            wait_for_database(&machine)?;
        }
        Ok(Self { spec, machine, ready_after: start.elapsed(), _serve: serve })
    }

    /// Name, as the database and the byte services say it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Own address of the given IP version (RIP).
    ///
    /// # Panics
    /// When the specification has none of that version.
    #[must_use]
    pub fn address(&self, ipv6: bool) -> IpAddr {
        self.spec
            .addresses
            .iter()
            .filter_map(|text| text.split('/').next()?.parse::<IpAddr>().ok())
            .find(|address| address.is_ipv6() == ipv6)
            .expect("the specification has an address of this version")
    }

    /// The machine it runs on.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Starts the byte services on another port too, and waits until they answer.
    ///
    /// # Errors
    /// When they do not.
    pub fn serve_on(&self, port: u16) -> Result<Process> {
        let serve = start_serve(&self.machine, &self.spec, port)?;
        wait_for_serve(&self.machine, port)?;
        Ok(serve)
    }

    /// Time from the start until everything answered.
    #[must_use]
    pub fn ready_after(&self) -> Duration {
        self.ready_after
    }

    /// Ends the database's sessions with clients, whether or not these are still there. Those
    /// of a client whose director is gone would stay, and take memory, for hours.
    ///
    /// # Errors
    /// When the machine does not answer.
    pub fn end_sessions(&self) -> Result<()> {
        // A server process names its client in its title; status 1 says that there was none.
        self.machine.sh("pkill -f '^postgres: .* 10[.]1[.]0[.]' || test $? = 1").map(drop)
    }

    /// Where the database's connections came from, by its own log, in their order.
    ///
    /// # Errors
    /// When there is no log.
    pub fn database_connections(&self) -> Result<Vec<SocketAddr>> {
        let path = self.machine.namespace().dir().join("postgresql.log");
        let log = fs::read(&path).context(|| format!("read {}", path.display()))?;
        let log = String::from_utf8_lossy(&log).into_owned();
        Ok(log.lines().filter_map(logged_connection).collect())
    }
}

/// `… LOG:  connection received: host=10.1.0.10 port=40001`, with `log_connections` on.
fn logged_connection(line: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once("connection received: host=")?;
    let (host, port) = rest.split_once(" port=")?;
    Some(SocketAddr::new(host.parse().ok()?, port.trim().parse().ok()?))
}

/// What the machine does by itself at boot: addresses, routes, the database.
fn setup(spec: &RealServerSpec) -> String {
    let own: Vec<&str> = spec.addresses.iter().map(String::as_str).collect();
    let mut lines = String::from("ip -batch - <<END\n");
    lines.push_str(&address_lines("eth0", &own));
    for gateway in &spec.gateways {
        let _ = writeln!(lines, "route add default via {gateway} dev eth0");
    }
    lines.push_str("END\n");
    if spec.postgres {
        let _ = write!(
            lines,
            "data=/var/lib/postgresql/lab\n\
             mkdir /run/postgresql && chown postgres /run/postgresql\n\
             printf 'host all all 0.0.0.0/0 trust\\nhost all all ::/0 trust\\n' >>$data/pg_hba.conf\n\
             setpriv --reuid postgres --regid postgres --init-groups \
             /usr/lib/postgresql/15/bin/postgres -D $data -c cluster_name={} \
             -c listen_addresses='*' -c log_connections=on -c log_disconnections=on \
             -c max_connections=1100 -c shared_buffers=16MB -c fsync=off -c autovacuum=off \
             -c max_wal_senders=0 -c wal_level=minimal >/lab/postgresql.log 2>&1 &\n",
            spec.name
        );
    }
    lines
}

/// Has the project's own tool make the machine a real server.
fn apply(machine: &Machine, spec: &RealServerSpec) -> Result<()> {
    if spec.vips.is_empty() {
        return Ok(());
    }
    let program = machine.program(&binaries::realserver()?)?;
    let mtu = spec.path_mtu.to_string();
    let mut argv: Vec<&str> = program.iter().map(String::as_str).collect();
    argv.extend(["apply", "--json", "--path-mtu", &mtu]);
    let vips: Vec<_> = spec.vips.iter().map(ToString::to_string).collect();
    let directors: Vec<_> = spec.directors.iter().map(ToString::to_string).collect();
    argv.extend(vips.iter().flat_map(|vip| ["--vip", vip.as_str()]));
    argv.extend(directors.iter().flat_map(|director| ["--director", director.as_str()]));
    machine.run(&argv).map(drop)
}

fn start_serve(machine: &Machine, spec: &RealServerSpec, port: u16) -> Result<Process> {
    let program = machine.program(&binaries::lab_guest()?)?;
    let port = port.to_string();
    let own = spec.addresses.iter().filter_map(|text| text.split('/').next()).map(str::to_owned);
    let addresses: Vec<_> = own.chain(spec.vips.iter().map(ToString::to_string)).collect();
    let mut argv: Vec<&str> = program.iter().map(String::as_str).collect();
    argv.extend(["serve", "--name", &spec.name, "--port", &port]);
    argv.extend(addresses.iter().flat_map(|address| ["--udp", address]));
    machine.start("serve", &argv)
}

/// Waits until the byte services answer; UDP is bound before TCP.
fn wait_for_serve(machine: &Machine, port: u16) -> Result<()> {
    let mut address: SocketAddr = AGENT.parse().expect("a constant");
    address.set_port(port);
    let what = format!("byte services of {}", machine.label());
    wait_for(SERVE, &what, || Caller::new(machine.namespace(), address).whoami().ok().map(drop))
}

fn wait_for_database(machine: &Machine) -> Result<()> {
    let mut address: SocketAddr = AGENT.parse().expect("a constant");
    address.set_port(postgres::PORT);
    let what = format!("database of {}", machine.label());
    let mut last = None;
    wait_for(DATABASE, &what, || {
        match postgres::Session::open(machine.namespace(), None, address) {
            Ok(_) => Some(()),
            Err(error) => {
                last = Some(error);
                None
            }
        }
    })
    .map_err(|timeout| match last {
        Some(error) => LabError::failed(what, error.to_string()),
        None => timeout,
    })
}
