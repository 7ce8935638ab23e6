//! System calls that no library of the workspace wraps.

use std::{io, mem};

use nix::libc;

/// Waits until the child process `pid` exits, without reaping it. Returns its peak resident memory in bytes.
///
/// # Errors
/// Errors of the kernel, for example if there is no such child.
pub fn wait_for_end(pid: u32) -> io::Result<u64> {
    loop {
        // SAFETY: both are plain C structs for which all zeros is a valid value.
        let (mut info, mut usage): (libc::siginfo_t, libc::rusage) =
            unsafe { (mem::zeroed(), mem::zeroed()) };
        // SAFETY: the kernel writes one siginfo_t and one rusage to two variables that outlive the call.
        // libc's own waitid has no parameter for the rusage.
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
    fn the_peak_is_of_the_child_alone_and_the_child_can_still_be_reaped() {
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
        // A child starts with this process's memory, including libtorch, which is less than that.
        assert!(peak(1) < 700 << 20, "the peak of an earlier child is not this one's");
    }

    #[test]
    fn a_process_that_is_not_a_child_is_an_error() {
        assert!(wait_for_end(std::process::id()).is_err());
    }
}
