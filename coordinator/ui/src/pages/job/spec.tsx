// The submitted job file with all defaults.
import { useMemo } from "preact/hooks";
import { JobSpec } from "../../../gen/foil/v1/jobs.js";
import { yaml } from "../../model/yaml.js";
import { download } from "../../ui/download.js";
import { visible } from "../../ui/text.jsx";
import { Empty, Hash } from "../../ui/widgets.jsx";
import type { TabProps } from "./page.jsx";

export function SpecTab({ job }: TabProps) {
  const text = useMemo(() => (job.spec ? yaml(JobSpec.toJson(job.spec, { useProtoFieldName: true })) : ""), [job.spec]);
  if (text === "") return <Empty>The specification is not here.</Empty>;
  return (
    <>
      <div class="toolbar">
        <button type="button" onClick={() => download(`${job.name || "job"}.yaml`, "text/yaml", `${text}\n`)}>
          Download
        </button>
        <span class="muted">
          All defaults are filled in. Jobs with an equal hash have equal results: <Hash value={job.specBlake3} />
        </span>
      </div>
      <pre class="card code" tabIndex={0} dir="ltr">
        {visible(text)}
      </pre>
    </>
  );
}
