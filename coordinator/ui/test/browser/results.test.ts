import assert from "node:assert/strict";
import { rmSync, writeFileSync } from "node:fs";
import { resolve } from "node:path";
import type { Page } from "playwright-core";
import { arms, gallery, HOSTILE } from "../stub/scenes.js";
import { reportOf, reportPage } from "../stub/report.js";
import { browserTest, DIST, jobPath, overflow, SHOTS, useBrowser } from "./harness.js";

useBrowser();

const RUNNING = "01jdz7hhdpo8k2m9x7q3rvw5y";
const BIG = "01jdv9big60c8k2m9x7q3rvw5";
const BAD = "01jdx2hostile8k2m9x7q3rvw";
const TABS = ["overview", "rounds", "training", "rewards", "samples", "timeline", "logs", "data", "artifacts", "spec"];

/** Bytes of live JavaScript objects after a garbage collection. */
function heap(page: Page): Promise<number> {
  return page.evaluate(async () => {
    const collect = (globalThis as { gc?: () => void }).gc;
    if (!collect) throw new Error("no gc()");
    for (let i = 0; i < 3; i += 1) {
      collect();
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    return (performance as unknown as { memory: { usedJSHeapSize: number } }).memory.usedJSHeapSize;
  });
}

browserTest("60 rounds with 100,000 samples paint at once, and paging keeps the memory flat", gallery, async ({ page, url }) => {
  // The best of several loads: other programs on the machine must not fail the test.
  const paints: number[] = [];
  while (paints.length < 5 && !paints.some((paint) => paint < 1000)) {
    await page.goto("about:blank");
    await page.goto(url + jobPath(BIG, "samples"));
    await page.locator("article.sample").nth(19).waitFor();
    paints.push(await page.evaluate(() => performance.getEntriesByName("first-contentful-paint")[0]!.startTime));
  }
  assert.ok(Math.min(...paints) < 1000, `first paints after ${paints} ms`);
  await page.getByText("1–20 of 100,000 prompts").first().waitFor();
  const turn = async (from: number, to: number) => {
    for (let i = from; i < to; i += 1) {
      await page.getByRole("button", { name: "Next" }).first().click();
      await page.getByText(`${(i * 20 + 1).toLocaleString("en-US")}–`).first().waitFor();
      await page.mouse.wheel(0, 4000);
    }
  };
  await turn(1, 6);
  const before = await heap(page);
  await turn(6, 36);
  const after = await heap(page);
  assert.ok(after < before + 4e6, `the heap grew from ${before} to ${after} bytes over 30 pages`);
  assert.equal(await page.locator("article.sample").count(), 20);
  await page.getByRole("button", { name: "Previous" }).first().click();
  await page.getByText("681–700 of 100,000").first().waitFor();
  await page.getByLabel("Number of the first of the prompts to show").first().fill("99991");
  await page.keyboard.press("Enter");
  await page.getByText("99,991–100,000 of 100,000").first().waitFor();
  assert.ok(await page.getByRole("button", { name: "Next" }).first().isDisabled());
  assert.equal(await page.locator("article.sample").count(), 10);
});

browserTest("rounds are chosen, samples sorted, filtered and read token by token", gallery, async ({ page, url }) => {
  await page.goto(url + jobPath(RUNNING, "samples"));
  await page.locator("article.sample").first().waitFor();
  assert.deepEqual(await page.locator("article.sample").first().locator(".column strong").allInnerTexts(), ["start", "round 1", "round 2", "round 3"]);
  await page.getByText("Rounds: start, 1–3").click();
  await page.getByRole("button", { name: "start", exact: true }).click();
  await page.getByText("Rounds: 1–3").waitFor();
  await page.getByLabel("Sort").selectOption({ label: "reward" });
  await page.getByRole("button", { name: "descending" }).waitFor();
  await page.locator('[aria-busy="false"]').waitFor();
  const rewards = await page.locator("article.sample .column:last-child .figure:first-child b").allInnerTexts();
  const values = rewards.map((text) => Number(text.replace("−", "-")));
  assert.deepEqual(values, values.toSorted((a, b) => b - a));
  await page.getByPlaceholder("text in prompt or completion").fill("xyzzy");
  await page.getByText("No sample matches these filters.").waitFor();
  await page.getByPlaceholder("text in prompt or completion").fill("");
  await page.getByText("Ranges").click();
  await page.getByLabel("Reward, at least").fill("1.5");
  await page.keyboard.press("Enter");
  await page.getByText("Ranges (1)").waitFor();
  await page.locator('[aria-busy="false"]').waitFor();
  for (const row of await page.locator("article.sample").all()) {
    const rewards = await row.locator(".figure:first-child b").allInnerTexts();
    assert.ok(rewards.some((text) => Number(text.replace("−", "-")) >= 1.5), rewards.join(" "));
  }
  await page.getByRole("button", { name: "Training" }).click();
  await page.locator(".tag-chosen").first().waitFor();
  await page.getByRole("button", { name: "Per token" }).first().click();
  await page.locator(".token").first().hover();
  assert.match(await page.locator(".token-line").innerText(), /#1\s.*log p −\d.*reference −?\d.*p 0\.\d/s);
  await page.locator(".token-text").focus();
  await page.keyboard.press("ArrowRight");
  await page.locator(".token-line", { hasText: "#2" }).waitFor();
  await page.getByText("Where these samples come from").click();
  await page.getByRole("cell", { name: "policy@3" }).waitFor();
});

browserTest("hostile texts are texts", gallery, async ({ page, url }) => {
  await page.goto(url + jobPath(BAD, "samples"));
  await page.locator("article.sample").nth(HOSTILE.length - 1).waitFor();
  await page.getByText("<script>window.attacked = true</script>").first().waitFor();
  await page.getByText("⟨U+202E⟩evil").first().waitFor();
  await page.getByText("␀␇ control ␛[31m characters ␡").first().waitFor();
  const long = page.locator("article.sample").nth(2).locator(".prompt");
  assert.equal(await long.locator(".text").innerText(), `${"a".repeat(700)}…`);
  await long.getByRole("button", { name: "Show all (1.00 MiB)" }).click();
  await page.waitForFunction(() => document.querySelectorAll("article.sample")[2]!.querySelector(".prompt .text")!.textContent!.length === 1 << 20);
  assert.equal(await overflow(page), 0);
  await page.goto(url + jobPath(BAD));
  await page.getByText("2 warnings of the submission").click();
  await page.getByText("evaluation_prompts: 3 of its 10 prompts (3 rows) are in preferences too").waitFor();
  await page.getByText("<script>window.attacked = true</script>").waitFor();
  await page.goto(url + jobPath(BAD, "logs"));
  await page.locator(".log-line").nth(8).waitFor();
  const length = await page.evaluate(() => document.body.innerText.length);
  assert.ok(length < 20_000, `the page shows ${length} characters before they are asked for`);
  assert.equal(await overflow(page), 0);
  assert.equal(await page.evaluate(() => "attacked" in window), false);
});

browserTest("a job's data is told with its sources and hashes", gallery, async ({ page, url }) => {
  await page.goto(url + jobPath(RUNNING, "data"));
  const rows = (label: string) => page.getByRole("region", { name: label, exact: true }).locator("tbody tr");
  await rows("Sources").first().waitFor();
  assert.deepEqual(await rows("Sources").first().locator("th, td").allInnerTexts(), ["preferences", "pairs.jsonl.gz", "2,218", "66.7 %", "2", "12 by max_prompt_tokens"]);
  const file = rows("Files").first();
  assert.equal(await file.locator("td").first().innerText(), "pairs.jsonl.gz");
  assert.match((await file.locator("button").getAttribute("title"))!, /^[0-9a-f]{64} /);
});

browserTest("charts are read by keys, shown as tables and downloaded", gallery, async ({ page, url }) => {
  await page.goto(url + jobPath(RUNNING, "rounds"));
  const chart = page.locator("#chart-accuracy");
  await chart.locator("canvas").waitFor();
  await chart.getByRole("img").focus();
  await page.keyboard.press("ArrowRight");
  await page.keyboard.press("ArrowRight");
  assert.match(await chart.locator("[aria-live]").innerText(), /round 2: human pairs 0\.\d+ ± 0\.\d+, golden against fresh samples/);
  await chart.locator(".tooltip").waitFor();
  await page.keyboard.press("Escape");
  await chart.locator(".tooltip").waitFor({ state: "detached" });
  await chart.getByRole("button", { name: "human pairs" }).click();
  assert.equal(await chart.getByRole("button", { name: "human pairs" }).getAttribute("aria-pressed"), "false");
  await chart.getByRole("button", { name: "Show Accuracy as a table" }).click();
  assert.equal(await chart.locator("tbody tr").count(), 3);
  const download = page.waitForEvent("download");
  await chart.getByRole("button", { name: "CSV" }).click();
  assert.equal((await download).suggestedFilename(), "accuracy.csv");
});

browserTest("all is reached by keys, and the focus is seen", gallery, async ({ page, url }) => {
  await page.goto(url + jobPath(RUNNING));
  await page.locator("nav.tabs a").first().waitFor();
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement!.textContent!.trim()), "Skip to content");
  await page.keyboard.press("Enter");
  assert.equal(await page.evaluate(() => document.activeElement!.id), "main");
  await page.locator("nav.tabs a", { hasText: "Training" }).focus();
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { name: "Gradient norm" }).waitFor();
  await page.keyboard.press("Tab");
  const outline = await page.evaluate(() => getComputedStyle(document.activeElement!).outlineStyle);
  assert.equal(outline, "solid");
  await page.goBack();
  await page.getByRole("heading", { name: "Rounds" }).waitFor();
});

for (const [scheme, width] of [["light", 1280], ["dark", 1280], ["light", 375], ["dark", 375]] as const) {
  browserTest(
    `every page fits ${width} pixels in ${scheme}`,
    gallery,
    async ({ page, url }) => {
      const pages = [["jobs", "/"], ["workers", "/workers"], ["failed", jobPath("01jdt4failed0c8k2m9x7q3rv")], ["big", jobPath(BIG, "timeline")], ...TABS.map((tab) => [tab, jobPath(RUNNING, tab)])] as [string, string][];
      for (const [name, path] of pages) {
        await page.goto(url + path);
        await page.locator("main h1").waitFor();
        await page.waitForLoadState("load");
        await page.waitForFunction(() => !document.querySelector(".spinner"));
        assert.equal(await overflow(page), 0, `${name} is wider than the window`);
        await page.screenshot({ path: `${SHOTS}/${name}-${scheme}-${width}.png` });
      }
    },
    { colorScheme: scheme, viewport: { width, height: width === 375 ? 812 : 860 } },
  );
}

browserTest("colors follow the system, or the choice", gallery, async ({ page, url }) => {
  await page.goto(url);
  const background = () => page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor);
  const light = await background();
  await page.getByRole("button", { name: /Colors/ }).click();
  await page.getByRole("button", { name: /Colors: light/ }).click();
  assert.notEqual(await background(), light);
  await page.reload();
  await page.getByRole("button", { name: /Colors: dark/ }).waitFor();
  assert.notEqual(await background(), light);
});

browserTest(
  "a report opens offline, with its runs on the same axes",
  gallery,
  async ({ page }) => {
    const file = resolve(".test", "report.html");
    writeFileSync(file, reportPage(reportOf(arms(2)), DIST));
    const asked: string[] = [];
    page.on("request", (request) => {
      if (!/^(file|data|blob):/.test(request.url())) asked.push(request.url());
    });
    await page.goto(`file://${file}`);
    await page.getByRole("heading", { name: "APO against its controls" }).waitFor();
    await page.locator("#chart-gold").scrollIntoViewIfNeeded();
    await page.locator("#chart-gold canvas").waitFor();
    assert.deepEqual(await page.locator("#chart-gold .legend-item").allInnerTexts(), ["apo (2 seeds)", "frozen-apo (2 seeds)", "static-rm (2 seeds)"]);
    await page.getByRole("button", { name: "Runs", exact: true }).click();
    assert.equal(await page.locator("#chart-gold .legend-item").count(), 6);
    await page.locator("details.runs summary").click();
    await page.getByRole("link", { name: "apo, seed 1" }).first().click();
    await page.getByRole("heading", { name: "apo-s1" }).waitFor();
    for (const tab of ["Rounds", "Training", "Rewards", "Samples", "Timeline", "Data", "Artifacts", "Job file"]) {
      await page.locator("nav.tabs a", { hasText: tab }).click();
      await page.waitForFunction(() => !document.querySelector(".spinner"));
      assert.equal(await page.locator(".problem").count(), 0, tab);
    }
    await page.locator("nav.tabs a", { hasText: "Samples" }).click();
    await page.getByText("1–20 of 60 prompts").first().waitFor();
    await page.getByRole("button", { name: "Per token" }).first().click();
    await page.locator(".token").first().waitFor();
    assert.deepEqual(asked, []);
    rmSync(file);
  },
  { offline: true },
);
