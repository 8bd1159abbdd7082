//! The only module that looks at the host and changes it.
//!
//! It uses `ip` and `nft` instead of netlink: what it does can be read, typed and watched by whoever
//! has to trust it, both are there on every host that has such a tunnel, their JSON is the same
//! across versions, and nftables' own messages are only described by its library.

mod command;
mod look;
mod store;

use std::fs;

use command::{ip, run};
use nix::fcntl::Flock;

use crate::desired::Desired;
use crate::observed::Observed;
use crate::plan::{Plan, PlanError, plan};
use crate::step::Step;
pub use look::look;

/// How often a plan is made anew when the host differs from what its steps should have led to:
/// udev writes kernel parameters of new devices (`sysctl.d`), a moment after they are made.
const ROUNDS: usize = 3;

/// What could not be looked at or done.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A command said no.
    #[error("`{command}`: {reason}")]
    Refused {
        /// The step or look.
        command: String,
        /// The command's own words.
        reason: String,
    },
    /// This needs CAP_NET_ADMIN.
    #[error("this needs the rights of root (CAP_NET_ADMIN): {0}")]
    Rights(String),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// What was found cannot be known.
    #[error(
        "{path} does not tell what was found before: {reason}. Without it nothing can be given back; a reboot \
         does, or remove the file to have the present state taken for it"
    )]
    Memory {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Another run is under way.
    #[error("another adit-realserver is at work on this host")]
    Busy,
    /// There is no plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Something undoes what is done.
    #[error("done, and yet not so: something else on this host undoes `{0}`")]
    Undone(String),
}

/// What was done.
#[derive(Debug, Default)]
pub struct Done {
    /// Steps in their order.
    pub steps: Vec<Step>,
    /// As in [`Plan::notes`], and what could not be undone.
    pub notes: Vec<String>,
}

/// Makes the host what is wanted; `None`: as it was found. Repeating it changes nothing, and after an
/// interruption it goes on.
///
/// # Errors
/// The step that was refused, and why. All before it stay done.
pub fn carry_out(desired: Option<&Desired>) -> Result<Done, HostError> {
    let _alone = lock()?;
    let mut done = Done::default();
    for _ in 0..ROUNDS {
        let Plan { steps, notes } = plan(desired, &look()?)?;
        for note in notes {
            if !done.notes.contains(&note) {
                done.notes.push(note);
            }
        }
        if steps.is_empty() {
            return Ok(done);
        }
        for step in steps {
            if let Some(note) = take(&step)? {
                done.notes.push(note);
            }
            done.steps.push(step);
        }
    }
    match plan(desired, &look()?)?.steps.first() {
        Some(step) => Err(HostError::Undone(step.to_string())),
        None => Ok(done),
    }
}

/// What would be done.
///
/// # Errors
/// When the host cannot be looked at, or there is no plan.
pub fn preview(desired: Option<&Desired>, observed: &Observed) -> Result<Plan, HostError> {
    Ok(plan(desired, observed)?)
}

/// Held while the host is changed.
fn lock() -> Result<Flock<fs::File>, HostError> {
    let file = store::lock_file()?;
    Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).map_err(|_| HostError::Busy)
}

/// Takes one step; returns what there is to say about it.
fn take(step: &Step) -> Result<Option<String>, HostError> {
    match step {
        Step::Remember(memory) => store::write(memory)?,
        Step::Load(module) => {
            run("modprobe", &[module.name()], None)?;
            settle();
        }
        Step::Unload(module) => {
            if let Err(error) = run("modprobe", &["-r", module.name()], None) {
                return Ok(Some(format!("{} stays loaded: {error}", module.name())));
            }
        }
        Step::Set { parameter, value } => {
            let path = parameter.path();
            fs::write(&path, value.to_string())
                .map_err(|source| HostError::File { path, source })?;
        }
        Step::SetTable(rules) => {
            run("nft", &["-f", "-"], Some(&rules.script()))?;
        }
        Step::DeleteTable => {
            run("nft", &["delete", "table", "inet", crate::firewall::TABLE], None)?;
        }
        Step::Make { .. } => {
            by_ip(step)?;
            settle();
        }
        Step::Unmake(_)
        | Step::AddAddress { .. }
        | Step::DeleteAddress { .. }
        | Step::SetRoute { .. }
        | Step::DeleteRoute(_)
        | Step::AddSource(_)
        | Step::DeleteSource(_)
        | Step::AddPort(_)
        | Step::DeletePort(_)
        | Step::Up(_)
        | Step::Down(_) => by_ip(step)?,
    }
    Ok(None)
}

fn by_ip(step: &Step) -> Result<(), HostError> {
    // A step that `ip` does not do has no words, and none of those comes here.
    step.ip_words().map_or(Ok(()), |words| ip(&words).map(drop))
}

/// Waits until udev is done with a new device: it may write kernel parameters of it. Where there is no
/// udev, nobody does.
fn settle() {
    let _ = run("udevadm", &["settle", "--timeout=5"], None);
}
