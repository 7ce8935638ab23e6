//! The end of a gang phase: what all ranks agree on becomes an artifact.

use foil_proto::v1;

use super::blame::Sign;
use super::gang::GangState;
use super::map::finite;
use super::task::{gang_prefix, inherited};
use super::{Busy, Decision, Effect, Level, Run, Slot, Stage};
use crate::clock::Now;
use crate::job::{Change, Committed, JobState};
use crate::plan::Phase;

impl Run {
    /// When every rank has answered: compares their parameters and writes the step figures.
    pub(super) fn seal(&mut self, state: &JobState, phase: &Phase, now: Now, out: &mut Decision) {
        let results: Option<Vec<&v1::GangResult>> = self
            .slots
            .iter()
            .map(|slot| match slot {
                Slot::Up { busy: Busy::Gang(member), .. } => member.result.as_ref(),
                _ => None,
            })
            .collect();
        let Some(first) = results.as_ref().and_then(|results| results.first()) else { return };
        let odd =
            results.iter().flatten().position(|result| result.parameters_blake3 != first.parameters_blake3);
        let metrics = finite(first.metrics.clone());
        let mut objects = first.objects.clone();
        let carried = inherited(state, phase).into_iter();
        let carried: Vec<_> =
            carried.filter(|kept| objects.iter().all(|object| object.path != kept.path)).collect();
        objects.extend(carried);
        if let Some(rank) = odd {
            out.because(format!("rank {rank} ended {} with other parameters than rank 0", phase.id));
            out.notice(
                Level::Error,
                format!("determinism alarm: ranks ended {} with different parameters", phase.id),
            );
            return self.fail(self.symptom(rank, Sign::Diverged), now);
        }
        let artifact = self.artifact(phase, objects);
        for slot in &mut self.slots {
            if let Slot::Up { busy, .. } = slot {
                *busy = Busy::Idle;
            }
        }
        let key = format!("{}metrics.jsonl", gang_prefix(&self.job, &phase.id, self.attempt));
        if let Stage::Gang(gang) = &mut self.stage {
            let body = std::mem::take(&mut gang.lines);
            out.effects.push(Effect::WriteSteps { phase: phase.id.clone(), key, body });
            gang.state = GangState::Sealing { artifact, metrics };
        }
        out.because(format!("all ranks ended {} with the same parameters", phase.id));
    }

    pub(super) fn steps_written(
        &mut self,
        state: &JobState,
        phase: &str,
        result: Result<v1::Object, String>,
        now: Now,
        out: &mut Decision,
    ) {
        let (Some(current), Stage::Gang(gang)) = (state.phase(), &self.stage) else { return };
        let GangState::Sealing { artifact, metrics } = &gang.state else { return };
        if current.id != phase || self.closing.is_some() {
            return;
        }
        let object = match result {
            Ok(object) => object,
            Err(error) => return self.fail(self.symptom(0, Sign::StoreFailed(error)), now),
        };
        let steps = v1::Artifact {
            name: format!("metrics/{phase}"),
            kind: "metrics".to_owned(),
            objects: vec![object],
            ..artifact.clone()
        };
        let committed = Committed {
            phase: phase.to_owned(),
            artifact: artifact.clone(),
            metrics: metrics.clone(),
            seconds: now.since(self.phase_since).as_secs_f64(),
            steps: Some(steps),
        };
        out.because(format!("the step figures of {phase} are durable"));
        out.changes.push(Change::PhaseCommitted(Box::new(committed)));
    }
}
