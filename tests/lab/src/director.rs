//! The director under test: its configuration, its process, its answers.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::binaries;
use crate::error::{Context, LabError, Result};
use crate::host::{Host, Process};
use crate::realserver::RealServer;
use crate::topology::{CLIENT_DEVICE, TAP};
use crate::wait::wait_for;

/// Limit for the admin socket to answer after a start: the flow table is prefaulted before.
const START: Duration = Duration::from_secs(60);

/// Limit for an orderly end.
const END: Duration = Duration::from_secs(10);

/// A service of the configuration.
#[derive(Clone, Debug)]
pub struct Service {
    name: String,
    vip: IpAddr,
    /// As text, where it is a prefix.
    prefix: Option<String>,
    /// As TOML: a number, a string or a list.
    port: String,
    protocol: String,
    scheduler: String,
    more: Vec<(String, String)>,
    reals: Vec<(IpAddr, u32)>,
}

impl Service {
    /// A TCP service on one port, scheduled by `maglev`.
    #[must_use]
    pub fn tcp(name: &str, at: SocketAddr) -> Self {
        Self {
            name: name.to_owned(),
            vip: at.ip(),
            prefix: None,
            port: at.port().to_string(),
            protocol: "tcp".to_owned(),
            scheduler: "maglev".to_owned(),
            more: Vec::new(),
            reals: Vec::new(),
        }
    }

    /// A UDP service on one port, scheduled by `maglev`.
    #[must_use]
    pub fn udp(name: &str, at: SocketAddr) -> Self {
        Self { protocol: "udp".to_owned(), ..Self::tcp(name, at) }
    }

    /// All addresses of a prefix, as in `198.51.100.16/28`, instead of the one.
    #[must_use]
    pub fn prefix(self, text: &str) -> Self {
        Self { prefix: Some(text.to_owned()), ..self }
    }

    /// Another scheduler.
    #[must_use]
    pub fn scheduler(self, name: &str) -> Self {
        Self { scheduler: name.to_owned(), ..self }
    }

    /// Other ports, as TOML: `"any"` with its quotes, `[80, 443]`.
    #[must_use]
    pub fn ports(self, toml: &str) -> Self {
        Self { port: toml.to_owned(), ..self }
    }

    /// Any other key of the service, its value as TOML.
    #[must_use]
    pub fn set(mut self, key: &str, toml: &str) -> Self {
        self.more.push((key.to_owned(), toml.to_owned()));
        self
    }

    /// Whether its VIP is an IPv6 address.
    #[must_use]
    pub fn is_ipv6(&self) -> bool {
        self.vip.is_ipv6()
    }

    /// Adds a real server by address.
    #[must_use]
    pub fn address(mut self, address: IpAddr, weight: u32) -> Self {
        self.reals.push((address, weight));
        self
    }

    /// Adds real servers of the lab with weight 100, by their address of the VIP's version.
    #[must_use]
    pub fn reals<'a>(mut self, reals: impl IntoIterator<Item = &'a RealServer>) -> Self {
        let ipv6 = self.vip.is_ipv6();
        self.reals.extend(reals.into_iter().map(|real| (real.address(ipv6), 100)));
        self
    }
}

/// A configuration of the director.
#[derive(Clone, Debug, Default)]
pub struct Config {
    director: Vec<(String, String)>,
    sections: String,
    services: Vec<Service>,
}

impl Config {
    /// The lab's defaults: route capture on the client-facing device, one worker (or as many as
    /// `ADIT_LAB_WORKERS` says), 100 000 flows.
    #[must_use]
    pub fn new() -> Self {
        let workers = std::env::var("ADIT_LAB_WORKERS").unwrap_or_else(|_| "1".to_owned());
        Self::default()
            .set("tap", &format!("{TAP:?}"))
            .set("interface", &format!("{CLIENT_DEVICE:?}"))
            .set("workers", &workers)
            .set("max_connections", "100_000")
    }

    /// Sets a key of `[director]`, its value as TOML; a later value replaces an earlier one.
    #[must_use]
    pub fn set(mut self, key: &str, toml: &str) -> Self {
        self.director.retain(|(known, _)| known != key);
        self.director.push((key.to_owned(), toml.to_owned()));
        self
    }

    /// Adds sections as text, as in `[timeouts]\ntcp_established = "1h"`.
    #[must_use]
    pub fn section(mut self, toml: &str) -> Self {
        self.sections.push_str(toml);
        self.sections.push('\n');
        self
    }

    /// Adds a service.
    #[must_use]
    pub fn service(mut self, service: Service) -> Self {
        self.services.push(service);
        self
    }

    /// The file's text for a director on `host`.
    #[must_use]
    pub fn text(&self, host: &dyn Host) -> String {
        let mut text = String::from("[director]\n");
        for (key, value) in &self.director {
            let _ = writeln!(text, "{key} = {value}");
        }
        let _ = writeln!(text, "state_dir = {:?}", host.path("state"));
        let _ = writeln!(text, "socket = {:?}", host.path("adit.sock"));
        let _ = writeln!(text, "\n{}", self.sections);
        for service in &self.services {
            let vip = service.prefix.clone().unwrap_or_else(|| service.vip.to_string());
            let _ = writeln!(
                text,
                "[[service]]\nname = {:?}\nvip = \"{}\"\nport = {}\nprotocol = {:?}\n\
                 scheduler = {:?}",
                service.name, vip, service.port, service.protocol, service.scheduler
            );
            for (key, value) in &service.more {
                let _ = writeln!(text, "{key} = {value}");
            }
            for (address, weight) in &service.reals {
                let _ =
                    writeln!(text, "[[service.real]]\naddress = \"{address}\"\nweight = {weight}");
            }
            text.push('\n');
        }
        text
    }

    /// Writes the file and returns its path on `host`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, host: &dyn Host, name: &str) -> Result<String> {
        let path = host.namespace().dir().join(name);
        fs::write(&path, self.text(host)).context(|| format!("write {}", path.display()))?;
        Ok(host.path(name))
    }
}

/// What a command of `adit` said.
#[derive(Clone, Debug)]
pub struct Said {
    /// Did it end with status 0?
    pub success: bool,
    /// Output and errors.
    pub text: String,
}

/// A director on a host of the lab. Dropping it kills it.
pub struct Director {
    host: Arc<dyn Host>,
    process: Option<Process>,
    config: PathBuf,
}

impl Director {
    /// Writes the configuration, starts `adit run`, and waits until its admin socket answers.
    ///
    /// # Errors
    /// When it ends or does not answer; the error has its log.
    pub fn start(host: Arc<dyn Host>, config: &Config) -> Result<Self> {
        let path = config.write(host.as_ref(), "adit.toml")?;
        let state = host.namespace().dir().join("state");
        fs::create_dir_all(&state).context(|| format!("create {}", state.display()))?;
        let mut director = Self { host, process: None, config: PathBuf::from(path) };
        director.start_again()?;
        Ok(director)
    }

    /// Starts the process again, on the same configuration file and state.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_again(&mut self) -> Result<()> {
        let mut argv = self.host.program(&binaries::adit()?)?;
        argv.extend(["run".into(), "--config".into(), self.config.display().to_string()]);
        let words: Vec<&str> = argv.iter().map(String::as_str).collect();
        let process = self.host.start("adit", &words)?;
        let ready = wait_for(START, "the director's admin socket", || {
            if let Ok(Some(status)) = process.exit_status() {
                return Some(Err(status));
            }
            self.adit(&["list", "--json"]).is_ok_and(|said| said.success).then_some(Ok(()))
        });
        match ready {
            Ok(Ok(())) => {
                self.process = Some(process);
                Ok(())
            }
            Ok(Err(status)) => {
                Err(LabError::failed("start the director", format!("{status}\n{}", process.log())))
            }
            Err(timeout) => Err(LabError::failed(timeout.to_string(), process.log())),
        }
    }

    /// Kills it with SIGKILL and waits for its end.
    ///
    /// # Errors
    /// When it is not running.
    pub fn kill(&mut self) -> Result<()> {
        self.end(Signal::SIGKILL).map(drop)
    }

    /// Ends it with SIGTERM and returns how it ended.
    ///
    /// # Errors
    /// When it is not running, or does not end in time.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.end(Signal::SIGTERM)
    }

    fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        self.signal(signal)?;
        let process = self.process.as_ref().expect("it could be signalled");
        let status = process.wait_exit(END)?;
        self.process = None;
        Ok(status)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When it is not running.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        match &self.process {
            Some(process) => process.signal(signal),
            None => Err(LabError::failed(format!("send {signal}"), "no director runs")),
        }
    }

    /// Puts another configuration in place of the file, and has it reloaded by `adit reload`.
    ///
    /// # Errors
    /// When the command cannot be run; a refusal is in the answer.
    pub fn reload(&self, config: &Config) -> Result<Said> {
        config.write(self.host.as_ref(), "adit.toml")?;
        self.adit(&["reload"])
    }

    /// Runs a command of `adit` against this director: `adit ARGUMENTS --socket …`.
    ///
    /// # Errors
    /// When it cannot be run; a refusal is in the answer.
    pub fn adit(&self, arguments: &[&str]) -> Result<Said> {
        let socket = self.host.path("adit.sock");
        let mut all = arguments.to_vec();
        all.extend(["--socket", &socket]);
        adit(self.host.as_ref(), &all)
    }

    /// Runs a command of `adit` that prints JSON, as in `json(&["list", "--stats"])`.
    ///
    /// # Errors
    /// When it is refused, or prints something else.
    pub fn json(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let mut all = arguments.to_vec();
        all.push("--json");
        let said = self.adit(&all)?;
        if !said.success {
            return Err(LabError::failed(format!("adit {arguments:?}"), said.text));
        }
        serde_json::from_str(&said.text).context(|| format!("adit {arguments:?}: {}", said.text))
    }

    /// Path of the configuration file on the director's host.
    #[must_use]
    pub fn config_path(&self) -> String {
        self.config.display().to_string()
    }

    /// The host it runs on.
    #[must_use]
    pub fn host(&self) -> &Arc<dyn Host> {
        &self.host
    }

    /// The running process.
    ///
    /// # Panics
    /// When it was ended.
    #[must_use]
    pub fn process(&self) -> &Process {
        self.process.as_ref().expect("the director was not ended")
    }

    /// What all processes of this director logged.
    #[must_use]
    pub fn log(&self) -> String {
        let path = self.host.namespace().dir().join("adit.log");
        String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
    }
}

/// Runs `adit` on a host, with any arguments, to its end.
///
/// # Errors
/// When it cannot be run; a refusal is in the answer.
pub fn adit(host: &dyn Host, arguments: &[&str]) -> Result<Said> {
    let mut argv = host.program(&binaries::adit()?)?;
    argv.extend(arguments.iter().map(|&word| word.to_owned()));
    let words: Vec<&str> = argv.iter().map(String::as_str).collect();
    match host.run(&words) {
        Ok(text) => Ok(Said { success: true, text }),
        Err(LabError::Failed { detail, .. }) => Ok(Said { success: false, text: detail }),
        Err(
            other @ (LabError::Io { .. } | LabError::Timeout { .. } | LabError::Postgres { .. }),
        ) => Err(other),
    }
}
