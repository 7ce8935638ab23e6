// The main figures of each round.
import { useMemo } from "preact/hooks";
import type { Job } from "../../../gen/foil/v1/jobs.js";
import { bestText } from "../../model/best.js";
import { roundTable } from "../../model/roundTable.js";
import { Table } from "../../ui/table.jsx";

export function RoundsTable({ job }: { job: Job }) {
  const { columns, rows } = useMemo(() => roundTable(job), [job.rounds, job.start, job.bestRound]);
  const best = bestText(job);
  if (rows.length === 0) return null;
  return (
    <Table
      label="Main figures of each round, with standard errors"
      tall
      shown={1000}
      rows={rows}
      rowKey={(row) => row.round}
      rowClass={(row) => (row.best ? "best" : "")}
      columns={[
        {
          head: "Round",
          cell: (row) => (
            <>
              {row.round === 0 ? "start" : row.round} {row.best && <span class="tag">best</span>}
            </>
          ),
        },
        ...columns.map(({ head, title }, i) => ({ head, title, class: "number", cell: (row: (typeof rows)[number]) => row.cells[i] })),
      ]}
    >
      {best && <p class="table-note">{best}</p>}
    </Table>
  );
}
