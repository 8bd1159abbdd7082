//! Network namespaces as hosts: code, commands and async tasks that run inside one.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, OnceLock};

use nix::sched::{CloneFlags, setns};
use tokio::runtime::{Builder, Runtime};

use crate::error::{Context, LabError, Result};
use crate::run::Run;

/// A host that is a network namespace on this machine's kernel. Cheap to clone: all clones are
/// the same host.
#[derive(Clone, Debug)]
pub struct Namespace {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    label: String,
    name: String,
    file: File,
    dir: PathBuf,
    runtime: OnceLock<Runtime>,
    /// Keeps the run, and so the namespace, alive.
    _run: Arc<Run>,
}

impl Namespace {
    /// Makes a namespace with the loopback up and no other device.
    ///
    /// # Errors
    /// When `ip netns` refuses (not root, or the label is taken in this run).
    pub fn create(run: &Arc<Run>, label: &str) -> Result<Self> {
        let name = format!("{}-{label}", run.prefix());
        run_to_end(Command::new("ip").args(["netns", "add", &name]))?;
        let path = Path::new("/run/netns").join(&name);
        let file = File::open(&path).context(|| format!("open {}", path.display()))?;
        let dir = run.dir().join(label);
        fs::create_dir(&dir).context(|| format!("create {}", dir.display()))?;
        let inner = Inner {
            label: label.to_owned(),
            name,
            file,
            dir,
            runtime: OnceLock::new(),
            _run: Arc::clone(run),
        };
        let namespace = Self { inner: Arc::new(inner) };
        namespace.sysctl("net.ipv6.conf.default.accept_dad", "0")?;
        namespace.sysctl("net.ipv6.conf.all.accept_dad", "0")?;
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// The host's short name, as in `client`.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.inner.label
    }

    /// The full name, for `ip netns exec`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// This host's own directory in the run's.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Runs `work` on a thread inside the namespace. Sockets made there stay there.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    ///
    /// # Panics
    /// With `work`'s own panic.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let file = &self.inner.file;
        let joined = std::thread::scope(|scope| {
            scope.spawn(move || setns(file, CloneFlags::CLONE_NEWNET).map(|()| work())).join()
        });
        match joined {
            Ok(result) => result.context(|| format!("enter {}", self.name())),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// A tokio runtime whose threads live inside the namespace; made at first use.
    pub fn runtime(&self) -> &Runtime {
        self.inner.runtime.get_or_init(|| {
            let file = self.inner.file.try_clone().expect("a descriptor to spare");
            Builder::new_multi_thread()
                .worker_threads(1)
                .on_thread_start(move || {
                    setns(&file, CloneFlags::CLONE_NEWNET)
                        .expect("the namespace was entered before");
                })
                .enable_all()
                .build()
                .expect("threads to spare")
        })
    }

    /// Runs a future on [`Self::runtime`], so that its sockets are the namespace's.
    ///
    /// # Panics
    /// With the future's own panic.
    pub fn block_on<F>(&self, future: F) -> F::Output
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let (sender, receiver) = std::sync::mpsc::channel();
        let task = self.runtime().spawn(async move {
            // The receiver is waiting below.
            let _ = sender.send(future.await);
        });
        match receiver.recv() {
            Ok(output) => output,
            Err(_) => match self.runtime().handle().block_on(task) {
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                other => panic!("a task of {} ended without a result: {other:?}", self.name()),
            },
        }
    }

    /// Starts a command inside the namespace.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        self.enter(|| command.spawn())?.context(|| format!("start {command:?}"))
    }

    /// Runs a command inside the namespace and returns what it printed.
    ///
    /// # Errors
    /// When it cannot be started, or ends with another status than 0.
    pub fn output(&self, command: &mut Command) -> Result<String> {
        self.enter(|| run_to_end(command))?
    }

    /// Runs a shell script inside the namespace.
    ///
    /// # Errors
    /// As [`Self::output`].
    pub fn sh(&self, script: &str) -> Result<String> {
        self.output(Command::new("sh").args(["-ec", script]))
    }

    /// Runs lines of `ip` commands, without the word `ip`, in one process.
    ///
    /// # Errors
    /// As [`Self::output`]; the first line that is refused ends it.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.feed(Command::new("ip").args(["-batch", "-"]), lines)
    }

    /// Loads an nftables ruleset.
    ///
    /// # Errors
    /// As [`Self::output`].
    pub fn nft(&self, ruleset: &str) -> Result<()> {
        self.feed(Command::new("nft").args(["-f", "-"]), ruleset)
    }

    /// Sets a kernel parameter of the namespace, given as `net.ipv4.ip_forward`.
    ///
    /// # Errors
    /// When the kernel does not have it or refuses the value.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        self.enter(|| fs::write(&path, value))?
            .context(|| format!("set {name}={value} in {}", self.name()))
    }

    /// Numbers of the processes that live in the namespace.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn processes(&self) -> Result<Vec<u32>> {
        let listing = run_to_end(Command::new("ip").args(["netns", "pids", self.name()]))?;
        Ok(listing.lines().filter_map(|line| line.trim().parse().ok()).collect())
    }

    fn feed(&self, command: &mut Command, input: &str) -> Result<()> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.spawn(command)?;
        let mut pipe = child.stdin.take().expect("asked for above");
        pipe.write_all(input.as_bytes()).context(|| format!("feed {command:?}"))?;
        drop(pipe);
        let output = child.wait_with_output().context(|| format!("wait for {command:?}"))?;
        check(&format!("{command:?} with\n{input}"), output).map(drop)
    }
}

/// Runs a command to its end and returns its standard output.
pub(crate) fn run_to_end(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().context(|| format!("start {command:?}"))?;
    check(&format!("{command:?}"), output)
}

fn check(what: &str, output: Output) -> Result<String> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(LabError::failed(what, format!("{}\n{text}{errors}", output.status)))
}
