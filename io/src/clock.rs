//! The daemon's one clock of the packet path.

/// Nanoseconds since boot, suspended time included (`CLOCK_BOOTTIME`).
///
/// This is the clock of flow timeouts: it survives a restart of the process, never goes back, and is
/// the same for all processes of a host, so entries of a recovered flow table keep their age.
/// Read once per batch, never per packet.
pub fn boottime_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec that outlives the call, which writes it and nothing else.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    debug_assert_eq!(result, 0, "CLOCK_BOOTTIME exists since Linux 2.6.39");
    // Both fields are never negative for this clock; 2^64 ns are 584 years of uptime.
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::boottime_ns;

    #[test]
    fn does_not_go_back_and_is_nanoseconds_of_uptime() {
        let first = boottime_ns();
        let second = boottime_ns();
        assert!(second >= first);
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let uptime: f64 = uptime.split_whitespace().next().unwrap().parse().unwrap();
        assert!((boottime_ns() as f64 / 1e9 - uptime).abs() < 5.0);
    }
}
