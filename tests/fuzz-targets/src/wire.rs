//! Fuzz targets for messages of the wire protocol.

use foil_common::spec::Job;
use foil_coordinator::rpc::fuzzing;
use foil_proto::v1;
use prost::Message;

use super::Verdict;

/// A specification from a client. An accepted one survives the round trip through the log.
pub(super) fn job_spec(input: &[u8]) -> Verdict {
    let Ok(spec) = v1::JobSpec::decode(input) else { return Verdict::Refused };
    let Ok(job) = Job::try_from(spec) else { return Verdict::Refused };
    let resolved = v1::JobSpec::from(&job);
    let bytes = rmp_serde::to_vec_named(&resolved).expect("a specification has a log form");
    let read: v1::JobSpec = rmp_serde::from_slice(&bytes).expect("what the log holds can be read");
    assert!(read == resolved, "the log changes a specification");
    let again =
        Job::try_from(read).unwrap_or_else(|error| panic!("a filled-in specification is refused: {error}"));
    assert!(again == job, "a filled-in specification is another job\n{again:?}\n{job:?}");
    Verdict::Accepted
}

/// A rank's message as the coordinator accepts it: truncated to fit in the log and in other messages.
pub(super) fn rank_message(input: &[u8]) -> Verdict {
    let Some(message) = v1::RankMessage::decode(input).ok().and_then(|message| message.message) else {
        return Verdict::Refused;
    };
    let accepted = fuzzing::take_rank_message(message);
    if let Some(message) = &accepted {
        let cut = v1::RankMessage { message: Some(message.clone()) };
        assert!(cut.encoded_len() <= 2 * input.len() + 64, "a message grows as it is cut");
        let twice = fuzzing::take_rank_message(message.clone());
        let same = twice.map(|message| v1::RankMessage { message: Some(message) }.encode_to_vec());
        assert!(same == Some(cut.encode_to_vec()), "a message that was cut is cut again");
    }
    accepted.into()
}

/// An agent's message as the coordinator accepts it.
pub(super) fn agent_message(input: &[u8]) -> Verdict {
    let Some(message) = v1::AgentMessage::decode(input).ok().and_then(|message| message.message) else {
        return Verdict::Refused;
    };
    fuzzing::take_agent_message(message).into()
}
