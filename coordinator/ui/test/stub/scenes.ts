// Worlds for tests and manual inspection.
import { Agent, AgentState } from "../../gen/foil/v1/agents.js";
import { JobState } from "../../gen/foil/v1/jobs.js";
import { at, jobOf, normal } from "./made.js";
import { agentsOf, World, type MadeJob } from "./world.js";

const MINUTE = 60_000;

export const HOSTILE = [
  "<script>window.attacked = true</script><img src=x onerror=\"window.attacked = true\">",
  "\u202Eevil\u202C משפט בעברית עם English inside, and more \u2067text\u2069.",
  "a".repeat(1 << 20),
  "\u0000\u0007 control \u001b[31m characters \u007f",
  "</script><style>body{display:none}</style>",
  "javascript:alert(1) {{constructor.constructor('window.attacked=true')()}}",
  "😀".repeat(4000),
  "",
  "line\n".repeat(3000),
];

function log(i: number, level: string, message: string, extra: Record<string, unknown> = {}): string {
  return JSON.stringify({ time: Date.now() / 1000 - 300 + i, level, target: "foil_worker::train", message, phase: "r03.policy.train", round: 3, ...extra });
}

/** Jobs in all states, with workers. */
export function gallery(now = Date.now()): World {
  const world = new World();
  const old = (name: string, id: string, ms: number, done: number) =>
    world.add(jobOf({ id, name, rounds: 3, done, state: JobState.SUCCEEDED, submitted: now - ms }), 3);
  for (let i = 0; i < 24; i += 1) old(`nightly-${String(i + 1).padStart(2, "0")}`, `01jd${String(i).padStart(3, "0")}nightly5c8k2m9x7q`, (30 - i) * 24 * 60 * MINUTE, 3);
  old("hh-baseline", "01jdq8hhbaseline7c8k2m9x4", 26 * 60 * MINUTE, 3).job.owner = "grace";

  const failed = world.add(jobOf({ id: "01jdt4failed0c8k2m9x7q3rv", name: "hh-wgan-unbounded", rounds: 4, done: 1, state: JobState.FAILED, submitted: now - 5 * 60 * MINUTE }), 4);
  failed.job.attempt = 3;
  failed.job.failure = {
    class: "nonfinite",
    message: "the loss is not finite at step 31",
    advice: "lower reward_step.learning_rate, or bound the head with reward_step.wgan.weight_clip: the Wasserstein loss has no lower bound",
    phase: "r02.reward.train",
    rank: 1,
    logTail: [log(1, "info", "step 29", { loss: -48211.3 }), log(2, "info", "step 30", { loss: -2.1e9 }), log(3, "error", "the loss is not finite", { step: 31 })],
    round: 2,
    step: 31n,
    attempt: 3,
    failedAttempts: 3,
    lastClass: "",
    signal: "",
    rows: ["human pair 5", "human pair 2291", "golden answer 7"],
  };

  const big = world.add(jobOf({ id: "01jdv9big60c8k2m9x7q3rvw5", name: "llama-7b-60-rounds", rounds: 60, done: 60, state: JobState.SUCCEEDED, submitted: now - 3 * 24 * 60 * MINUTE, seed: 3 }), 60);
  big.samples.prompts = 100_000;

  const hostile = world.add(jobOf({ id: "01jdx2hostile8k2m9x7q3rvw", name: "hostile-texts", rounds: 2, done: 2, state: JobState.SUCCEEDED, submitted: now - 90 * MINUTE }), 2);
  hostile.samples = { prompts: HOSTILE.length, rounds: [0, 1, 2], hostile: HOSTILE };
  big.alarms = ["round 47: the reward rose by 0.084 ± 0.021 and the gold reward fell by 0.063 ± 0.024 on the same prompts: the policy exploits its reward model"];
  hostile.job.labels = { note: "<b>bold</b>" };
  hostile.job.warnings = ["evaluation_prompts: 3 of its 10 prompts (3 rows) are in preferences too", HOSTILE[0]!];
  hostile.logs = HOSTILE.map((text, i) => (i % 2 === 0 ? text : log(i, "info", text, { text })));

  const running = world.add(jobOf({ id: "01jdz7hhdpo8k2m9x7q3rvw5y", name: "hh-dpo", rounds: 6, done: 3, state: JobState.RUNNING, submitted: now - 22 * MINUTE, further: 7 }), 6);
  running.logs = Array.from({ length: 200 }, (_, i) => log(i, i % 41 === 40 ? "warn" : "info", i % 41 === 40 ? "gradient norm is high" : `step ${i}`, { step: i, loss: 1.2 - i / 400, tokens: 15_000 + i }));
  recovered(running);

  const queued = world.add(jobOf({ id: "01je04waits8k2m9x7q3rvw5yz", name: "smollm-grpo", rounds: 3, done: 0, state: JobState.QUEUED, submitted: now - 6 * MINUTE }), 3);
  queued.job.priority = 10;
  queued.job.waiting = { reason: "waits for 8 devices of kind cuda: 4 are connected and 0 of them free", device: "cuda", wanted: 8, free: 0, connected: 4, position: 1 };

  world.agents = [
    ...agentsOf(running.job.id, running.job.name, running.job.phase),
    Agent.create({
      id: "cpu-1",
      hostname: "node-3.train.example",
      version: "0.1.0",
      state: AgentState.CONNECTED,
      heardAt: at(now - 900),
      devices: [0, 1, 2, 3].map((index) => ({ device: { id: `cpu:${index}`, kind: "cpu", name: "AMD EPYC 9654", memoryBytes: 34_359_738_368n } })),
    }),
    Agent.create({ id: "gpu-9", hostname: "node-9.train.example", version: "0.1.0", state: AgentState.DISCONNECTED, heardAt: at(now - 240_000), excludedBecause: "3 of its ranks never connected", devices: [] }),
  ];
  return world;
}

/** A running job that lost an agent in its second round and is training again. */
function recovered(made: MadeJob) {
  const span = made.spans.find((one) => one.phase === "r02.policy.train")!;
  const index = made.spans.indexOf(span);
  const [from, to] = [Number(span.startedAt!.seconds), Number(span.endedAt!.seconds)];
  const middle = from + (to - from) / 2;
  made.spans.splice(index, 0, { ...span, endedAt: at(middle * 1000), outcome: 3 });
  for (const later of made.spans.slice(index + 1)) later.attempt = 2;
  Object.assign(span, { startedAt: at((middle + 8) * 1000), resumedAfterStep: 30n });
  made.job.attempt = 2;
  made.notice("warning", "attempt 1 failed: agent gpu-2 was not heard for 30 s; continuing from the checkpoint after step 30 of r02.policy.train");
  made.start();
  made.progress(37, 90, "steps");
}

/** Three arms with three seeds each, which differ in their progress. */
export function arms(seeds = 3): { made: MadeJob; arm: string }[] {
  const world = new World();
  return ["apo", "frozen-apo", "static-rm"].flatMap((arm, strength) =>
    Array.from({ length: seeds }, (_, seed) => {
      const id = `01jd${strength}${seed}arms8c8k2m9x7q3rvw`;
      const made = world.add(jobOf({ id, name: `${arm}-s${seed}`, rounds: 6, done: 6, state: JobState.SUCCEEDED, submitted: Date.UTC(2026, 2, 1), seed }), 6);
      for (const round of made.job.rounds) {
        for (const metric of [...round.policy, ...round.reward]) metric.value *= 1 - 0.14 * strength + 0.03 * normal(seed, round.round, metric.name.length);
      }
      return { made, arm };
    }),
  );
}
