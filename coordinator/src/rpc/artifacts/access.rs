//! Access control: which callers may write and read which keys.

use foil_common::logs::{MAX_PART_BYTES, Part, Process};
use foil_common::rpc::artifacts::input_key;
use foil_common::storage::key;
use foil_common::storage::object::Digest;
use foil_proto::v1;
use tonic::Status;

use super::status::{bad_field, from_store, no_rank, not_found, only_users, stale, unauthenticated};
use crate::auth::{Principal, Role, Scope, Source};
use crate::inputs;
use crate::job::JobState;
use crate::leadership::LeadershipHandle;
use crate::rpc::auth::{Caller, RankClaim};
use crate::rpc::status::{not_leading, stopped};
use crate::tenant::StoredBytes;
use crate::tenant::Tenant;

/// Lookup of jobs and of their running attempts and ranks.
#[tonic::async_trait]
pub trait AttemptCheck: Send + Sync + 'static {
    /// The current attempt of a job; none if the job is not running.
    fn current_attempt(&self, job_id: &str) -> Option<u32>;

    /// True if the secret belongs to the rank process `session` of the job's current attempt.
    fn is_rank(&self, job_id: &str, session: &str, secret: &str) -> bool;

    /// The attempt and rank of the process `session`, if the secret belongs to it and its log is still
    /// accepted.
    async fn log_writer(&self, job_id: &str, session: &str, secret: &str) -> Option<(u32, u32)>;
    /// The job of the rank process with this secret.
    fn rank_job(&self, session: &str, secret: &str) -> Option<String>;

    /// The tenant of a job; none if there is no such job.
    async fn tenant_of(&self, job: &str) -> Result<Option<String>, Status>;

    /// True if an object is a part of the models that a job starts from, which may belong to other jobs.
    async fn starts_from(&self, job: &str, key: &str) -> Result<bool, Status>;

    /// A tenant's limit of stored bytes and its jobs' usage; none without a limit.
    async fn stored_bytes(&self, _tenant: &Tenant) -> Result<Option<StoredBytes>, Status> {
        Ok(None)
    }

    /// Fails if this process does not lead, and therefore does not know the attempts.
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
        self.driver().ok()?.unscoped().inspect(job_id, find).await.ok()??
    }

    fn rank_job(&self, session: &str, secret: &str) -> Option<String> {
        self.driver().ok()?.rank_job(session, secret)
    }

    async fn tenant_of(&self, job: &str) -> Result<Option<String>, Status> {
        let driver = self.driver().map_err(|why| not_leading(&why))?.unscoped();
        driver.inspect(job, |state| state.submitted.tenant().to_owned()).await.map_err(stopped)
    }

    async fn starts_from(&self, job: &str, key: &str) -> Result<bool, Status> {
        let driver = self.driver().map_err(|why| not_leading(&why))?.unscoped();
        let key = key.to_owned();
        let found = driver.inspect(job, move |state| {
            let models = [Some(&state.submitted.policy), state.submitted.reward.as_ref()];
            models.into_iter().flatten().flat_map(|model| &model.objects).any(|object| object.key == key)
        });
        Ok(found.await.map_err(stopped)?.unwrap_or_default())
    }

    async fn stored_bytes(&self, tenant: &Tenant) -> Result<Option<StoredBytes>, Status> {
        let driver = self.driver().map_err(|why| not_leading(&why))?;
        let tenant = tenant.clone();
        let found = driver.survey(move |core| core.stored_apart_from_inputs(tenant.as_str()));
        found.await.map_err(stopped)
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

/// The key in the store that an upload is written to.
pub(super) fn may_write(
    begin: &v1::PutBegin,
    caller: &Principal,
    attempts: &dyn AttemptCheck,
) -> Result<String, Status> {
    attempts.serving()?;
    key::validate(&begin.key).map_err(|error| from_store(&error))?;
    if begin.job_id.is_empty() {
        return if caller.role == Role::Agent { Err(only_users()) } else { client_may_write(begin, caller) };
    }
    check_rank_role(begin, caller)?;
    let own = format!("jobs/{}/phases/", begin.job_id);
    if !begin.key.starts_with(&own) {
        return Err(bad_field("begin.key", &format!("a rank of this job may write below {own} only")));
    }
    match attempts.current_attempt(&begin.job_id) {
        Some(current) if current == begin.attempt => {
            match attempts.is_rank(&begin.job_id, &begin.session_id, &begin.secret) {
                true => Ok(begin.key.clone()),
                false => Err(unauthenticated(&begin.job_id)),
            }
        }
        current => Err(stale(&begin.job_id, begin.attempt, current)),
    }
}

/// The log part that a rank process is about to write. It may write only its own log.
pub(super) async fn log_part(
    begin: &v1::PutBegin,
    caller: &Principal,
    attempts: &dyn AttemptCheck,
) -> Result<Part, Status> {
    attempts.serving()?;
    check_rank_role(begin, caller)?;
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

/// Checks that the caller can be a rank. Without authentication, agents cannot be distinguished from users.
fn check_rank_role(begin: &v1::PutBegin, caller: &Principal) -> Result<(), Status> {
    match caller.role == Role::Agent || caller.source == Source::Local {
        true => Ok(()),
        false => Err(unauthenticated(&begin.job_id)),
    }
}

fn client_may_write(begin: &v1::PutBegin, caller: &Principal) -> Result<String, Status> {
    let expected = input_key(&begin.blake3);
    if begin.key == expected {
        return Ok(inputs::stored_key(&caller.tenant, &begin.blake3));
    }
    Err(bad_field("begin.key", &format!("a client may write its content's own key only, here {expected}")))
}

/// The key in the store of an object that the caller may read: inputs and job data of its tenants, or of the
/// job whose rank it is. All other objects do not exist for the caller, including the log and other internal
/// ones.
pub(super) async fn may_read(
    key: &str,
    caller: &Caller,
    rank: Option<&RankClaim>,
    attempts: &dyn AttemptCheck,
) -> Result<String, Status> {
    key::validate(key).map_err(|error| from_store(&error))?;
    match caller.role {
        Role::Agent => rank_may_read(key, rank, attempts).await,
        Role::Viewer | Role::Submitter | Role::Operator | Role::Admin => {
            user_may_read(key, caller, attempts).await
        }
    }
}

async fn user_may_read(key: &str, caller: &Caller, attempts: &dyn AttemptCheck) -> Result<String, Status> {
    let scope = caller.scope();
    if let Some((tenant, blake3)) = inputs::parse_key(key, &caller.tenant) {
        return match scope.includes(tenant.as_str()) {
            true => Ok(inputs::stored_key(&tenant, &blake3)),
            false => Err(not_found(key)),
        };
    }
    let Some((job, _)) = key.strip_prefix("jobs/").and_then(|rest| rest.split_once('/')) else {
        return Err(not_found(key));
    };
    let is_visible = match &scope {
        Scope::AllTenants => true,
        Scope::Tenant(_) => attempts.tenant_of(job).await?.is_some_and(|tenant| scope.includes(&tenant)),
    };
    if is_visible { Ok(key.to_owned()) } else { Err(not_found(key)) }
}

async fn rank_may_read(
    key: &str,
    rank: Option<&RankClaim>,
    attempts: &dyn AttemptCheck,
) -> Result<String, Status> {
    let job = rank.and_then(|rank| attempts.rank_job(&rank.session, &rank.secret)).ok_or_else(no_rank)?;
    if key.starts_with(&format!("jobs/{job}/")) || attempts.starts_from(&job, key).await? {
        return Ok(key.to_owned());
    }
    Err(not_found(key))
}
