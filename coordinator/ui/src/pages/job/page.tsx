// The page of one job: its header, and tabs with its results.
import { useEffect, useMemo, useRef } from "preact/hooks";
import type { Job } from "../../../gen/foil/v1/jobs.js";
import { useSource } from "../../app/context.js";
import { useFeed } from "../../app/feed.js";
import { href, jobHref } from "../../app/router.js";
import type { JobView } from "../../model/feed.js";
import { stateName } from "../../model/job.js";
import { Failed, Loading } from "../../ui/widgets.jsx";
import { ArtifactsTab } from "./artifacts.jsx";
import { DataTab } from "./data.jsx";
import { DistributionsTab } from "./distributions.jsx";
import { JobHeader } from "./header.jsx";
import { LogsTab } from "./logs.jsx";
import { OverviewTab } from "./overview.jsx";
import { RoundsTab } from "./rounds.jsx";
import { SamplesTab } from "./samples.jsx";
import { SpecTab } from "./spec.jsx";
import { TimelineTab } from "./timeline.jsx";
import { TrainingTab } from "./training.jsx";

export interface TabProps {
  job: Job;
  view: JobView;
  /** Increases when there are new results. */
  version: number;
}

const TABS = [
  { id: "overview", name: "Overview", Tab: OverviewTab, inReport: true },
  { id: "rounds", name: "Rounds", Tab: RoundsTab, inReport: true },
  { id: "training", name: "Training", Tab: TrainingTab, inReport: true },
  { id: "rewards", name: "Rewards", Tab: DistributionsTab, inReport: true },
  { id: "samples", name: "Samples", Tab: SamplesTab, inReport: true },
  { id: "timeline", name: "Timeline", Tab: TimelineTab, inReport: true },
  { id: "logs", name: "Logs", Tab: LogsTab, inReport: false },
  { id: "data", name: "Data", Tab: DataTab, inReport: true },
  { id: "artifacts", name: "Artifacts", Tab: ArtifactsTab, inReport: true },
  { id: "spec", name: "Job file", Tab: SpecTab, inReport: true },
];

export function JobPage({ id, tab }: { id: string; tab: string }) {
  const source = useSource();
  const feed = useFeed(source, id);
  const job = feed.view?.job;
  useEffect(() => {
    document.title = `${job ? `${job.name || id} (${stateName(job.state)})` : id} · Foil`;
  }, [job?.name, job?.state, id]);
  const nav = useRef<HTMLElement>(null);
  const loaded = feed.view !== undefined;
  useEffect(() => {
    const link = nav.current?.querySelector<HTMLElement>("[aria-current]");
    if (nav.current && link) nav.current.scrollLeft = link.offsetLeft - nav.current.offsetLeft - 60;
  }, [tab, loaded]);
  const tabs = useMemo(() => TABS.filter((one) => source.kind === "live" || one.inReport), [source]);
  if (!feed.view) {
    return (
      <main id="main" tabIndex={-1}>
        <p>
          <a href={href("/")} data-route="1">
            ← Jobs
          </a>
        </p>
        {feed.problem ? <Failed problem={feed.problem} /> : <Loading what="the job" />}
      </main>
    );
  }
  const shown = tabs.find((one) => one.id === tab) ?? tabs[0]!;
  return (
    <main id="main" tabIndex={-1}>
      <JobHeader view={feed.view} problem={feed.problem} />
      <nav class="tabs" aria-label="Parts of the job" ref={nav}>
        {tabs.map((one) => (
          <a key={one.id} href={jobHref(id, one.id)} data-route="1" aria-current={one === shown ? "page" : undefined}>
            {one.name}
          </a>
        ))}
      </nav>
      <shown.Tab job={feed.view.job} view={feed.view} version={feed.version} />
    </main>
  );
}
