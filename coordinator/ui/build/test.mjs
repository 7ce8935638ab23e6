// Runs the tests: node build/test.mjs [unit|browser]. Bundles them first, because node does not read TypeScript.
import { build } from "esbuild";
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { bundle } from "./bundle.mjs";
import { ROOT } from "./generate.mjs";

const OUT = join(ROOT, ".test");
const wanted = process.argv[2];
rmSync(OUT, { recursive: true, force: true });
await bundle(join(OUT, "dist"));
const tests = ["unit", "browser"]
  .filter((kind) => wanted === undefined || wanted === kind)
  .flatMap((kind) => {
    const folder = join(ROOT, "test", kind);
    return existsSync(folder) ? readdirSync(folder).filter((name) => /\.test\.tsx?$/.test(name)).map((name) => join("test", kind, name)) : [];
  });
await build({
  absWorkingDir: ROOT,
  entryPoints: [...tests, { in: "test/stub/main.ts", out: "stub" }, { in: "test/stub/reportMain.ts", out: "report" }].map((entry) => (typeof entry === "string" ? { in: entry, out: entry.replace(/^test\//, "").replace(/\.tsx?$/, "") } : entry)),
  outdir: OUT,
  outExtension: { ".js": ".mjs" },
  bundle: true,
  platform: "node",
  format: "esm",
  target: "node20",
  packages: "external",
  jsx: "automatic",
  jsxImportSource: "preact",
  sourcemap: "inline",
  logLevel: "warning",
});
if (wanted !== "build") {
  const files = tests.map((name) => join(OUT, name.replace(/^test\//, "").replace(/\.tsx?$/, ".mjs")));
  const run = spawnSync(process.execPath, ["--enable-source-maps", "--test", "--test-reporter=spec", "--test-concurrency=2", ...files], { cwd: ROOT, stdio: "inherit" });
  process.exit(run.status ?? 1);
}
