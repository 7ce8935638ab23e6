// Writes a report of synthetic jobs to a file: node .test/report.mjs FILE.
import { writeFileSync } from "node:fs";
import { arms } from "./scenes.js";
import { reportOf, reportPage } from "./report.js";

writeFileSync(process.argv[2] ?? "report.html", reportPage(reportOf(arms()), ".test/dist"));
