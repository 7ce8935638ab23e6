//! Spans of jobs, derived from the log's events. Pure: the same events give the same spans, so that a new
//! leader continues where the previous one stopped.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};

use foil_common::otlp::{Attribute, Span, SpanKind, TraceContext};

use crate::job::{Cause, CauseClass, Change, ChunkDone, Event, JobTrace, Outcome, RankStarted, Submitted};
use crate::plan::Phase;

/// Jobs that have not ended, reduced to what their spans need.
#[derive(Debug, Default)]
pub(super) struct Tracer(HashMap<String, Traced>);

#[derive(Debug)]
struct Traced {
    id: String,
    name: String,
    tenant: String,
    trace: JobTrace,
    submitted_at: u64,
    phases: Vec<Phase>,
    /// Number of committed phases.
    committed: usize,
    /// When work on the current phase began; none before the first attempt.
    phase_since: Option<u64>,
    attempt: Option<Running>,
}

/// The running attempt's share of the current phase; times in milliseconds since the Unix epoch.
#[derive(Debug)]
struct Running {
    attempt: u32,
    since: u64,
    /// The most recent process of each rank.
    ranks: BTreeMap<u32, Process>,
}

#[derive(Debug)]
struct Process {
    since: u64,
    agent: String,
    device: String,
}

/// How a piece of work ended.
#[derive(Debug, Clone, Copy)]
struct End<'a> {
    at: u64,
    /// Class of the cause, and the message of a failure.
    cause: &'a str,
    error: Option<&'a str>,
}

impl<'a> End<'a> {
    fn done(at: u64) -> Self {
        Self { at, cause: CauseClass::Completed.as_str(), error: None }
    }

    fn of_attempt(at: u64, cause: &'a Cause) -> Self {
        let failed = cause.class.counts() || cause.class.is_final();
        Self { at, cause: cause.class.as_str(), error: failed.then_some(&cause.message) }
    }

    fn of_job(at: u64, outcome: &'a Outcome) -> Self {
        match outcome {
            Outcome::Succeeded => Self::done(at),
            Outcome::Failed(failure) => Self { at, cause: &failure.class, error: Some(&failure.message) },
            Outcome::Cancelled => Self { at, cause: CauseClass::Cancelled.as_str(), error: None },
        }
    }
}

impl Tracer {
    /// The tracer after a log's events, with the spans that ended at `since` or later (milliseconds since the
    /// Unix epoch).
    pub(super) fn replay(events: &[Event], since: u64) -> (Self, Vec<Span>) {
        let mut tracer = Self::default();
        let mut spans = Vec::new();
        for event in events {
            let ended = tracer.event(event);
            if event.at >= since {
                spans.extend(ended);
            }
        }
        (tracer, spans)
    }

    /// The spans that end with an event.
    pub(super) fn event(&mut self, event: &Event) -> Vec<Span> {
        let Event { job, at, change, .. } = event;
        if let Change::Submitted(submitted) = change {
            let traced = Traced::new(job, *at, submitted);
            let span = traced.submit(submitted.received_at);
            self.0.insert(job.clone(), traced);
            return vec![span];
        }
        let Some(traced) = self.0.get_mut(job) else { return Vec::new() };
        match change {
            Change::AttemptStarted { attempt, .. } => traced.start(*attempt, *at),
            Change::RankStarted(started) => traced.start_rank(started, *at),
            Change::ChunkDone(done) => return traced.chunk(done, *at).into_iter().collect(),
            Change::PhaseCommitted(_) => return traced.commit(*at),
            Change::AttemptEnded { cause, .. } => {
                let spans = traced.end_attempt(End::of_attempt(*at, cause));
                traced.attempt = None;
                return spans;
            }
            Change::Ended(outcome) => {
                let spans = traced.end(End::of_job(*at, outcome));
                self.0.remove(job);
                return spans;
            }
            // Checkpoints have spans from the ranks that write them.
            Change::Submitted(_)
            | Change::CheckpointCommitted(_)
            | Change::CheckpointLost { .. }
            | Change::CancelRequested
            | Change::Pinned(_)
            | Change::Unpinned { .. }
            | Change::Deleted(_)
            | Change::Erased
            | Change::QuotaSet(_) => {}
        }
        Vec::new()
    }
}

impl Traced {
    fn new(id: &str, at: u64, submitted: &Submitted) -> Self {
        Self {
            id: id.to_owned(),
            name: submitted.spec.as_ref().map_or_else(String::new, |spec| spec.name.clone()),
            tenant: submitted.tenant().to_owned(),
            trace: JobTrace::new(id, at, &submitted.traceparent),
            submitted_at: at,
            phases: submitted.plan.phases.iter().filter_map(|phase| Phase::try_from(phase).ok()).collect(),
            committed: 0,
            phase_since: None,
            attempt: None,
        }
    }

    fn start(&mut self, attempt: u32, at: u64) {
        self.phase_since.get_or_insert(at);
        self.attempt = Some(Running { attempt, since: at, ranks: BTreeMap::new() });
    }

    fn start_rank(&mut self, started: &RankStarted, at: u64) {
        let Some(running) = &mut self.attempt else { return };
        let RankStarted { agent, device, .. } = started.clone();
        running.ranks.insert(started.rank, Process { since: at, agent, device });
    }

    fn submit(&self, received_at: u64) -> Span {
        let received_at = if received_at == 0 { self.submitted_at } else { received_at };
        let mut span = self.span(self.trace.submit(), "submit", received_at, End::done(self.submitted_at));
        (span.parent, span.kind) = (self.trace.client(), SpanKind::Server);
        span.attributes.extend(self.names());
        span
    }

    fn chunk(&self, done: &ChunkDone, at: u64) -> Option<Span> {
        let (phase, running) = (self.phases.get(self.committed)?, self.attempt.as_ref()?);
        // Logs of older versions record only the duration.
        let measured = at.saturating_sub((done.seconds * 1e3) as u64);
        let leased_at = if done.leased_at == 0 { measured } else { done.leased_at };
        let context = self.trace.chunk(&phase.id, running.attempt, done.chunk);
        let mut span = self.span(context, "chunk", leased_at.max(running.since), End::done(at));
        span.parent = Some(self.trace.attempt(&phase.id, running.attempt));
        span.attributes.extend(of_phase(phase));
        span.attributes.extend([
            ("foil.attempt", running.attempt.into()),
            ("foil.chunk", done.chunk.into()),
            ("foil.bytes", done.object.size.into()),
        ]);
        Some(span)
    }

    /// The end of the current phase, and of the attempt's part in it; the attempt continues with the next
    /// phase.
    fn commit(&mut self, at: u64) -> Vec<Span> {
        let mut spans = self.end_attempt(End::done(at));
        spans.extend(self.end_phase(End::done(at)));
        self.committed += 1;
        self.phase_since = Some(at);
        if let Some(running) = &mut self.attempt {
            running.since = at;
        }
        spans
    }

    /// The end of the running attempt's part in the current phase and, in a gang phase, of its ranks' parts.
    fn end_attempt(&self, end: End<'_>) -> Vec<Span> {
        let Some((phase, running)) = self.phases.get(self.committed).zip(self.attempt.as_ref()) else {
            return Vec::new();
        };
        let Running { attempt, since, ranks } = running;
        let context = self.trace.attempt(&phase.id, *attempt);
        let mut span = self.span(context, "attempt", *since, end);
        span.parent = Some(self.trace.phase(&phase.id));
        span.attributes.extend(of_phase(phase));
        span.attributes.extend([("foil.attempt", (*attempt).into()), ("foil.cause", end.cause.into())]);
        let rank_span = |(rank, process): (&u32, &Process)| {
            let own = self.trace.rank(&phase.id, *attempt, *rank);
            // The attempt carries the error, once.
            let end = End { error: None, ..end };
            let mut span = self.span(own, "rank", process.since.max(*since), end);
            span.parent = Some(context);
            span.attributes.extend(of_phase(phase));
            span.attributes.extend([
                ("foil.attempt", (*attempt).into()),
                ("foil.rank", (*rank).into()),
                ("foil.agent", process.agent.as_str().into()),
                ("foil.device", process.device.as_str().into()),
            ]);
            span
        };
        let ranks = ranks.iter().filter(|_| phase.work.is_gang()).map(rank_span);
        ranks.chain([span]).collect()
    }

    fn end_phase(&self, end: End<'_>) -> Option<Span> {
        let (phase, since) = (self.phases.get(self.committed)?, self.phase_since?);
        let name = format!("phase {}", phase.work.name());
        let mut span = self.span(self.trace.phase(&phase.id), &name, since, end);
        span.parent = Some(self.trace.job());
        span.attributes.extend(of_phase(phase));
        Some(span)
    }

    /// The end of the job, and of its current phase if that is not committed.
    fn end(&self, end: End<'_>) -> Vec<Span> {
        let mut job = self.span(self.trace.job(), "job", self.submitted_at, end);
        job.parent = Some(self.trace.submit());
        job.attributes.extend(self.names());
        job.attributes.push(("foil.cause", end.cause.into()));
        self.end_phase(end).into_iter().chain([job]).collect()
    }

    fn names(&self) -> [Attribute; 2] {
        [("foil.job.name", self.name.as_str().into()), ("foil.tenant", self.tenant.as_str().into())]
    }

    fn span(&self, context: TraceContext, name: &str, start: u64, end: End<'_>) -> Span {
        const NANOS: u64 = 1_000_000;
        Span {
            context,
            parent: None,
            name: name.to_owned(),
            kind: SpanKind::Internal,
            start: start.min(end.at).saturating_mul(NANOS),
            end: end.at.saturating_mul(NANOS),
            attributes: vec![("foil.job", self.id.as_str().into())],
            error: end.error.map(str::to_owned),
        }
    }
}

fn of_phase(phase: &Phase) -> [Attribute; 2] {
    [("foil.phase", phase.id.as_str().into()), ("foil.round", phase.round.into())]
}
