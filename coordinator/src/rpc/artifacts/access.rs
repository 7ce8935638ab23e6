//! Access control: who may write and read which keys.

use foil_common::rpc::artifacts::input_key;
use foil_common::storage::key;
use foil_common::storage::object::Digest;
use foil_proto::v1;
use tonic::Status;

use super::status::{bad_field, from_store, not_found, stale, unauthenticated};
use crate::leadership::LeadershipHandle;
use crate::rpc::status::not_leading;

/// Lookup of running attempts and their ranks.
pub trait AttemptCheck: Send + Sync + 'static {
    /// The current attempt of a job; none if the job is not running.
    fn current_attempt(&self, job_id: &str) -> Option<u32>;

    /// True if the secret is that of the rank process `session` of the job's current attempt.
    fn is_rank(&self, job_id: &str, session: &str, secret: &str) -> bool;

    /// Fails if this process does not know the attempts because it is not the leader.
    fn serving(&self) -> Result<(), Status> {
        Ok(())
    }
}

impl AttemptCheck for LeadershipHandle {
    fn current_attempt(&self, job_id: &str) -> Option<u32> {
        self.driver().ok()?.current_attempt(job_id)
    }

    fn is_rank(&self, job_id: &str, session: &str, secret: &str) -> bool {
        self.driver().is_ok_and(|driver| driver.is_rank(job_id, session, secret))
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
