// Fails if dist/ differs from a fresh build of src/.
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { FILES, bundle } from "./bundle.mjs";
import { ROOT } from "./generate.mjs";

const fresh = mkdtempSync(join(tmpdir(), "foil-ui-"));
try {
  await bundle(fresh);
  const stale = FILES.filter((name) => {
    try {
      return !readFileSync(join(ROOT, "dist", name)).equals(readFileSync(join(fresh, name)));
    } catch {
      return true;
    }
  });
  if (stale.length > 0) {
    console.error(`dist/ is not what src/ builds to (${stale.join(", ")}): run \`npm run build\` and commit dist/`);
    process.exitCode = 1;
  } else {
    console.log("dist/ is what src/ builds to");
  }
} finally {
  rmSync(fresh, { recursive: true, force: true });
}
