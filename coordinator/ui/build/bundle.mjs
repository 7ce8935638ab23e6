// Bundles src/ into the three files of dist/: index.html, app.js, app.css.
import { build } from "esbuild";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { ROOT, generate } from "./generate.mjs";

export const FILES = ["index.html", "app.js", "app.css"];

/** Bytes of all files together, as users load them. */
const MAX_BYTES = 300_000;

/** What `foil report` replaces in index.html by inline code and data; see README.md. */
const MARKERS = [
  '<link rel="stylesheet" href="/app.css">',
  "<!--foil-report-->",
  '<script src="/app.js" defer></script>',
];

/** Bundles into `directory` and returns the size of each file in bytes. */
export async function bundle(directory) {
  generate();
  mkdirSync(directory, { recursive: true });
  await build({
    absWorkingDir: ROOT,
    entryPoints: { app: "src/main.tsx" },
    outdir: directory,
    bundle: true,
    minify: true,
    format: "iife",
    target: ["es2022"],
    charset: "ascii",
    jsx: "automatic",
    jsxImportSource: "preact",
    legalComments: "none",
    banner: { js: readFileSync(join(ROOT, "build/notices.txt"), "utf8").trimEnd() },
    logLevel: "warning",
  });
  const html = readFileSync(join(ROOT, "src/index.html"), "utf8");
  writeFileSync(join(directory, "index.html"), html);
  check(directory, html);
  return Object.fromEntries(FILES.map((name) => [name, readFileSync(join(directory, name)).length]));
}

function check(directory, html) {
  for (const marker of MARKERS) {
    if (html.split(marker).length !== 2) throw new Error(`src/index.html must have ${marker} once`);
  }
  const [script, style] = ["app.js", "app.css"].map((name) => readFileSync(join(directory, name), "utf8"));
  for (const [name, text, breaker] of [
    ["app.js", script, /<\/script|<!--/i],
    ["app.css", style, /<\/style|@import|url\(/i],
  ]) {
    const found = text.match(breaker);
    if (found) throw new Error(`${name} holds ${found[0]}, which cannot be inlined into a report`);
  }
  const sizes = FILES.map((name) => readFileSync(join(directory, name)).length);
  const total = sizes.reduce((sum, size) => sum + size, 0);
  if (total >= MAX_BYTES) throw new Error(`the bundle has ${total} bytes; it must stay below ${MAX_BYTES}`);
}
