//! Bare hosts: machines whose first process is systemd and to which an operator comes by ssh, as to
//! those of a hoster. What is written on them outlives their reboots, and goes with the run.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::binaries;
use crate::error::{Context, Result};
use crate::namespace::{Namespace, run_to_end};
use crate::run::Run;

/// Size in bytes of a machine's disk: what a test writes, several times over. The file is sparse.
const DISK: u64 = 2 << 30;

/// A machine's own file in its directory, which [`disk`] makes.
pub(crate) const DISK_FILE: &str = "disk";
/// Name of a machine's own key in its directory.
const HOST_KEY: &str = "ssh_host_ed25519_key";
/// Name of the key that a machine lets in, in its directory.
const AUTHORIZED: &str = "authorized_keys";

/// The one key that opens all machines of a run; it is made with the run and goes with it.
#[derive(Debug)]
pub struct Access {
    dir: PathBuf,
}

impl Access {
    /// Makes the key.
    ///
    /// # Errors
    /// When there is no `ssh-keygen` here.
    pub fn create(run: &Run) -> Result<Self> {
        let dir = run.dir().join("ssh");
        fs::create_dir(&dir).context(|| format!("create {}", dir.display()))?;
        make_key(&dir.join("key"))?;
        Ok(Self { dir })
    }

    /// The private key's file.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.dir.join("key")
    }

    /// Writes a file of the machines' own keys, in ssh's form of known hosts, and returns its path.
    ///
    /// # Errors
    /// When a machine has none, since it was not made for this access.
    pub fn known_hosts(&self, hosts: &[(IpAddr, &Namespace)]) -> Result<PathBuf> {
        let mut text = String::new();
        for (address, host) in hosts {
            let path = host.dir().join(format!("{HOST_KEY}.pub"));
            let key = fs::read_to_string(&path).context(|| format!("read {}", path.display()))?;
            let _ = writeln!(text, "{address} {}", key.trim());
        }
        let path = self.dir.join("known_hosts");
        fs::write(&path, text).context(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}

fn make_key(path: &Path) -> Result<()> {
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-t", "ed25519", "-N", "", "-C", "adit-lab", "-f"]).arg(path);
    run_to_end(&mut command).map(drop)
}

/// Makes a machine's keys and disk in its directory, before its boot.
///
/// # Errors
/// When a program for it is missing here.
pub(crate) fn prepare(dir: &Path, access: &Access) -> Result<()> {
    make_key(&dir.join(HOST_KEY))?;
    let authorized = dir.join(AUTHORIZED);
    fs::copy(access.dir.join("key.pub"), &authorized)
        .context(|| format!("write {}", authorized.display()))?;
    let disk = dir.join(DISK_FILE);
    let file = File::create(&disk).context(|| format!("create {}", disk.display()))?;
    file.set_len(DISK).context(|| format!("size {}", disk.display()))?;
    // Nobody looks at it after a crash, so it needs no journal.
    let mut command = Command::new("mkfs.ext4");
    command.args(["-q", "-F", "-O", "^has_journal"]).arg(&disk);
    run_to_end(&mut command).map(drop)
}

/// Units that a machine has no use for, or that would change it while a test compares.
const MASKED: &str = "apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
    e2scrub_reap.service fstrim.timer getty.target systemd-timesyncd.service systemd-logind.service \
    systemd-random-seed.service systemd-update-utmp.service systemd-update-utmp-runlevel.service \
    ipvsadm.service systemd-binfmt.service proc-sys-fs-binfmt_misc.automount dev-mqueue.mount \
    dev-hugepages.mount sys-kernel-config.mount sys-fs-fuse-connections.mount \
    sys-kernel-debug.mount sys-kernel-tracing.mount";

/// Lines of a boot script that go on as systemd, at each boot; `services` are units by name and text.
///
/// # Errors
/// When the agent's binary has not been built.
pub(crate) fn boot_lines(
    label: &str,
    agent_at: &str,
    services: &[(String, String)],
) -> Result<String> {
    let agent = binaries::through_host_root(&binaries::lab_guest()?)?.join(" ");
    let mut script = format!(
        "echo {label} >/etc/hostname\n\
         install -m 600 /lab/{HOST_KEY} /etc/ssh/\n\
         install -d -m 700 /root/.ssh\n\
         install -m 600 /lab/{AUTHORIZED} /root/.ssh/\n\
         printf 'HostKey /etc/ssh/{HOST_KEY}\\nUseDNS no\\nUsePAM no\\n' \
         >/etc/ssh/sshd_config.d/lab.conf\n\
         for unit in {MASKED}; do ln -sf /dev/null /etc/systemd/system/$unit; done\n"
    );
    let agent = (
        "lab-agent".to_owned(),
        format!("[Service]\nExecStart={agent} agent --listen {agent_at}\nRestart=always\n"),
    );
    for (name, text) in services.iter().chain([&agent]) {
        let unit = format!("/etc/systemd/system/{name}.service");
        let _ = write!(
            script,
            "cat >{unit} <<'END'\n{text}END\n\
             ln -sf {unit} /etc/systemd/system/multi-user.target.wants/\n"
        );
    }
    script.push_str("umount -l /.old\nexec /sbin/init\n");
    Ok(script)
}
