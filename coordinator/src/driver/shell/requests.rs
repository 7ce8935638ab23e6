//! Handling of the commands in the inbox: those of users first, then those of workers.

use std::sync::Arc;
use std::time::Duration;

use foil_proto::v1::{self, agent_command};
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use super::super::command::{
    Command, Found, Inspect, Page, PinChange, Query, SubmitError, Subscription, Survey,
};
use super::super::core::{DeleteError, PinError};
use super::{Driver, Watch};
use crate::auth::Scope;
use crate::clock::Now;
use crate::job::pages::PAGE_BYTES;
use crate::job::{JobState, Submitted, view};
use crate::tenant::{Quota, TenantStatus};

/// Maximum number of tenants with a quota, all of which a coordinator holds in memory.
const MAX_QUOTAS: usize = 10_000;

impl Driver {
    pub(super) fn handle(&mut self, command: Command, now: Now) {
        match command {
            Command::Find { tenant, request_id, reply } => {
                let found = self.found(tenant.as_str(), &request_id);
                self.reply(move |_| drop(reply.send(found)));
            }
            Command::Devices { kind, reply } => {
                let count = self.core.devices(&kind);
                self.reply(move |_| {
                    let _ = reply.send(count);
                });
            }
            Command::Submit { id, submitted, reply } => self.submit(&id, *submitted, reply, now),
            Command::Get { id, scope, reply } => {
                let job = self.visible(&id, &scope).and_then(|state| self.core.job_view(&state.id));
                self.reply(move |_| drop(reply.send(job)));
            }
            Command::Inspect { id, scope, query: Inspect(query) } => {
                let reply = query(self.visible(&id, &scope));
                self.reply(move |_| reply());
            }
            Command::Survey(Survey(query)) => {
                let reply = query(&self.core);
                self.reply(move |_| reply());
            }
            Command::List { query, scope, reply } => {
                let page = self.page(&query, &scope);
                self.reply(move |_| drop(reply.send(page)));
            }
            Command::Watch { id, scope, after_revision, reply } => {
                self.watches.push(Watch { id, scope, after_revision, reply });
            }
            Command::Cancel { id, scope, reply } => {
                if self.visible(&id, &scope).is_some() {
                    self.core.cancel(&id, now);
                }
                let job = self.visible(&id, &scope).map(view::job);
                self.reply(move |_| drop(reply.send(job)));
            }
            Command::Delete { id, scope, by, reply } => {
                let deleted = self.delete(&id, &scope, &by, now);
                self.reply(move |_| drop(reply.send(deleted)));
            }
            Command::Pin { id, scope, artifact, change, by, reply } => {
                let job = self.change_pin((&id, &artifact), &scope, change, &by, now);
                self.reply(move |_| drop(reply.send(job)));
            }
            Command::SetQuota { tenant, quota, reply } => {
                let tenant = self.set_quota(&tenant, quota, now);
                self.reply(move |_| drop(reply.send(tenant)));
            }
            Command::GetTenant { name, reply } => {
                let tenant = self.core.tenant(&name);
                self.reply(move |_| drop(reply.send(tenant)));
            }
            Command::ListTenants { after, limit, reply } => {
                let tenants = self.core.tenants_after(&after, limit);
                self.reply(move |_| drop(reply.send(tenants)));
            }
            Command::CheckSubmission { tenant, reply } => {
                let checked = self.core.check_submission(&tenant);
                self.reply(move |_| drop(reply.send(checked)));
            }
            worker_command => self.handle_worker(worker_command, now),
        }
    }

    fn submit(
        &mut self,
        id: &str,
        submitted: Submitted,
        reply: oneshot::Sender<Result<Found, SubmitError>>,
        now: Now,
    ) {
        let (tenant, request_id) = (submitted.tenant().to_owned(), submitted.request_id.clone());
        if self.core.find_request(&tenant, &request_id).is_none() {
            let refusal = self.core.refusal(&submitted).map(SubmitError::Refused);
            let exceeded = || self.core.check_submission(&tenant).err().map(SubmitError::Quota);
            if let Some(refused) = refusal.or_else(exceeded) {
                return self.reply(move |_| drop(reply.send(Err(refused))));
            }
            self.core.submit(id, submitted, now);
        }
        if let Some(found) = self.found(&tenant, &request_id) {
            self.reply(move |_| drop(reply.send(Ok(found))));
        }
    }

    fn delete(&mut self, id: &str, scope: &Scope, by: &str, now: Now) -> Result<v1::Job, DeleteError> {
        let grave = self.core.tombstone(id).filter(|tombstone| scope.includes(&tombstone.tenant));
        if let Some(tombstone) = grave {
            return Ok(v1::Job { id: id.to_owned(), name: tombstone.name.clone(), ..Default::default() });
        }
        self.visible(id, scope).ok_or(DeleteError::NoJob)?;
        let job = self.core.job_summary(id).unwrap_or_default();
        self.core.delete(id, by, now)?;
        Ok(job)
    }

    fn change_pin(
        &mut self,
        (id, artifact): (&str, &str),
        scope: &Scope,
        change: PinChange,
        by: &str,
        now: Now,
    ) -> Result<v1::Job, PinError> {
        self.visible(id, scope).ok_or(PinError::NoJob)?;
        match change {
            PinChange::Pin => self.core.pin(id, artifact, by, now)?,
            PinChange::Unpin => self.core.unpin(id, artifact, now)?,
        }
        Ok(self.core.job_view(id).unwrap_or_default())
    }

    fn set_quota(&mut self, tenant: &str, quota: Quota, now: Now) -> Option<TenantStatus> {
        if !self.core.has_quota(tenant) && self.core.quotas() >= MAX_QUOTAS {
            return None;
        }
        self.handle.rates.set(tenant, &quota, now.mono);
        self.core.set_quota(tenant, quota, now);
        Some(self.core.tenant(tenant))
    }

    /// A job that is visible in this scope.
    fn visible(&self, id: &str, scope: &Scope) -> Option<&JobState> {
        self.core.state(id).filter(|state| scope.includes(state.submitted.tenant()))
    }

    fn found(&self, tenant: &str, request_id: &str) -> Option<Found> {
        let (state, spec_hash) = self.core.find_request(tenant, request_id)?;
        Some(Found { spec_hash: spec_hash.to_owned(), job: view::job(state) })
    }

    fn page(&self, query: &Query, scope: &Scope) -> Page {
        let newest_first = || self.core.states().rev();
        let after = query.after.as_ref();
        let skip = after.map_or(0, |after| match self.core.position(after) {
            Some(index) => self.core.states().len() - index,
            // The job was deleted in between. Ids sort by time of submission.
            None => newest_first().take_while(|state| state.id > *after).count(),
        });
        let is_wanted = |state: &&JobState| scope.includes(state.submitted.tenant()) && query.selects(state);
        let mut wanted = newest_first().skip(skip).filter(is_wanted).peekable();
        let (mut jobs, mut room) = (Vec::new(), PAGE_BYTES);
        while jobs.len() < query.size
            && let Some(state) = wanted.peek()
        {
            let Some(row) = self.core.job_summary(&state.id) else { break };
            let needed = row.encoded_len();
            if needed > room && !jobs.is_empty() {
                break;
            }
            room = room.saturating_sub(needed);
            jobs.push(row);
            wanted.next();
        }
        let more = wanted.peek().is_some();
        Page { next: jobs.last().filter(|_| more).map(|job| job.id.clone()), jobs }
    }

    pub(super) fn watch(&mut self, watch: Watch) {
        let Watch { id, scope, after_revision, reply } = watch;
        let Some(state) = self.visible(&id, &scope) else {
            return self.reply(move |_| drop(reply.send(None)));
        };
        let now = self.clock.now();
        let job = v1::job_event::Event::Job(self.core.job_view(&id).unwrap_or_default());
        let mut past = vec![Arc::new(view::event(state, job, now.wall))];
        past.extend(self.core.history(&id, after_revision));
        if let Some((level, text)) = self.core.current_notice(&id) {
            past.push(Arc::new(view::event(state, view::notice(level, text), now.wall)));
        }
        let ended = state.is_ended();
        self.reply(move |streams| {
            let future = (!ended).then(|| streams.subscribe(&id));
            drop(reply.send(Some(Subscription { past, future })));
        });
    }

    fn handle_worker(&mut self, command: Command, now: Now) {
        match command {
            Command::AgentRegistered { hello, connection, commands, reply } => {
                let admitted = self.core.admits(&hello, now);
                match &admitted {
                    Ok(()) => self.register(&hello, connection, commands, now),
                    Err(why) => {
                        tracing::warn!(agent = hello.agent_id, host = hello.hostname, %why, "rejected agent");
                    }
                }
                // The caller may have disconnected.
                let _ = reply.send(admitted);
            }
            Command::AgentHeartbeat { agent, connection, number } => {
                let known = self.core.agent_heard(&agent, connection, now);
                // An agent must notice that it has no leader, so a coordinator that may be deposed stays
                // silent.
                if known && self.lease.is_valid() {
                    let heard = v1::AgentHeard { number };
                    self.streams.send_to_agent(&agent, agent_command::Command::Heard(heard));
                }
            }
            Command::RankExited { agent, connection, exit } => {
                self.core.agent_heard(&agent, connection, now);
                self.core.rank_exited(&agent, exit, now);
            }
            Command::AgentLeaving { agent, connection } => {
                self.core.agent_leaving(&agent, connection, now);
            }
            Command::AgentGone { agent, connection } => {
                self.streams.remove_agent(&agent, connection);
                self.core.agent_disconnected(&agent, connection, now);
            }
            Command::RankHello { hello, commands, reply } => {
                let session = hello.session.clone();
                let result = self.core.rank_hello(hello, now);
                if result.is_ok() {
                    self.streams.add_rank(&session, commands);
                }
                self.reply(move |_| drop(reply.send(result)));
            }
            Command::RankReport { session, report, flaw } => {
                if let Err(error) = self.core.rank_report(&session, report, flaw, now) {
                    tracing::warn!(session, %error, "rejected message from rank");
                    self.streams.remove_rank(&session, Some(error));
                    self.core.rank_gone(&session, now);
                }
            }
            Command::RankGone { session } => {
                self.streams.remove_rank(&session, None);
                self.core.rank_gone(&session, now);
            }
            Command::Erased { job } => self.core.erased(&job, now),
            Command::StepsWritten { job, phase, result } => {
                self.core.steps_written(&job, &phase, result, now);
            }
            // Commands of users, handled by the caller.
            _ => {}
        }
    }

    fn register(
        &mut self,
        hello: &v1::AgentRegister,
        connection: u64,
        commands: mpsc::Sender<Result<v1::AgentCommand, Status>>,
        now: Now,
    ) {
        let devices = hello.devices.len();
        tracing::info!(
            agent = hello.agent_id,
            host = hello.hostname,
            devices,
            version = hello.version,
            "agent registered"
        );
        self.streams.add_agent(&hello.agent_id, connection, commands);
        let welcome = v1::AgentWelcome {
            heartbeat_milliseconds: millis(self.settings.heartbeat),
            fence_milliseconds: millis(self.settings.fence),
        };
        // Sent before any other command, without waiting for the log: it reveals no state.
        self.streams.send_to_agent(&hello.agent_id, agent_command::Command::Welcome(welcome));
        self.core.agent_registered(hello, connection, now);
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
