//! The conversation with a director: bytes one way or the other, so that full packets have to come.
//!
//! One line asks, `adit-live 1 download COUNT` or `adit-live 1 upload COUNT`; `adit-live 1 ready` answers.
//! Then go the bytes, and who has received all of them says `done`. The director's side is in
//! `src/control/health/exchange.rs`.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::sync::mpsc::Sender;
use std::time::Duration;

/// Longest silence of the other side: longer than it waits for all of the bytes.
const SILENCE: Duration = Duration::from_secs(5);
/// Most bytes that are sent or taken in one conversation.
const MOST: usize = 1 << 20;
/// Longest question.
const LINE: u64 = 64;

/// Whether bytes go from here or come here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the director, straight.
    Download,
    /// From it, through the tunnel.
    Upload,
}

/// What has become of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// It was asked for.
    Asked,
    /// All bytes have come.
    Done,
}

/// News of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The VIP that was connected to.
    pub vip: IpAddr,
    /// Which way.
    pub way: Way,
    /// What has become of it.
    pub what: What,
}

/// Answers who asks, to the end of the conversation.
///
/// # Errors
/// When the connection breaks off, or the other side is silent.
pub fn answer(stream: &TcpStream, vip: IpAddr, tell: &Sender<Heard>) -> io::Result<()> {
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    let question = line(&mut reader)?;
    let Some((way, count)) = read(&question) else {
        return writer.write_all(b"adit-live 1 does not understand\n");
    };
    // Who listens may have gone: then nobody needs the news.
    let say = |what| {
        let _ = tell.send(Heard { vip, way, what });
    };
    say(What::Asked);
    writer.write_all(b"adit-live 1 ready\n")?;
    match way {
        Way::Download => {
            writer.write_all(&pattern().take(count).collect::<Vec<_>>())?;
            if line(&mut reader)? == "done" {
                say(What::Done);
            }
        }
        Way::Upload => {
            let mut bytes = vec![0; count];
            reader.read_exact(&mut bytes)?;
            if !bytes.into_iter().eq(pattern().take(count)) {
                return writer.write_all(b"other bytes than were sent\n");
            }
            say(What::Done);
            writer.write_all(b"done\n")?;
            // It closes when it has read that.
            let _ = reader.read(&mut [0]);
        }
    }
    Ok(())
}

fn read(question: &str) -> Option<(Way, usize)> {
    let mut words = question.split(' ');
    let known = words.next() == Some("adit-live") && words.next() == Some("1");
    let way = match words.next().filter(|_| known)? {
        "download" => Way::Download,
        "upload" => Way::Upload,
        _ => return None,
    };
    let count = words.next()?.parse().ok().filter(|&count| count <= MOST)?;
    words.next().is_none().then_some((way, count))
}

fn line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut text = String::new();
    reader.take(LINE).read_line(&mut text)?;
    Ok(text.trim_end().to_owned())
}

/// The bytes, both ways: no two segments are alike.
fn pattern() -> impl Iterator<Item = u8> {
    (0u32..).flat_map(|word| word.wrapping_mul(0x9e37_79b1).to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Shutdown, TcpListener};
    use std::sync::mpsc::channel;

    const VIP: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    /// Says `words` and then what `after` makes of the first line, and returns all that came back and
    /// what was told.
    fn converse(words: &str, rest: &[u8], closes: bool) -> (Vec<u8>, Vec<(Way, What)>) {
        let listener = TcpListener::bind((VIP, 0)).unwrap();
        let mut director = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let (tell, heard) = channel();
        let answering = std::thread::spawn(move || {
            // What the director makes of it shows in what was told.
            let _ = answer(&stream, VIP, &tell);
        });
        director.write_all(&[words.as_bytes(), rest].concat()).unwrap();
        if closes {
            director.shutdown(Shutdown::Write).unwrap();
        }
        let mut said = Vec::new();
        let _ = director.read_to_end(&mut said);
        answering.join().unwrap();
        (said, heard.iter().map(|heard| (heard.way, heard.what)).collect())
    }

    #[test]
    fn who_has_all_bytes_says_so_and_nobody_else_is_done() {
        let bytes: Vec<u8> = pattern().take(5000).collect();
        let (down, up) = (Way::Download, Way::Upload);
        let (said, told) = converse("adit-live 1 download 5000\n", b"done\n", false);
        assert_eq!(said, [b"adit-live 1 ready\n", &bytes[..]].concat());
        assert_eq!(told, [(down, What::Asked), (down, What::Done)]);
        let (said, told) = converse("adit-live 1 download 5000\n", b"", true);
        assert_eq!((said.len(), told), (18 + 5000, vec![(down, What::Asked)]));
        let (said, told) = converse("adit-live 1 upload 5000\n", &bytes, true);
        assert_eq!(said, b"adit-live 1 ready\ndone\n");
        assert_eq!(told, [(up, What::Asked), (up, What::Done)]);
        let (said, told) = converse("adit-live 1 upload 5000\n", &bytes[..4999], true);
        assert_eq!((&said[..], told), (&b"adit-live 1 ready\n"[..], vec![(up, What::Asked)]));
        let (said, told) = converse("adit-live 1 upload 5000\n", &[0; 5000], true);
        assert!(said.ends_with(b"other bytes than were sent\n"));
        assert_eq!(told, [(up, What::Asked)]);
    }

    #[test]
    fn other_questions_get_no_bytes() {
        for question in [
            "GET / HTTP/1.1\n",
            "adit-live 2 download 5\n",
            "adit-live 1 download\n",
            "adit-live 1 download -1\n",
            "adit-live 1 download 1048577\n",
            "adit-live 1 download 5 5\n",
            "adit-live 1 delete 5\n",
            "\n",
        ] {
            let (said, told) = converse(question, b"", true);
            assert_eq!(said, b"adit-live 1 does not understand\n", "{question}");
            assert_eq!(told, [], "{question}");
        }
    }
}
