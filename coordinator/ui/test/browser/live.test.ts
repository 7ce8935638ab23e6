import assert from "node:assert/strict";
import { Role } from "../../gen/foil/v1/access.js";
import { JobState } from "../../gen/foil/v1/jobs.js";
import { CODES, Refusal } from "../stub/grpcWeb.js";
import { jobOf } from "../stub/made.js";
import { gallery } from "../stub/scenes.js";
import { World } from "../stub/world.js";
import { browserTest, jobPath, useBrowser } from "./harness.js";

useBrowser();

const ID = "01jlive0000000000000000000";

function oneJob(): World {
  const world = new World();
  world.add(jobOf({ id: ID, name: "live", rounds: 1, done: 0, state: JobState.QUEUED, submitted: Date.now() }), 1);
  return world;
}

browserTest("a job is followed from its queue to its end without a reload", oneJob, async ({ page, url }, world) => {
  const made = world.jobs.get(ID)!;
  made.job.waiting = { reason: "waits for 4 devices of kind cuda", device: "cuda", wanted: 4, free: 0, connected: 4, position: 2 };
  await page.goto(url + jobPath(ID));
  await page.getByText("#2 in the queue").waitFor();
  await page.evaluate(() => Object.assign(window, { sameLoad: true }));

  delete made.job.waiting;
  made.state(JobState.RUNNING, { attempt: 1, startedAt: made.job.submittedAt! });
  for (let i = 0; i < 11; i += 1) {
    made.start();
    made.progress(3, 9, i === 0 ? "steps" : "prompts");
    await page.locator(".job-progress-line", { hasText: i === 0 ? "step 3 of 9" : "3 of 9 prompts" }).waitFor();
    made.commit(1);
    await page.locator(".job-progress-line", { hasText: i < 10 ? `phase ${i + 2} of 11` : "phase 11 of 11" }).waitFor();
  }
  await page.locator("table tr.best").waitFor();
  made.state(JobState.SUCCEEDED, { endedAt: { seconds: BigInt(Math.floor(Date.now() / 1000)), nanos: 0 }, phase: "" });
  await page.locator(".state-succeeded").waitFor();
  await page.locator("#chart-gold canvas").waitFor();
  assert.equal(await page.evaluate(() => "sameLoad" in window), true);
  assert.equal(await page.title(), "live (succeeded) · Foil");
});

browserTest("a broken stream is told, and continues after the last revision", oneJob, async ({ page, url }, world) => {
  const made = world.jobs.get(ID)!;
  made.state(JobState.RUNNING, { attempt: 1, startedAt: made.job.submittedAt! });
  made.start();
  await page.goto(url + jobPath(ID));
  await page.locator(".job-progress-line", { hasText: "phase 1 of 11" }).waitFor();
  await page.getByText("started").first().waitFor();
  const revision = made.job.revision;
  world.outage = new Refusal(CODES.UNAVAILABLE, "the coordinator is shutting down; try again");
  made.disconnect();
  await page.locator(".banner", { hasText: "Disconnected" }).waitFor();
  assert.match(await page.locator(".banner").innerText(), /shutting down.*may be old/s);
  world.outage = undefined;
  made.commit(1);
  await page.locator(".job-progress-line", { hasText: "phase 2 of 11" }).waitFor();
  await page.locator(".banner").waitFor({ state: "detached" });
  const watches = world.calls.filter((call) => call.startsWith("Watch"));
  assert.equal(watches[0], "Watch 0");
  assert.equal(watches[watches.length - 1], `Watch ${revision}`);
});

browserTest("the list of jobs follows the coordinator, and its filters stand in the address", gallery, async ({ page, url }, world) => {
  await page.goto(url);
  const rows = page.locator("table.rows tbody tr");
  await rows.nth(24).waitFor();
  assert.equal(await rows.count(), 25);
  await page.getByRole("button", { name: "Next" }).click();
  await page.getByText("26–30 jobs").waitFor();
  await page.getByRole("button", { name: "failed", exact: true }).click();
  await page.getByText("1–1 jobs").waitFor();
  await rows.getByText("the loss is not finite at step 31").waitFor();
  assert.match(page.url(), /\?state=failed$/);
  const failed = [...world.jobs.values()].find((made) => made.job.state === JobState.FAILED)!;
  failed.state(JobState.RUNNING);
  await page.getByText("No job matches these filters.").waitFor();
  await page.reload();
  assert.equal(await page.getByRole("button", { name: "failed", exact: true }).getAttribute("aria-pressed"), "true");
  await page.getByRole("button", { name: "failed", exact: true }).click();
  await page.getByPlaceholder("label: team=speech").fill("team=nobody");
  await page.keyboard.press("Enter");
  await page.getByText("No job matches these filters.").waitFor();
  await page.getByPlaceholder("label: team=speech").fill("broken");
  await page.keyboard.press("Enter");
  await page.getByText("broken is no label").waitFor();
});

browserTest("a policy that exploits its reward model is warned of", gallery, async ({ page, url }) => {
  await page.goto(url + jobPath("01jdv9big60c8k2m9x7q3rvw5"));
  await page.getByRole("list", { name: "Warnings" }).getByText("round 47: the reward rose").waitFor();
});

browserTest("a failed job says what failed, where, and what to do", gallery, async ({ page, url }) => {
  await page.goto(url + jobPath("01jdt4failed0c8k2m9x7q3rv"));
  const failure = page.getByRole("region", { name: "Failure" });
  await failure.getByText("the loss is not finite at step 31").first().waitFor();
  const text = await failure.innerText();
  for (const part of ["weight_clip", "r02.reward.train", "rank 1", "attempt 3", "human pair 2291"]) assert.ok(text.includes(part), part);
  await failure.getByText("Last 3 log lines").click();
  await failure.getByText("step 30").waitFor();
});

function guarded(): World {
  const world = gallery();
  world.token = "s3cret-token";
  return world;
}

browserTest("a token is asked for, kept in the tab alone, sent, and forgotten", guarded, async ({ page, url }, world) => {
  await page.goto(url);
  await page.getByText("This coordinator asks for a bearer token").waitFor();
  const input = page.getByLabel("Bearer token");
  await input.fill("two words");
  await page.keyboard.press("Enter");
  await page.getByText("This is no token").waitFor();
  await input.fill("wrong");
  await page.keyboard.press("Enter");
  await page.getByText("the token is unknown or was revoked").waitFor();
  await input.fill("s3cret-token");
  await page.keyboard.press("Enter");
  await page.locator("table.rows tbody tr").first().waitFor();
  await page.locator(".who", { hasText: "ada" }).waitFor();
  const kept = await page.evaluate(() => [JSON.stringify({ ...sessionStorage }), JSON.stringify({ ...localStorage }), document.cookie, location.href]);
  assert.equal(kept[0], '{"foil-token":"s3cret-token"}');
  for (const other of kept.slice(1)) assert.ok(!other!.includes("s3cret"), other);
  await page.reload();
  await page.locator("table.rows tbody tr").first().waitFor();
  await page.getByRole("button", { name: "Sign out" }).click();
  await page.getByText("You have signed out.").waitFor();
  assert.equal(await page.evaluate(() => sessionStorage.length), 0);
  assert.equal(await page.locator("table.rows").count(), 0);
  assert.ok(world.calls.length > 0);
});

function viewer(): World {
  const world = gallery();
  world.token = "t";
  world.role = Role.VIEWER;
  return world;
}

browserTest("what a role does not allow is said", viewer, async ({ page, url }) => {
  await page.addInitScript(() => sessionStorage.setItem("foil-token", "t"));
  await page.goto(`${url}/workers`);
  await page.getByText("the call needs the role operator").waitFor();
  await page.getByText("Your role does not allow this").waitFor();
  await page.goto(url + jobPath("01jdz7hhdpo8k2m9x7q3rvw5y", "timeline"));
  await page.getByRole("heading", { name: "Ranks" }).waitFor();
  await page.getByRole("cell", { name: "gpu-2" }).first().waitFor();
});

browserTest("a standby sends to its leader, once, and not back", gallery, async ({ page, url }, world) => {
  const leader = "http://127.0.0.1:9";
  world.outage = new Refusal(CODES.UNAVAILABLE, "this coordinator stands by", { leader: `${leader}/x` });
  await page.goto(`${url}/?mine=true`);
  await page.getByText("This coordinator stands by.").waitFor();
  assert.equal(await page.locator(".banner a").getAttribute("href"), `${leader}/?mine=true&from-standby=1`);
  await page.getByRole("button", { name: "Stay here" }).click();
  await page.getByRole("button", { name: "Stay here" }).waitFor({ state: "detached" });
  await page.goto(`${url}/?from-standby=1`);
  await page.getByText("This coordinator stands by.").waitFor();
  assert.equal(await page.getByText("going there in").count(), 0);
  // Without a leader, the call is repeated until there is one.
  world.outage = new Refusal(CODES.UNAVAILABLE, "no leader yet", { reason: "NOT_LEADER" });
  await page.getByText("No leader is known yet").waitFor();
  world.outage = undefined;
  await page.locator("table.rows tbody tr").first().waitFor();
  await page.locator(".banner").waitFor({ state: "detached" });
});

browserTest("a standby's page goes to the leader by itself", gallery, async ({ page, url }, world) => {
  await page.route("http://leader.example:7070/**", (route) => route.fulfill({ body: "the leader" }));
  world.outage = new Refusal(CODES.UNAVAILABLE, "this coordinator stands by", { leader: "http://leader.example:7070" });
  await page.goto(url + jobPath("01jdz7hhdpo8k2m9x7q3rvw5y", "rounds"));
  await page.waitForURL("http://leader.example:7070/jobs/01jdz7hhdpo8k2m9x7q3rvw5y?from-standby=1#rounds", { timeout: 15_000 });
});

browserTest("what does not exist is said", gallery, async ({ page, url }) => {
  await page.goto(`${url}/jobs/none`);
  await page.getByText("there is no job none").waitFor();
  await page.goto(`${url}/nowhere`);
  await page.getByText("There is no such page").waitFor();
  await page.getByRole("link", { name: "To the jobs" }).click();
  await page.locator("table.rows tbody tr").first().waitFor();
});

browserTest("the pages of a local run advise what works there, also when it has ended", oneJob, async ({ page, url }, world) => {
  world.ready = { ok: true, text: "ready\nrun directory: '/runs/my letters'\n" };
  const made = world.jobs.get(ID)!;
  made.state(JobState.RUNNING, { attempt: 1, startedAt: made.job.submittedAt! });
  made.start();
  made.commit(1);
  await page.goto(url + jobPath(ID, "artifacts"));
  await page.getByText(`foil pull live/policy@best DIR --coordinator ${url}`, { exact: true }).waitFor();
  made.state(JobState.SUCCEEDED, { endedAt: { seconds: BigInt(Math.floor(Date.now() / 1000)), nanos: 0 } });
  await page.getByText("foil export '/runs/my letters'/policy@best DIR", { exact: true }).waitFor();
  await page.goto(url + jobPath(ID, "logs"));
  await page.getByText(`foil logs live --coordinator ${url}`, { exact: true }).waitFor();
});

browserTest("a page that outlives its run says what shows the run", oneJob, async ({ page, url }, world) => {
  world.ready = { ok: true, text: "ready\nrun directory: /runs/letters\n" };
  const made = world.jobs.get(ID)!;
  made.state(JobState.RUNNING, { attempt: 1, startedAt: made.job.submittedAt! });
  made.start();
  await page.goto(url + jobPath(ID));
  await page.locator(".health.good").waitFor();
  world.outage = new Refusal(CODES.UNAVAILABLE, "the coordinator is shutting down; try again");
  made.disconnect();
  await page.locator(".banner code", { hasText: "foil ui /runs/letters" }).waitFor();
});
