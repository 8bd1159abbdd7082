//! A client, a director and a host for real servers' addresses, each in a network namespace that a
//! sleeping process holds open. What is asked of the director goes through the real binary.

use crate::testing::{skipped, test_name};
use serde_json::Value;
use std::fs::File;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub(crate) const ADIT: &str = env!("CARGO_BIN_EXE_adit");

/// A command that is killed when this thread ends, in whatever way the test does.
fn until_test_ends(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program]);
    command
}

/// A namespace, gone with its holder.
struct Host(Child);

impl Host {
    fn new() -> Self {
        let child = until_test_ends("unshare").args(["-n", "sleep", "infinity"]).spawn().unwrap();
        let host = Host(child);
        let here = std::fs::read_link("/proc/self/ns/net").unwrap();
        let there = format!("/proc/{}/ns/net", host.0.id());
        eventually("a namespace", || {
            std::fs::read_link(&there).is_ok_and(|ns| ns != here).then_some(())
        });
        host.run("ip link set lo up");
        host
    }

    fn command(&self, program: &str) -> Command {
        let mut command = until_test_ends("nsenter");
        command.args(["-t", &self.0.id().to_string(), "-n", program]);
        command
    }

    fn run(&self, line: &str) -> String {
        let mut words = line.split(' ');
        let output = self.command(words.next().unwrap()).args(words).output().unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        stdout
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // A holder that has ended by itself has nothing left to hold.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The three hosts, and the director while it runs.
pub(crate) struct Lab {
    client: Host,
    director: Host,
    reals: Host,
    running: Option<Child>,
    mounted: Option<PathBuf>,
    directory: tempfile::TempDir,
}

/// `None`, said by name, where namespaces are not to be had.
pub(crate) fn lab() -> Option<Lab> {
    if !nix::unistd::geteuid().is_root() {
        skipped(&test_name(), "it needs root");
        return None;
    }
    let lab = Lab {
        client: Host::new(),
        director: Host::new(),
        reals: Host::new(),
        running: None,
        mounted: None,
        directory: tempfile::tempdir().unwrap(),
    };
    let (c, d, r) = (lab.client.0.id(), lab.director.0.id(), lab.reals.0.id());
    lab.client.run(&format!("ip link add c0 type veth peer name eth0 netns {d}"));
    lab.director.run(&format!("ip link add eth1 type veth peer name r0 netns {r}"));
    assert_ne!(c, d);
    for (host, device, v4, v6) in [
        (&lab.client, "c0", "198.51.100.1/24", "2001:db8:c::1/64"),
        (&lab.director, "eth0", "198.51.100.254/24", "2001:db8:c::fe/64"),
        (&lab.director, "eth1", "10.0.0.1/24", "2001:db8:a::1/64"),
        (&lab.reals, "r0", "10.0.0.2/24", "2001:db8:a::2/64"),
    ] {
        host.run(&format!("ip link set {device} up"));
        host.run(&format!("ip addr add {v4} dev {device}"));
        host.run(&format!("ip addr add {v6} dev {device} nodad"));
    }
    lab.reals.run("ip addr add 10.0.0.3/24 dev r0");
    lab.reals.run("ip addr add 10.0.0.4/24 dev r0");
    lab.client.run("ip route add 192.0.2.0/24 via 198.51.100.254");
    lab.client.run("ip -6 route add 2001:db8:f::/48 via 2001:db8:c::fe");
    lab.director.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    Some(lab)
}

impl Lab {
    /// Writes the configuration: `[director]` and what is given.
    pub(crate) fn configure(&self, services: &str) {
        let path = |name: &str| self.directory.path().join(name).display().to_string();
        let text = format!(
            "[director]\ninterface = \"eth0\"\nmax_connections = 4096\nstate_dir = \"{}\"\n\
             socket = \"{}\"\n{services}",
            path("state"),
            path("adit.sock"),
        );
        std::fs::write(self.file("adit.toml"), text).unwrap();
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A command of `adit` on the director's host.
    pub(crate) fn adit(&self, words: &str) -> Output {
        // Some commands are to be refused; if one is not, it must not run for ever.
        let mut command = self.director.command("timeout");
        command.args(["60", ADIT, "--config"]).arg(self.file("adit.toml")).args(words.split(' '));
        command.output().unwrap()
    }

    /// The same as a user who is not root, with the group of the same name.
    pub(crate) fn adit_as(&self, user: &str, words: &str) -> Output {
        // The directories on the way to the program may be for root alone.
        let program = self.file("adit");
        if !program.exists() {
            std::fs::copy(ADIT, &program).unwrap();
            let all = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(self.directory.path(), all).unwrap();
        }
        let mut command = self.director.command("setpriv");
        command.args(["--reuid", user, "--regid", user, "--clear-groups", "timeout", "60"]);
        command.arg(program).arg("--config").arg(self.file("adit.toml")).args(words.split(' '));
        command.output().unwrap()
    }

    /// The same with a limit of locked memory, in bytes, and without the capability to exceed it.
    pub(crate) fn adit_with_memlock(&self, bytes: u64, words: &str) -> Output {
        let mut command = self.director.command("prlimit");
        command.arg(format!("--memlock={bytes}"));
        command.args(["setpriv", "--bounding-set=-ipc_lock", ADIT, "--config"]);
        command.arg(self.file("adit.toml")).args(words.split(' ')).output().unwrap()
    }

    /// One that must succeed; its output.
    pub(crate) fn ok(&self, words: &str) -> String {
        let output = self.adit(words);
        let stdout = String::from_utf8(output.stdout).unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "adit {words}: {stderr}{stdout}\n{}", self.log());
        stdout
    }

    pub(crate) fn json(&self, words: &str) -> Value {
        serde_json::from_str(&self.ok(&format!("{words} --json"))).unwrap()
    }

    /// One that must be refused with 1; what it said.
    pub(crate) fn refused(&self, words: &str) -> String {
        let output = self.adit(words);
        assert_eq!(output.status.code(), Some(1), "adit {words}");
        let said = [output.stdout, output.stderr].concat();
        String::from_utf8(said).unwrap()
    }

    /// Starts the director and waits until it answers.
    pub(crate) fn start(&mut self) {
        self.start_with(&[]);
    }

    pub(crate) fn start_with(&mut self, environment: &[(&str, &str)]) {
        let log = File::create(self.file("log")).unwrap();
        let mut command = self.director.command(ADIT);
        command.arg("--config").arg(self.file("adit.toml")).arg("run");
        command.envs(environment.iter().copied()).stdin(Stdio::null()).stderr(log);
        command.process_group(0);
        self.running = Some(command.spawn().unwrap());
        eventually("the director answers", || {
            let ended = self.running.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "it ended: {}", self.log());
            self.adit("list").status.success().then_some(())
        });
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.file("log")).unwrap_or_default()
    }

    /// Sends a signal and gives the exit code, `None` when it was killed.
    pub(crate) fn end(&mut self, signal: nix::sys::signal::Signal) -> Option<i32> {
        self.signal(signal);
        let mut child = self.running.take().unwrap();
        eventually("the director ends", || child.try_wait().unwrap()).code()
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = self.running.as_ref().unwrap().id();
        let pid = nix::unistd::Pid::from_raw(pid.try_into().unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Number of the director's process.
    pub(crate) fn id(&self) -> u32 {
        self.running.as_ref().unwrap().id()
    }

    /// The exit code, once the director has ended; `Some(None)` when it was killed.
    pub(crate) fn ended(&mut self) -> Option<Option<i32>> {
        let status = self.running.as_mut().unwrap().try_wait().unwrap()?;
        self.running = None;
        Some(status.code())
    }

    /// Whether a file is there for the director's host.
    pub(crate) fn has(&self, file: &str) -> bool {
        self.director.command("test").args(["-e", file]).status().unwrap().success()
    }

    /// Output of a command on the director's host.
    pub(crate) fn on_director(&self, line: &str) -> String {
        self.director.run(line)
    }

    /// Mounts a file system of so much room, gone with the test's directory.
    pub(crate) fn mount_small(&mut self, at: &Path, size: &str) {
        let options = format!("size={size}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at);
        assert!(mount.status().unwrap().success());
        self.mounted = Some(at.to_owned());
    }

    /// Output of a command on the client.
    pub(crate) fn on_client(&self, line: &str) -> String {
        self.client.run(line)
    }

    /// Sends a datagram from a port of the client.
    pub(crate) fn datagram(&self, from: &str, to: &str) {
        let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let client = File::open(format!("/proc/{}/ns/net", self.client.0.id())).unwrap();
        // A thread of its own: this one stays where it is.
        let sending = std::thread::spawn(move || {
            nix::sched::setns(client, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            UdpSocket::bind(from).unwrap().send_to(b"ping", to).unwrap();
        });
        sending.join().unwrap();
    }

    /// A socket of the director's host, made by `open` on a thread there.
    pub(crate) fn socket_on_director<T: Send + 'static>(
        &self,
        open: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let host = File::open(format!("/proc/{}/ns/net", self.director.0.id())).unwrap();
        let opening = std::thread::spawn(move || {
            nix::sched::setns(host, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            open()
        });
        opening.join().unwrap()
    }

    /// Client port to real server, of every connection there is.
    pub(crate) fn connections(&self) -> Vec<(u64, String)> {
        let found = self.json("connections");
        let mut found: Vec<_> = found
            .as_array()
            .unwrap()
            .iter()
            .map(|c| (c["client_port"].as_u64().unwrap(), c["real"].as_str().unwrap().to_owned()))
            .collect();
        found.sort_unstable();
        found
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(mut child) = self.running.take() {
            // Ended already, perhaps.
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Some(mounted) = &self.mounted {
            // Lazily: what a killed director had mapped may take a moment to go.
            let _ = Command::new("umount").arg("--lazy").arg(mounted).status();
        }
    }
}

/// Asks again until there is an answer, for at most a minute: computers that test are busy.
#[allow(clippy::disallowed_methods, reason = "a test's deadline, and a pause between two looks")]
pub(crate) fn eventually<T>(what: &str, mut question: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(answer) = question() {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
