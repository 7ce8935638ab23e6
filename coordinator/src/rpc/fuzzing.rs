//! Preprocessing of workers' messages before any decision, for the fuzz targets of `tests`.

use foil_common::stats;
use foil_proto::v1::{agent_message, rank_message};

use super::limits::{bounded_exit, bounded_message, check_registration};
use super::verify;

/// A rank's message, truncated to its limits; none if its form is rejected.
pub fn take_rank_message(message: rank_message::Message) -> Option<rank_message::Message> {
    let message = bounded_message(message);
    verify::check_form(&message).ok()?;
    if let rank_message::Message::Chunk(result) = &message {
        // Committing a phase merges accepted sums the same way.
        let mut all = result.moments.clone();
        stats::merge_moments(&mut all, &result.moments);
        let _ = stats::metrics(&all, result.calibration.as_ref());
    }
    Some(message)
}

/// An agent's message, truncated to its limits; none if it is rejected.
pub fn take_agent_message(message: agent_message::Message) -> Option<agent_message::Message> {
    match message {
        agent_message::Message::Register(hello) => {
            check_registration(&hello).ok()?;
            Some(agent_message::Message::Register(hello))
        }
        agent_message::Message::RankExited(exit) => {
            Some(agent_message::Message::RankExited(bounded_exit(exit)))
        }
        other => Some(other),
    }
}
