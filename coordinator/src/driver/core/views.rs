//! Read access to the state.

use std::collections::BTreeMap;
use std::sync::Arc;

use foil_proto::v1;

use super::{Core, Entry, RankWriter};
use crate::cluster::Cluster;
use crate::job::{JobState, view};

impl Core {
    /// The job of a tenant's request id, with the hash of its specification.
    pub fn find_request(&self, tenant: &str, request_id: &str) -> Option<(&JobState, &str)> {
        let state = self.state(self.requests.get(&(tenant.to_owned(), request_id.to_owned()))?)?;
        Some((state, &state.submitted.spec_hash))
    }

    pub fn state(&self, id: &str) -> Option<&JobState> {
        self.jobs.get(id).map(|entry| &*entry.state)
    }

    /// The job as users see it, with its progress, its wait reason and what prevents its deletion.
    pub fn job_view(&self, id: &str) -> Option<v1::Job> {
        let entry = self.jobs.get(id)?;
        let job = view::job(&entry.state);
        let progress = entry.progress.clone().filter(|progress| progress.phase == job.phase);
        let kept_by = match job.expires_at {
            Some(_) => self.kept_by(&entry.state),
            None => Vec::new(),
        };
        Some(v1::Job { progress, waiting: entry.visible_wait(), kept_by, ..job })
    }

    /// The job as a row of a list.
    pub fn job_summary(&self, id: &str) -> Option<v1::Job> {
        let entry = self.jobs.get(id)?;
        Some(v1::Job { waiting: entry.visible_wait(), ..view::listed(&entry.state) })
    }

    /// The job of a rank process.
    pub fn job_of(&self, session: &str) -> Option<&str> {
        self.sessions.get(session).map(String::as_str)
    }

    /// All jobs, oldest first.
    pub fn states(&self) -> impl DoubleEndedIterator<Item = &JobState> + ExactSizeIterator {
        self.jobs.values().map(|entry| &*entry.state)
    }

    /// Position of a job in [`Self::states`].
    pub fn position(&self, id: &str) -> Option<usize> {
        self.jobs.get_index_of(id)
    }

    /// The events after a revision.
    pub fn history(&self, id: &str, after_revision: u64) -> Vec<Arc<v1::JobEvent>> {
        let Some(Entry { state, history, .. }) = self.jobs.get(id) else { return Vec::new() };
        let later = history.iter().filter(|past| past.revision() > after_revision);
        later.map(|past| past.event(state)).collect()
    }

    /// Lines of the step metrics of a job's phase, while it runs.
    pub fn running_steps(&self, id: &str, phase: &str) -> Option<&str> {
        self.jobs.get(id)?.attempt.as_ref()?.step_lines(phase)
    }

    /// The running phase's progress, as last published.
    pub fn progress(&self, id: &str) -> Option<&v1::PhaseProgress> {
        self.jobs.get(id)?.progress.as_ref()
    }

    /// Number of jobs in each state, for the metric.
    pub fn counts(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for entry in self.jobs.values() {
            *counts.entry(entry.state.status.name()).or_default() += 1;
        }
        counts
    }

    /// Number of devices that waiting jobs lack, by kind.
    pub fn devices_wanted(&self) -> BTreeMap<&'static str, usize> {
        let mut wanted = BTreeMap::new();
        for wait in self.jobs.values().filter_map(Entry::current_wait) {
            *wanted.entry(wait.kind.name()).or_default() += wait.lacking;
        }
        wanted
    }

    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The rank processes that may write, by session.
    pub fn rank_writers(&self) -> BTreeMap<String, RankWriter> {
        let running = self.jobs.iter().filter(|(_, entry)| entry.state.current_attempt().is_some());
        running
            .flat_map(|(job, entry)| entry.state.ranks.values().map(move |process| (job, process)))
            .map(|(job, process)| {
                let writer =
                    RankWriter { job: job.clone(), attempt: process.attempt, proof: process.proof.clone() };
                (process.session.clone(), writer)
            })
            .collect()
    }

    /// Attempts whose ranks may write, by job.
    pub fn attempts(&self) -> BTreeMap<String, u32> {
        let current = |(id, entry): (&String, &Entry)| Some((id.clone(), entry.state.current_attempt()?));
        self.jobs.iter().filter_map(current).collect()
    }
}
