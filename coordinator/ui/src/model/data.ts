// The origin of a job's data: the sources of its sets, and its files with their hashes.
import type { DataSourceSummary, Job } from "../../gen/foil/v1/jobs.js";

export interface Source extends DataSourceSummary {
  set: string;
  /** Share of the set's rows, from 0 to 1. */
  share: number;
}

export function sources(job: Job): Source[] {
  const sets = job.plan?.datasets ?? [];
  return sets.flatMap(({ name: set, rows, sources }) => sources.map((one) => ({ ...one, set, share: Number(one.rows) / Math.max(1, Number(rows)) })));
}

export interface InputFile {
  set: string;
  name: string;
  /** Empty for a path that was not uploaded. */
  blake3: string;
}

/** The files of the specification, in field order. They are `input:HASH:NAME` once uploaded. */
export function inputFiles(job: Job): InputFile[] {
  const { sft = [], preferences = [], golden = [], prompts = [], evaluation, sources = [] } = job.spec?.data ?? {};
  const lists = {
    sft,
    preferences,
    golden,
    prompts,
    evaluation_preferences: evaluation?.preferences ?? [],
    evaluation_prompts: evaluation?.prompts ?? [],
  };
  return Object.entries(lists).flatMap(([set, list]) =>
    [...list, ...sources.filter((one) => one.set === set).flatMap((one) => one.path)].map((input) => {
      const [, blake3 = "", name = input] = /^input:([^:]*):(.*)$/s.exec(input) ?? [];
      return { set, name, blake3 };
    }),
  );
}
