//! Ties a rank's lifetime to its agent's.

use nix::sys::prctl;
use nix::sys::signal::Signal;

use crate::agent::is_child_of;

/// Asks the kernel to send SIGKILL when the thread that forked this process dies. Returns false if the
/// process `parent` exited before that took effect.
pub(super) fn die_with(parent: u32) -> bool {
    if let Err(error) = prctl::set_pdeathsig(Signal::SIGKILL) {
        tracing::warn!(%error, "cannot set the parent-death signal");
    }
    is_child_of(parent)
}
