//! Bytes read and written by a thread, as counted by the kernel. They measure the progress of code that does
//! not report it.

use std::fs;

use nix::unistd::gettid;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Read,
    Written,
}

/// The counter of bytes that one thread has read or written. Pages of mapped files do not count.
#[derive(Clone, Debug)]
pub(crate) struct ThreadBytes {
    file: String,
    field: &'static str,
}

impl ThreadBytes {
    pub(crate) fn current_thread(direction: Direction) -> Self {
        let field = match direction {
            Direction::Read => "rchar",
            Direction::Written => "wchar",
        };
        Self { file: format!("/proc/self/task/{}/io", gettid()), field }
    }

    /// The current count; `None` if the kernel does not provide it.
    pub(crate) fn now(&self) -> Option<u64> {
        let counters = fs::read_to_string(&self.file).ok()?;
        let lines = counters.lines().filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(field, _)| *field == self.field)?.1.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn only_bytes_of_this_thread_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("bytes");
        let (read, written) =
            (ThreadBytes::current_thread(Direction::Read), ThreadBytes::current_thread(Direction::Written));
        let start = (read.now().unwrap(), written.now().unwrap());
        thread::scope(|scope| scope.spawn(|| fs::write(&file, vec![0; 1 << 20]).unwrap()).join().unwrap());
        assert_eq!(written.now().unwrap(), start.1);
        fs::write(&file, vec![0; 3 << 20]).unwrap();
        assert_eq!(written.now().unwrap() - start.1, 3 << 20);
        fs::read(&file).unwrap();
        assert!(read.now().unwrap() - start.0 >= 3 << 20);
    }
}
