// All metrics over the rounds, in groups.
import { useMemo } from "preact/hooks";
import { Chart } from "../../chart/chart.jsx";
import { overoptimization, roundCharts } from "../../model/rounds.js";
import { Empty, Section } from "../../ui/widgets.jsx";
import type { TabProps } from "./page.jsx";
import { RoundsTable } from "./roundsTable.jsx";

export function RoundsTab({ job }: TabProps) {
  const groups = useMemo(() => roundCharts(job), [job.rounds, job.start, job.bestRound]);
  const over = useMemo(() => overoptimization(job), [job.rounds, job.start, job.bestRound]);
  if (groups.length === 0) return <Empty>No round has figures yet. The first come with the start policy's evaluation.</Empty>;
  return (
    <>
      <RoundsTable job={job} />
      <p class="legend-note">
        Error bars show one standard error; for a rate of 0 or 1, the 95 % interval. A ring marks the best round.
      </p>
      {groups.map((group) => (
        <Section key={group.name} title={group.name}>
          <div class="charts">
            {group.name === "Policy" && over && <Chart spec={over} />}
            {group.charts.map((spec) => (
              <Chart key={spec.id} spec={spec} />
            ))}
          </div>
        </Section>
      ))}
    </>
  );
}
