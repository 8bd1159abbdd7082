//! The lab's program inside machines: the agent, and services for tests.

use std::net::{IpAddr, SocketAddr};

use adit_lab::{agent, serve};
use clap::Parser;

#[derive(Parser)]
enum Task {
    /// Run commands for the lab.
    Agent {
        /// Address to listen on.
        #[arg(long)]
        listen: SocketAddr,
    },
    /// Serve bytes to tests.
    Serve {
        /// Name to answer with.
        #[arg(long)]
        name: String,
        /// Port, TCP and UDP.
        #[arg(long)]
        port: u16,
        /// Addresses that answer datagrams.
        #[arg(long)]
        udp: Vec<IpAddr>,
    },
}

fn main() -> anyhow::Result<()> {
    match Task::parse() {
        Task::Agent { listen } => agent::serve(listen)?,
        Task::Serve { name, port, udp } => serve::serve(&name, port, &udp)?,
    }
    Ok(())
}
