// The entry point of the pages, for a coordinator or for the report embedded in the page.
import "./css/base.css";
import "./css/layout.css";
import "./css/parts.css";
import "./css/chart.css";
import "./css/job.css";
import { render } from "preact";
import { useEffect, useState } from "preact/hooks";
import type { Report } from "../gen/foil/v1/results.js";
import { SourceContext } from "./app/context.js";
import { href, interceptLinks, useHashRoutes, useRoute, type Route } from "./app/router.js";
import { signIn } from "./app/session.js";
import { Shell, SignInPage } from "./app/shell.jsx";
import { useStore } from "./app/store.js";
import { initTheme } from "./app/theme.js";
import { millis } from "./model/time.js";
import { dateTime } from "./model/format.js";
import { ComparePage } from "./pages/compare.jsx";
import { JobPage } from "./pages/job/page.jsx";
import { JobsPage } from "./pages/jobs.jsx";
import { WorkersPage } from "./pages/workers.jsx";
import { liveSource } from "./source/live.js";
import { readReport, reportSource } from "./source/report.js";
import type { Source } from "./source/source.js";

const LIVE_LINKS = [
  { path: "/", name: "Jobs", page: "jobs" },
  { path: "/workers", name: "Workers", page: "workers" },
];

function Page({ route, report }: { route: Route; report: Report | undefined }) {
  useEffect(() => scrollTo(0, 0), [route.page, route.page === "job" ? route.id : ""]);
  switch (route.page) {
    case "jobs":
      return <JobsPage />;
    case "workers":
      return <WorkersPage />;
    case "compare":
      return report ? <ComparePage report={report} /> : <Missing />;
    case "job":
      return <JobPage key={route.id} id={route.id} tab={route.tab} />;
    case "unknown":
      return <Missing />;
  }
}

function Missing() {
  return (
    <main id="main" tabIndex={-1}>
      <h1>There is no such page</h1>
      <p>
        <a href={href("/")} data-route="1">
          To the jobs
        </a>
      </p>
    </main>
  );
}

function LiveApp({ source }: { source: Source }) {
  const route = useRoute();
  const { needed } = useStore(signIn);
  return (
    <SourceContext.Provider value={source}>
      <Shell links={LIVE_LINKS}>{needed ? <SignInPage /> : <Page route={route} report={undefined} />}</Shell>
    </SourceContext.Provider>
  );
}

function ReportApp({ source, report }: { source: Source; report: Report }) {
  const [links] = useState(() => {
    const jobs = { path: "/jobs", name: report.runs.length === 1 ? "Job" : "Runs", page: "jobs" };
    return report.runs.length > 1 ? [{ path: "/compare", name: "Comparison", page: "compare" }, jobs] : [jobs];
  });
  const route = useRoute();
  const only = report.runs.length === 1 ? report.runs[0]!.job : undefined;
  const atStart = route.page === "jobs" && location.hash.length < 2;
  const first: Route = only ? { page: "job", id: only.id, tab: "overview" } : { page: "compare" };
  const shown = atStart || (route.page === "jobs" && only) ? first : route;
  const created = millis(report.generatedAt);
  return (
    <SourceContext.Provider value={source}>
      <Shell links={links}>
        <Page route={shown} report={report} />
        <footer class="foot">
          Report by Foil {report.version}
          {created === undefined ? "" : `, ${dateTime(created)}`}
        </footer>
      </Shell>
    </SourceContext.Provider>
  );
}

function start() {
  const root = document.getElementById("app")!;
  initTheme();
  interceptLinks();
  let report: Report | undefined;
  try {
    report = readReport();
  } catch (error) {
    root.textContent = `The data of this report cannot be read: ${error instanceof Error ? error.message : String(error)}`;
    return;
  }
  if (report) {
    useHashRoutes();
    render(<ReportApp source={reportSource(report)} report={report} />, root);
  } else {
    render(<LiveApp source={liveSource(location.origin)} />, root);
  }
}

start();
