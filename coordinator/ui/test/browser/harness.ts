// A headless Chromium and a stub coordinator for a test.
import { existsSync, mkdirSync } from "node:fs";
import { after, before, test } from "node:test";
import { chromium, type Browser, type BrowserContextOptions, type Page } from "playwright-core";
import { serve } from "../stub/grpcWeb.js";
import type { World } from "../stub/world.js";

export const DIST = ".test/dist";
export const SHOTS = ".test/shots";

const CANDIDATES = [process.env["CHROMIUM"], "/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
export const EXECUTABLE = CANDIDATES.find((path) => path !== undefined && existsSync(path));

let browser: Browser;

/** Starts the browser for the tests of a file. */
export function useBrowser() {
  before(async () => {
    mkdirSync(SHOTS, { recursive: true });
    if (EXECUTABLE) browser = await chromium.launch({ executablePath: EXECUTABLE, args: ["--no-sandbox", "--js-flags=--expose-gc", "--enable-precise-memory-info"] });
  });
  after(async () => browser?.close());
}

export interface Visit {
  page: Page;
  url: string;
  /** Errors and violations of the content security policy in the page. */
  complaints: string[];
}

/** Runs a test with a page of the world. Fails if the page has complaints. */
export function browserTest(name: string, world: () => World, run: (visit: Visit, world: World) => Promise<void>, options: BrowserContextOptions = {}) {
  const skip = EXECUTABLE ? false : "no Chromium: install it, or name it in CHROMIUM";
  test(name, { skip }, async () => {
    const made = world();
    const { server, url } = await serve(made.methods(), { dist: DIST, ready: () => made.ready });
    const context = await browser.newContext({ viewport: { width: 1280, height: 860 }, reducedMotion: "reduce", ...options });
    try {
      const visit = await visitOf(await context.newPage(), url);
      await run(visit, made);
      if (visit.complaints.length > 0) throw new Error(`the page complains: ${visit.complaints.join("; ")}`);
    } finally {
      await context.close();
      server.closeAllConnections();
      server.close();
    }
  });
}

export async function visitOf(page: Page, url: string): Promise<Visit> {
  const complaints: string[] = [];
  page.on("pageerror", (error) => complaints.push(error.message));
  page.on("console", (message) => {
    // The browser itself reports connections that tests break.
    if (message.type() === "error" && !/Failed to load resource|net::ERR/.test(message.text())) complaints.push(message.text());
  });
  await page.addInitScript(() => {
    addEventListener("securitypolicyviolation", (event) => console.error(`policy violation: ${event.violatedDirective} ${event.blockedURI}`));
  });
  return { page, url, complaints };
}

/** Pixels by which the page is wider than its window. */
export function overflow(page: Page): Promise<number> {
  return page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
}

export function jobPath(id: string, tab = ""): string {
  return `/jobs/${id}${tab === "" ? "" : `#${tab}`}`;
}
