//! `adit-lab`: the lab by hand. Builds the standard networks and keeps them until it is interrupted,
//! for looking around with `ip netns exec`.

use std::io::{Read, Write};

use adit_lab::{Kind, Lab, LabSpec};
use clap::Parser;

#[derive(Parser)]
#[command(about = "The networks of Adit's tests, by hand")]
enum Task {
    /// Build a lab and keep it until standard input ends or a signal comes.
    Up {
        /// Real servers in the first data centre.
        #[arg(long, default_value_t = 1)]
        dc1: usize,
        /// Real servers in the second data centre.
        #[arg(long, default_value_t = 1)]
        dc2: usize,
        /// Without databases on the real servers.
        #[arg(long)]
        no_postgres: bool,
        /// Bare hosts with systemd and sshd, the director's too.
        #[arg(long)]
        bare: bool,
    },
    /// Build the Debian root that real servers run on, unless it is there: a minute and 600 MB.
    Prepare,
    /// Remove what labs left behind whose processes were killed. Every new lab does it too.
    Sweep,
}

fn main() -> anyhow::Result<()> {
    match Task::parse() {
        Task::Up { dc1, dc2, no_postgres, bare } => {
            let director = if bare { Kind::Guest } else { Kind::Namespace };
            up(LabSpec {
                reals: [dc1, dc2],
                postgres: !no_postgres,
                bare,
                director,
                ..LabSpec::default()
            })
        }
        Task::Prepare => adit_lab::root::debian_root().map(drop).map_err(Into::into),
        Task::Sweep => Ok(adit_lab::run::sweep_leftovers()?),
    }
}

fn up(spec: LabSpec) -> anyhow::Result<()> {
    let lab = Lab::build(spec)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "run {} in {}", lab.run().prefix(), lab.run().dir().display())?;
    for namespace in [&lab.client, &lab.r0, &lab.dc_routers[0], &lab.dc_routers[1]] {
        writeln!(out, "ip netns exec {} sh", namespace.name())?;
    }
    writeln!(out, "ip netns exec {} sh", lab.director().namespace().name())?;
    for real in &lab.reals {
        writeln!(
            out,
            "{} at {}: {}, first command after {:.1} s, all services after {:.1} s",
            real.name(),
            real.address(false),
            lab.real_kind(),
            real.machine().boot_time().as_secs_f64(),
            real.ready_after().as_secs_f64()
        )?;
    }
    if let Some(access) = lab.access() {
        writeln!(out, "ssh -i {}", access.key().display())?;
    }
    writeln!(out, "up")?;
    out.flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
