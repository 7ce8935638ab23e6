//! Ties a rank's life to its agent's.

use nix::sys::prctl;
use nix::sys::signal::Signal;

use crate::agent::is_child_of;

/// Asks the kernel for SIGKILL when the thread that forked this process dies. False if the process `parent`
/// had exited before that took effect.
pub(super) fn die_with(parent: u32) -> bool {
    if let Err(error) = prctl::set_pdeathsig(Signal::SIGKILL) {
        tracing::warn!(%error, "cannot set the parent-death signal");
    }
    is_child_of(parent)
}
