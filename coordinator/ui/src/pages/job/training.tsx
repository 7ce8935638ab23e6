// The curves of training steps.
import { useMemo, useState } from "preact/hooks";
import { useSource } from "../../app/context.js";
import { useAnswer } from "../../app/poll.js";
import { Chart } from "../../chart/chart.jsx";
import { isEnded } from "../../model/job.js";
import { KINDS, pointsPerPhase, stepCharts, stepKinds } from "../../model/steps.js";
import { Empty, Failed, Loading } from "../../ui/widgets.jsx";
import type { TabProps } from "./page.jsx";

/** Milliseconds between two polls of the running phase. */
const POLL_MS = 3000;
const TRAINS = /(^|\.)(sft|train)$/;

export function TrainingTab({ job, version }: TabProps) {
  const source = useSource();
  const [wanted, setWanted] = useState<string>();
  const gangs = job.plan?.phases.filter((phase) => phase.steps > 0).length ?? job.rounds.length * 2;
  const maxPoints = pointsPerPhase(gangs);
  const all = useAnswer((signal) => source.steps({ jobId: job.id, maxPoints }, signal), [job.id, maxPoints, version, job.attempt]);
  const trains = !isEnded(job) && TRAINS.test(job.phase);
  const live = useAnswer(
    async (signal) => (trains ? await source.steps({ jobId: job.id, phases: [job.phase], maxPoints }, signal) : []),
    [job.id, job.phase, trains, maxPoints],
    { every: trains ? POLL_MS : undefined, keep: false },
  );
  const phases = useMemo(() => {
    const newer = new Map((live.value ?? []).map((phase) => [phase.phase, phase]));
    const known = (all.value ?? []).map((phase) => newer.get(phase.phase) ?? phase);
    const names = new Set(known.map((phase) => phase.phase));
    return [...known, ...[...newer.values()].filter((phase) => !names.has(phase.phase))];
  }, [all.value, live.value]);
  const kinds = stepKinds(phases);
  const kind = wanted !== undefined && kinds.includes(wanted) ? wanted : kinds[kinds.length - 1];
  const charts = useMemo(() => (kind === undefined ? [] : stepCharts([{ key: "run", label: KINDS[kind] ?? kind, phases }], kind)), [phases, kind]);
  return (
    <>
      {all.problem && <Failed problem={all.problem} again={all.again} />}
      {!all.value && all.loading && <Loading what="the curves" />}
      {all.value && kinds.length === 0 && <Empty>No phase has trained yet.</Empty>}
      {kinds.length > 0 && (
        <div class="toolbar">
          <div class="segments" role="group" aria-label="Kind of phase">
            {kinds.map((one) => (
              <button type="button" key={one} aria-pressed={one === kind} onClick={() => setWanted(one)}>
                {KINDS[one] ?? one}
              </button>
            ))}
          </div>
          <span class="muted">
            Lines show the mean of neighboring steps; bands, their minimum and maximum. Drag to zoom, double-click to reset.
          </span>
        </div>
      )}
      <div class="charts">
        {charts.map((spec) => (
          <Chart key={`${kind}-${spec.id}`} spec={spec} />
        ))}
      </div>
    </>
  );
}
