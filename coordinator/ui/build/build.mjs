// Builds dist/.
import { join } from "node:path";
import { bundle } from "./bundle.mjs";
import { ROOT } from "./generate.mjs";

const sizes = await bundle(join(ROOT, "dist"));
const total = Object.values(sizes).reduce((sum, size) => sum + size, 0);
for (const [name, size] of Object.entries(sizes)) console.log(`dist/${name}  ${size.toLocaleString("en")} bytes`);
console.log(`in all  ${total.toLocaleString("en")} bytes`);
