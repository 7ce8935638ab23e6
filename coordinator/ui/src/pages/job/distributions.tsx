// The distribution of rewards in a round, and the calibration of the reward model.
import { useMemo, useState } from "preact/hooks";
import { useSource } from "../../app/context.js";
import { useAnswer } from "../../app/poll.js";
import { Chart } from "../../chart/chart.jsx";
import { histogramCharts, reliabilityChart } from "../../model/distributions.js";
import { RoundPicker } from "../../ui/rounds.jsx";
import { Empty, Failed, Hash, Loading } from "../../ui/widgets.jsx";
import type { TabProps } from "./page.jsx";

export function DistributionsTab({ job, version }: TabProps) {
  const source = useSource();
  const [wanted, setWanted] = useState<number>();
  const answer = useAnswer(
    (signal) => source.distributions({ jobId: job.id, rounds: wanted === undefined ? [] : [wanted] }, signal),
    [job.id, wanted, version],
  );
  const available = answer.value?.availableRounds ?? [];
  const rounds = answer.value?.rounds ?? [];
  const round = (wanted === undefined ? undefined : rounds.find((one) => one.round === wanted)) ?? rounds[rounds.length - 1];
  const charts = useMemo(() => {
    if (!round) return [];
    const reliability = reliabilityChart(round);
    return [...(reliability ? [reliability] : []), ...histogramCharts(round)];
  }, [round]);
  const known = available.length > 0 ? available : rounds.map((one) => one.round);
  return (
    <>
      {answer.problem && <Failed problem={answer.problem} again={answer.again} />}
      {!answer.value && answer.loading && <Loading what="the distributions" />}
      {answer.value && rounds.length === 0 && <Empty>No reward model has been evaluated yet.</Empty>}
      {round && (
        <>
          <div class="toolbar">
            <RoundPicker rounds={known} value={round.round} best={job.bestRound} onChange={setWanted} />
            {round.reward && (
              <span class="muted">
                {round.reward.artifact} <Hash value={round.reward.blake3} />
              </span>
            )}
            <span class="muted">Rewards of one round are by one reward model; those of different rounds cannot be compared.</span>
          </div>
          <div class="charts">
            {charts.map((spec) => (
              <Chart key={spec.id} spec={spec} height={260} />
            ))}
          </div>
        </>
      )}
    </>
  );
}
