//! Ansible's playbooks, run as an operator does: from a host of the lab, by ssh.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use crate::error::{Context, LabError, Result};
use crate::namespace::{Namespace, run_to_end};
use crate::systemd::Access;

/// What a play came to on a host, as its recap says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recap {
    /// Tasks that were done, whether or not something had to be changed.
    pub ok: u32,
    /// Tasks that changed something.
    pub changed: u32,
    /// Tasks that failed, and hosts that were not reached.
    pub failed: u32,
}

/// What a run of a playbook said.
#[derive(Clone, Debug)]
pub struct Played {
    /// Did it end with status 0?
    pub success: bool,
    /// Output and errors.
    pub text: String,
    /// By host, those that were reached only.
    pub recap: BTreeMap<String, Recap>,
}

impl Played {
    /// Number of changes on all hosts together.
    #[must_use]
    pub fn changed(&self) -> u32 {
        self.recap.values().map(|recap| recap.changed).sum()
    }
}

/// An operator: a host to come from, a key, an inventory, and the playbooks of this repository.
#[derive(Debug)]
pub struct Operator {
    host: Namespace,
    programs: PathBuf,
    playbooks: PathBuf,
    access: Arc<Access>,
    known_hosts: PathBuf,
    inventory: PathBuf,
}

impl Operator {
    /// An operator who works on `host` and knows `hosts` by their keys. The first of a computer has
    /// Ansible installed, which takes half a minute.
    ///
    /// # Errors
    /// When Ansible cannot be installed.
    pub fn create(
        host: &Namespace,
        access: &Arc<Access>,
        hosts: &[(IpAddr, &Namespace)],
    ) -> Result<Self> {
        let lab = Path::new(env!("CARGO_MANIFEST_DIR"));
        let programs = run_to_end(&mut Command::new(lab.join("ansible.sh")))?;
        let playbooks = lab.join("../../ansible");
        let playbooks = playbooks.canonicalize().context(|| "find the playbooks".to_owned())?;
        Ok(Self {
            host: host.clone(),
            programs: PathBuf::from(programs.trim()),
            playbooks,
            known_hosts: access.known_hosts(hosts)?,
            access: Arc::clone(access),
            inventory: host.dir().join("hosts.yml"),
        })
    }

    /// Writes the inventory: YAML, or JSON, which is YAML too.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn inventory(&self, text: &str) -> Result<()> {
        fs::write(&self.inventory, text).context(|| format!("write {}", self.inventory.display()))
    }

    /// Runs a playbook to its end; one that fails is no error here.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn play(&self, playbook: &str, arguments: &[&str]) -> Result<Played> {
        let mut command = self.command("ansible-playbook");
        command.arg("-i").arg(&self.inventory).arg(playbook).args(arguments);
        let output = self
            .host
            .enter(|| command.stdin(Stdio::null()).output())?
            .context(|| format!("start {command:?}"))?;
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        let recap = text.lines().filter_map(recap).collect();
        Ok(Played { success: output.status.success(), text, recap })
    }

    /// As [`Self::play`], and the playbook has to succeed.
    ///
    /// # Errors
    /// With all that it said, when it does not.
    pub fn expect(&self, playbook: &str, arguments: &[&str]) -> Result<Played> {
        let played = self.play(playbook, arguments)?;
        if played.success {
            return Ok(played);
        }
        Err(LabError::failed(format!("{playbook} {arguments:?}"), played.text))
    }

    /// One of Ansible's programs, whose files are this host's and go with the run.
    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let home = self.host.dir().join("ansible");
        let ssh = format!(
            "-o UserKnownHostsFile={} -o GlobalKnownHostsFile=/dev/null -o ConnectTimeout=20",
            self.known_hosts.display()
        );
        let mut command = Command::new(self.programs.join(program.as_ref()));
        command
            .current_dir(&self.playbooks)
            .env("ANSIBLE_HOME", &home)
            .env("ANSIBLE_SSH_CONTROL_PATH_DIR", home.join("cp"))
            .env("ANSIBLE_LOCAL_TEMP", home.join("tmp"))
            .env("ANSIBLE_PRIVATE_KEY_FILE", self.access.key())
            .env("ANSIBLE_SSH_COMMON_ARGS", ssh)
            .env("ANSIBLE_HOST_KEY_CHECKING", "true")
            .env("ANSIBLE_NOCOLOR", "1");
        command
    }
}

/// `real1 : ok=14 changed=6 unreachable=0 failed=0 …`
fn recap(line: &str) -> Option<(String, Recap)> {
    let (host, counts) = line.split_once(" : ok=")?;
    let mut recap = Recap::default();
    for count in format!("ok={counts}").split_whitespace() {
        let (name, number) = count.split_once('=')?;
        let number: u32 = number.parse().ok()?;
        match name {
            "ok" => recap.ok = number,
            "changed" => recap.changed = number,
            "failed" | "unreachable" => recap.failed += number,
            _ => {}
        }
    }
    Some((host.trim().to_owned(), recap))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recap_is_read() {
        let line = "real1    : ok=14   changed=6    unreachable=1    failed=2    skipped=2    rescued=0    ignored=0";
        assert_eq!(
            recap(line),
            Some(("real1".to_owned(), Recap { ok: 14, changed: 6, failed: 3 }))
        );
        assert_eq!(recap("TASK [director : ok=]"), None);
    }
}
