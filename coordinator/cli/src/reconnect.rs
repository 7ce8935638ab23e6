//! Streams that are reopened where they broke.

use std::time::Duration;

use foil_common::rpc;
use tokio::time::{Instant, sleep};
use tonic::{Code, Status};

/// Time without a message after which a stream is given up; the job continues without a reader.
const TIMEOUT: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(500);

/// Decides whether a stream is worth another try.
#[derive(Debug, Default)]
pub(crate) struct Reconnect {
    /// Whether a message has come since the stream was opened.
    has_spoken: bool,
    lost_since: Option<Instant>,
}

/// The end of a stream that is not opened again.
#[derive(Debug)]
pub(crate) struct GivenUp {
    pub(crate) status: Status,
    /// Whether it was retried until the timeout.
    pub(crate) timed_out: bool,
}

impl Reconnect {
    /// Records a message of the stream.
    pub(crate) fn heard(&mut self) {
        (self.has_spoken, self.lost_since) = (true, None);
    }

    /// Waits until the stream should be opened again; returns whether it was intact until now.
    pub(crate) async fn wait(&mut self, status: Status) -> Result<bool, GivenUp> {
        let is_first = self.lost_since.is_none();
        let pause = self.pause(status, Instant::now())?;
        sleep(pause).await;
        Ok(is_first)
    }

    /// The pause before the stream is opened again.
    fn pause(&mut self, status: Status, now: Instant) -> Result<Duration, GivenUp> {
        // Replacing a token in its file ends streams. A call with the new token shows whether it is accepted.
        let renewed = std::mem::take(&mut self.has_spoken) && status.code() == Code::Unauthenticated;
        let put_off = rpc::retry_after(&status);
        if !rpc::is_unavailable(&status) && put_off.is_none() && !renewed {
            return Err(GivenUp { status, timed_out: false });
        }
        let since = *self.lost_since.get_or_insert(now);
        if now.duration_since(since) > TIMEOUT {
            return Err(GivenUp { status, timed_out: true });
        }
        Ok(PAUSE + put_off.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::{ErrorDetails, StatusExt};

    use super::*;

    #[test]
    fn what_passes_is_waited_for_and_for_so_long_only() {
        let (mut reconnect, now) = (Reconnect::default(), Instant::now());
        let gone = || Status::unavailable("gone");
        let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(3)));
        let put_off = Status::with_error_details(Code::ResourceExhausted, "too many calls", details);
        assert_eq!(reconnect.pause(put_off, now).unwrap(), Duration::from_millis(3500), "as the server asks");
        assert_eq!(reconnect.pause(gone(), now + TIMEOUT).unwrap(), PAUSE);
        let given_up = reconnect.pause(gone(), now + TIMEOUT + PAUSE).unwrap_err();
        assert!(given_up.timed_out);
        reconnect.heard();
        assert_eq!(reconnect.pause(gone(), now + 3 * TIMEOUT).unwrap(), PAUSE, "a new loss");
    }

    #[test]
    fn what_does_not_pass_is_told_at_once() {
        for code in [Code::NotFound, Code::ResourceExhausted, Code::Unauthenticated] {
            let given_up = Reconnect::default().pause(Status::new(code, "no"), Instant::now()).unwrap_err();
            assert!(given_up.status.code() == code && !given_up.timed_out);
        }
    }

    #[test]
    fn a_stream_whose_token_was_replaced_is_opened_once_more() {
        let (mut reconnect, now) = (Reconnect::default(), Instant::now());
        let refused = || Status::unauthenticated("the token is not valid");
        for _ in 0..3 {
            reconnect.heard();
            reconnect.pause(refused(), now).unwrap();
        }
        reconnect.pause(refused(), now).unwrap_err();
    }
}
