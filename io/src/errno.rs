//! What to do about a refusal of the kernel, for the end of an error message.

use nix::errno::Errno;

/// Advice in brackets, or nothing where the errno speaks for itself.
pub(super) fn advice(errno: Errno) -> &'static str {
    match errno {
        Errno::EPERM | Errno::EACCES => " (run as root or give CAP_NET_ADMIN and CAP_NET_RAW)",
        Errno::ENODEV | Errno::ENXIO => " (no such interface; see `ip link`)",
        Errno::ENETUNREACH | Errno::EHOSTUNREACH => " (no route)",
        Errno::EADDRNOTAVAIL => " (no address of this host)",
        Errno::EMFILE | Errno::ENFILE => " (raise LimitNOFILE)",
        _ => "",
    }
}

/// The errno of a failed call of the standard library or a crate.
pub(super) fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}
