//! What `adit probe` does at a real server: a connection to the service, and with
//! `adit-realserver verify --live` one that brings full segments back and one that takes them there.
//!
//! The other side of the conversation is in `realserver-setup/src/live/`; docs/verify-live.md has both.
//! One line asks, `adit-live 1 download 65536` or `adit-live 1 upload 65536`; `adit-live 1 ready` answers.
//! Then go the bytes, and who has received all of them says `done`.

use super::board::Start;
use super::connect;
use super::target::{Failure, Step};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Where the other side listens unless told otherwise.
pub const LIVE_PORT: u16 = 7706;
/// Bytes each way: forty-odd full segments, more than the first window.
const BYTES: usize = 64 << 10;
/// From SYN to SYN-ACK. A lost SYN is sent again after one second.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// From the question to the first line: small packets, two retransmissions.
const GREETED_WITHIN: Duration = Duration::from_secs(2);
/// For the bytes: what lost segments need to be sent again several times.
const CARRIED_WITHIN: Duration = Duration::from_secs(4);
/// How long the other side may take to close, so that the last word is not cut off by a reset.
const CLOSED_WITHIN: Duration = Duration::from_millis(500);

/// Longest answer that is read as a line.
const LINE: u64 = 64;
const READY: &str = "adit-live 1 ready";
const DONE: &str = "done";

/// How one part of a probe ended: how long it took, or how far it came.
pub type Ended = Result<Duration, Failure>;

/// Connects to the service, and closes again.
pub async fn service(from: SocketAddr, to: SocketAddr) -> Ended {
    connect::tcp(&Start { target: 0, from, to, timeout: CONNECT_WITHIN }).await
}

/// A conversation whose first, small packets have come both ways.
pub struct Greeted {
    stream: BufReader<TcpStream>,
    /// How long it took until here.
    pub took: Duration,
}

/// Whether bytes go here or there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the real server, straight.
    Download,
    /// To the real server, through the tunnel.
    Upload,
}

/// Connects to `verify --live`, and asks for bytes to go one way.
///
/// # Errors
/// How far it came.
pub async fn greet(from: SocketAddr, to: SocketAddr, way: Way) -> Result<Greeted, Failure> {
    let start = Start { target: 0, from, to, timeout: CONNECT_WITHIN };
    let began = Instant::now();
    let mut stream = BufReader::new(connect::open(&start).await?);
    let word = match way {
        Way::Download => "download",
        Way::Upload => "upload",
    };
    let question = format!("adit-live 1 {word} {BYTES}\n");
    let asked = async {
        stream.get_mut().write_all(question.as_bytes()).await?;
        line(&mut stream).await
    };
    let said = within(GREETED_WITHIN, asked, || {
        "connected, but nothing comes back to what was said".to_owned()
    })
    .await?;
    if said != READY {
        let what = format!("not `adit-realserver verify --live` answers: it said {said:?}");
        return Err(Failure { step: Step::Refused, what });
    }
    Ok(Greeted { stream, took: began.elapsed() })
}

impl Greeted {
    /// Takes the bytes that the real server sends, and says so.
    pub async fn download(mut self) -> Ended {
        let began = Instant::now();
        let mut received = 0;
        let mut buffer = vec![0; BYTES];
        let carried = async {
            while received < BYTES {
                let length = self.stream.read(&mut buffer[received..]).await?;
                if length == 0 {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ended there"));
                }
                received += length;
            }
            Ok(())
        };
        let outcome = tokio::time::timeout(CARRIED_WITHIN, carried).await;
        let stopped = |why: &str| {
            let what = format!("its answer stopped after {received} of {BYTES} bytes: {why}");
            Failure { step: Step::Timeout, what }
        };
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(stopped(&error.to_string())),
            Err(_) => return Err(stopped(&nothing_for(CARRIED_WITHIN))),
        }
        if let Some(wrong) = buffer.iter().zip(pattern()).position(|(got, sent)| *got != sent) {
            let what = format!("byte {wrong} of its answer is not the one that was sent");
            return Err(Failure { step: Step::Refused, what });
        }
        let took = began.elapsed();
        let last = async {
            self.stream.get_mut().write_all(format!("{DONE}\n").as_bytes()).await?;
            self.stream.read(&mut buffer).await
        };
        // It has what it needs to know, or will miss it and say so itself.
        let _ = tokio::time::timeout(CLOSED_WITHIN, last).await;
        Ok(took)
    }

    /// Sends bytes through the tunnel, and hears whether all have come.
    pub async fn upload(mut self) -> Ended {
        let began = Instant::now();
        let bytes: Vec<u8> = pattern().take(BYTES).collect();
        let carried = async {
            self.stream.get_mut().write_all(&bytes).await?;
            line(&mut self.stream).await
        };
        let said = within(CARRIED_WITHIN, carried, || {
            format!(
                "of {BYTES} bytes that were sent not all have come: {}",
                nothing_for(CARRIED_WITHIN)
            )
        })
        .await?;
        if said == DONE {
            return Ok(began.elapsed());
        }
        let what = format!("of {BYTES} bytes that were sent not all have come: it said {said:?}");
        Err(Failure { step: Step::Refused, what })
    }
}

fn nothing_for(time: Duration) -> String {
    format!("nothing for {}", humantime::format_duration(time))
}

/// The bytes, both ways: no two segments are alike.
fn pattern() -> impl Iterator<Item = u8> {
    (0u32..).flat_map(|word| word.wrapping_mul(0x9e37_79b1).to_be_bytes())
}

/// Reads a line without its end.
async fn line(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut text = String::new();
    stream.take(LINE).read_line(&mut text).await?;
    Ok(text.trim_end().to_owned())
}

async fn within<T>(
    time: Duration,
    work: impl Future<Output = io::Result<T>>,
    late: impl FnOnce() -> String,
) -> Result<T, Failure> {
    match tokio::time::timeout(time, work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => {
            let what = format!("the connection broke: {error}");
            Err(Failure { step: Step::Refused, what })
        }
        Err(_) => Err(Failure { step: Step::Timeout, what: late() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{runtime, testing};
    use std::io::{BufRead, Read, Write};
    use std::net::{Shutdown, TcpListener};

    /// A real server's side: reads the question, says `says`, sends `bytes`, and reads to the end.
    fn answer(says: &'static str, bytes: usize) -> SocketAddr {
        let listener = TcpListener::bind("198.51.100.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = std::io::BufReader::new(stream.try_clone().unwrap());
            let mut question = String::new();
            reader.read_line(&mut question).unwrap();
            let sent: Vec<u8> = pattern().take(bytes).collect();
            let wrote = stream.write_all(says.as_bytes()).and_then(|()| stream.write_all(&sent));
            if question.contains("upload") {
                let mut got = vec![0; BYTES];
                reader.read_exact(&mut got).unwrap();
                assert!(got.iter().copied().eq(pattern().take(BYTES)));
                stream.write_all(b"done\n").unwrap();
            }
            stream.shutdown(Shutdown::Write).unwrap();
            let _ = (wrote, reader.read_to_end(&mut Vec::new()));
        });
        address
    }

    async fn tried(from: &str, to: SocketAddr, way: Way) -> Ended {
        let greeted = greet(from.parse().unwrap(), to, way).await?;
        match way {
            Way::Download => greeted.download().await,
            Way::Upload => greeted.upload().await,
        }
    }

    #[test]
    fn each_end_of_a_conversation_is_told_from_the_others() {
        if !testing::own_network() {
            return;
        }
        testing::run("ip addr add 198.51.100.1/24 dev lo");
        let nobody = "198.51.100.1:1".parse().unwrap();
        // What is answered, how many bytes follow, which way is asked for, and what is said of it.
        type Case = (Option<(&'static str, usize)>, Way, Result<(), (Step, &'static str)>);
        let cases: [Case; 7] = [
            (Some(("adit-live 1 ready\n", BYTES)), Way::Download, Ok(())),
            (Some(("adit-live 1 ready\n", 0)), Way::Upload, Ok(())),
            (None, Way::Download, Err((Step::Refused, "nobody listens"))),
            (
                Some(("adit-live 1 ready\n", 4000)),
                Way::Download,
                Err((Step::Timeout, "stopped after 4000 of 65536 bytes")),
            ),
            (Some(("HTTP/1.1 400\n", 0)), Way::Download, Err((Step::Refused, "HTTP/1.1 400"))),
            (Some(("", 0)), Way::Download, Err((Step::Refused, "it said \"\""))),
            (
                Some(("adit-live 1 ready\n!", BYTES)),
                Way::Download,
                Err((Step::Refused, "byte 0 of its answer")),
            ),
        ];
        let work = async {
            for (port, (says, way, expected)) in (61_000..).zip(cases) {
                let to = says.map_or(nobody, |(says, bytes)| answer(says, bytes));
                let ended = tried(&format!("198.51.100.1:{port}"), to, way).await;
                match (&ended, expected) {
                    (Ok(_), Ok(())) => {}
                    (Err(failure), Err((step, words))) => {
                        let right = failure.step == step && failure.what.contains(words);
                        assert!(right, "{says:?}: {failure:?}");
                    }
                    (Ok(_), Err(_)) | (Err(_), Ok(())) => panic!("{says:?}: {ended:?}"),
                }
            }
        };
        runtime::block_on(work).unwrap();
    }
}
