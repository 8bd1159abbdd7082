//! As a user of tokio-uring would write it: tasks that each read a packet, wrap it and send it.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use adit::io::Tap;
use anyhow::Result;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::fs::File;
use tokio_uring::net::UdpSocket;

use super::{blocking, blocking_tap, open_exit};
use crate::wrap::{Exit, ROOM, Wrapper};

pub(super) fn run(tap: &Tap, exit: Exit, tasks: usize) -> Result<()> {
    let tap = std::fs::File::from(blocking_tap(tap)?);
    let socket: OwnedFd = blocking(OwnedFd::from(open_exit(exit)?))?;
    tokio_uring::start(async move {
        let tap = Rc::new(File::from_std(tap));
        // The type is UDP's; all it does is SEND on a connected (or bound) socket.
        let socket = Rc::new(UdpSocket::from_std(std::net::UdpSocket::from(socket)));
        let mut all = Vec::new();
        for _ in 0..tasks {
            all.push(tokio_uring::spawn(carry(tap.clone(), socket.clone(), exit)));
        }
        for task in all {
            task.await??;
        }
        Ok(())
    })
}

async fn carry(tap: Rc<File>, socket: Rc<UdpSocket>, exit: Exit) -> std::io::Result<()> {
    let wrapper = Wrapper::new(exit);
    let mut slot = vec![0; 2048];
    loop {
        let (read, part) = tap.read_at(slot.slice(ROOM..), 0).await;
        slot = part.into_inner();
        let length = read?;
        if let Some(range) = wrapper.wrap(&mut slot, ROOM..ROOM + length) {
            let (sent, part) = socket.send(slot.slice(range)).await;
            slot = part.into_inner();
            // A full queue loses the packet; the sink's count shows it.
            let _ = sent;
        }
    }
}
