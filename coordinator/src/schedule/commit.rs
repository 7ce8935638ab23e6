//! The commit of a gang phase: the result that all ranks agree on becomes an artifact.

use foil_proto::v1;

use super::context::{Context, Problem};
use super::diagnosis::FailureSignal;
use super::gang::{GangPhase, GangState};
use super::map::finite;
use super::ranks::RankSet;
use super::task::inherited;
use super::{Effect, Level};
use crate::job::{Change, Committed};
use crate::plan::Phase;

impl GangPhase {
    /// Once every rank has reported its result, compares their parameters and writes the step metrics.
    pub(super) fn begin_commit(
        &mut self,
        phase: &Phase,
        ranks: &mut RankSet,
        cx: &mut Context<'_>,
    ) -> Result<(), Problem> {
        let results = ranks.numbers().map(|rank| ranks.member(rank)?.result.as_ref());
        let Some(results) = results.collect::<Option<Vec<_>>>() else { return Ok(()) };
        let Some(first) = results.first() else { return Ok(()) };
        if let Some(rank) =
            results.iter().position(|result| result.parameters_blake3 != first.parameters_blake3)
        {
            cx.out.because(format!("rank {rank} finished {} with other parameters than rank 0", phase.id));
            cx.out.notice(
                Level::Error,
                format!("determinism alarm: ranks finished {} with different parameters", phase.id),
            );
            return Err(Problem::attempt_failed(rank, FailureSignal::Diverged));
        }
        let metrics = finite(first.metrics.clone());
        let mut objects = first.objects.clone();
        let inherited = inherited(cx.state, phase).into_iter();
        let inherited: Vec<_> =
            inherited.filter(|kept| objects.iter().all(|object| object.path != kept.path)).collect();
        objects.extend(inherited);
        let artifact = cx.id.artifact(phase, objects);
        ranks.release_all();
        let key = format!("{}metrics.jsonl", cx.id.gang_prefix(&phase.id));
        let body = std::mem::take(&mut self.metric_lines);
        cx.out.effects.push(Effect::WriteSteps { phase: phase.id.to_string(), key, body });
        self.state = GangState::Committing { artifact, metrics };
        cx.out.because(format!("all ranks finished {} with the same parameters", phase.id));
        Ok(())
    }

    /// Handles the outcome of writing the step metrics: the phase is committed if they are durable.
    pub(super) fn steps_written(
        &mut self,
        phase: &str,
        result: Result<v1::Object, String>,
        cx: &mut Context<'_>,
    ) -> Result<(), Problem> {
        let GangState::Committing { artifact, metrics } = &self.state else { return Ok(()) };
        if self.id() != phase {
            return Ok(());
        }
        let object = result.map_err(|error| Problem::attempt_failed(0, FailureSignal::StoreFailed(error)))?;
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
            seconds: cx.now.since(self.since).as_secs_f64(),
            steps: Some(steps),
        };
        cx.out.because(format!("the step metrics of {phase} are durable"));
        cx.out.changes.push(Change::PhaseCommitted(Box::new(committed)));
        Ok(())
    }
}
