//! The loop around [`Core`]: inbox, clock, journal, streams.

mod requests;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use foil_common::failpoint::Injected;
use foil_common::otlp::{self, Span};
use foil_common::storage::Store;
use foil_proto::v1;
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};

use super::command::{Command, Subscription};
use super::core::{Action, Core};
use super::garbage;
use super::handle::{Handle, WriteAccess};
use super::settings::Settings;
use super::streams::Streams;
use super::telemetry::Telemetry;
use crate::auth::Scope;
use crate::clock::Clock;
use crate::job::{Event, StateError};
use crate::journal::{Journal, JournalError};
use crate::lease::Lease;
use crate::secret::SecretIssuer;
use crate::tenant::RequestRates;

const TICK: Duration = Duration::from_millis(200);
const INBOX: usize = 1024;
/// Maximum number of commands handled together, so that their events share a log record.
const BATCH: usize = 256;

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

/// The task that owns all state. It runs until stopped or until the log cannot be written.
pub struct Driver {
    core: Core,
    journal: Journal<Event>,
    store: Store,
    clock: Clock,
    inbox: mpsc::Receiver<Command>,
    /// Handle to this driver's own inbox.
    handle: Handle,
    telemetry: Telemetry,
    streams: Streams,
    settings: Settings,
    /// Heartbeats of agents are acknowledged only while this lease is valid.
    lease: Lease,
    /// Replies and actions that wait for the log, in order.
    pending: FuturesOrdered<Pending>,
    replies: Vec<Reply>,
    /// Answered at the end of a batch: the past events in the answer must end where the stream starts.
    watches: Vec<Watch>,
}

struct Watch {
    id: String,
    scope: Scope,
    after_revision: u64,
    reply: oneshot::Sender<Option<Subscription>>,
}

type Pending = Pin<Box<dyn Future<Output = Result<Release, JournalError>> + Send>>;
type Reply = Box<dyn FnOnce(&mut Streams) + Send>;

/// Output that may leave the process once its events are durable.
struct Release {
    actions: Vec<Action>,
    replies: Vec<Reply>,
    spans: Vec<Span>,
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
        #[expect(clippy::disallowed_methods, reason = "the shell owns the randomness")]
        let issuer = SecretIssuer::new(rand::random());
        let telemetry = Telemetry::new(&events, clock.now());
        let mut core = Core::replay(events, journal.term(), settings.liveness, settings.deadlines, issuer)?;
        core.set_policy(settings.policy);
        tracing::info!(events = replayed, jobs = core.states().len(), term = journal.term(), "log replayed");
        let (sender, inbox) = mpsc::channel(INBOX);
        let rates = RequestRates::default();
        let now = clock.now().mono;
        core.each_quota().for_each(|(tenant, quota)| rates.set(tenant, quota, now));
        let handle = Handle { inbox: sender, attempts: WriteAccess::default(), rates };
        let streams = Streams::new(journal.term());
        // Ranks of adopted attempts may write immediately.
        handle.attempts.set(&core);
        let driver = Self {
            core,
            journal,
            store,
            clock,
            inbox,
            handle: handle.clone(),
            telemetry,
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
                // Biased, so that the same inputs at the same times produce the same history.
                biased;
                () = &mut stop => return Ok(()),
                error = &mut failure => return Err(error.into()),
                _ = ticks.tick() => {
                    let now = self.clock.now();
                    self.core.set_store_trouble(self.store.trouble(), now);
                    if !self.lease.is_valid() {
                        self.core.restart_reconnect_timeouts(now);
                    }
                    self.core.tick(now);
                    self.telemetry.show(&self.core, now);
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
        let spans = self.telemetry.spans(&outbox.events);
        let release = Release { actions: outbox.actions, replies, spans };
        if outbox.events.is_empty() {
            match self.pending.is_empty() {
                true => self.release(release),
                false => self.pending.push_back(Box::pin(async { Ok(release) })),
            }
            return Ok(());
        }
        self.telemetry.events(&self.core, &outbox.events);
        if outbox.events.iter().any(|event| event.change.moves_ranks()) {
            self.handle.attempts.set(&self.core);
        }
        let durable = self.journal.append(&outbox.events);
        self.pending.push_back(Box::pin(async move {
            durable.await?;
            Ok(release)
        }));
        Ok(())
    }

    fn release(&mut self, release: Release) {
        for action in release.actions {
            self.telemetry.action(&action);
            match action {
                Action::Agent { agent, command } => self.streams.send_to_agent(&agent, command),
                Action::Rank { session, command } => self.streams.send_to_rank(&session, command),
                Action::Publish { job, event } => self.streams.publish(&job, event),
                Action::WriteSteps { job, phase, key, body } => self.write_steps(job, phase, key, body),
                Action::CollectGarbage(garbage) => garbage::spawn_collection(self.store.clone(), garbage),
                Action::Erase { job, garbage } => {
                    let store = self.store.patient(STORE_TIMEOUT);
                    garbage::spawn_erasure(store, self.handle.clone(), job, garbage);
                }
                Action::Transition { .. }
                | Action::Count(_)
                | Action::Step { .. }
                | Action::Usage(_)
                | Action::Shard(_) => {}
            }
        }
        for reply in release.replies {
            reply(&mut self.streams);
        }
        release.spans.into_iter().for_each(otlp::send);
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

    fn reply(&mut self, reply: impl FnOnce(&mut Streams) + Send + 'static) {
        self.replies.push(Box::new(reply));
    }
}
