//! The request to stop this process, and the work that it must not interrupt.

use std::sync::Arc;

use tokio::sync::watch;

/// Set once, by SIGTERM. Work that must not be interrupted holds a [`BusyGuard`] and checks the signal
/// between its steps.
#[derive(Debug, Clone)]
pub struct StopSignal(Arc<watch::Sender<State>>);

#[derive(Debug, Clone, Copy, Default)]
struct State {
    requested: bool,
    /// Whether work is running that stops by itself on request.
    busy: bool,
}

impl Default for StopSignal {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(State::default())))
    }
}

/// Marks the process as busy until it is dropped.
#[derive(Debug)]
pub struct BusyGuard(StopSignal);

impl StopSignal {
    pub fn request(&self) {
        self.0.send_modify(|state| state.requested = true);
    }

    pub fn is_requested(&self) -> bool {
        self.0.borrow().requested
    }

    /// Begins work that must not be interrupted and stops by itself soon after a request.
    #[must_use]
    pub fn busy(&self) -> BusyGuard {
        self.0.send_modify(|state| state.busy = true);
        BusyGuard(self.clone())
    }

    /// Waits until such work is running.
    pub async fn until_busy(&self) {
        let mut states = self.0.subscribe();
        // Cannot fail: `self` holds the sender.
        let _ = states.wait_for(|state| state.busy).await;
    }

    /// Waits until a stop is requested and no such work is running.
    pub async fn requested_and_idle(&self) {
        let mut states = self.0.subscribe();
        // Cannot fail: `self` holds the sender.
        let _ = states.wait_for(|state| state.requested && !state.busy).await;
    }
}

impl Drop for BusyGuard {
    fn drop(&mut self) {
        self.0.0.send_modify(|state| state.busy = false);
    }
}

#[cfg(test)]
mod tests {
    use super::StopSignal;

    /// Whether the process would exit at this point.
    async fn ends(stop: &StopSignal) -> bool {
        tokio::select! {
            biased;
            () = stop.requested_and_idle() => true,
            () = std::future::ready(()) => false,
        }
    }

    #[tokio::test]
    async fn busy_work_is_waited_for() {
        let stop = StopSignal::default();
        assert!(!ends(&stop).await && !stop.is_requested());
        let busy = stop.busy();
        stop.request();
        assert!(stop.is_requested() && !ends(&stop).await);
        drop(busy);
        assert!(ends(&stop).await);
    }
}
