//! The agent inside a machine: runs commands there for the lab. One JSON line asks, one answers,
//! one exchange per connection.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::error::{Context, LabError, Result};
use crate::namespace::Namespace;

/// Address of every machine's agent, on a management interface of the machine's own that no
/// test traffic takes; the same in all, since each machine has a namespace to itself.
pub const AGENT: &str = "169.254.77.2:7700";

/// The lab's side of the management interface.
pub const MANAGEMENT: &str = "169.254.77.1";

/// Limit for one exchange; the longest commands of tests are transfers of 100 MB.
const EXCHANGE: Duration = Duration::from_secs(120);

/// What the lab asks of an agent.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Run to the end and return the output.
    Run(Vec<String>),
    /// Start, with all output to a file; answered with the process number.
    Spawn {
        /// Program and arguments.
        argv: Vec<String>,
        /// File that gets standard output and errors.
        log: String,
    },
    /// Send a signal to a process that was started by [`Request::Spawn`].
    Signal {
        /// Process number.
        pid: u32,
        /// Signal number.
        signal: i32,
    },
    /// Has that process ended, and how?
    Poll(u32),
}

/// An agent's answer.
#[derive(Debug, Serialize, Deserialize)]
pub enum Response {
    /// A command ended.
    Ran {
        /// Did it end with status 0?
        success: bool,
        /// How it ended, for people.
        status: String,
        /// Standard output.
        stdout: String,
        /// Standard error.
        stderr: String,
    },
    /// A process was started.
    Spawned(u32),
    /// A process still runs (`None`) or ended with this raw wait status.
    State(Option<i32>),
    /// Done.
    Done,
    /// It could not be done.
    Refused(String),
}

/// Asks the agent of the machine whose namespace this is.
///
/// # Errors
/// When the agent is not reached, or refuses.
pub fn ask(namespace: &Namespace, request: &Request) -> Result<Response> {
    let what = || format!("ask the agent of {} for {request:?}", namespace.label());
    let address: SocketAddr = AGENT.parse().expect("a constant");
    let stream = namespace
        .enter(|| TcpStream::connect_timeout(&address, Duration::from_secs(2)))?
        .context(what)?;
    stream.set_read_timeout(Some(EXCHANGE)).context(what)?;
    let mut line = serde_json::to_string(request).context(what)?;
    line.push('\n');
    (&stream).write_all(line.as_bytes()).context(what)?;
    let mut answer = String::new();
    BufReader::new(&stream).read_line(&mut answer).context(what)?;
    match serde_json::from_str(&answer).context(what)? {
        Response::Refused(why) => Err(LabError::failed(what(), why)),
        response @ (Response::Ran { .. }
        | Response::Spawned(_)
        | Response::State(_)
        | Response::Done) => Ok(response),
    }
}

type Children = Arc<Mutex<HashMap<u32, Child>>>;

/// Serves requests for ever.
///
/// # Errors
/// When the address cannot be listened on.
pub fn serve(address: SocketAddr) -> Result<()> {
    let listener =
        TcpListener::bind(address).context(|| format!("listen on {address} for the lab"))?;
    let children = Children::default();
    for stream in listener.incoming() {
        let stream = stream.context(|| "accept the lab's connection".to_owned())?;
        let children = Arc::clone(&children);
        std::thread::spawn(move || exchange(&stream, &children));
    }
    Ok(())
}

fn exchange(stream: &TcpStream, children: &Children) {
    let mut line = String::new();
    let response = match BufReader::new(stream).read_line(&mut line) {
        Ok(_) => serde_json::from_str(&line)
            .map_err(|error| error.to_string())
            .and_then(|request| carry_out(request, children).map_err(|error| error.to_string()))
            .unwrap_or_else(Response::Refused),
        Err(error) => Response::Refused(error.to_string()),
    };
    let mut text = serde_json::to_string(&response).expect("strings and numbers serialise");
    text.push('\n');
    // A lab that went away has no use for the answer.
    let _ = (&*stream).write_all(text.as_bytes());
}

fn carry_out(request: Request, children: &Children) -> std::io::Result<Response> {
    let mut children = children.lock().unwrap_or_else(PoisonError::into_inner);
    match request {
        Request::Run(argv) => {
            drop(children);
            let output = command(&argv)?.stdin(Stdio::null()).output()?;
            Ok(Response::Ran {
                success: output.status.success(),
                status: output.status.to_string(),
                stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
                stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            })
        }
        Request::Spawn { argv, log } => {
            let log = File::options().create(true).append(true).open(log)?;
            let child = command(&argv)?
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()?;
            let pid = child.id();
            children.insert(pid, child);
            Ok(Response::Spawned(pid))
        }
        Request::Signal { pid, signal } => {
            let known = children.get_mut(&pid).ok_or(std::io::ErrorKind::NotFound)?;
            if known.try_wait()?.is_none() {
                kill(Pid::from_raw(pid.cast_signed()), Signal::try_from(signal)?)?;
            }
            Ok(Response::Done)
        }
        Request::Poll(pid) => {
            let known = children.get_mut(&pid).ok_or(std::io::ErrorKind::NotFound)?;
            Ok(Response::State(known.try_wait()?.map(ExitStatus::into_raw)))
        }
    }
}

fn command(argv: &[String]) -> std::io::Result<Command> {
    let (program, arguments) = argv.split_first().ok_or(std::io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(program);
    command.args(arguments);
    Ok(command)
}
