//! Giving up what a process needs only to begin with.

use nix::errno::Errno;

/// `_LINUX_CAPABILITY_VERSION_3` of linux/capability.h.
const VERSION: u32 = 0x2008_0522;

/// `struct __user_cap_header_struct`.
#[repr(C)]
struct Header {
    version: u32,
    thread: libc::c_int,
}

/// `struct __user_cap_data_struct`, twice: 64 capabilities.
#[repr(C)]
#[derive(Default)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Takes all capabilities from the calling thread and those it starts from now on, and keeps it from
/// getting any by running another program. Open devices and sockets go on as before.
///
/// # Errors
/// What the kernel says.
pub fn give_up_capabilities() -> Result<(), Errno> {
    // SAFETY: integers only.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    let mut header = Header { version: VERSION, thread: 0 };
    let none: [Sets; 2] = Default::default();
    // SAFETY: both are initialised as the kernel's ABI of this version has them, and outlive the call,
    // which writes to the version alone, where it does not know it.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, none.as_ptr()) };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_of_root() {
        let capabilities = std::thread::spawn(|| {
            give_up_capabilities().unwrap();
            let text = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let lines = text.lines().filter(|line| line.starts_with("Cap"));
            lines.map(str::to_owned).collect::<Vec<_>>()
        });
        let lines = capabilities.join().unwrap();
        for name in ["CapInh", "CapPrm", "CapEff"] {
            let line = lines.iter().find(|line| line.starts_with(name)).unwrap();
            let (_, set) = line.split_once(':').unwrap();
            assert_eq!(u64::from_str_radix(set.trim(), 16).unwrap(), 0, "{line}");
        }
    }
}
