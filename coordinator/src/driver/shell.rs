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

use super::command::{Command, Found, Look, Page, Query, Subscription};
use super::core::{Action, Core};
use super::handle::{Attempts, Handle};
use super::links::Links;
use super::sweeping;
use super::telemetry;
use crate::clock::{Clock, Now};
use crate::cluster::Liveness;
use crate::job::pages::PAGE_BYTES;
use crate::job::{Event, JobState, StateError, Submitted, view};
use crate::journal::{Journal, JournalError};
use crate::lease::{Lease, Times};
use crate::schedule::Deadlines;
use crate::secret::Mint;

const TICK: Duration = Duration::from_millis(200);
const INBOX: usize = 1024;
/// Commands taken together, so that their events share a record of the log.
const BATCH: usize = 256;

/// Times and sizes that tests change.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub liveness: Liveness,
    pub deadlines: Deadlines,
    pub leadership: Times,
    /// How often an agent is to be heard.
    pub heartbeat: Duration,
    /// An agent without a leader for so long kills its ranks. Less than [`Liveness::silence`]: it has done so before it
    /// is given up.
    pub fence: Duration,
    /// Take in workers of another version or build.
    pub allow_version_skew: bool,
    /// Records of the log between two snapshots.
    pub snapshot_every: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            liveness: Liveness::default(),
            deadlines: Deadlines::default(),
            leadership: Times::default(),
            heartbeat: Duration::from_secs(2),
            fence: Duration::from_secs(60),
            allow_version_skew: false,
            snapshot_every: 1000,
        }
    }
}

/// How long a phase that is over waits for the store to take its step figures.
const STORE_PATIENCE: Duration = Duration::from_secs(3600);

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
    /// Its inbox is this driver's own.
    handle: Handle,
    levels: telemetry::Levels,
    links: Links,
    settings: Settings,
    /// While it holds, agents are told that they have a leader.
    lease: Lease,
    /// Answers and commands that wait for the log, in order.
    pending: FuturesOrdered<Pending>,
    replies: Vec<Reply>,
    /// Answered at the end of a batch: what they are told of the past must end where the stream to them begins.
    watches: Vec<Watch>,
}

struct Watch {
    id: String,
    after_revision: u64,
    reply: oneshot::Sender<Option<Subscription>>,
}

type Pending = Pin<Box<dyn Future<Output = Result<Release, JournalError>> + Send>>;
type Reply = Box<dyn FnOnce(&mut Links) + Send>;

/// What may leave the process now.
struct Release {
    actions: Vec<Action>,
    replies: Vec<Reply>,
}

impl Driver {
    /// Replays the log of the store that `journal` leads.
    pub fn begin(
        journal: Journal<Event>,
        events: Vec<Event>,
        store: Store,
        clock: Clock,
        settings: Settings,
        lease: Lease,
    ) -> Result<(Self, Handle), DriverError> {
        let replayed = events.len();
        let mint = Mint::new(rand::random());
        let core = Core::replay(events, journal.term(), settings.liveness, settings.deadlines, mint)?;
        tracing::info!(events = replayed, jobs = core.order().len(), term = journal.term(), "log replayed");
        let (sender, inbox) = mpsc::channel(INBOX);
        let handle = Handle { inbox: sender, attempts: Attempts::default() };
        let links = Links::new(journal.term());
        telemetry::introduce();
        // Ranks that go on may write from the first moment.
        handle.attempts.set(&core);
        let driver = Self {
            core,
            journal,
            store,
            clock,
            inbox,
            handle: handle.clone(),
            levels: telemetry::Levels,
            links,
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
                // In this order, so that the same inputs at the same times are the same history.
                biased;
                () = &mut stop => return Ok(()),
                error = &mut failure => return Err(error.into()),
                _ = ticks.tick() => {
                    let now = self.clock.now();
                    self.core.store_is(self.store.trouble(), now);
                    self.core.tick(now);
                    self.levels.show(&self.core, now);
                }
                Some(released) = self.pending.next(), if !self.pending.is_empty() => self.release(released?),
                Some(command) = self.inbox.recv() => self.batch(command),
            }
            self.flush()?;
        }
    }

    fn batch(&mut self, first: Command) {
        let now = self.clock.now();
        self.obey(first, now);
        for _ in 1..BATCH {
            let Ok(command) = self.inbox.try_recv() else { break };
            self.obey(command, now);
        }
    }

    /// Hands the log what was decided, and lets out what waits for it once it is durable.
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
                Action::Agent { agent, command } => self.links.tell_agent(&agent, command),
                Action::Rank { session, command } => self.links.tell_rank(&session, command),
                Action::Publish { job, event } => self.links.publish(&job, event),
                Action::WriteSteps { job, phase, key, body } => self.write_steps(job, phase, key, body),
                Action::Sweep(sweep) => sweeping::spawn(self.store.clone(), sweep),
                Action::Transition { .. } | Action::Count(_) => {}
            }
        }
        for reply in release.replies {
            reply(&mut self.links);
        }
    }

    fn write_steps(&self, job: String, phase: String, key: String, body: String) {
        let (store, handle) = (self.store.patient(STORE_PATIENCE), self.handle.clone());
        tokio::spawn(async move {
            let written = store.put_object(&key, Bytes::from(body)).await;
            let result = written
                .map(|object| v1::Object { path: "metrics.jsonl".to_owned(), ..object })
                .map_err(|error| error.to_string());
            // The driver may have stopped; then the next one starts the phase again.
            let _ = handle.steps_written(job, phase, result).await;
        });
    }

    fn obey(&mut self, command: Command, now: Now) {
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
                let job = self.core.shown(&id);
                self.reply(move |_| drop(reply.send(job)));
            }
            Command::Look { id, look: Look(look) } => {
                let answer = look(self.core.state(&id));
                self.reply(move |_| answer());
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
            of_workers => self.obey_worker(of_workers, now),
        }
    }

    fn obey_worker(&mut self, command: Command, now: Now) {
        match command {
            Command::AgentRegistered { hello, connection, commands, reply } => {
                let admitted = self.core.admits(&hello, now);
                match &admitted {
                    Ok(()) => self.register(&hello, connection, commands, now),
                    Err(taken) => {
                        tracing::warn!(agent = hello.agent_id, host = hello.hostname, %taken, "an agent is refused");
                    }
                }
                // The caller may be gone.
                let _ = reply.send(admitted);
            }
            Command::AgentHeartbeat { agent, connection, number } => {
                let known = self.core.agent_heard(&agent, connection, now);
                // An agent that has no leader is to know it: whoever could be deposed already says nothing.
                if known && self.lease.holds() {
                    let heard = v1::AgentHeard { number };
                    self.links.tell_agent(&agent, agent_command::Command::Heard(heard));
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
                self.links.remove_agent(&agent, connection);
                self.core.agent_disconnected(&agent, connection, now);
            }
            Command::RankHello { hello, commands, reply } => {
                let session = hello.session_id.clone();
                let result = self.core.rank_hello(hello, now);
                if result.is_ok() {
                    self.links.add_rank(&session, commands);
                }
                self.reply(move |_| drop(reply.send(result)));
            }
            Command::RankSaid { session, message, flaw } => {
                if let Err(refusal) = self.core.rank_said(&session, message, flaw, now) {
                    tracing::warn!(session, %refusal, "a rank's word is refused");
                    self.links.remove_rank(&session, Some(refusal));
                    self.core.rank_gone(&session, now);
                }
            }
            Command::RankGone { session } => {
                self.links.remove_rank(&session, None);
                self.core.rank_gone(&session, now);
            }
            Command::StepsWritten { job, phase, result } => {
                self.core.steps_written(&job, &phase, result, now);
            }
            // The users' commands.
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
        self.links.add_agent(&hello.agent_id, connection, commands);
        let welcome = v1::AgentWelcome {
            heartbeat_milliseconds: millis(self.settings.heartbeat),
            fence_milliseconds: millis(self.settings.fence),
        };
        // Before any other command: it tells of no state.
        self.links.tell_agent(&hello.agent_id, agent_command::Command::Welcome(welcome));
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
            let Some(row) = self.core.listed(&state.id) else { break };
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
        let job = v1::job_event::Event::Job(self.core.shown(&id).unwrap_or_default());
        let mut past = vec![Arc::new(view::event(state, job, now.wall))];
        past.extend(self.core.history(&id, after_revision));
        if let Some((level, text)) = self.core.held_up(&id) {
            past.push(Arc::new(view::event(state, view::notice(level, text), now.wall)));
        }
        let ended = state.is_ended();
        self.reply(move |links| {
            let future = (!ended).then(|| links.subscribe(&id));
            drop(reply.send(Some(Subscription { past, future })));
        });
    }

    fn reply(&mut self, reply: impl FnOnce(&mut Links) + Send + 'static) {
        self.replies.push(Box::new(reply));
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
