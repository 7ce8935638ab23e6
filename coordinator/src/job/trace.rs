//! Identities of a job's spans: submit → job → phase → attempt → chunk or rank. They derive from the job, so
//! that every coordinator and every rank has the same.

use foil_common::otlp::TraceContext;

/// The trace that a job's spans belong to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobTrace {
    client: Option<TraceContext>,
    submit: TraceContext,
}

impl JobTrace {
    /// The trace of the client's span `traceparent`, or the job's own trace if that is empty or unreadable,
    /// as W3C Trace Context specifies.
    pub fn new(job: &str, submitted_at: u64, traceparent: &str) -> Self {
        let client: Option<TraceContext> = traceparent.parse().ok();
        let name = format!("submit {job} {submitted_at}");
        let submit = client.map_or_else(|| TraceContext::root(&name), |client| client.child(&name));
        Self { client, submit }
    }

    /// The client's span, if it sent one.
    pub fn client(&self) -> Option<TraceContext> {
        self.client
    }

    pub fn submit(&self) -> TraceContext {
        self.submit
    }

    pub fn job(&self) -> TraceContext {
        self.submit.child("job")
    }

    pub fn phase(&self, phase: &str) -> TraceContext {
        self.job().child(phase)
    }

    /// The work of one attempt on a phase.
    pub fn attempt(&self, phase: &str, attempt: u32) -> TraceContext {
        self.phase(phase).child(&format!("attempt {attempt}"))
    }

    /// A chunk of a map phase, from its lease to its result.
    pub fn chunk(&self, phase: &str, attempt: u32, chunk: u32) -> TraceContext {
        self.attempt(phase, attempt).child(&format!("chunk {chunk}"))
    }

    /// One rank's part in a gang phase.
    pub fn rank(&self, phase: &str, attempt: u32, rank: u32) -> TraceContext {
        self.attempt(phase, attempt).child(&format!("rank {rank}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_job_goes_on_with_its_clients_trace_or_has_its_own() {
        let of_client = JobTrace::new("j", 1, CLIENT);
        assert_eq!(of_client.client().unwrap().to_string(), CLIENT);
        assert!(of_client.rank("p", 1, 0).to_string().starts_with(&CLIENT[..35]));
        assert_ne!(of_client.submit(), JobTrace::new("k", 1, CLIENT).submit(), "two jobs of one trace");
        let own = JobTrace::new("j", 1, "");
        assert_eq!((own.client(), &own), (None, &JobTrace::new("j", 1, "no traceparent")));
        assert!(own.job().is_sampled());
        assert_ne!(own, JobTrace::new("k", 1, ""));
    }

    #[test]
    fn every_span_of_a_job_has_an_id_of_its_own() {
        let trace = JobTrace::new("j", 1, "");
        let mut ids = vec![trace.submit(), trace.job()];
        for phase in ["r01.sft", "r01.policy.train"] {
            ids.push(trace.phase(phase));
            for attempt in 1..3 {
                ids.push(trace.attempt(phase, attempt));
                ids.extend((0..3).map(|chunk| trace.chunk(phase, attempt, chunk)));
                ids.extend((0..3).map(|rank| trace.rank(phase, attempt, rank)));
            }
        }
        let texts: std::collections::BTreeSet<String> = ids.iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), ids.len());
    }
}
