//! Byte services of real servers, and their clients: who answers, and is every byte right?
//!
//! TCP: the client sends one line and then what it announces.
//! - `whoami` → one line, `NAME PEER`
//! - `upload COUNT SEED`, then the bytes → one line, `NAME ok` or what was wrong
//! - `download COUNT SEED` → the bytes
//! - `echo` → every byte comes back, until the client ends
//! - `converse` → every line comes back as `NAME LINE`, until the client ends
//!
//! UDP: a datagram comes back with `NAME ` in front.
//!
//! The bytes are those of [`Pattern`], so that each side compares every one with what it must be.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket,
};
use std::time::Duration;

use tokio::net::TcpSocket;

use crate::error::{Context, LabError, Result};
use crate::namespace::Namespace;

/// Longest silence within a transfer: more than the retransmissions that a path MTU's
/// discovery or a restarted director may cost.
const SILENCE: Duration = Duration::from_secs(30);

/// Limit for a connection to be made: beyond two retransmissions of a SYN (1 s and 3 s).
const CONNECT: Duration = Duration::from_secs(10);

/// Bytes moved at a time.
const CHUNK: usize = 64 * 1024;

/// A stream of bytes in which no two stretches are alike (xorshift64*), so that lost, doubled
/// or swapped segments show.
#[derive(Clone, Debug)]
pub struct Pattern {
    state: u64,
    word: [u8; 8],
    used: usize,
}

impl Pattern {
    /// The stream of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        // The generator stays at 0 if it starts there.
        Self { state: seed | 1 << 63, word: [0; 8], used: 8 }
    }

    /// Writes the next bytes.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            if self.used == 8 {
                self.state ^= self.state >> 12;
                self.state ^= self.state << 25;
                self.state ^= self.state >> 27;
                self.word = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
                self.used = 0;
            }
            *byte = self.word[self.used];
            self.used += 1;
        }
    }
}

/// Reads `count` bytes and compares each with the pattern.
fn check(from: &mut impl Read, count: u64, seed: u64) -> io::Result<()> {
    let mut pattern = Pattern::new(seed);
    let (mut got, mut want) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut offset = 0;
    while offset < count {
        let wanted = usize::try_from(count - offset).unwrap_or(CHUNK).min(CHUNK);
        // With a time limit, any signal to this process ends the call.
        let length = match from.read(&mut got[..wanted]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        if length == 0 {
            let text = format!("ended after {offset} of {count} bytes");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        pattern.fill(&mut want[..length]);
        if let Some(at) = (0..length).find(|&at| got[at] != want[at]) {
            let text = format!("byte {} is wrong", offset + at as u64);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        offset += length as u64;
    }
    Ok(())
}

fn send(to: &mut impl Write, count: u64, seed: u64) -> io::Result<()> {
    let mut pattern = Pattern::new(seed);
    let mut chunk = vec![0; CHUNK];
    let mut left = count;
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        pattern.fill(&mut chunk[..length]);
        to.write_all(&chunk[..length])?;
        left -= length as u64;
    }
    to.flush()
}

/// Serves for ever: TCP on all addresses, UDP on the given ones, since the answer to a datagram
/// must leave from the address that was asked.
///
/// # Errors
/// When the port is taken, or an address is not this host's.
pub fn serve(name: &str, port: u16, addresses: &[IpAddr]) -> Result<()> {
    for &address in addresses {
        let to = SocketAddr::new(address, port);
        let socket = UdpSocket::bind(to).context(|| format!("bind {to}"))?;
        let name = name.to_owned();
        std::thread::spawn(move || udp_echo(&socket, &name));
    }
    let everything = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let listener = TcpListener::bind(everything).context(|| format!("bind {everything}"))?;
    for stream in listener.incoming() {
        let stream = stream.context(|| "accept".to_owned())?;
        let name = name.to_owned();
        std::thread::spawn(move || {
            // The client sees a broken connection, and says so.
            let _ = answer(&stream, &name);
        });
    }
    Ok(())
}

fn udp_echo(socket: &UdpSocket, name: &str) {
    let mut buffer = vec![0; 65_536];
    loop {
        // An ICMP error about an earlier answer ends one receive, not the service.
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        let mut reply = format!("{name} ").into_bytes();
        reply.extend_from_slice(&buffer[..length]);
        let _ = socket.send_to(&reply, from);
    }
}

fn answer(stream: &TcpStream, name: &str) -> io::Result<()> {
    let peer = stream.peer_addr()?;
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let words: Vec<_> = line.split_whitespace().collect();
    let number = |at: usize| words.get(at).and_then(|word| word.parse().ok()).unwrap_or(0);
    match words.first().copied() {
        Some("whoami") => writeln!(writer, "{name} {peer}"),
        Some("upload") => match check(&mut reader, number(1), number(2)) {
            Ok(()) => writeln!(writer, "{name} ok"),
            Err(error) => writeln!(writer, "{name} {error}"),
        },
        Some("download") => send(&mut writer, number(1), number(2)),
        Some("echo") => {
            let mut chunk = vec![0; CHUNK];
            loop {
                let length = reader.read(&mut chunk)?;
                if length == 0 {
                    return Ok(());
                }
                writer.write_all(&chunk[..length])?;
            }
        }
        Some("converse") => loop {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            write!(writer, "{name} {line}")?;
        },
        _ => writeln!(writer, "{name} does not understand"),
    }
}

/// A client of the byte services on some host.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    host: &'a Namespace,
    source: Option<SocketAddr>,
    to: SocketAddr,
}

impl<'a> Caller<'a> {
    /// A client on `host` that calls `to` from a port that the kernel chooses.
    #[must_use]
    pub fn new(host: &'a Namespace, to: SocketAddr) -> Self {
        Self { host, source: None, to }
    }

    /// The same from this address and port.
    #[must_use]
    pub fn from(self, source: SocketAddr) -> Self {
        Self { source: Some(source), ..self }
    }

    /// Name of the server that answers.
    ///
    /// # Errors
    /// When nobody does.
    pub fn whoami(&self) -> Result<String> {
        let line = self.call("whoami\n", |mut stream| {
            let mut line = String::new();
            stream.read_to_string(&mut line).map(|_| line)
        })?;
        first_word(&line)
    }

    /// Sends `count` bytes, all of which the server compares; returns its name.
    ///
    /// # Errors
    /// When the connection breaks or a byte is wrong.
    pub fn upload(&self, count: u64, seed: u64) -> Result<String> {
        let line = self.call(&format!("upload {count} {seed}\n"), |mut stream| {
            send(&mut stream, count, seed)?;
            stream.shutdown(Shutdown::Write)?;
            let mut line = String::new();
            stream.read_to_string(&mut line).map(|_| line)
        })?;
        match line.split_once(' ') {
            Some((name, "ok\n")) => Ok(name.to_owned()),
            _ => Err(LabError::failed(format!("upload of {count} bytes"), line)),
        }
    }

    /// Receives `count` bytes and compares all of them.
    ///
    /// # Errors
    /// When the connection breaks or a byte is wrong.
    pub fn download(&self, count: u64, seed: u64) -> Result<()> {
        self.call(&format!("download {count} {seed}\n"), |mut stream| {
            check(&mut stream, count, seed)
        })
    }

    /// A connection on which every byte comes back, for sessions that stay open.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn echo(&self) -> Result<TcpStream> {
        self.call("echo\n", Ok)
    }

    /// A session that stays open and says who answers.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn converse(&self) -> Result<Conversation> {
        let stream = self.call("converse\n", Ok)?;
        let what = || format!("a conversation with {}", self.to);
        stream.set_nodelay(true).context(what)?;
        stream.set_read_timeout(Some(CONNECT)).context(what)?;
        let source = stream.local_addr().context(what)?;
        let stream = BufReader::new(stream);
        let mut conversation = Conversation { stream, source, server: String::new(), asked: 0 };
        conversation.server = conversation.ask_name()?;
        Ok(conversation)
    }

    /// Sends one datagram of `length` pattern bytes and compares what comes back; returns the
    /// server's name.
    ///
    /// # Errors
    /// When nothing comes back in time, or something else.
    pub fn datagram(&self, length: usize, seed: u64) -> Result<String> {
        let what = || format!("datagram of {length} bytes to {}", self.to);
        let mut payload = vec![0; length];
        Pattern::new(seed).fill(&mut payload);
        let any = SocketAddr::new(unspecified(self.to), 0);
        let source = self.source.unwrap_or(any);
        let socket = self.host.enter(|| UdpSocket::bind(source))?.context(what)?;
        socket.set_read_timeout(Some(Duration::from_secs(5))).context(what)?;
        socket.connect(self.to).context(what)?;
        socket.send(&payload).context(what)?;
        let mut reply = vec![0; 65_536];
        // With a time limit, any signal to this process ends the call.
        let received = loop {
            match socket.recv(&mut reply) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                received => break received.context(what)?,
            }
        };
        let reply = &reply[..received];
        let space = reply.iter().position(|&byte| byte == b' ');
        match space {
            Some(at) if reply[at + 1..] == payload => {
                Ok(String::from_utf8_lossy(&reply[..at]).into_owned())
            }
            _ => Err(LabError::failed(what(), format!("{received} other bytes came back"))),
        }
    }

    fn call<T>(&self, line: &str, exchange: impl FnOnce(TcpStream) -> io::Result<T>) -> Result<T> {
        let what = || format!("`{}` to {}", line.trim(), self.to);
        let (source, to) = (self.source, self.to);
        // Made inside the host; from then on the socket is the host's wherever it is used.
        let stream = self.host.block_on(connect(source, to)).context(what)?;
        stream.set_read_timeout(Some(SILENCE)).context(what)?;
        stream.set_write_timeout(Some(SILENCE)).context(what)?;
        (&stream).write_all(line.as_bytes()).context(what)?;
        exchange(stream).context(what)
    }
}

/// An open session with the byte services: as [`crate::Session`] with a database, but cheap for
/// the server, so that there can be hundreds.
#[derive(Debug)]
pub struct Conversation {
    stream: BufReader<TcpStream>,
    source: SocketAddr,
    server: String,
    asked: u32,
}

impl Conversation {
    /// The session's own address and port.
    #[must_use]
    pub fn source(&self) -> SocketAddr {
        self.source
    }

    /// Name of the server that answered when the session was opened.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Asks the server for its name once more.
    ///
    /// # Errors
    /// When the session is broken, the answer does not come in time, or is to something else.
    pub fn ask_name(&mut self) -> Result<String> {
        self.asked += 1;
        let (source, asked) = (self.source, self.asked);
        let what = || format!("question {asked} of {source}");
        writeln!(self.stream.get_mut(), "{asked}").context(what)?;
        let mut line = String::new();
        self.stream.read_line(&mut line).context(what)?;
        match line.trim_end().split_once(' ') {
            Some((name, echo)) if echo == asked.to_string() => Ok(name.to_owned()),
            _ => Err(LabError::failed(what(), format!("answered by {line:?}"))),
        }
    }
}

async fn connect(source: Option<SocketAddr>, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if let Some(source) = source {
        // A port of an earlier connection that is in TIME_WAIT here may be used again.
        socket.set_reuseaddr(true)?;
        socket.bind(source)?;
    }
    let connecting = tokio::time::timeout(CONNECT, socket.connect(to));
    let stream = connecting.await.map_err(|_| io::ErrorKind::TimedOut)??.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn unspecified(like: SocketAddr) -> IpAddr {
    match like {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn first_word(line: &str) -> Result<String> {
    line.split_whitespace()
        .next()
        .map(str::to_owned)
        .ok_or_else(|| LabError::failed("ask who answers", "an empty answer"))
}
