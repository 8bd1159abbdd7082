//! What tests do with a host, whether it is a namespace or a machine with its own kernel.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::agent::{Request, Response, ask};
use crate::error::{Context, LabError, Result};
use crate::namespace::Namespace;
use crate::wait::wait_for;

/// A host on which commands and daemons run.
pub trait Host: Send + Sync {
    /// Short name.
    fn label(&self) -> &str;

    /// The namespace that the host is, or whose devices it uses.
    fn namespace(&self) -> &Namespace;

    /// Runs a program to its end and returns what it printed.
    ///
    /// # Errors
    /// When it cannot be started, or ends with another status than 0.
    fn run(&self, argv: &[&str]) -> Result<String>;

    /// Starts a program that goes on; its output goes to a file of the host's directory.
    ///
    /// # Errors
    /// When it cannot be started.
    fn start(&self, name: &str, argv: &[&str]) -> Result<Process>;

    /// Words that run one of the project's own binaries on this host.
    ///
    /// # Errors
    /// When the host cannot run it.
    fn program(&self, binary: &Path) -> Result<Vec<String>>;

    /// Path on the host of a file in the host's directory ([`Namespace::dir`]).
    fn path(&self, file: &str) -> String;

    /// Runs a shell script.
    ///
    /// # Errors
    /// As [`Self::run`].
    fn sh(&self, script: &str) -> Result<String> {
        self.run(&["sh", "-ec", script])
    }
}

impl Host for Namespace {
    fn label(&self) -> &str {
        Namespace::label(self)
    }

    fn namespace(&self) -> &Namespace {
        self
    }

    fn run(&self, argv: &[&str]) -> Result<String> {
        self.output(Command::new(argv[0]).args(&argv[1..]))
    }

    fn start(&self, name: &str, argv: &[&str]) -> Result<Process> {
        let path = self.dir().join(format!("{name}.log"));
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(&path)
            .context(|| format!("open {}", path.display()))?;
        let errors = log.try_clone().context(|| "share a log".to_owned())?;
        let mut command = Command::new(argv[0]);
        command.args(&argv[1..]).stdin(Stdio::null()).stdout(log).stderr(errors);
        let child = Mutex::new(self.spawn(&mut command)?);
        Ok(Process { name: name.to_owned(), log: path, handle: Handle::Child(child) })
    }

    fn program(&self, binary: &Path) -> Result<Vec<String>> {
        Ok(vec![binary.display().to_string()])
    }

    fn path(&self, file: &str) -> String {
        self.dir().join(file).display().to_string()
    }
}

/// A program that was started on a host. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    handle: Handle,
}

#[derive(Debug)]
enum Handle {
    Child(Mutex<Child>),
    Remote { namespace: Namespace, pid: u32 },
}

impl Process {
    pub(crate) fn remote(name: &str, log: PathBuf, namespace: Namespace, pid: u32) -> Self {
        Self { name: name.to_owned(), log, handle: Handle::Remote { namespace, pid } }
    }

    /// Sends a signal; one that has ended already is left alone.
    ///
    /// # Errors
    /// When the host does not answer.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        match &self.handle {
            Handle::Child(child) => {
                let mut child = child.lock().expect("no panic while it is held");
                if child.try_wait().context(|| format!("look at {}", self.name))?.is_none() {
                    let pid = Pid::from_raw(child.id().cast_signed());
                    kill(pid, signal).context(|| format!("send {signal} to {}", self.name))?;
                }
                Ok(())
            }
            Handle::Remote { namespace, pid } => {
                ask(namespace, &Request::Signal { pid: *pid, signal: signal as i32 }).map(drop)
            }
        }
    }

    /// How the program ended, or `None` while it runs.
    ///
    /// # Errors
    /// When the host does not answer.
    pub fn exit_status(&self) -> Result<Option<ExitStatus>> {
        match &self.handle {
            Handle::Child(child) => child
                .lock()
                .expect("no panic while it is held")
                .try_wait()
                .context(|| format!("look at {}", self.name)),
            Handle::Remote { namespace, pid } => match ask(namespace, &Request::Poll(*pid))? {
                Response::State(state) => Ok(state.map(ExitStatus::from_raw)),
                other @ (Response::Ran { .. }
                | Response::Spawned(_)
                | Response::Done
                | Response::Refused(_)) => {
                    Err(LabError::failed(format!("look at {}", self.name), format!("{other:?}")))
                }
            },
        }
    }

    /// Waits for the end of the program.
    ///
    /// # Errors
    /// [`LabError::Timeout`] when it goes on for longer than `limit`.
    pub fn wait_exit(&self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("end of {}", self.name);
        wait_for(limit, &what, || self.exit_status().transpose())?
    }

    /// Everything that the program printed up to now.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        match &mut self.handle {
            Handle::Child(child) => {
                let child = child.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
                // One that has ended already cannot be killed, and that is as good.
                let _ = child.kill();
                let _ = child.wait();
            }
            Handle::Remote { namespace, pid } => {
                let request = Request::Signal { pid: *pid, signal: Signal::SIGKILL as i32 };
                // A machine that is gone has taken the process with it.
                let _ = ask(namespace, &request);
            }
        }
    }
}
