// The machines and the work on each of their devices.
import { useEffect } from "preact/hooks";
import { AgentState, type Agent, type DeviceUse } from "../../gen/foil/v1/agents.js";
import type { Device } from "../../gen/foil/v1/workers.js";
import { useSource } from "../app/context.js";
import { useAnswer } from "../app/poll.js";
import { jobHref } from "../app/router.js";
import { bytes, counted, NONE } from "../model/format.js";
import { phaseParts } from "../model/job.js";
import { millis } from "../model/time.js";
import { Table } from "../ui/table.jsx";
import { Ago, Empty, Failed, Loading } from "../ui/widgets.jsx";

const POLL_MS = 3000;

const STATES: Record<AgentState, string> = {
  [AgentState.UNSPECIFIED]: "unknown",
  [AgentState.CONNECTED]: "connected",
  [AgentState.LEAVING]: "leaving",
  [AgentState.DISCONNECTED]: "disconnected",
  [AgentState.EXPECTED]: "expected",
};

export function WorkersPage() {
  const source = useSource();
  const answer = useAnswer((signal) => source.agents(signal), [], { every: POLL_MS });
  useEffect(() => {
    document.title = "Workers · Foil";
  }, []);
  const agents = answer.value ?? [];
  const devices = agents.flatMap((agent) => agent.devices);
  const busy = devices.filter((device) => device.use).length;
  return (
    <main id="main">
      <h1>Workers</h1>
      {answer.problem && <Failed problem={answer.problem} again={answer.again} />}
      {!answer.value && answer.loading && !answer.problem && <Loading what="workers" />}
      {answer.value && agents.length === 0 && (
        <Empty>
          No worker is connected. Start one on each host with <code>foil-worker --coordinator URL</code>.
        </Empty>
      )}
      {agents.length > 0 && (
        <>
          <p class="lead">
            {counted(agents.length, "worker")}, {counted(devices.length, "device")}: {busy} in use, {devices.length - busy} free
          </p>
          <div class="agents">
            {agents.map((agent) => (
              <AgentCard key={agent.id} agent={agent} />
            ))}
          </div>
        </>
      )}
    </main>
  );
}

function AgentCard({ agent }: { agent: Agent }) {
  const state = STATES[agent.state] ?? "unknown";
  return (
    <section class="card agent" aria-label={`Worker ${agent.id}`}>
      <header class="card-head">
        <h2>
          <bdi>{agent.hostname || agent.id}</bdi>
        </h2>
        <span class={`badge agent-${state}`}>{state}</span>
      </header>
      <p class="sub">
        <span class="mono">{agent.id}</span> · version {agent.version || "–"} · heard <Ago at={millis(agent.heardAt)} />
      </p>
      {agent.excludedBecause !== "" && (
        <p class="note warning">
          Gets no ranks: <bdi>{agent.excludedBecause}</bdi>
        </p>
      )}
      {agent.devices.length === 0 ? (
        <p class="muted">no devices</p>
      ) : (
        <Table
          label={`Devices of ${agent.hostname}`}
          plain
          shown={1000}
          rows={agent.devices}
          rowKey={({ device }) => device?.id ?? ""}
          columns={[
            { head: "Device", cell: ({ device }) => <DeviceName device={device} /> },
            { head: "Work", cell: ({ use }) => <Work use={use} /> },
            { head: "Since", class: "nowrap", cell: ({ use }) => (use ? <Ago at={millis(use.since)} /> : NONE) },
          ]}
        />
      )}
    </section>
  );
}

function DeviceName({ device }: { device: Device | undefined }) {
  return (
    <>
      <span class="mono">{device?.id ?? "?"}</span>
      <div class="sub">
        <bdi>{device?.name}</bdi>
        {device && device.memoryBytes > 0n ? ` · ${bytes(device.memoryBytes)}` : ""}
      </div>
    </>
  );
}

function Work({ use }: { use: DeviceUse | undefined }) {
  if (!use) return <span class="muted">free</span>;
  if (use.jobId === "") return <span class="muted">a job of another tenant</span>;
  const phase = use.phase === "" ? undefined : phaseParts(use.phase);
  return (
    <>
      <a href={jobHref(use.jobId)} data-route="1">
        <bdi>{use.jobName || use.jobId}</bdi>
      </a>{" "}
      rank {use.rank}
      <div class="sub">
        {phase ? `${phase.round ? `round ${phase.round}, ` : ""}${phase.work}` : "starting"}
        {use.attempt > 1 ? ` · attempt ${use.attempt}` : ""}
      </div>
    </>
  );
}
