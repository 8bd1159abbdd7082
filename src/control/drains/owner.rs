//! Who is at the other end of the admin socket, by what the kernel says and nothing else.
//!
//! The socket's peer has a user (`SO_PEERCRED`, socket(7)), nearly always root. Whoever became root by
//! `sudo` or `su` still has the login user that PAM has noted with the kernel, which only
//! CAP_AUDIT_CONTROL can change again (`/proc/PID/loginuid`, proc(5)). What a client claims, such as
//! SUDO_USER, is not asked for: anybody can set it.

use nix::unistd::{Uid, User};

/// What the kernel says where nobody has logged in: services, timers, containers without PAM.
const NO_LOGIN: u32 = u32::MAX;

/// The peer of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The user that connected.
    pub uid: u32,
    /// The process that did, where it is one that this one can see.
    pub pid: Option<i32>,
}

impl Peer {
    /// As people read it: `root`, or `root (logged in as alice)`. The process is looked at now: of one
    /// that has ended since, and did not wait for the answer, only the user is known.
    #[must_use]
    pub fn name(&self) -> String {
        let read = |pid| std::fs::read_to_string(format!("/proc/{pid}/loginuid")).ok();
        named(self.uid, self.pid.and_then(read).and_then(|text| login(&text)))
    }
}

fn named(uid: u32, login: Option<u32>) -> String {
    let user = user_name(uid);
    match login.filter(|login| *login != uid) {
        Some(login) => format!("{user} (logged in as {})", user_name(login)),
        None => user,
    }
}

fn login(text: &str) -> Option<u32> {
    text.trim().parse().ok().filter(|uid| *uid != NO_LOGIN)
}

/// The name of a user, or the number of one without a name.
fn user_name(uid: u32) -> String {
    let user = User::from_uid(Uid::from_raw(uid));
    user.ok().flatten().map_or_else(|| format!("uid {uid}"), |user| user.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_logged_in_is_named_beside_who_connected() {
        assert_eq!(named(0, None), "root");
        assert_eq!(named(0, Some(0)), "root");
        assert_eq!(named(0, Some(4_000_000_001)), "root (logged in as uid 4000000001)");
        assert_eq!(named(4_000_000_001, None), "uid 4000000001");
    }

    #[test]
    fn a_login_is_a_number_of_a_user() {
        assert_eq!(login("1000"), Some(1000));
        assert_eq!(login("4294967295\n"), None, "nobody has logged in");
        assert_eq!(login(""), None);
        assert_eq!(login("alice"), None);
    }

    #[test]
    fn a_process_that_is_gone_has_no_login() {
        // Above the largest number a process can have (PID_MAX_LIMIT).
        assert_eq!(Peer { uid: 0, pid: Some(1 << 23) }.name(), "root");
        assert_eq!(Peer { uid: 0, pid: None }.name(), "root");
    }
}
