//! Machines: hosts with a root file system of their own, on a kernel that has `tunl0`.
//!
//! Where the kernel of this computer has `ipip`, a machine is a namespace in it; else it is a
//! User-Mode-Linux guest. Both start the same boot script on the same Debian root, have the same
//! devices (`eth0`, `eth1`, …, `mgmt`) and are driven through the same agent, so that tests do not
//! see which it is; [`Kind`] says it.

use std::fmt;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::agent::{AGENT, MANAGEMENT, Request, Response, ask};
use crate::binaries;
use crate::error::{Context, LabError, Result};
use crate::host::{Host, Process};
use crate::namespace::Namespace;
use crate::root::debian_root;
use crate::run::Run;
use crate::systemd::{self, Access};
use crate::wait::{wait_for, wait_until};

const INIT_GUEST: &str = include_str!("../guest/init-guest.sh");
const INIT_NAMESPACE: &str = include_str!("../guest/init-namespace.sh");

/// Limit for a boot: seconds when the computer is idle, and tests boot several at a time.
const BOOT: Duration = Duration::from_secs(90);

/// Limit for a machine's processes to be gone once its first was killed.
const END: Duration = Duration::from_secs(10);

/// On which kernel a machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A namespace of this computer's kernel.
    Namespace,
    /// A User-Mode-Linux guest with a kernel of its own.
    Guest,
}

impl Kind {
    /// The kind for machines that need `tunl0`: a namespace where this kernel has `ipip`, else
    /// a guest. `ADIT_LAB_MACHINE=namespace|guest` overrides.
    ///
    /// # Errors
    /// When the variable has another value, or a namespace for the probe cannot be made.
    pub fn with_tunl0(run: &Arc<Run>) -> Result<Self> {
        match std::env::var("ADIT_LAB_MACHINE").ok().as_deref() {
            Some("namespace") => return Ok(Self::Namespace),
            Some("guest") => return Ok(Self::Guest),
            Some(other) => {
                return Err(LabError::failed(
                    "choose the kind of machines",
                    format!("ADIT_LAB_MACHINE={other} is neither `namespace` nor `guest`"),
                ));
            }
            None => {}
        }
        let probe = Namespace::create(run, "probe")?;
        // Loads the module where there is one; where it is built in or absent, `ip` tells.
        let _ = probe.sh("modprobe -aq ipip ip6_tunnel");
        let works = probe.ip("link add probe type ipip local 192.0.2.1 remote 192.0.2.2").is_ok();
        Ok(if works { Self::Namespace } else { Self::Guest })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Namespace => "namespace of this kernel",
            Self::Guest => "User-Mode-Linux guest",
        })
    }
}

/// What a machine is made of.
#[derive(Clone, Debug)]
pub struct MachineSpec {
    /// On which kernel.
    pub kind: Kind,
    /// Memory of a guest in MiB.
    pub memory_mib: u32,
    /// Number of Ethernet interfaces; `eth0` and on exist in the machine's namespace before
    /// [`Machine::boot`] is called.
    pub nics: usize,
    /// Shell lines that run in the machine once its devices exist, before the agent answers.
    pub setup: String,
    /// Kernel modules that a guest loads at boot.
    pub modules: Vec<&'static str>,
    /// Is its first process systemd, with an sshd that this opens? Only for guests.
    pub systemd: Option<Arc<Access>>,
    /// With systemd: more units to start, by name and text.
    pub services: Vec<(String, String)>,
}

impl Default for MachineSpec {
    fn default() -> Self {
        Self {
            kind: Kind::Guest,
            memory_mib: 256,
            nics: 1,
            setup: String::new(),
            modules: Vec::new(),
            systemd: None,
            services: Vec::new(),
        }
    }
}

/// A running machine.
#[derive(Debug)]
pub struct Machine {
    namespace: Namespace,
    spec: MachineSpec,
    process: Mutex<Child>,
    boot_time: Duration,
}

impl Machine {
    /// Boots a machine on the devices of `namespace` and waits for its agent.
    ///
    /// # Errors
    /// When it does not come up; the error has the end of its console.
    #[allow(clippy::disallowed_methods, reason = "boot times are reported")]
    pub fn boot(namespace: Namespace, spec: &MachineSpec) -> Result<Self> {
        let start = Instant::now();
        let dir = namespace.dir().to_owned();
        write(&dir.join("boot"), &boot_script(namespace.label(), spec)?)?;
        if let Some(access) = &spec.systemd {
            systemd::prepare(&dir, access)?;
        }
        if spec.kind == Kind::Guest {
            guest_devices(&namespace, spec)?;
        }
        let process = Mutex::new(start_process(&namespace, spec)?);
        let spec = spec.clone();
        let mut machine = Self { namespace, spec, process, boot_time: Duration::ZERO };
        machine.wait_for_agent()?;
        machine.boot_time = start.elapsed();
        Ok(machine)
    }

    fn wait_for_agent(&self) -> Result<()> {
        let hello = Request::Run(vec!["true".to_owned()]);
        let what = format!("boot of {}", self.namespace.label());
        let answer = wait_for(BOOT, &what, || {
            if ask(&self.namespace, &hello).is_ok() {
                return Some(Ok(()));
            }
            let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
            match process.try_wait() {
                Ok(Some(status)) => Some(Err(status.to_string())),
                _ => None,
            }
        });
        let ended = match answer {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(status)) => status,
            Err(timeout) => timeout.to_string(),
        };
        Err(LabError::failed(what, format!("{ended}\n{}", self.console_tail())))
    }

    /// On which kernel the machine runs.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.spec.kind
    }

    /// Time from the start to the agent's first answer.
    #[must_use]
    pub fn boot_time(&self) -> Duration {
        self.boot_time
    }

    /// The last lines on the machine's console.
    #[must_use]
    pub fn console_tail(&self) -> String {
        let text = fs::read(self.namespace.dir().join("console.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Has a machine with systemd shut down in order, starts it again, and waits for its agent.
    ///
    /// # Errors
    /// When it does not come back; the error has the end of its console.
    ///
    /// # Panics
    /// For a machine without systemd, which keeps nothing.
    pub fn reboot(&self) -> Result<()> {
        assert!(self.spec.systemd.is_some(), "{} keeps nothing", self.namespace.label());
        // Not its own `reboot`: the guest's kernel would find its devices held by what it was before.
        // The agent may be ended before it can answer.
        let _ = self.run(&["systemctl", "poweroff"]);
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let what = format!("orderly end of {}", self.namespace.label());
        wait_for(BOOT, &what, || process.try_wait().transpose())?
            .context(|| format!("wait for {}", self.namespace.label()))?;
        *process = start_process(&self.namespace, &self.spec)?;
        drop(process);
        self.wait_for_agent()
    }

    /// Pulls the plug: the machine is gone at once, without a word to anybody.
    ///
    /// # Errors
    /// When its process cannot be ended.
    pub fn power_off(&self) -> Result<()> {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        process.kill().context(|| format!("end {}", self.namespace.label()))?;
        process.wait().context(|| format!("wait for {}", self.namespace.label()))?;
        // A namespace's other processes end with it, but a moment later; those in which a guest
        // runs its own programs outlive it. All that is in the namespace is the machine's.
        let what = format!("end of the processes of {}", self.namespace.label());
        wait_until(END, &what, || match self.namespace.processes() {
            Ok(pids) => {
                for &pid in &pids {
                    // It may have ended since it was listed.
                    let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
                }
                pids.is_empty()
            }
            Err(_) => false,
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // What is left of it goes with the run's clean-up.
        let _ = self.power_off();
    }
}

impl Host for Machine {
    fn label(&self) -> &str {
        self.namespace.label()
    }

    fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    fn run(&self, argv: &[&str]) -> Result<String> {
        let request = Request::Run(argv.iter().map(|&word| word.to_owned()).collect());
        match ask(&self.namespace, &request)? {
            Response::Ran { success: true, stdout, .. } => Ok(stdout),
            Response::Ran { status, stdout, stderr, .. } => Err(LabError::failed(
                format!("{argv:?} on {}", self.label()),
                format!("{status}\n{stdout}{stderr}"),
            )),
            other @ (Response::Spawned(_)
            | Response::State(_)
            | Response::Done
            | Response::Refused(_)) => {
                Err(LabError::failed(format!("{argv:?}"), format!("{other:?}")))
            }
        }
    }

    fn start(&self, name: &str, argv: &[&str]) -> Result<Process> {
        let request = Request::Spawn {
            argv: argv.iter().map(|&word| word.to_owned()).collect(),
            log: self.path(&format!("{name}.log")),
        };
        match ask(&self.namespace, &request)? {
            Response::Spawned(pid) => {
                let log = self.namespace.dir().join(format!("{name}.log"));
                Ok(Process::remote(name, log, self.namespace.clone(), pid))
            }
            other @ (Response::Ran { .. }
            | Response::State(_)
            | Response::Done
            | Response::Refused(_)) => {
                Err(LabError::failed(format!("{argv:?}"), format!("{other:?}")))
            }
        }
    }

    fn program(&self, binary: &Path) -> Result<Vec<String>> {
        binaries::through_host_root(binary)
    }

    fn path(&self, file: &str) -> String {
        format!("/lab/{file}")
    }
}

/// What a machine does once its root is in place; the same for both kinds. A line that fails ends
/// the first process and so the machine, and the boot's error shows the console.
fn boot_script(label: &str, spec: &MachineSpec) -> Result<String> {
    let mut script = String::from(
        "set -e\nexport PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root\nip link set lo up\n\
         sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0\n",
    );
    let management = AGENT.split(':').next().expect("an address");
    match spec.kind {
        Kind::Guest => {
            for number in 0..spec.nics {
                let _ = writeln!(script, "ip link set vec{number} name eth{number}");
            }
            let _ = writeln!(script, "ip link set vec{} name mgmt", spec.nics);
            let _ = writeln!(script, "ip addr add {management}/30 dev mgmt");
            let _ = writeln!(script, "ip link set mgmt up");
        }
        // Only the loopback is sure to exist; the lab enters this namespace to ask.
        Kind::Namespace => {
            let _ = writeln!(script, "ip addr add {management}/32 dev lo");
        }
    }
    script.push_str(&spec.setup);
    if spec.systemd.is_some() {
        script.push_str(&systemd::boot_lines(label, AGENT, &spec.services)?);
        return Ok(script);
    }
    let agent = binaries::through_host_root(&binaries::lab_guest()?)?.join(" ");
    let _ = writeln!(script, "\n{agent} agent --listen {AGENT} >/lab/agent.log 2>&1 &");
    // The first process takes the children of those that ended, for as long as the machine lives.
    script.push_str("while :; do wait; sleep 3600; done\n");
    Ok(script)
}

/// Starts a machine's first process, with its console in a file of its directory.
fn start_process(namespace: &Namespace, spec: &MachineSpec) -> Result<Child> {
    let root = debian_root()?;
    let path = namespace.dir().join("console.log");
    let console = File::options().create(true).append(true).open(&path);
    let console = console.context(|| format!("open {}", path.display()))?;
    let mut command = match spec.kind {
        Kind::Guest => guest_command(namespace, spec, &root)?,
        Kind::Namespace => namespace_command(namespace, spec, &root)?,
    };
    let errors = console.try_clone().context(|| "share the console".to_owned())?;
    command.stdin(Stdio::null()).stdout(console).stderr(errors);
    namespace.spawn(&mut command)
}

/// The lab's ends of a guest's devices.
fn guest_devices(namespace: &Namespace, spec: &MachineSpec) -> Result<()> {
    let mut devices = String::new();
    for number in 0..spec.nics {
        let _ = writeln!(
            devices,
            "tuntap add dev tap{number} mode tap\n\
             link add br{number} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
             link set br{number} addrgenmode none\n\
             link set tap{number} master br{number}\nlink set eth{number} master br{number}\n\
             link set tap{number} up\nlink set eth{number} up\nlink set br{number} up"
        );
    }
    let _ = writeln!(
        devices,
        "tuntap add dev tapm mode tap\naddr add {MANAGEMENT}/30 dev tapm\nlink set tapm up"
    );
    namespace.ip(&devices)
}

fn guest_command(namespace: &Namespace, spec: &MachineSpec, root: &Path) -> Result<Command> {
    let dir = namespace.dir();
    write(&dir.join("init"), INIT_GUEST)?;
    let mut command = Command::new("linux.uml");
    command
        .arg(format!("mem={}M", spec.memory_mib))
        .args(["rootfstype=hostfs", "ro", "init=/sbin/lab-init", "con=null", "con0=null,fd:1"])
        .arg(format!("rootflags={}", root.display()))
        .arg(format!("uml_dir={}", dir.display()))
        .arg("umid=uml")
        .arg(format!("lab_dir={}", dir.display()))
        .arg(format!("lab_modules={}", spec.modules.join(",")));
    if spec.systemd.is_some() {
        let disk = dir.join(systemd::DISK_FILE);
        // Names of devices stay as the boot script gives them.
        command
            .arg(format!("ubd0={}", disk.display()))
            .args(["lab_disk=/dev/ubda", "net.ifnames=0"]);
    }
    for number in 0..spec.nics {
        command.arg(format!("vec{number}:transport=tap,ifname=tap{number}"));
    }
    command.arg(format!("vec{}:transport=tap,ifname=tapm", spec.nics));
    Ok(command)
}

fn namespace_command(namespace: &Namespace, spec: &MachineSpec, root: &Path) -> Result<Command> {
    let dir = namespace.dir();
    write(&dir.join("init"), INIT_NAMESPACE)?;
    fs::create_dir(dir.join("over")).context(|| format!("create {}/over", dir.display()))?;
    for module in &spec.modules {
        // Best effort: what is missing shows when it is used, with the kernel's own words.
        let _ = Command::new("modprobe").args(["-q", module]).status();
    }
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--pid", "--fork", "--kill-child=KILL", "sh"])
        .arg(dir.join("init"))
        .env("lab_dir", dir)
        .env("lab_root", root);
    Ok(command)
}

fn write(path: &PathBuf, text: &str) -> Result<()> {
    fs::write(path, text).context(|| format!("write {}", path.display()))
}
