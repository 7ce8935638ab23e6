//! Calls of the operating system that no library of the workspace wraps.

use std::{io, mem};

use nix::libc;

/// Waits for the end of the child process `pid` and leaves it to be reaped. Gives the most memory that it held at a time, in
/// bytes.
///
/// # Errors
/// The kernel's, for example where there is no such child.
pub fn wait_for_end(pid: u32) -> io::Result<u64> {
    loop {
        // SAFETY: both are plain C data, of which all zeros are a value.
        let (mut info, mut usage): (libc::siginfo_t, libc::rusage) =
            unsafe { (mem::zeroed(), mem::zeroed()) };
        // SAFETY: the kernel writes one siginfo_t and one rusage to two places that are theirs and outlive the call. The
        // library's own waitid has no place for the rusage.
        let result = unsafe {
            libc::syscall(
                libc::SYS_waitid,
                libc::P_PID,
                pid,
                &raw mut info,
                libc::WEXITED | libc::WNOWAIT,
                &raw mut usage,
            )
        };
        if result == 0 {
            return Ok(u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_peak_of_a_child_is_its_own_and_the_child_can_still_be_reaped() {
        let peak = |bytes: u32| {
            let script = format!("head -c {bytes} /dev/zero | tail -c 1 | wc -c");
            let mut child = Command::new("sh").args(["-c", &script]).spawn().unwrap();
            let peak = wait_for_end(child.id()).unwrap();
            assert!(child.wait().unwrap().success());
            peak
        };
        assert!(peak(1) > 100 << 10);
        let mut large = Command::new("python3");
        large.args(["-c", "x = bytearray(700 << 20)"]);
        let Ok(mut child) = large.spawn() else {
            println!("skipped: no python3 here");
            return;
        };
        let peak_of_large = wait_for_end(child.id()).unwrap();
        child.wait().unwrap();
        assert!(peak_of_large > 700 << 20);
        // A child begins with what this process holds, libtorch among it, which is less than that.
        assert!(peak(1) < 700 << 20, "that of the child before is not this one's");
    }

    #[test]
    fn there_must_be_such_a_child() {
        assert!(wait_for_end(std::process::id()).is_err());
    }
}
