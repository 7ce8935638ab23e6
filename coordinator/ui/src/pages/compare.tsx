// Compares the runs of a report on the same axes.
import { useEffect, useMemo, useState } from "preact/hooks";
import type { Report } from "../../gen/foil/v1/results.js";
import { jobHref } from "../app/router.js";
import { Chart } from "../chart/chart.jsx";
import { armRows, armsOf, compareCharts, type Arm, type ArmRow } from "../model/compare.js";
import { counted, NONE } from "../model/format.js";
import { outline } from "../model/job.js";
import { roundTable } from "../model/roundTable.js";
import { KINDS, stepCharts, stepKinds } from "../model/steps.js";
import { Table } from "../ui/table.jsx";
import { Empty, Section, StateBadge } from "../ui/widgets.jsx";

export function ComparePage({ report }: { report: Report }) {
  const arms = useMemo(() => armsOf(report.runs), [report]);
  const count = arms.reduce((sum, arm) => sum + arm.runs.length, 0);
  const [perRun, setPerRun] = useState(false);
  const [kind, setKind] = useState("");
  const groups = useMemo(() => compareCharts(arms, perRun), [arms, perRun]);
  const runSteps = useMemo(() => {
    const names = new Map(arms.flatMap((arm) => arm.runs.map((run) => [run.job.id, run.name])));
    return report.runs.map((run) => ({ key: run.job?.id ?? "", label: names.get(run.job?.id ?? "") ?? "", phases: run.steps?.phases ?? [] }));
  }, [arms]);
  const kinds = stepKinds(runSteps.flatMap((run) => run.phases));
  const steps = useMemo(() => (kinds.includes(kind) ? stepCharts(runSteps, kind) : []), [runSteps, kind]);
  useEffect(() => {
    document.title = `${report.title || "Comparison"} · Foil`;
  }, []);
  const several = arms.some((arm) => arm.runs.length > 1);
  return (
    <main id="main" tabIndex={-1}>
      <h1>
        <bdi>{report.title || "Comparison"}</bdi>
      </h1>
      <p class="lead">
        {counted(arms.length, "arm")}, {counted(count, "run")}
      </p>
      <Arms arms={arms} />
      {several && (
        <div class="toolbar">
          <div class="segments" role="group" aria-label="Lines">
            <button type="button" aria-pressed={!perRun} onClick={() => setPerRun(false)}>
              Arms
            </button>
            <button type="button" aria-pressed={perRun} onClick={() => setPerRun(true)}>
              Runs
            </button>
          </div>
          <span class="muted">
            {perRun ? "One line per run; error bars show one standard error." : "Lines are means over seeds; bands are 95 % confidence intervals of the mean (Student's t)."}
          </span>
        </div>
      )}
      {groups.length === 0 && <Empty>These runs have no figures.</Empty>}
      {groups.map((group) => (
        <Section key={group.name} title={group.name}>
          <div class="charts">
            {group.charts.map((spec) => (
              <Chart key={spec.id} spec={spec} />
            ))}
          </div>
        </Section>
      ))}
      {kinds.length > 0 && (
        <Section title="Training steps">
          <div class="segments" role="group" aria-label="Kind of phase">
            {kinds.map((one) => (
              <button type="button" key={one} aria-pressed={one === kind} onClick={() => setKind(one === kind ? "" : one)}>
                {KINDS[one] ?? one}
              </button>
            ))}
          </div>
          <div class="charts">
            {steps.map((spec) => (
              <Chart key={`${kind}-${spec.id}`} spec={spec} />
            ))}
          </div>
        </Section>
      )}
    </main>
  );
}

/** The main figures of the last round, for each arm over its seeds, and for each run. */
function Arms({ arms }: { arms: Arm[] }) {
  const runs = arms.flatMap((arm) => arm.runs.map((run) => ({ run, table: roundTable(run.job) })));
  const heads = [...new Map(runs.flatMap(({ table }) => table.columns.map((column) => [column.head, column] as const))).values()];
  const rows = armRows(arms);
  const figures = heads.map(({ head, title }) => ({ head, title, class: "number", cell: (row: ArmRow) => row.figures.get(head) ?? NONE }));
  const lastOf = ({ table }: (typeof runs)[number]) => table.rows[table.rows.length - 1];
  return (
    <>
      <Table
        label="Arms: means over seeds of the last round, with 95 % intervals of the mean"
        rows={rows}
        rowKey={(row) => row.arm}
        columns={[{ head: "Arm", class: "nowrap", cell: (row) => <bdi>{row.arm}</bdi> }, { head: "Seeds", class: "number", cell: (row) => row.seeds }, { head: "Round", class: "number", cell: (row) => row.round }, ...figures]}
      >
        {rows.some((row) => row.seeds > 1) && <p class="table-note">Means over seeds in the last round that all seeds of the arm have, ± half the 95 % interval of the mean by Student's t.</p>}
      </Table>
      <details class="runs" open={runs.length <= 4}>
        <summary>Runs</summary>
        <Table
          label="Runs, with the figures of their last rounds"
          rows={runs}
          rowKey={({ run }) => run.job.id}
          columns={[
            {
              head: "Run",
              cell: ({ run }) => (
                <>
                  <a href={jobHref(run.job.id)} data-route="1">
                    <bdi>{run.name}</bdi>
                  </a>
                  <div class="sub">{outline(run.job)}</div>
                </>
              ),
            },
            { head: "State", cell: ({ run }) => <StateBadge state={run.job.state} /> },
            { head: "Seed", class: "number", cell: ({ run }) => run.seed },
            { head: "Round", class: "number", cell: (run) => lastOf(run)?.round || "start" },
            ...heads.map(({ head, title }) => ({
              head,
              title,
              class: "number",
              cell: (run: (typeof runs)[number]) => lastOf(run)?.cells[run.table.columns.findIndex((column) => column.head === head)] ?? NONE,
            })),
          ]}
        />
      </details>
    </>
  );
}
