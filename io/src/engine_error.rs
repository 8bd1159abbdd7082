//! Why there is no packet loop, and what to do about it.

use nix::errno::Errno;
use thiserror::Error;

/// Why there is no packet loop, or why it ended.
#[derive(Debug, Error)]
pub enum EngineError {
    /// No ring at all.
    #[error("io_uring: {errno}: {hint}")]
    RingRefused {
        /// The kernel's answer.
        errno: Errno,
        /// What to do about it.
        hint: String,
    },
    /// The kernel lacks what every engine needs.
    #[error("io_uring of this kernel is too old: it lacks {0}; Linux 5.15 or later is needed")]
    KernelTooOld(&'static str),
    /// An operation on the ring failed.
    #[error("io_uring: {action}: {errno}")]
    Ring {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
    /// No memory for slots.
    #[error("slots: {0}: lower the number of slots, or give the service more memory")]
    Memory(Errno),
    /// No room for files in the ring.
    #[error(
        "registering {} files: {errno}: raise the limit of open files to at least that (LimitNOFILE)",
        super::egress::MAX_EGRESS
    )]
    Files {
        /// The kernel's answer.
        errno: Errno,
    },
    /// READ_MULTISHOT was asked for by name and is not usable.
    #[error("io = \"multishot\" is not usable here: {0}; choose \"auto\" or \"poll\"")]
    NoMultishot(String),
    /// The TAP is gone.
    #[error("the TAP cannot be read any more: {0} (was the device deleted?)")]
    TapGone(Errno),
    /// A tunnel socket is gone.
    #[error("a tunnel socket cannot be read any more: {0}")]
    SocketGone(Errno),
    /// A completion that cannot be.
    #[error("inconsistent completion: {0}; this is a defect of kernel or engine")]
    Corrupt(&'static str),
}

const DISABLED: &str = "/proc/sys/kernel/io_uring_disabled";

impl EngineError {
    /// Says which limit, sysctl or filter refused a ring.
    pub(super) fn ring_refused(errno: Errno) -> Self {
        let disabled = std::fs::read_to_string(DISABLED).ok();
        let hint = hint(errno, disabled.as_deref().map(str::trim));
        Self::RingRefused { errno, hint }
    }
}

/// What to do about a refused ring; `disabled` is what [`DISABLED`] holds, where it exists.
fn hint(errno: Errno, disabled: Option<&str>) -> String {
    match errno {
        Errno::ENOSYS => {
            "the kernel has no io_uring, or a seccomp filter (container) hides it".into()
        }
        Errno::EPERM | Errno::EACCES => match disabled {
            Some("2") => format!("{DISABLED} is 2: set kernel.io_uring_disabled to 0 or 1"),
            Some("1") => format!(
                "{DISABLED} is 1: give CAP_SYS_ADMIN, or join the group of \
                 kernel.io_uring_group, or set kernel.io_uring_disabled to 0"
            ),
            _ => "a seccomp filter or security module forbids it (containers need a profile that \
                  allows io_uring_setup, _enter and _register)"
                .into(),
        },
        Errno::ENOMEM => "not enough memory that may be locked: raise LimitMEMLOCK (ulimit -l) to \
                          8 MiB, with jumbo frames to 64 MiB"
            .into(),
        Errno::EMFILE | Errno::ENFILE => "raise LimitNOFILE".into(),
        _ => "unexpected; please report it".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_ring_says_what_to_change() {
        let cases = [
            (Errno::ENOSYS, None, "seccomp"),
            (Errno::EPERM, Some("2"), "set kernel.io_uring_disabled to 0"),
            (Errno::EPERM, Some("1"), "give CAP_SYS_ADMIN"),
            (Errno::EACCES, Some("0"), "a profile that allows io_uring_setup"),
            (Errno::EPERM, None, "a profile that allows io_uring_setup"),
            (Errno::ENOMEM, Some("0"), "raise LimitMEMLOCK"),
            (Errno::EMFILE, None, "raise LimitNOFILE"),
            (Errno::ENFILE, None, "raise LimitNOFILE"),
        ];
        for (errno, disabled, advice) in cases {
            let said = EngineError::RingRefused { errno, hint: hint(errno, disabled) }.to_string();
            assert!(said.contains(advice), "{errno:?}, {disabled:?}: {said}");
            assert!(said.contains(&errno.to_string()), "the kernel's answer: {said}");
        }
    }

    #[test]
    fn what_a_person_can_mend_says_how() {
        let cases = [
            (EngineError::KernelTooOld("READ"), "Linux 5.15 or later is needed"),
            (EngineError::Memory(Errno::ENOMEM), "give the service more memory"),
            (EngineError::Files { errno: Errno::EMFILE }, "(LimitNOFILE)"),
            (EngineError::NoMultishot("no ring".into()), "no ring; choose \"auto\" or \"poll\""),
            (EngineError::TapGone(Errno::EBADFD), "was the device deleted?"),
        ];
        for (error, advice) in cases {
            let said = error.to_string();
            assert!(said.contains(advice), "{said}");
        }
    }
}
