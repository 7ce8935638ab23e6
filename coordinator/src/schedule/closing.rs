//! The end of an attempt: its ranks are stopped and reaped, then its cause is known.

use std::time::Duration;

use foil_proto::v1;
use foil_proto::v1::rank_command::Command;

use super::blame::{Symptom, cause};
use super::{Decision, Effect, Run, Slot};
use crate::clock::Now;
use crate::job::{Cause, CauseClass, Change};

/// An attempt that is ending. It is over when every seat is vacant.
#[derive(Debug)]
pub(super) struct Closing {
    /// When ranks that still live are killed.
    kill_at: Duration,
    ending: Ending,
}

#[derive(Debug)]
enum Ending {
    /// The log is told when all ranks are gone, with the best of what was seen.
    Failing {
        symptoms: Vec<Symptom>,
        poison: Option<String>,
        hopeless: bool,
        /// A worker's fault counts like the job's own.
        charged: bool,
    },
    Cancelling,
    /// Its devices are better used by others.
    GivingWay,
    /// The log knows already.
    Recorded,
}

impl Run {
    /// Stops all ranks because a user asked for it.
    pub fn cancel(&mut self, now: Now) {
        let recorded = matches!(&self.closing, Some(Closing { ending: Ending::Recorded, .. }));
        if !recorded {
            self.closing = Some(Closing { kill_at: now.mono, ending: Ending::Cancelling });
        }
    }

    /// Ends the attempt, without blame, where it waits for ranks that there is no room for: its gang cannot begin, and what
    /// it holds is held for nothing. Elsewhere it goes on.
    pub fn give_way(&mut self, now: Now) {
        if self.gathers() && self.closing.is_none() {
            self.closing = Some(Closing { kill_at: now.mono, ending: Ending::GivingWay });
        }
    }

    /// True when the attempt has no process left and the log knows its end.
    pub fn is_over(&self) -> bool {
        matches!(&self.closing, Some(Closing { ending: Ending::Recorded, .. })) && self.is_empty()
    }

    fn is_empty(&self) -> bool {
        self.slots.iter().all(|slot| matches!(slot, Slot::Vacant))
    }

    /// The attempt failed; another may follow.
    pub(super) fn fail(&mut self, symptom: Symptom, now: Now) {
        self.begin_failing(symptom, None, false, now);
    }

    /// The attempt failed, and so would every other.
    pub(super) fn give_up(&mut self, symptom: Symptom, poison: Option<String>, now: Now) {
        self.begin_failing(symptom, poison, true, now);
    }

    fn begin_failing(&mut self, symptom: Symptom, poison: Option<String>, hopeless: bool, now: Now) {
        let ending = Ending::Failing { symptoms: vec![symptom], poison, hopeless, charged: false };
        self.closing = Some(Closing { kill_at: now.mono + self.deadlines.settling, ending });
    }

    /// No other agent could have done better: what the last one is to blame for counts like any other loss.
    pub fn charge(&mut self, now: Now) {
        if let Some(closing) = &mut self.closing {
            if let Ending::Failing { charged, .. } = &mut closing.ending {
                *charged = true;
            }
        } else if let Some(symptom) = self.excused.take() {
            self.count_loss(symptom, now);
        }
    }

    /// One more thing seen while the attempt breaks.
    pub(super) fn note(&mut self, symptom: Symptom) {
        if let Some(Closing { ending: Ending::Failing { symptoms, .. }, .. }) = &mut self.closing {
            symptoms.push(symptom);
        }
    }

    /// A rank's own word that no other attempt would do better: nothing is waited for but the ranks' deaths, which bring
    /// their last log lines.
    pub(super) fn fail_at_once(&mut self, symptom: Symptom, now: Now, out: &mut Decision) {
        out.because(format!("rank {} failed for good: {}", symptom.rank, symptom.sign));
        self.begin_failing(symptom, None, false, now);
        if let Some(closing) = &mut self.closing {
            closing.kill_at = now.mono;
        }
    }

    /// The last phase is committed: ranks may end by themselves.
    pub(super) fn complete(&mut self, now: Now, out: &mut Decision) {
        for slot in &self.slots {
            if let Slot::Up { process, .. } = slot {
                let command = Command::Exit(v1::RankExit {});
                out.effects.push(Effect::Tell { session: process.session.clone(), command });
            }
        }
        let cause = Cause::new(CauseClass::Completed, "every phase is committed");
        out.because(cause.message.clone());
        out.changes.push(Change::AttemptEnded { attempt: self.attempt, cause });
        self.closing = Some(Closing { kill_at: now.mono + self.deadlines.exit, ending: Ending::Recorded });
    }

    pub(super) fn close(&mut self, now: Now, out: &mut Decision) {
        let Some(kill_at) = self.closing.as_ref().map(|closing| closing.kill_at) else { return };
        if now.mono >= kill_at {
            for rank in 0..self.slots.len() {
                self.take_down(rank, now, out);
            }
        }
        if !self.is_empty() {
            return;
        }
        let Some(closing) = &mut self.closing else { return };
        let cause = match std::mem::replace(&mut closing.ending, Ending::Recorded) {
            Ending::Recorded => return,
            Ending::Cancelling => Cause::new(CauseClass::Cancelled, "cancelled"),
            Ending::GivingWay => Cause::new(
                CauseClass::Preempted,
                "the workers left have fewer devices than the job has ranks; it holds none while it waits for more",
            ),
            Ending::Failing { symptoms, poison, hopeless, charged } => {
                let mut cause = cause(&self.phase_id, &symptoms);
                if charged && cause.class == CauseClass::Worker {
                    cause.class = CauseClass::Crash;
                }
                if let Some(poison) = poison {
                    cause.message =
                        format!("{poison} ended every rank that tried it; at last {}", cause.message);
                }
                if hopeless {
                    cause.detail.last_class = Some(cause.class);
                    cause.class = CauseClass::NoProgress;
                }
                cause
            }
        };
        out.because(format!("all ranks of attempt {} are gone: {}", self.attempt, cause.message));
        out.changes.push(Change::AttemptEnded { attempt: self.attempt, cause });
    }
}
