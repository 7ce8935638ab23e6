//! Graceful shutdown on a signal.

use std::io;
use std::sync::{Arc, OnceLock};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The signal that asked a process to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Ctrl-C.
    Interrupt,
    Terminate,
    /// The terminal was closed, or the connection to it was lost.
    HangUp,
}

impl Cause {
    pub fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
            Self::HangUp => "SIGHUP",
        }
    }

    /// 128 and the signal's number, as shells report it.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::HangUp => 129,
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }
}

/// The state of shutdown: whether a signal has come, and which. Cheap to clone; clones share their state.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    token: CancellationToken,
    cause: Arc<OnceLock<Cause>>,
}

impl Shutdown {
    /// The token that the first signal cancels.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Waits for the first signal.
    pub async fn requested(&self) {
        self.token.cancelled().await;
    }

    /// The first signal; `None` if none has come.
    pub fn cause(&self) -> Option<Cause> {
        self.cause.get().copied()
    }
}

/// Installs handlers for SIGINT, SIGTERM and SIGHUP; a SIGHUP that was ignored when the process started, as
/// under nohup, stays ignored. Call it once, inside a runtime, before work starts.
pub fn on_signal() -> io::Result<Shutdown> {
    listen(is_ignored(SignalKind::hangup()))
}

fn listen(ignores_hang_up: bool) -> io::Result<Shutdown> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = match ignores_hang_up {
        true => None,
        false => Some(signal(SignalKind::hangup())?),
    };
    let shutdown = Shutdown::default();
    let told = shutdown.clone();
    tokio::spawn(async move {
        let cause = tokio::select! {
            _ = interrupt.recv() => Cause::Interrupt,
            _ = terminate.recv() => Cause::Terminate,
            () = received(hang_up.as_mut()) => Cause::HangUp,
        };
        tracing::info!(signal = cause.name(), "received signal, stopping");
        told.cause.get_or_init(|| cause);
        told.token.cancel();
    });
    Ok(shutdown)
}

/// Never completes if there is no handler for the signal.
async fn received(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

fn is_ignored(kind: SignalKind) -> bool {
    // Without /proc the default disposition is assumed.
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores(&status, kind.as_raw_value()))
}

/// Whether the text of /proc/N/status shows that a signal is ignored: its line SigIgn is a hexadecimal mask.
fn ignores(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    (1..=64).contains(&signal) && mask >> (signal - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::{Signal, raise};

    use super::*;

    #[tokio::test]
    async fn a_closed_terminal_asks_to_end_like_any_other_signal() {
        // The tests may run under nohup, which ignores SIGHUP.
        let shutdown = listen(false).unwrap();
        assert_eq!(shutdown.cause(), None);
        raise(Signal::SIGHUP).unwrap();
        shutdown.requested().await;
        assert_eq!(shutdown.cause(), Some(Cause::HangUp));
        assert!(shutdown.token().is_cancelled());
    }

    #[test]
    fn a_signal_that_nohup_ignores_is_seen() {
        let status = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000000\n";
        assert!(ignores(status, 1) && ignores(status, 13));
        assert!(!ignores(status, 2) && !ignores("", 1) && !ignores(status, 0));
    }
}
