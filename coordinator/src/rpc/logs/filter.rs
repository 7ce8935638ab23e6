//! Selection of lines from a job's logs.

use foil_common::log_line::LogLine;
use foil_common::logs::Process;
use foil_proto::v1;
use tonic::Status;

use super::super::status::bad_field;
use crate::job::JobState;

/// Maximum number of lines of a tail.
const MAX_TAIL: u32 = 10_000;
/// Number of phases listed in an error.
const PHASES_SHOWN: usize = 12;

/// A request, validated against its job.
#[derive(Debug, Clone, Default)]
pub(super) struct Filter {
    pub(super) phase: String,
    pub(super) rank: Option<u32>,
    pub(super) attempt: Option<u32>,
    /// Seconds since the Unix epoch.
    pub(super) since: Option<f64>,
    /// Maximum number of lines, counted from the end.
    pub(super) tail: Option<usize>,
}

/// Phase and time at a position in a process's log. Lines without a phase or time inherit the previous ones.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Context {
    pub(super) time: f64,
    phase: String,
}

impl Context {
    pub(super) fn enter(&mut self, line: &str) {
        let Some(line) = LogLine::parse(line) else { return };
        if let Some(time) = line.time() {
            self.time = time;
        }
        let phase = line.text("phase");
        if !phase.is_empty() && phase != self.phase {
            phase.clone_into(&mut self.phase);
        }
    }
}

impl Filter {
    pub(super) fn new(request: &v1::LogsRequest, state: &JobState) -> Result<Self, Status> {
        let v1::LogsRequest { phase, rank, attempt, since, tail, .. } = request;
        let id = &state.id;
        let phases = &state.phases;
        if !phase.is_empty() && !phases.iter().any(|known| known.id == *phase) {
            let names: Vec<&str> = phases.iter().take(PHASES_SHOWN).map(|phase| phase.id.as_str()).collect();
            let more = if phases.len() > PHASES_SHOWN { ", …" } else { "" };
            let problem = format!("job {id} has no phase {phase}; it has {}{more}", names.join(", "));
            return Err(bad_field("phase", &problem));
        }
        let ranks = state.spec.resources.ranks;
        if let Some(rank) = rank.filter(|rank| *rank >= ranks) {
            let there =
                if ranks == 1 { "rank 0 only".to_owned() } else { format!("ranks 0 to {}", ranks - 1) };
            return Err(bad_field("rank", &format!("job {id} has no rank {rank}; it has {there}")));
        }
        if let Some(attempt) = attempt.filter(|attempt| *attempt == 0 || *attempt > state.attempt) {
            let last = state.attempt;
            let there = match last {
                0 => "it has not started".to_owned(),
                1 => "it has attempt 1 only".to_owned(),
                last => format!("it has attempts 1 to {last}"),
            };
            return Err(bad_field("attempt", &format!("job {id} has no attempt {attempt}; {there}")));
        }
        if *tail > MAX_TAIL {
            return Err(bad_field("tail", &format!("found {tail}, expected at most {MAX_TAIL}")));
        }
        Ok(Self {
            phase: phase.clone(),
            rank: *rank,
            attempt: *attempt,
            since: since.as_ref().map(|since| since.seconds as f64 + f64::from(since.nanos) / 1e9),
            tail: (*tail > 0).then_some(*tail as usize),
        })
    }

    pub(super) fn wants_process(&self, process: &Process) -> bool {
        self.rank.is_none_or(|rank| process.rank == rank)
            && self.attempt.is_none_or(|attempt| process.attempt == attempt)
    }

    /// Whether the line at the context's position is wanted.
    pub(super) fn wants(&self, context: &Context) -> bool {
        (self.phase.is_empty() || self.phase == context.phase)
            && self.since.is_none_or(|since| context.time >= since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::fixture;

    #[test]
    fn a_request_for_what_the_job_has_not_says_what_it_has() {
        let state = fixture::after(&[], 0);
        let check = |request: v1::LogsRequest| {
            Filter::new(&request, &state).map_err(|status| status.message().to_owned())
        };
        let phase = state.phases[1].id.to_string();
        check(v1::LogsRequest { rank: Some(1), attempt: Some(1), phase, ..Default::default() }).unwrap();
        let rank = check(v1::LogsRequest { rank: Some(2), ..Default::default() }).unwrap_err();
        assert!(rank.contains("has no rank 2; it has ranks 0 to 1"), "{rank}");
        let attempt = check(v1::LogsRequest { attempt: Some(2), ..Default::default() }).unwrap_err();
        assert!(attempt.contains("it has attempt 1 only"), "{attempt}");
        let phase = check(v1::LogsRequest { phase: "sft".into(), ..Default::default() }).unwrap_err();
        assert!(phase.contains("no phase sft; it has r00.sft"), "{phase}");
        assert!(check(v1::LogsRequest { tail: 1 << 20, ..Default::default() }).is_err());
        let waiting = fixture::state(&[]);
        let request = v1::LogsRequest { attempt: Some(1), ..Default::default() };
        assert!(Filter::new(&request, &waiting).unwrap_err().message().contains("it has not started"));
    }

    #[test]
    fn lines_without_a_phase_or_a_time_belong_to_the_line_before() {
        let filter = Filter { phase: "b".into(), since: Some(5.0), ..Filter::default() };
        let mut context = Context::default();
        let lines = [
            (r#"{"time":9,"phase":"a"}"#, false),
            (r#"{"time":4,"phase":"b"}"#, false),
            (r#"{"time":5,"phase":"b"}"#, true),
            ("torn", true),
            (r#"{"message":"x"}"#, true),
            (r#"{"phase":"a"}"#, false),
        ];
        for (line, wanted) in lines {
            context.enter(line);
            assert_eq!(filter.wants(&context), wanted, "{line}");
        }
    }
}
