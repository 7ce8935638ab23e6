// Parts of a job that are too large for one message.
import type { Artifact } from "../../gen/foil/v1/artifacts.js";

/** The items of all pages of a list. */
export async function allPages<T>(page: (token: string) => Promise<{ items: T[]; next: string }>): Promise<T[]> {
  const all: T[] = [];
  let token = "";
  do {
    const found = await page(token);
    all.push(...found.items);
    if (found.next !== "" && found.next === token) throw new Error("a page names itself as the next one");
    token = found.next;
  } while (token !== "");
  return all;
}

/** Joins artifacts whose objects are spread over several pages. */
export function joinArtifacts(parts: Artifact[]): Artifact[] {
  const joined: Artifact[] = [];
  for (const part of parts) {
    const last = joined[joined.length - 1];
    if (last && last.name === part.name) last.objects.push(...part.objects);
    else joined.push({ ...part, objects: [...part.objects] });
  }
  return joined;
}
