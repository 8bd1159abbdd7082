//! The lab's program inside machines: the agent, and services for tests.

use std::net::SocketAddr;

use adit_lab::agent;
use clap::Parser;

#[derive(Parser)]
enum Task {
    /// Run commands for the lab.
    Agent {
        /// Address to listen on.
        #[arg(long)]
        listen: SocketAddr,
    },
}

fn main() -> anyhow::Result<()> {
    match Task::parse() {
        Task::Agent { listen } => agent::serve(listen)?,
    }
    Ok(())
}
