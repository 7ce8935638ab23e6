// Generates TypeScript from the wire contract (proto/foil/v1) into gen/.
import { execFileSync } from "node:child_process";
import { readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { delimiter, join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

export const ROOT = fileURLToPath(new URL("..", import.meta.url));

/** What the pages use of the contract; the rest would make the bundle larger. */
const TYPES = [
  "foil.v1.Access.WhoAmI",
  "foil.v1.Agents.ListAgents",
  "foil.v1.Jobs.Get",
  "foil.v1.Jobs.List",
  "foil.v1.Jobs.ListArtifacts",
  "foil.v1.Jobs.ListPhases",
  "foil.v1.Jobs.ListRounds",
  "foil.v1.Jobs.Logs",
  "foil.v1.Jobs.Watch",
  "foil.v1.Results",
  "foil.v1.Report",
];

const TEMPLATE = JSON.stringify({
  version: "v2",
  inputs: [{ directory: "../../proto", types: TYPES }, { directory: "proto" }],
  plugins: [{ local: "protoc-gen-ts", out: "gen", opt: ["optimize_code_size", "ts_nocheck"] }],
});

/** Fields of generated messages that are plain scalars: in full, hundreds of them take kilobytes of the bundle. */
const SCALAR = /\{ no: (\d+), name: ("\w+"), kind: "scalar", (opt: true, )?T: (\d+) \/\*[\w.]+\*\/ \}/g;
// A declaration, because the messages above it are made as the module is read.
const HELPER = '\nfunction scalar(no, name, T, opt) { return { no, name, kind: "scalar", T, opt }; }\n';

function shorten(file) {
  const text = readFileSync(file, "utf8");
  const short = text.replace(SCALAR, (_, no, name, opt, type) => `scalar(${no}, ${name}, ${type}${opt ? ", true" : ""})`);
  if (short !== text) writeFileSync(file, short + HELPER);
}

export function generate() {
  const bin = join(ROOT, "node_modules", ".bin");
  rmSync(join(ROOT, "gen"), { recursive: true, force: true });
  execFileSync(join(bin, "buf"), ["generate", "--template", TEMPLATE], {
    cwd: ROOT,
    stdio: "inherit",
    env: { ...process.env, PATH: `${bin}${delimiter}${process.env.PATH}` },
  });
  const made = readdirSync(join(ROOT, "gen/foil/v1")).filter((name) => !name.endsWith(".client.ts"));
  made.forEach((name) => shorten(join(ROOT, "gen/foil/v1", name)));
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) generate();
