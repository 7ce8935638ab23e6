// Artifacts with the hashes and sizes of their objects.
import { useMemo, useState } from "preact/hooks";
import type { Artifact } from "../../../gen/foil/v1/artifacts.js";
import { option, runDirectory } from "../../app/connection.js";
import { useSource } from "../../app/context.js";
import { useStore } from "../../app/store.js";
import { bytes, counted, NONE } from "../../model/format.js";
import { isEnded } from "../../model/job.js";
import { Table } from "../../ui/table.jsx";
import { Empty, Hash } from "../../ui/widgets.jsx";
import type { TabProps } from "./page.jsx";

const SHOWN = 60;

function size(artifact: Artifact): bigint {
  return artifact.objects.reduce((sum, object) => sum + object.size, 0n);
}

export function ArtifactsTab({ job }: TabProps) {
  const [kind, setKind] = useState("");
  const [shown, setShown] = useState(SHOWN);
  const kinds = useMemo(() => [...new Set(job.artifacts.map((artifact) => artifact.kind))], [job.artifacts]);
  const found = job.artifacts.filter((artifact) => kind === "" || artifact.kind === kind).toReversed();
  const total = found.reduce((sum, artifact) => sum + size(artifact), 0n);
  const [source, run] = [useSource(), useStore(runDirectory)];
  // The store of a finished run has no weights; they are in the run's directory.
  const command = run !== "" && isEnded(job) ? `export ${run}/policy@best DIR` : `pull ${job.name || job.id}/policy@best DIR${option(source)}`;
  return (
    <>
      {job.artifacts.length === 0 && <Empty>No phase has been committed yet.</Empty>}
      {kinds.length > 0 && (
        <div class="toolbar">
          <div class="chips" role="group" aria-label="Kinds">
            {["", ...kinds].map((one) => (
              <button type="button" key={one} class="chip" aria-pressed={one === kind} onClick={() => setKind(one)}>
                {one === "" ? "all" : one.replaceAll("_", " ")}
              </button>
            ))}
          </div>
          <span class="muted">
            {counted(found.length, "artifact")}
            {total > 0n && `, ${bytes(total)}`}. Fetch one with <code>foil {command}</code>
          </span>
        </div>
      )}
      {found.length > 0 && (
        <div class="card flush artifacts">
          {found.slice(0, shown).map((artifact) => (
            <ArtifactRow key={artifact.name} artifact={artifact} />
          ))}
          {found.length > shown && (
            <button type="button" class="table-more" onClick={() => setShown(shown + 5 * SHOWN)}>
              Show more of {found.length}
            </button>
          )}
        </div>
      )}
    </>
  );
}

function ArtifactRow({ artifact }: { artifact: Artifact }) {
  const objects = artifact.objects;
  return (
    <details class="artifact">
      <summary>
        <span class="mono grow">{artifact.name}</span>
        <span class="muted">{artifact.kind.replaceAll("_", " ")}</span>
        {objects.length > 0 && (
          <span class="number">
            {bytes(size(artifact))} <span class="muted">in {counted(objects.length, "object")}</span>
          </span>
        )}
      </summary>
      {objects.length === 0 && <p class="muted">The objects of this artifact are not listed here.</p>}
      {objects.length > 0 && (
        <Table
          label={`Objects of ${artifact.name}`}
          plain
          rows={objects}
          rowKey={(object) => object.key}
          columns={[
            { head: "File", class: "mono", cell: (object) => <bdi>{object.path || NONE}</bdi> },
            { head: "Size", class: "number", cell: (object) => bytes(object.size) },
            { head: "BLAKE3", cell: (object) => <Hash value={object.blake3} /> },
            { head: "Key", class: "mono wrap", cell: (object) => <bdi>{object.key}</bdi> },
          ]}
        />
      )}
    </details>
  );
}
