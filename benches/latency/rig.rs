//! The network: the director's namespace, the client's, and a real server that is a thread.
//!
//! ```text
//! client ── veth ──▶ in ─(routing)─▶ TAP ─▶ director ─▶ real ──▶ real server (a TAP's other end)
//!    ▲               in ─(routing)────────────────────▶ real        │
//!    └───────────────── back (a TAP's other end) ◀──────────────────┘
//! ```

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::mpsc;

use adit::io::{Tap, TapConfig};
use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::gettid;

use crate::real_server;

pub const VIP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
pub const REAL: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// Port of the service.
pub const PORT: u16 = 5432;
pub const TAP_NAME: &str = "bench0";
/// The client's device that answers arrive on.
pub const BACK_MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

pub struct Rig {
    client: std::fs::File,
}

impl Rig {
    /// Builds it around the (empty) namespace of the calling thread, and starts the real server.
    pub fn build() -> Result<Self> {
        quiet()?;
        let real = tap("real")?;
        let mac = real.peer_mac().map(|byte| format!("{byte:02x}")).join(":");
        for command in [
            "sysctl -qw net.ipv4.ip_forward=1",
            "ip link add in type veth peer name client",
            "ip link set in up",
            "ip address add 192.0.2.1/24 dev in",
            // As a NIC without a queue in front, which the director's socket would pass by.
            "tc qdisc replace dev real root noqueue",
            "ip address add 10.0.0.1/24 dev real",
            &format!("ip neigh add {REAL} lladdr {mac} dev real nud permanent"),
        ] {
            run(command)?;
        }
        let (client, back) = client_namespace()?;
        real_server::start(real, back)?;
        Ok(Self { client })
    }

    /// Runs code in the client's namespace; sockets that it opens stay there.
    pub fn in_client<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.client, CloneFlags::CLONE_NEWNET).context("the client's namespace")?;
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// Makes the client's namespace, and moves its end of the wire there.
fn client_namespace() -> Result<(std::fs::File, Tap)> {
    let (here, made) = mpsc::channel();
    let (moved, wait) = mpsc::channel::<()>();
    let thread = std::thread::spawn(move || -> Result<(std::fs::File, Tap)> {
        unshare(CloneFlags::CLONE_NEWNET).context("the client's namespace")?;
        here.send(gettid())?;
        wait.recv().context("the wire did not come")?;
        quiet()?;
        let back = tap("back")?;
        let mac = BACK_MAC.map(|byte| format!("{byte:02x}")).join(":");
        for command in [
            "ip link set client up",
            "ip address add 192.0.2.7/24 dev client",
            "ip route add default via 192.0.2.1",
            &format!("ip link set back address {mac}"),
        ] {
            run(command)?;
        }
        Ok((std::fs::File::open("/proc/thread-self/ns/net")?, back))
    });
    let result = made.recv().map_err(anyhow::Error::from).and_then(|thread| {
        run(&format!("ip link set client netns {thread}"))?;
        moved.send(()).context("the client is gone")
    });
    let inside = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    result?;
    Ok(inside)
}

fn tap(name: &str) -> Result<Tap> {
    let queue_length = TapConfig::DEFAULT_QUEUE_LENGTH;
    Ok(Tap::open(&TapConfig { name: name.into(), mtu: 1500, queue_length, queues: 1 })?)
}

/// No packets but the bench's, and answers may come by another way than questions go.
fn quiet() -> Result<()> {
    for command in [
        "sysctl -qw net.ipv6.conf.default.disable_ipv6=1 net.ipv6.conf.all.disable_ipv6=1",
        "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0",
        "ip link set lo up",
    ] {
        run(command)?;
    }
    Ok(())
}

fn run(command: &str) -> Result<()> {
    let mut words = command.split_whitespace();
    let program = words.next().context("an empty command")?;
    let output = Command::new(program).args(words).output().context(command.to_owned())?;
    ensure!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
