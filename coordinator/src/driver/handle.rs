//! The handle through which the gRPC services talk to the driver.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use foil_proto::v1;
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use super::command::{Command, Found, SendReply, Stopped, StreamEnd, SubmitError, Survey};
use super::core::NotAdmitted;
use super::core::{Core, RankWriter};
use crate::clock::Now;
use crate::job::Submitted;
use crate::schedule::{Hello, ProtocolError, Report};
use crate::secret;
use crate::tenant::{Quota, RateExceeded, RequestRates, Tenant, TenantStatus};

/// Handle to the driver. Cheap to clone. Every answer reflects durable state only.
#[derive(Debug, Clone)]
pub struct Handle {
    pub(super) inbox: mpsc::Sender<Command>,
    pub(super) attempts: WriteAccess,
    pub(super) rates: RequestRates,
}

/// The attempts and rank processes that may write; kept current by the driver.
#[derive(Debug, Clone, Default)]
pub(super) struct WriteAccess(Arc<RwLock<Writers>>);

#[derive(Debug, Default)]
struct Writers {
    /// Current attempt, by job.
    attempts: BTreeMap<String, u32>,
    /// Rank processes, by session.
    rank_writers: BTreeMap<String, RankWriter>,
}

impl WriteAccess {
    pub(super) fn set(&self, core: &Core) {
        let writers = Writers { attempts: core.attempts(), rank_writers: core.rank_writers() };
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = writers;
    }

    fn read(&self) -> RwLockReadGuard<'_, Writers> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handle {
    /// Completes when the driver has stopped, that is, when this process has stopped being the leader.
    pub async fn ended(&self) {
        self.inbox.closed().await;
    }

    /// The attempt whose ranks may currently write for a job.
    pub fn current_attempt(&self, job: &str) -> Option<u32> {
        self.attempts.read().attempts.get(job).copied()
    }

    /// Admits a request by a tenant's user, unless the tenant has exceeded its rate.
    pub fn admit_request(&self, tenant: &Tenant, now: Now) -> Result<(), RateExceeded> {
        self.rates.take(tenant.as_str(), now.mono)
    }

    /// True if the secret belongs to a rank process of the job's current attempt.
    pub fn is_rank(&self, job: &str, session: &str, secret: &str) -> bool {
        let writers = self.attempts.read();
        let writer = writers.rank_writers.get(session).filter(|writer| writer.job == job);
        writer.is_some_and(|writer| secret::verify(secret, &writer.proof))
    }

    /// The job of the rank process with this secret, if the process belongs to the job's current attempt.
    pub fn rank_job(&self, session: &str, secret: &str) -> Option<String> {
        let writers = self.attempts.read();
        let writer = writers.rank_writers.get(session)?;
        secret::verify(secret, &writer.proof).then(|| writer.job.clone())
    }

    /// Number of devices of a kind on the connected workers, including busy ones.
    pub async fn devices(&self, kind: &str) -> Result<usize, Stopped> {
        self.ask(|reply| Command::Devices { kind: kind.to_owned(), reply }).await
    }

    /// Runs a query of the whole state on the driver, regardless of the caller's scope. The query must be
    /// short, because it blocks all other commands.
    pub async fn survey<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Core) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        self.ask(|reply| {
            let survey = move |core: &Core| -> SendReply {
                let found = query(core);
                Box::new(move || drop(reply.send(found)))
            };
            Command::Survey(Survey(Box::new(survey)))
        })
        .await
    }

    pub(super) async fn erased(&self, job: String) -> Result<(), Stopped> {
        self.send(Command::Erased { job }).await
    }

    /// Commits a job unless its tenant already has one with the same request id; returns the job of the
    /// request id.
    pub async fn submit(&self, id: String, submitted: Submitted) -> Result<Found, SubmitError> {
        self.ask(|reply| Command::Submit { id, submitted: Box::new(submitted), reply }).await?
    }

    /// Sets a tenant's quota. None if too many tenants have one.
    pub async fn set_quota(&self, tenant: &str, quota: Quota) -> Result<Option<TenantStatus>, Stopped> {
        self.ask(|reply| Command::SetQuota { tenant: tenant.to_owned(), quota, reply }).await
    }

    pub async fn tenant(&self, name: &str) -> Result<TenantStatus, Stopped> {
        self.ask(|reply| Command::GetTenant { name: name.to_owned(), reply }).await
    }

    /// At most `limit` tenants by name, starting after a name.
    pub async fn tenants_after(&self, after: &str, limit: usize) -> Result<Vec<TenantStatus>, Stopped> {
        self.ask(|reply| Command::ListTenants { after: after.to_owned(), limit, reply }).await
    }

    /// Checks that a tenant may submit one more job.
    pub async fn check_submission(&self, tenant: &str) -> Result<(), SubmitError> {
        Ok(self.ask(|reply| Command::CheckSubmission { tenant: tenant.to_owned(), reply }).await??)
    }

    /// Registers an agent. `connection` must be unique to the stream; a later registration of the same
    /// process replaces it.
    pub async fn agent_registered(
        &self,
        hello: v1::AgentRegister,
        connection: u64,
        commands: mpsc::Sender<Result<v1::AgentCommand, Status>>,
    ) -> Result<Result<(), NotAdmitted>, Stopped> {
        self.ask(|reply| Command::AgentRegistered { hello, connection, commands, reply }).await
    }

    /// Acknowledges a heartbeat by its `number`, provided that this coordinator certainly leads.
    pub async fn agent_heartbeat(&self, agent: String, connection: u64, number: u64) -> Result<(), Stopped> {
        self.send(Command::AgentHeartbeat { agent, connection, number }).await
    }

    pub async fn rank_exited(
        &self,
        agent: String,
        connection: u64,
        exit: v1::RankExited,
    ) -> Result<(), Stopped> {
        self.send(Command::RankExited { agent, connection, exit }).await
    }

    /// The agent is shutting down and takes no more ranks.
    pub async fn agent_leaving(&self, agent: String, connection: u64) -> Result<(), Stopped> {
        self.send(Command::AgentLeaving { agent, connection }).await
    }

    pub async fn agent_gone(&self, agent: String, connection: u64) -> Result<(), Stopped> {
        self.send(Command::AgentGone { agent, connection }).await
    }

    /// Admits a rank process; its commands go to `commands`, starting with the welcome.
    pub async fn rank_hello(
        &self,
        hello: Hello,
        commands: mpsc::Sender<Result<v1::RankCommand, StreamEnd>>,
    ) -> Result<Result<(), ProtocolError>, Stopped> {
        self.ask(|reply| Command::RankHello { hello, commands, reply }).await
    }

    /// Delivers a rank's report, or the error that it is malformed. `flaw` is the problem, if any, that
    /// verification against the store found.
    pub async fn rank_report(
        &self,
        session: String,
        report: Result<Report, ProtocolError>,
        flaw: Option<String>,
    ) -> Result<(), Stopped> {
        self.send(Command::RankReport { session, report, flaw }).await
    }

    pub async fn rank_gone(&self, session: String) -> Result<(), Stopped> {
        self.send(Command::RankGone { session }).await
    }

    pub(super) async fn steps_written(
        &self,
        job: String,
        phase: String,
        result: Result<v1::Object, String>,
    ) -> Result<(), Stopped> {
        self.send(Command::StepsWritten { job, phase, result }).await
    }

    async fn send(&self, command: Command) -> Result<(), Stopped> {
        self.inbox.send(command).await.map_err(|_| Stopped)
    }

    pub(super) async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply)).await?;
        answer.await.map_err(|_| Stopped)
    }
}
