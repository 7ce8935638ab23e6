//! A rank never outlives its agent.

use nix::sys::prctl;
use nix::sys::signal::Signal;

use crate::agent::is_child_of;

/// Asks the kernel for SIGKILL at the death of the thread that forked this process. False where the process
/// `parent` was gone before that took hold.
pub(super) fn die_with(parent: u32) -> bool {
    if let Err(error) = prctl::set_pdeathsig(Signal::SIGKILL) {
        tracing::warn!(%error, "the kernel gives no signal at the agent's death");
    }
    is_child_of(parent)
}
