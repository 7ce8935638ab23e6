//! Whether this process was asked to end, with time to keep what it has done.

use std::sync::Arc;

use tokio::sync::watch;

/// Asked once, by SIGTERM. What must not be cut off says that it is under way, and looks here between its steps.
#[derive(Debug, Clone)]
pub struct Stopping(Arc<watch::Sender<State>>);

#[derive(Debug, Clone, Copy, Default)]
struct State {
    asked: bool,
    /// Something is under way that ends by itself once asked.
    busy: bool,
}

impl Default for Stopping {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(State::default())))
    }
}

/// Something under way, until it is dropped.
#[derive(Debug)]
pub struct Busy(Stopping);

impl Stopping {
    pub fn ask(&self) {
        self.0.send_modify(|state| state.asked = true);
    }

    pub fn is_asked(&self) -> bool {
        self.0.borrow().asked
    }

    /// Begins something that ends by itself soon after this process is asked to.
    #[must_use]
    pub fn busy(&self) -> Busy {
        self.0.send_modify(|state| state.busy = true);
        Busy(self.clone())
    }

    /// Waits until something is under way.
    pub async fn under_way(&self) {
        let mut states = self.0.subscribe();
        // The sender is right here.
        let _ = states.wait_for(|state| state.busy).await;
    }

    /// Waits until this process was asked to end and nothing is under way.
    pub async fn asked_in_idleness(&self) {
        let mut states = self.0.subscribe();
        // The sender is right here.
        let _ = states.wait_for(|state| state.asked && !state.busy).await;
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.0.send_modify(|state| state.busy = false);
    }
}

#[cfg(test)]
mod tests {
    use super::Stopping;

    /// Whether it would end now.
    async fn ends(stopping: &Stopping) -> bool {
        tokio::select! {
            biased;
            () = stopping.asked_in_idleness() => true,
            () = std::future::ready(()) => false,
        }
    }

    #[tokio::test]
    async fn what_is_under_way_is_waited_for() {
        let stopping = Stopping::default();
        assert!(!ends(&stopping).await && !stopping.is_asked());
        let busy = stopping.busy();
        stopping.ask();
        assert!(stopping.is_asked() && !ends(&stopping).await);
        drop(busy);
        assert!(ends(&stopping).await);
    }
}
