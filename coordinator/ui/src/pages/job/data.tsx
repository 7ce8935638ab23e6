// The data sets of a job, their sources and files.
import { count, fixed, NONE } from "../../model/format.js";
import { inputFiles, sources } from "../../model/data.js";
import { Table } from "../../ui/table.jsx";
import { Empty, Hash, Section } from "../../ui/widgets.jsx";
import type { TabProps } from "./page.jsx";

const words = (name: string) => name.replaceAll("_", " ");
const set = { head: "Set", cell: (row: { set: string }) => words(row.set) };

export function DataTab({ job }: TabProps) {
  const [sets, from, files] = [job.plan?.datasets ?? [], sources(job), inputFiles(job)];
  return (
    <>
      <Section title="Data sets">
        {sets.length === 0 && <Empty>The job has no data sets.</Empty>}
        <Table
          label="Data sets"
          rows={sets}
          rowKey={(set) => set.name}
          columns={[
            { head: "Set", cell: (set) => words(set.name) },
            { head: "Rows", class: "number", cell: (set) => count(set.rows) },
            { head: "Unusable", class: "number", cell: (set) => count(set.badRows) },
            { head: "First unusable rows", cell: (set) => <bdi>{set.firstBad.join("; ") || NONE}</bdi> },
            { head: "Ignored columns", cell: (set) => <bdi>{set.ignoredColumns.join(", ") || NONE}</bdi> },
          ]}
        />
      </Section>
      {from.length > 0 && (
        <Section title="Sources">
          <Table
            label="Sources"
            rows={from}
            rowKey={(row) => from.indexOf(row)}
            columns={[
              set,
              { head: "Source", cell: (row) => <bdi>{row.name}</bdi> },
              { head: "Rows", class: "number", cell: (row) => count(row.rows) },
              { head: "Share", class: "number", cell: (row) => `${fixed(100 * row.share, 1)} %` },
              { head: "Weight", class: "number", cell: (row) => row.weight ?? NONE },
              { head: "Left out", cell: (row) => row.dropped.map((one) => `${count(one.rows)} by ${one.reason}`).join(", ") || NONE },
            ]}
          />
        </Section>
      )}
      {files.length > 0 && (
        <Section title="Files">
          <Table
            label="Files"
            rows={files}
            rowKey={(row) => files.indexOf(row)}
            columns={[set, { head: "File", cell: (row) => <bdi>{row.name}</bdi> }, { head: "BLAKE3", cell: (row) => <Hash value={row.blake3} /> }]}
          />
        </Section>
      )}
    </>
  );
}
