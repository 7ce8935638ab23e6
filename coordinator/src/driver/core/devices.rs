//! Who gets free devices.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Core, Waiting};
use crate::clock::Now;
use crate::cluster::Place;
use crate::job::{Change, RankStarted};
use crate::schedule::{Level, Run};

/// A job waits for so long before its watchers are told what it waits for.
const PATIENCE: Duration = Duration::from_secs(3);

impl Core {
    /// Gives free devices to those who wait, first come first served among jobs of one device kind.
    pub(super) fn allocate(&mut self, now: Now) {
        let mut taken: BTreeSet<String> = BTreeSet::new();
        for id in self.order.clone() {
            let Some(entry) = self.jobs.get_mut(&id) else { continue };
            let kind = entry.state.spec.resources.device.to_string();
            if taken.contains(&kind) {
                continue;
            }
            let starts = entry.state.wants_devices() && entry.run.is_none();
            let seats = match &entry.run {
                Some(run) => run.vacancies().len(),
                None if starts => entry.state.spec.resources.ranks as usize,
                None => 0,
            };
            if seats == 0 {
                entry.waiting = None;
                continue;
            }
            if starts && self.cluster.find(&kind, seats).is_none() {
                self.wait(&id, &kind, seats, now);
                taken.insert(kind);
                continue;
            }
            if starts {
                self.start_attempt(&id, now);
            }
            if !self.seat(&id, &kind, now) {
                taken.insert(kind);
            }
        }
    }

    fn start_attempt(&mut self, id: &str, now: Now) {
        let Some(entry) = self.jobs.get_mut(id) else { return };
        entry.waiting = None;
        let attempt = entry.state.attempt + 1;
        let world = entry.state.spec.resources.ranks;
        let phase = entry.state.phase().map(|phase| phase.id.clone()).unwrap_or_default();
        self.commit(id, Change::AttemptStarted { attempt, phase, world }, "devices are free", now);
        if let Some(entry) = self.jobs.get_mut(id) {
            entry.run = Some(Run::new(&entry.state, attempt, self.term, self.deadlines, now));
        }
    }

    /// Fills the attempt's vacant seats as far as devices go; true where that was all of them.
    fn seat(&mut self, id: &str, kind: &str, now: Now) -> bool {
        let Some(vacant) = self.with_run(id, |run, _| run.vacancies()) else { return true };
        for rank in vacant {
            let Some(place) = self.cluster.find(kind, 1).and_then(|places| places.into_iter().next()) else {
                return false;
            };
            let Some((session, effect)) = self.with_run(id, |run, _| run.fill(rank, place.clone(), now))
            else {
                return true;
            };
            self.cluster.hold(&place, &session);
            self.sessions.insert(session.clone(), id.to_owned());
            self.seated(id, rank, place, session, now);
            self.perform(id, effect, now);
        }
        true
    }

    /// Before the process is started, so that a later coordinator knows of it.
    fn seated(&mut self, id: &str, rank: usize, place: Place, session: String, now: Now) {
        let attempt = self.state(id).map_or(0, |state| state.attempt);
        let rank = u32::try_from(rank).unwrap_or(u32::MAX);
        let Place { agent, device } = place;
        let started = RankStarted { attempt, rank, session, agent, device };
        self.commit(id, Change::RankStarted(started), "a device is free", now);
    }

    fn wait(&mut self, id: &str, kind: &str, seats: usize, now: Now) {
        let known = self.cluster.devices(kind);
        let Some(entry) = self.jobs.get_mut(id) else { return };
        let waiting = entry.waiting.get_or_insert(Waiting { since: now.mono, told: false });
        if !waiting.told && now.since(waiting.since) >= PATIENCE {
            waiting.told = true;
            let text = match known < seats {
                true => format!("waiting for {seats} {kind} devices; the workers connected now have {known}"),
                false => {
                    format!("waiting for {seats} free {kind} devices; other jobs hold some of the {known}")
                }
            };
            self.tell_watchers(id, Level::Info, text, now);
        }
    }
}
