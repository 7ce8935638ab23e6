//! Gang phases: all ranks step together; the loss of any ends the attempt.

use foil_proto::v1;
use foil_proto::v1::rank_command::Command;
use serde_json::{Map as JsonMap, Value};

use super::blame::Sign;
use super::checkpoints::{self, Shares};
use super::map::of_stage;
use super::pulse::Pulse;
use super::task::{self, gang_prefix, inherited};
use super::{Busy, Decision, Effect, Refusal, Run, Slot, Stage, truthful};
use crate::clock::Now;
use crate::job::JobState;
use crate::plan::Phase;

/// The current gang phase.
#[derive(Debug)]
pub(super) struct Gang {
    steps: u64,
    pub(super) state: GangState,
    /// Rank 0's step reports, one JSON object per line.
    pub(super) lines: String,
    last: Option<v1::StepReport>,
    pub(super) shares: Shares,
    /// Where rank 0 waits for the others, once it has said so.
    pub(super) meeting: Option<v1::Rendezvous>,
}

/// ```text
///   Gathering ──all ranks idle──▶ Stepping ──all results in──▶ Sealing ──steps durable──▶ committed
///                                    ▲
///   Adopted ──────all ranks here──────┘
/// ```
#[derive(Debug)]
pub(super) enum GangState {
    Gathering,
    /// Begun by a coordinator before this one, perhaps: ranks say so as they come.
    Adopted,
    Stepping,
    Sealing {
        artifact: v1::Artifact,
        metrics: Vec<v1::Metric>,
    },
}

/// A rank's part in a gang.
#[derive(Debug)]
pub struct Member {
    pub(super) pulse: Pulse,
    step: u64,
    pub(super) result: Option<v1::GangResult>,
}

impl Member {
    pub(super) fn new(now: Now) -> Self {
        Self { pulse: Pulse::new(now), step: 0, result: None }
    }
}

impl Gang {
    pub(super) fn new(phase: &Phase) -> Self {
        Self {
            steps: phase.steps.into(),
            state: GangState::Gathering,
            lines: String::new(),
            last: None,
            shares: Shares::default(),
            meeting: None,
        }
    }

    pub(super) fn adopt(&mut self) {
        self.state = GangState::Adopted;
    }

    /// True while the loss of a rank breaks it.
    pub(super) fn is_stepping(&self) -> bool {
        matches!(self.state, GangState::Stepping | GangState::Adopted)
    }

    fn steps_done(&self, phase: &Phase) -> v1::PhaseProgress {
        let last = self.last.clone().unwrap_or_default();
        v1::PhaseProgress {
            phase: phase.id.clone(),
            done: last.step,
            total: if last.steps > 0 { last.steps } else { self.steps },
            unit: phase.work.unit().to_owned(),
            step: last.figures,
        }
    }
}

impl Run {
    /// Whether a gang waits for ranks before it begins.
    pub(super) fn gathers(&self) -> bool {
        matches!(&self.stage, Stage::Gang(Gang { state: GangState::Gathering, .. }))
    }

    /// As rank 0 tells it: what it is at around the steps, or the steps.
    pub(super) fn gang_progress(&self, phase: &Phase) -> Option<v1::PhaseProgress> {
        let Stage::Gang(gang) = &self.stage else { return None };
        let stage = match self.slots.first() {
            Some(Slot::Up { busy: Busy::Gang(member), .. }) => member.pulse.stage(),
            _ => None,
        };
        Some(stage.map_or_else(|| gang.steps_done(phase), |stage| of_stage(phase, stage)))
    }

    pub(super) fn advance_gang(&mut self, state: &JobState, now: Now, out: &mut Decision) {
        let (Some(phase), Stage::Gang(gang)) = (state.phase(), &self.stage) else { return };
        match gang.state {
            GangState::Gathering if self.slots.iter().all(Slot::is_idle) => {
                self.launch(state, phase, now, out);
            }
            // Those who were told before it died are at it, and wait for the others.
            GangState::Adopted if self.slots.iter().all(Slot::is_free_for_gang) => {
                self.launch(state, phase, now, out);
            }
            GangState::Gathering | GangState::Adopted => self.clear_obsolete(now, out),
            GangState::Stepping => {
                self.seal(state, phase, now, out);
                self.hung_gang(state, now, out);
            }
            GangState::Sealing { .. } => {}
        }
    }

    fn launch(&mut self, state: &JobState, phase: &Phase, now: Now, out: &mut Decision) {
        let task = match task::gang_task(state, phase) {
            Ok(task) => task,
            Err(error) => return self.cannot_plan(0, &error, now, out),
        };
        let (world, attempt) = (self.world(), self.attempt);
        let key_prefix = gang_prefix(&self.job, &phase.id, attempt);
        for (rank, slot) in (0..).zip(&mut self.slots) {
            let Slot::Up { process, busy: busy @ Busy::Idle } = slot else { continue };
            *busy = Busy::Gang(Member::new(now));
            let run = v1::RunGang {
                task: Some(task.clone()),
                attempt,
                rank,
                world,
                key_prefix: key_prefix.clone(),
                resume: state.checkpoints.last().cloned(),
            };
            out.effects.push(Effect::Tell { session: process.session.clone(), command: Command::Gang(run) });
        }
        if let Stage::Gang(gang) = &mut self.stage {
            gang.state = GangState::Stepping;
        }
        self.progressed = true;
        out.because(format!("all {world} ranks are here: {} starts", phase.id));
    }

    /// A gang cannot wait for a rank that computes a chunk which another has finished.
    fn clear_obsolete(&mut self, now: Now, out: &mut Decision) {
        if now.since(self.phase_since) < self.deadlines.obsolete {
            return;
        }
        for rank in 0..self.slots.len() {
            if matches!(self.slots.get(rank), Some(Slot::Up { busy: Busy::Chunk(_), .. })) {
                out.because(format!(
                    "rank {rank} still computes a chunk that is done: its process is replaced"
                ));
                self.take_down(rank, now, out);
            }
        }
    }

    pub(super) fn step_report(
        &mut self,
        state: &JobState,
        rank: usize,
        report: v1::StepReport,
        now: Now,
    ) -> Result<(), Refusal> {
        if self.expect_phase(state, &report.phase, report.attempt)?.is_none() {
            return Ok(());
        }
        let (Some(Slot::Up { busy: Busy::Gang(member), .. }), Stage::Gang(gang)) =
            (self.slots.get_mut(rank), &mut self.stage)
        else {
            return Ok(());
        };
        let v1::StepReport { step, steps, .. } = report;
        if step <= member.step || step > steps {
            let text = format!("step {step} of {steps} does not come after step {}", member.step);
            return Err(Refusal::Untrue(text));
        }
        member.pulse.beat(now);
        member.step = step;
        if rank == 0 {
            gang.lines.push_str(&line(state, &report));
            gang.lines.push('\n');
            gang.last = Some(report);
            self.progressed = true;
        }
        Ok(())
    }

    pub(super) fn rendezvous(
        &mut self,
        state: &JobState,
        rank: usize,
        offer: v1::RendezvousOffer,
        now: Now,
        out: &mut Decision,
    ) -> Result<(), Refusal> {
        if self.expect_phase(state, &offer.phase, offer.attempt)?.is_none() {
            return Ok(());
        }
        if rank != 0 {
            return Err(Refusal::Invalid(format!("rank {rank} offers a rendezvous, which is rank 0's part")));
        }
        let v1::RendezvousOffer { phase, attempt, host, port } = offer;
        let rendezvous = v1::Rendezvous { phase, attempt, host, port };
        if let Stage::Gang(gang) = &mut self.stage {
            gang.meeting = Some(rendezvous.clone());
        }
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let Slot::Up { process, busy: Busy::Gang(member) } = slot else { continue };
            if index == 0 {
                member.pulse.beat(now);
                continue;
            }
            let command = Command::Rendezvous(rendezvous.clone());
            out.effects.push(Effect::Tell { session: process.session.clone(), command });
        }
        Ok(())
    }

    pub(super) fn gang_result(
        &mut self,
        state: &JobState,
        rank: usize,
        result: v1::GangResult,
        flaw: Option<&str>,
        now: Now,
    ) -> Result<(), Refusal> {
        let Some(phase) = self.expect_phase(state, &result.phase, result.attempt)? else { return Ok(()) };
        let prefix = gang_prefix(&self.job, &phase.id, self.attempt);
        let inherited = inherited(state, phase);
        let own = |object: &v1::Object| object.key.strip_prefix(&prefix) == Some(object.path.as_str());
        let foreign = |object: &&v1::Object| !own(object) && !inherited.contains(object);
        if let Some(object) = result.objects.iter().find(foreign) {
            let text = format!("{} is not where {} of {prefix} belongs", object.key, object.path);
            return Err(Refusal::Untrue(text));
        }
        truthful(flaw)?;
        if rank == 0 && result.objects.is_empty() {
            return Err(Refusal::Untrue(format!("rank 0 ended {} without an object", phase.id)));
        }
        if let Some(Slot::Up { busy: Busy::Gang(member), .. }) = self.slots.get_mut(rank) {
            member.pulse.beat(now);
            member.result = Some(result);
        }
        Ok(())
    }

    /// No rank has moved for too long: the one furthest behind is named.
    fn hung_gang(&mut self, state: &JobState, now: Now, out: &mut Decision) {
        let Stage::Gang(Gang { state: GangState::Stepping, .. }) = self.stage else { return };
        let limit = state.spec.resources.hang_timeout;
        let members = || {
            self.slots.iter().enumerate().filter_map(|(rank, slot)| match slot {
                Slot::Up { busy: Busy::Gang(member), .. } => Some((rank, member)),
                _ => None,
            })
        };
        let Some(latest) = members().map(|(_, member)| member.pulse.moved()).max() else { return };
        if self.closing.is_some() || now.since(latest) < limit {
            return;
        }
        let behind =
            members().min_by_key(|(_, member)| (member.result.is_some(), member.step, member.pulse.moved()));
        if let Some((rank, _)) = behind {
            self.lose(rank, Sign::Hang(limit), now, out);
        }
    }

    pub(super) fn task_failure(
        &mut self,
        state: &JobState,
        rank: usize,
        failure: v1::TaskFailure,
        now: Now,
        out: &mut Decision,
    ) {
        if failure.class == checkpoints::UNREADABLE && failure.phase == self.phase_id {
            self.lose_checkpoint(state, &failure, out);
        }
        let last_word = crate::job::CauseClass::of_task_failure(&failure.class).is_final();
        let current = failure.phase == self.phase_id && self.closing.is_none();
        let sign = Sign::Said(failure);
        if last_word && current {
            self.fail_at_once(self.symptom(rank, sign), now, out);
        } else {
            self.lose(rank, sign, now, out);
        }
    }

    /// The last step of the gang that a rank has told of.
    pub(super) fn step_of(&self, rank: usize) -> Option<u64> {
        match self.slots.get(rank) {
            Some(Slot::Up { busy: Busy::Gang(member), .. }) => Some(member.step),
            _ => None,
        }
    }

    pub(super) fn expect_phase<'a>(
        &self,
        state: &'a JobState,
        phase: &str,
        attempt: u32,
    ) -> Result<Option<&'a Phase>, Refusal> {
        let current = state.phase().filter(|current| current.work.is_gang() && current.id == phase);
        match current {
            Some(current) if attempt == self.attempt => Ok(Some(current)),
            // To a new leader, ranks tell again what they told the one before, which may have gone on from there.
            None if attempt == self.attempt && state.done(phase).is_some() => Ok(None),
            _ => Err(Refusal::Invalid(format!("{phase} of attempt {attempt} is not what runs now"))),
        }
    }
}

/// A step's line in metrics.jsonl.
fn line(state: &JobState, report: &v1::StepReport) -> String {
    let mut object = JsonMap::new();
    object.insert("phase".to_owned(), report.phase.clone().into());
    object.insert("round".to_owned(), state.phase().map_or(0, |phase| phase.round).into());
    object.insert("attempt".to_owned(), report.attempt.into());
    object.insert("step".to_owned(), report.step.into());
    object.insert("steps".to_owned(), report.steps.into());
    for figure in &report.figures {
        object.insert(figure.name.clone(), figure.value.into());
    }
    Value::Object(object).to_string()
}
