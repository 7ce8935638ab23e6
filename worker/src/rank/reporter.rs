//! What the device thread tells the coordinator while it works.

use std::cell::Cell;
use std::time::{Duration, Instant};

use foil_proto::v1;
use foil_proto::v1::rank_message::Message;
use tokio::sync::mpsc::UnboundedSender;

/// Between two progress messages.
const PROGRESS_PERIOD: Duration = Duration::from_millis(250);

/// Sends messages on the session's stream; never waits. Messages after the session's end are lost, as the rank is.
#[derive(Debug)]
pub struct Reporter {
    messages: UnboundedSender<v1::RankMessage>,
    last_progress: Cell<Option<Instant>>,
}

impl Reporter {
    pub fn new(messages: UnboundedSender<v1::RankMessage>) -> Self {
        Self { messages, last_progress: Cell::new(None) }
    }

    pub fn send(&self, message: Message) {
        let _ = self.messages.send(v1::RankMessage { message: Some(message) });
    }

    /// At most one in a quarter of a second; the rest are dropped, the end of a chunk being told by its result.
    pub fn progress(&self, phase: &str, chunk: u32, done: u64, total: u64, unit: &str) {
        let now = Instant::now();
        if self.last_progress.get().is_some_and(|last| now - last < PROGRESS_PERIOD) {
            return;
        }
        self.last_progress.set(Some(now));
        let (phase, unit) = (phase.to_owned(), unit.to_owned());
        self.send(Message::Progress(v1::TaskProgress { phase, chunk, done, total, unit }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_throttled_and_results_are_not() {
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let reporter = Reporter::new(sender);
        for done in 0..1000 {
            reporter.progress("r01.policy.generate", 3, done, 1000, "samples");
        }
        reporter.send(Message::Step(v1::StepReport::default()));
        let mut messages = Vec::new();
        while let Ok(message) = receiver.try_recv() {
            messages.push(message.message.unwrap());
        }
        assert!(messages.len() < 10);
        assert!(matches!(messages[0], Message::Progress(_)));
        assert!(matches!(messages.last(), Some(Message::Step(_))));
    }
}
