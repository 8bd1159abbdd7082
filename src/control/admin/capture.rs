//! `GET /v1/capture`: packets on both sides of the tunnel, as a pcap file that grows.
//!
//! Inner frames have Ethernet headers, outer packets have them or not, depending on how they are
//! sent. One pcap file has one link type, so all are written as IP packets (LINKTYPE_RAW), which
//! tcpdump and Wireshark read; frames that are not IP are left out.

use super::query::Query;
use super::server::Refusal;
use crate::control::daemon::{Daemon, now};
use crate::dataplane::packet::ETHERNET_HEADER;
use crate::dataplane::time::Time;
use crate::worker::capture::{Captured, Direction};
use hyper::StatusCode;
use hyper::body::{Body, Bytes, Frame};
use pcap_file::DataLink;
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use std::cell::RefCell;
use std::io::{self, Write};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often the worker's copies are fetched: its pool holds some 10 ms at a million packets a
/// second, and what finds no room is counted.
const FETCH: Duration = Duration::from_millis(5);
/// Bytes in one piece of the answer, about.
const PIECE: usize = 256 << 10;

/// The answer's body: it captures while it is read, and ends when nobody reads any more.
pub(super) struct CaptureBody {
    daemon: Rc<Daemon>,
    only: Option<Direction>,
    left: Option<u64>,
    until: Option<Time>,
    timer: tokio::time::Interval,
    /// Real time at boot, to which the packets' times are added.
    boot: Duration,
    writer: PcapWriter<Buffer>,
    written: Buffer,
}

/// Bytes that are written here and taken there.
#[derive(Debug, Default, Clone)]
struct Buffer(Rc<RefCell<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts a capture: `count` packets at most, `seconds` at most, one `side` only.
pub(super) fn start(query: &str, daemon: &Rc<Daemon>) -> Result<CaptureBody, Refusal> {
    let query = Query::parse(query, &["count", "seconds", "side"])?;
    let side: Option<String> = query.get("side", "inner or outer")?;
    let only = match side.as_deref() {
        None => None,
        Some("inner") => Some(Direction::Inner),
        Some("outer") => Some(Direction::Outer),
        Some(other) => {
            let said = format!("`side` = `{other}` is not inner or outer");
            return Err(Refusal::new(StatusCode::BAD_REQUEST, said));
        }
    };
    let left = query.get("count", "a number")?;
    let seconds: Option<u64> = query.get("seconds", "a number")?;
    let written = Buffer::default();
    let header = PcapHeader { datalink: DataLink::RAW, ..PcapHeader::default() };
    let writer = PcapWriter::with_header(written.clone(), header)
        .map_err(|error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    if !daemon.capture().start() {
        return Err(Refusal::new(StatusCode::CONFLICT, "somebody else captures already"));
    }
    let mut timer = tokio::time::interval(FETCH);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // A shell may read the clock: records of a pcap file carry the time of day.
    #[allow(clippy::disallowed_methods)]
    let real = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(CaptureBody {
        daemon: Rc::clone(daemon),
        only,
        left,
        until: seconds.map(|s| now() + Duration::from_secs(s)),
        timer,
        boot: real.saturating_sub(now().saturating_since(Time::ZERO)),
        writer,
        written,
    })
}

impl Drop for CaptureBody {
    fn drop(&mut self) {
        self.daemon.capture().stop();
        let lost = self.daemon.capture().lost();
        if lost > 0 {
            tracing::warn!(lost, "packets that a capture was too slow for");
        }
    }
}

impl CaptureBody {
    /// Writes what has been copied since the last time, up to a piece.
    fn fetch(&mut self) -> io::Result<()> {
        while self.written.0.borrow().len() < PIECE && self.left != Some(0) {
            let Some(captured) = self.daemon.capture().next() else { break };
            let result = self.write(&captured);
            self.daemon.capture().recycle(captured);
            result?;
        }
        Ok(())
    }

    fn write(&mut self, captured: &Captured) -> io::Result<()> {
        if self.only.is_some_and(|only| only != captured.direction) {
            return Ok(());
        }
        let framed = match captured.direction {
            Direction::Inner => true,
            Direction::Outer => captured.egress.is_none_or(|id| self.daemon.is_direct(id)),
        };
        let header = if framed { ETHERNET_HEADER } else { 0 };
        let packet = captured.bytes.get(header..).unwrap_or_default();
        // ARP and the like have no place among IP packets.
        if !matches!(packet.first().map(|byte| byte >> 4), Some(4 | 6)) {
            return Ok(());
        }
        let time = self.boot + captured.time.saturating_since(Time::ZERO);
        let length = u32::try_from(captured.length.saturating_sub(header)).unwrap_or(u32::MAX);
        self.writer
            .write_packet(&PcapPacket::new(time, length, packet))
            .map_err(io::Error::other)?;
        self.left = self.left.map(|left| left - 1);
        Ok(())
    }
}

impl Body for CaptureBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        loop {
            if let Err(error) = self.fetch() {
                return Poll::Ready(Some(Err(error)));
            }
            // The file's head is there from the start, so a reader sees that the capture runs.
            let piece = std::mem::take(&mut *self.written.0.borrow_mut());
            if !piece.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(Bytes::from(piece)))));
            }
            if self.left == Some(0) || self.until.is_some_and(|until| now() >= until) {
                return Poll::Ready(None);
            }
            std::task::ready!(self.timer.poll_tick(context));
        }
    }
}
