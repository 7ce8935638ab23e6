//! Access control: who may write and read which keys.

use foil_common::logs::{MAX_PART_BYTES, Part, Process};
use foil_common::rpc::artifacts::input_key;
use foil_common::storage::key;
use foil_common::storage::object::Digest;
use foil_proto::v1;
use tonic::Status;

use super::status::{bad_field, from_store, not_found, stale, unauthenticated};
use crate::job::JobState;
use crate::leadership::LeadershipHandle;
use crate::rpc::status::not_leading;

/// Lookup of running attempts and their ranks.
#[tonic::async_trait]
pub trait AttemptCheck: Send + Sync + 'static {
    /// The current attempt of a job; none if the job is not running.
    fn current_attempt(&self, job_id: &str) -> Option<u32>;

    /// True if the secret is that of the rank process `session` of the job's current attempt.
    fn is_rank(&self, job_id: &str, session: &str, secret: &str) -> bool;

    /// The attempt and rank of the process `session`, if the secret is its own and its log is still accepted.
    async fn log_writer(&self, job_id: &str, session: &str, secret: &str) -> Option<(u32, u32)>;

    /// Fails if this process does not know the attempts because it is not the leader.
    fn serving(&self) -> Result<(), Status> {
        Ok(())
    }
}

#[tonic::async_trait]
impl AttemptCheck for LeadershipHandle {
    fn current_attempt(&self, job_id: &str) -> Option<u32> {
        self.driver().ok()?.current_attempt(job_id)
    }

    fn is_rank(&self, job_id: &str, session: &str, secret: &str) -> bool {
        self.driver().is_ok_and(|driver| driver.is_rank(job_id, session, secret))
    }

    async fn log_writer(&self, job_id: &str, session: &str, secret: &str) -> Option<(u32, u32)> {
        let (session, secret) = (session.to_owned(), secret.to_owned());
        let find = move |state: &JobState| {
            let writer = state.log_writers.verify(&session, &secret)?;
            Some((writer.attempt, writer.rank))
        };
        self.driver().ok()?.inspect(job_id, find).await.ok()??
    }

    fn serving(&self) -> Result<(), Status> {
        self.driver().map(drop).map_err(|why| not_leading(&why))
    }
}

/// The announced size and hash, validated.
pub(super) fn announced(begin: &v1::PutBegin) -> Result<Digest, Status> {
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if begin.blake3.len() != 64 || !begin.blake3.bytes().all(hex) {
        return Err(bad_field("begin.blake3", "it must be the BLAKE3 hash in 64 lower-case hex digits"));
    }
    Ok(Digest { size: begin.size, blake3: begin.blake3.clone() })
}

pub(super) fn may_write(begin: &v1::PutBegin, attempts: &dyn AttemptCheck) -> Result<(), Status> {
    attempts.serving()?;
    key::validate(&begin.key).map_err(|error| from_store(&error))?;
    if begin.job_id.is_empty() {
        return client_may_write(begin);
    }
    let own = format!("jobs/{}/phases/", begin.job_id);
    if !begin.key.starts_with(&own) {
        return Err(bad_field("begin.key", &format!("a rank of this job may write below {own} only")));
    }
    match attempts.current_attempt(&begin.job_id) {
        Some(current) if current == begin.attempt => {
            match attempts.is_rank(&begin.job_id, &begin.session_id, &begin.secret) {
                true => Ok(()),
                false => Err(unauthenticated(&begin.job_id)),
            }
        }
        current => Err(stale(&begin.job_id, begin.attempt, current)),
    }
}

/// The part of a log that a rank process wants to write: its own only.
pub(super) async fn log_part(begin: &v1::PutBegin, attempts: &dyn AttemptCheck) -> Result<Part, Status> {
    attempts.serving()?;
    let expected = "a part of a rank's own log is written below jobs/JOB/logs/ATTEMPT/RANK/SESSION/";
    let part = Part::parse(&begin.job_id, &begin.key).ok_or_else(|| bad_field("begin.key", expected))?;
    if begin.size > MAX_PART_BYTES || begin.size != part.bytes() {
        let problem = format!(
            "the part has {} bytes by its key and {} by its size; expected the same, and at most {MAX_PART_BYTES}",
            part.bytes(),
            begin.size
        );
        return Err(bad_field("begin.size", &problem));
    }
    let Process { attempt, rank, session } = &part.process;
    let own = attempts.log_writer(&begin.job_id, &begin.session_id, &begin.secret).await;
    if own == Some((*attempt, *rank)) && *session == begin.session_id {
        return Ok(part);
    }
    Err(unauthenticated(&begin.job_id))
}

fn client_may_write(begin: &v1::PutBegin) -> Result<(), Status> {
    let expected = input_key(&begin.blake3);
    if begin.key == expected {
        return Ok(());
    }
    Err(bad_field("begin.key", &format!("a client may write its content's own key only, here {expected}")))
}

/// Allows reading inputs and jobs' data; the log and other internal objects do not exist for callers.
pub(super) fn may_read(key: &str) -> Result<(), Status> {
    key::validate(key).map_err(|error| from_store(&error))?;
    if key.starts_with("inputs/") || key.starts_with("jobs/") { Ok(()) } else { Err(not_found(key)) }
}
