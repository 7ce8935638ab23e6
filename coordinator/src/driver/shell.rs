//! The loop around [`Core`]: inbox, clock, journal, streams.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use foil_common::failpoint::Injected;
use foil_common::storage::Store;
use foil_proto::v1::{self, agent_command};
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};
use tonic::Status;

use super::command::{Command, Found, Inspect, Page, Query, Subscription};
use super::core::{Action, Core};
use super::garbage;
use super::handle::{Handle, WriteAccess};
use super::streams::Streams;
use super::telemetry;
use crate::clock::{Clock, Now};
use crate::cluster::Liveness;
use crate::job::pages::PAGE_BYTES;
use crate::job::{Event, JobState, StateError, Submitted, view};
use crate::journal::{Journal, JournalError};
use crate::lease::{LeadershipTimeouts, Lease};
use crate::schedule::Deadlines;
use crate::secret::SecretIssuer;

const TICK: Duration = Duration::from_millis(200);
const INBOX: usize = 1024;
/// Maximum number of commands handled together, so that their events share a log record.
const BATCH: usize = 256;

/// LeadershipTimeouts and sizes that tests change.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub liveness: Liveness,
    pub deadlines: Deadlines,
    pub leadership: LeadershipTimeouts,
    /// Interval of agents' heartbeats.
    pub heartbeat: Duration,
    /// An agent without a leader for this long kills its ranks. Less than [`Liveness::heartbeat_timeout`], so that its ranks
    /// are dead before they are considered lost.
    pub fence: Duration,
    /// Accept workers of another version or build.
    pub allow_version_skew: bool,
    /// Number of log records between two snapshots.
    pub snapshot_every: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            liveness: Liveness::default(),
            deadlines: Deadlines::default(),
            leadership: LeadershipTimeouts::default(),
            heartbeat: Duration::from_secs(2),
            fence: Duration::from_secs(60),
            allow_version_skew: false,
            snapshot_every: 1000,
        }
    }
}

/// Time limit for storing the metrics of a finished phase.
const STORE_TIMEOUT: Duration = Duration::from_secs(3600);

#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Injected(#[from] Injected),
}

/// Owns all state; runs until stopped or until the log cannot be written.
pub struct Driver {
    core: Core,
    journal: Journal<Event>,
    store: Store,
    clock: Clock,
    inbox: mpsc::Receiver<Command>,
    /// Sends to this driver's own inbox.
    handle: Handle,
    gauges: telemetry::Gauges,
    streams: Streams,
    settings: Settings,
    /// Heartbeats of agents are acknowledged only while it is valid.
    lease: Lease,
    /// Replies and actions that wait for the log, in order.
    pending: FuturesOrdered<Pending>,
    replies: Vec<Reply>,
    /// Answered at the end of a batch: the past events in the answer must end where the stream starts.
    watches: Vec<Watch>,
}

struct Watch {
    id: String,
    after_revision: u64,
    reply: oneshot::Sender<Option<Subscription>>,
}

type Pending = Pin<Box<dyn Future<Output = Result<Release, JournalError>> + Send>>;
type Reply = Box<dyn FnOnce(&mut Streams) + Send>;

/// Output that may leave the process.
struct Release {
    actions: Vec<Action>,
    replies: Vec<Reply>,
}

impl Driver {
    /// Builds the state from the log's events.
    pub fn begin(
        journal: Journal<Event>,
        events: Vec<Event>,
        store: Store,
        clock: Clock,
        settings: Settings,
        lease: Lease,
    ) -> Result<(Self, Handle), DriverError> {
        let replayed = events.len();
        let issuer = SecretIssuer::new(rand::random());
        let core = Core::replay(events, journal.term(), settings.liveness, settings.deadlines, issuer)?;
        tracing::info!(events = replayed, jobs = core.order().len(), term = journal.term(), "log replayed");
        let (sender, inbox) = mpsc::channel(INBOX);
        let handle = Handle { inbox: sender, attempts: WriteAccess::default() };
        let streams = Streams::new(journal.term());
        telemetry::record_build_info();
        // Ranks of adopted attempts may write at once.
        handle.attempts.set(&core);
        let driver = Self {
            core,
            journal,
            store,
            clock,
            inbox,
            handle: handle.clone(),
            gauges: telemetry::Gauges,
            streams,
            settings,
            lease,
            pending: FuturesOrdered::new(),
            replies: Vec::new(),
            watches: Vec::new(),
        };
        Ok((driver, handle))
    }

    /// Serves until `stop` completes.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Result<(), DriverError> {
        tokio::pin!(stop);
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let failure = {
            let journal = self.journal.clone();
            async move { journal.failure().await }
        };
        tokio::pin!(failure);
        self.core.recover(self.clock.now());
        self.flush()?;
        loop {
            tokio::select! {
                // Biased, so that the same inputs at the same times give the same history.
                biased;
                () = &mut stop => return Ok(()),
                error = &mut failure => return Err(error.into()),
                _ = ticks.tick() => {
                    let now = self.clock.now();
                    self.core.set_store_trouble(self.store.trouble(), now);
                    self.core.tick(now);
                    self.gauges.show(&self.core, now);
                }
                Some(released) = self.pending.next(), if !self.pending.is_empty() => self.release(released?),
                Some(command) = self.inbox.recv() => self.batch(command),
            }
            self.flush()?;
        }
    }

    fn batch(&mut self, first: Command) {
        let now = self.clock.now();
        self.handle(first, now);
        for _ in 1..BATCH {
            let Ok(command) = self.inbox.try_recv() else { break };
            self.handle(command, now);
        }
    }

    /// Appends the decided events, and releases the output that depends on them once they are durable.
    fn flush(&mut self) -> Result<(), DriverError> {
        for watch in std::mem::take(&mut self.watches) {
            self.watch(watch);
        }
        let outbox = self.core.drain()?;
        let replies = std::mem::take(&mut self.replies);
        if outbox.events.is_empty() && outbox.actions.is_empty() && replies.is_empty() {
            return Ok(());
        }
        let release = Release { actions: outbox.actions, replies };
        if outbox.events.is_empty() {
            match self.pending.is_empty() {
                true => self.release(release),
                false => self.pending.push_back(Box::pin(async { Ok(release) })),
            }
            return Ok(());
        }
        telemetry::events(&self.core, &outbox.events);
        self.handle.attempts.set(&self.core);
        let durable = self.journal.append(&outbox.events);
        self.pending.push_back(Box::pin(async move {
            durable.await?;
            Ok(release)
        }));
        Ok(())
    }

    fn release(&mut self, release: Release) {
        for action in release.actions {
            telemetry::action(&action);
            match action {
                Action::Agent { agent, command } => self.streams.send_to_agent(&agent, command),
                Action::Rank { session, command } => self.streams.send_to_rank(&session, command),
                Action::Publish { job, event } => self.streams.publish(&job, event),
                Action::WriteSteps { job, phase, key, body } => self.write_steps(job, phase, key, body),
                Action::CollectGarbage(garbage) => garbage::spawn_collection(self.store.clone(), garbage),
                Action::Transition { .. } | Action::Count(_) => {}
            }
        }
        for reply in release.replies {
            reply(&mut self.streams);
        }
    }

    fn write_steps(&self, job: String, phase: String, key: String, body: String) {
        let (store, handle) = (self.store.patient(STORE_TIMEOUT), self.handle.clone());
        tokio::spawn(async move {
            let written = store.put_object(&key, Bytes::from(body)).await;
            let result = written
                .map(|object| v1::Object { path: "metrics.jsonl".to_owned(), ..object })
                .map_err(|error| error.to_string());
            // The driver may have stopped; then the next leader starts the phase again.
            let _ = handle.steps_written(job, phase, result).await;
        });
    }

    fn handle(&mut self, command: Command, now: Now) {
        match command {
            Command::Find { request_id, reply } => {
                let found = self.found(&request_id);
                self.reply(move |_| drop(reply.send(found)));
            }
            Command::Devices { kind, reply } => {
                let count = self.core.devices(&kind);
                self.reply(move |_| {
                    let _ = reply.send(count);
                });
            }
            Command::Submit { id, submitted, reply } => self.submit(&id, *submitted, reply, now),
            Command::Get { id, reply } => {
                let job = self.core.job_view(&id);
                self.reply(move |_| drop(reply.send(job)));
            }
            Command::Inspect { id, query: Inspect(query) } => {
                let reply = query(self.core.state(&id));
                self.reply(move |_| reply());
            }
            Command::List { query, reply } => {
                let page = self.page(&query);
                self.reply(move |_| drop(reply.send(page)));
            }
            Command::Watch { id, after_revision, reply } => {
                self.watches.push(Watch { id, after_revision, reply });
            }
            Command::Cancel { id, reply } => {
                self.core.cancel(&id, now);
                let job = self.core.state(&id).map(view::job);
                self.reply(move |_| drop(reply.send(job)));
            }
            worker_command => self.handle_worker(worker_command, now),
        }
    }

    fn handle_worker(&mut self, command: Command, now: Now) {
        match command {
            Command::AgentRegistered { hello, connection, commands, reply } => {
                let admitted = self.core.admits(&hello, now);
                match &admitted {
                    Ok(()) => self.register(&hello, connection, commands, now),
                    Err(taken) => {
                        tracing::warn!(agent = hello.agent_id, host = hello.hostname, %taken, "rejected agent");
                    }
                }
                // The caller may be gone.
                let _ = reply.send(admitted);
            }
            Command::AgentHeartbeat { agent, connection, number } => {
                let known = self.core.agent_heard(&agent, connection, now);
                // An agent must notice that it has no leader, so a coordinator that may be deposed stays silent.
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
                let session = hello.session_id.clone();
                let result = self.core.rank_hello(hello, now);
                if result.is_ok() {
                    self.streams.add_rank(&session, commands);
                }
                self.reply(move |_| drop(reply.send(result)));
            }
            Command::RankMessage { session, message, flaw } => {
                if let Err(refusal) = self.core.rank_message(&session, message, flaw, now) {
                    tracing::warn!(session, %refusal, "rejected message from rank");
                    self.streams.remove_rank(&session, Some(refusal));
                    self.core.rank_gone(&session, now);
                }
            }
            Command::RankGone { session } => {
                self.streams.remove_rank(&session, None);
                self.core.rank_gone(&session, now);
            }
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

    fn submit(&mut self, id: &str, submitted: Submitted, reply: oneshot::Sender<Found>, now: Now) {
        let request_id = submitted.request_id.clone();
        if self.core.find_request(&request_id).is_none() {
            self.core.submit(id, submitted, now);
        }
        if let Some(found) = self.found(&request_id) {
            self.reply(move |_| drop(reply.send(found)));
        }
    }

    fn found(&self, request_id: &str) -> Option<Found> {
        let (state, spec_hash) = self.core.find_request(request_id)?;
        let submitted = Box::new(state.submitted.clone());
        Some(Found { spec_hash: spec_hash.to_owned(), submitted, job: view::job(state) })
    }

    fn page(&self, query: &Query) -> Page {
        let newest_first = || self.core.order().iter().rev();
        let after = query.after.as_ref();
        let skip =
            after.and_then(|after| newest_first().position(|id| id == after)).map_or(0, |index| index + 1);
        let is_wanted = |state: &&JobState| {
            (query.name.is_empty() || state.submitted.spec.name == query.name)
                && state.id.starts_with(&query.id_prefix)
        };
        let mut wanted =
            newest_first().skip(skip).filter_map(|id| self.core.state(id)).filter(is_wanted).peekable();
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

    fn watch(&mut self, watch: Watch) {
        let Watch { id, after_revision, reply } = watch;
        let Some(state) = self.core.state(&id) else {
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

    fn reply(&mut self, reply: impl FnOnce(&mut Streams) + Send + 'static) {
        self.replies.push(Box::new(reply));
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
