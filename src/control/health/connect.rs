//! One check: a TCP connection to the VIP, closed again as soon as it is there.

use super::board::Start;
use super::target::{Failure, Outcome, Step};
use crate::dataplane::probe::HOP_LIMIT;
use nix::sys::socket::{setsockopt, sockopt};
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;

/// Connects, and says how long that took or how far it came. Takes `timeout` at most.
pub async fn tcp(start: &Start) -> Outcome {
    let began = Instant::now();
    // Dropped, it is reset: neither end has anything to wait for.
    open(start).await.map(|_stream| began.elapsed())
}

/// The same with the connection, which is reset when it is dropped.
pub(super) async fn open(start: &Start) -> Result<TcpStream, Failure> {
    let socket = socket(start.from).map_err(|error| local(&error))?;
    let mut connecting = pin!(socket.connect(start.to));
    // What is refused at once, before any packet can have been answered, this host has refused.
    let at_once = poll_fn(|context| Poll::Ready(connecting.as_mut().poll(context))).await;
    match at_once {
        Poll::Ready(Err(error)) => Err(local(&error)),
        Poll::Ready(Ok(stream)) => Ok(stream),
        Poll::Pending => match tokio::time::timeout(start.timeout, connecting).await {
            Ok(connected) => connected.map_err(|error| refused(&error, start.timeout)),
            Err(_) => Err(late(start.timeout)),
        },
    }
}

/// A socket from this address, whose end leaves nothing behind and whose packets are known for ours.
fn socket(from: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if from.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    setsockopt(&socket, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    match from {
        SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4Ttl, &i32::from(HOP_LIMIT))?,
        SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6Ttl, &i32::from(HOP_LIMIT))?,
    }
    socket.bind(from)?;
    Ok(socket)
}

fn local(error: &io::Error) -> Failure {
    Failure { step: Step::Local, what: format!("this host cannot send it: {error}") }
}

fn late(timeout: Duration) -> Failure {
    let within = humantime::format_duration(timeout);
    Failure { step: Step::Timeout, what: format!("no SYN-ACK within {within}") }
}

/// What became of a SYN that was sent.
fn refused(error: &io::Error, timeout: Duration) -> Failure {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED | libc::ECONNRESET) => {
            Failure { step: Step::Refused, what: "refused by a reset: nobody listens".to_owned() }
        }
        Some(libc::ETIMEDOUT) => late(timeout),
        Some(_) | None => {
            Failure { step: Step::Unreachable, what: format!("cannot be reached: {error}") }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{runtime, testing};
    use nix::sys::socket::getsockopt;
    use std::net::TcpListener;

    fn start(from: &str, to: SocketAddr) -> Start {
        let timeout = Duration::from_secs(2);
        Start { target: 1, from: from.parse().unwrap(), to, timeout }
    }

    fn step(outcome: &Outcome) -> Option<Step> {
        outcome.as_ref().err().map(|failure| failure.step)
    }

    #[test]
    fn each_end_is_told_from_the_others() {
        if !testing::own_network() {
            return;
        }
        testing::run("ip addr add 198.51.100.1/24 dev lo");
        // Whose neighbours never answer.
        testing::run("ip link add v0 type veth peer name v1");
        testing::run("ip link set v0 up");
        testing::run("ip link set v1 up");
        testing::run("ip addr add 203.0.113.1/24 dev v0");
        testing::run("ip neigh add 203.0.113.9 lladdr 02:00:00:00:00:09 dev v0");
        testing::run("ip route add blackhole 192.0.2.1");
        let listener = TcpListener::bind("198.51.100.1:5432").unwrap();
        let open = listener.local_addr().unwrap();
        let work = async {
            for _ in 0..20 {
                // The same port again and again: nothing stays behind that would hold it.
                let outcome = tcp(&start("198.51.100.1:61000", open)).await;
                assert!(outcome.is_ok(), "{outcome:?}");
            }
            for (from, to, expected) in [
                ("198.51.100.1:61001", "198.51.100.1:1", Step::Refused),
                ("203.0.113.1:61001", "203.0.113.9:5432", Step::Timeout),
                ("198.51.100.1:61001", "192.0.2.1:5432", Step::Local),
                ("203.0.113.99:61001", "198.51.100.1:5432", Step::Local),
                ("198.51.100.1:5432", "198.51.100.1:1", Step::Local),
            ] {
                let outcome = tcp(&start(from, to.parse().unwrap())).await;
                assert_eq!(step(&outcome), Some(expected), "{from} {to}: {outcome:?}");
            }
        };
        runtime::block_on(work).unwrap();
    }

    #[test]
    fn packets_of_checks_have_the_hop_limit_that_proves_them() {
        if !testing::own_network() {
            return;
        }
        runtime::block_on(async {
            let v4 = socket("127.0.0.1:0".parse().unwrap()).unwrap();
            assert_eq!(getsockopt(&v4, sockopt::Ipv4Ttl).unwrap(), 255);
            let v6 = socket("[::1]:0".parse().unwrap()).unwrap();
            assert_eq!(getsockopt(&v6, sockopt::Ipv6Ttl).unwrap(), 255);
        })
        .unwrap();
    }
}
