//! The control plane's runtime. The only module that names tokio-uring, so that plain tokio could
//! take its place.
//!
//! tokio-uring is tokio's single-threaded runtime with an io_uring beside it: crates made for
//! tokio (hyper, rtnetlink) run inside unchanged.

use std::future::Future;
use std::io;
use tokio::task::JoinHandle;

/// Entries of the control ring. The control plane has a few files and sockets in flight; the
/// packet loop has a ring of its own.
const RING_ENTRIES: u32 = 64;

/// Why the runtime did not start.
#[derive(Debug, thiserror::Error)]
#[error("cannot start the control runtime: {source}{hint}")]
pub struct RuntimeError {
    source: io::Error,
    hint: &'static str,
}

/// Runs `future` to its end on this thread.
///
/// # Errors
/// When the kernel refuses an io_uring.
pub fn block_on<F: Future>(future: F) -> Result<F::Output, RuntimeError> {
    let mut builder = tokio_uring::builder();
    builder.entries(RING_ENTRIES);
    let runtime = tokio_uring::Runtime::new(&builder).map_err(|source| {
        let hint = match source.raw_os_error() {
            Some(libc::EPERM) => {
                "; io_uring is forbidden here: look at sysctl kernel.io_uring_disabled and at the \
                 container's seccomp profile"
            }
            Some(libc::ENOSYS) => "; this kernel has no io_uring",
            Some(libc::ENOMEM) => "; raise the memlock limit (ulimit -l, LimitMEMLOCK=)",
            _ => "",
        };
        RuntimeError { source, hint }
    })?;
    Ok(runtime.block_on(future))
}

/// Runs `future` to its end on this thread without an io_uring: for commands that look at a host
/// on which that may be forbidden, and should say so.
///
/// # Errors
/// When the kernel refuses epoll.
pub fn block_on_plain<F: Future>(future: F) -> Result<F::Output, RuntimeError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| RuntimeError { source, hint: "" })?;
    Ok(tokio::task::LocalSet::new().block_on(&runtime, future))
}

/// Starts a task beside the current one, on the same thread.
pub fn spawn<F>(task: F) -> JoinHandle<F::Output>
where
    F: Future + 'static,
{
    tokio_uring::spawn(task)
}
