// An overview of the job: rounds, the main curves, the timeline, the last events.
import { useMemo } from "preact/hooks";
import { Chart } from "../../chart/chart.jsx";
import { overoptimization, roundCharts } from "../../model/rounds.js";
import { jobHref } from "../../app/router.js";
import { counted } from "../../model/format.js";
import { LongText } from "../../ui/text.jsx";
import { Empty, Section } from "../../ui/widgets.jsx";
import { Events } from "./events.jsx";
import type { TabProps } from "./page.jsx";
import { RoundsTable } from "./roundsTable.jsx";
import { Lanes } from "./lanes.jsx";
import { useTimeline } from "./timeline.jsx";

const MAIN = ["accuracy", "gain", "gold", "kl"];

export function OverviewTab({ job, view, version }: TabProps) {
  const charts = useMemo(() => {
    const all = roundCharts(job).flatMap((group) => group.charts);
    const main = MAIN.flatMap((id) => all.find((chart) => chart.id === id) ?? []);
    const over = overoptimization(job);
    return over ? [main[0]!, ...main.slice(1), over].filter((chart) => chart !== undefined) : main;
  }, [job.rounds, job.start, job.bestRound]);
  const timeline = useTimeline(job, view, version);
  const link = (tab: string, name: string) => (
    <a href={jobHref(job.id, tab)} data-route="1">
      {name}
    </a>
  );
  const lines = (texts: string[]) =>
    texts.map((text) => (
      <li key={text}>
        <LongText text={text} />
      </li>
    ));
  return (
    <>
      {timeline.alarms.length > 0 && (
        <ul class="note warning alarms" aria-label="Warnings">
          {lines(timeline.alarms)}
        </ul>
      )}
      {job.warnings.length > 0 && (
        <details class="note warning">
          <summary>{counted(job.warnings.length, "warning")} of the submission</summary>
          <ul>{lines(job.warnings)}</ul>
        </details>
      )}
      <Section title="Rounds" aside={job.rounds.length > 0 && link("rounds", "All curves")}>
        {job.rounds.length === 0 && job.start.length === 0 ? (
          <Empty>No round has figures yet. The first come with the start policy's evaluation; steps are under {link("training", "Training")} as they come.</Empty>
        ) : (
          <RoundsTable job={job} />
        )}
      </Section>
      {charts.length > 0 && (
        <div class="charts">
          {charts.map((spec) => (
            <Chart key={spec.id} spec={spec} />
          ))}
        </div>
      )}
      <Section title="Timeline" aside={link("timeline", "Attempts and checkpoints")}>
        <Lanes spans={timeline.spans} entries={view.entries} />
      </Section>
      {view.entries.length > 0 && (
        <Section title="Last events">
          <Events entries={view.entries} last={8} />
        </Section>
      )}
    </>
  );
}
