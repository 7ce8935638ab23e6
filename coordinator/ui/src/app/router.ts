// Addresses of the pages. They are paths on a coordinator; in a report, which is one file, they follow `#`.
import { useEffect, useState } from "preact/hooks";

export type Route =
  | { page: "jobs" }
  | { page: "workers" }
  | { page: "compare" }
  | { page: "job"; id: string; tab: string }
  | { page: "unknown"; path: string };

export function parse(path: string, tab: string): Route {
  const parts = path.split("/").filter((part) => part !== "");
  try {
    if (parts.length === 0) return { page: "jobs" };
    if (parts[0] === "workers" && parts.length === 1) return { page: "workers" };
    if (parts[0] === "compare" && parts.length === 1) return { page: "compare" };
    if (parts[0] === "jobs" && parts.length === 1) return { page: "jobs" };
    if (parts[0] === "jobs" && parts.length === 2) return { page: "job", id: decodeURIComponent(parts[1]!), tab: tab || "overview" };
  } catch {
    // Invalid escapes.
  }
  return { page: "unknown", path };
}

let inReport = false;

export function useHashRoutes() {
  inReport = true;
}

function current(): Route {
  const hash = location.hash.slice(1);
  if (!inReport) return parse(location.pathname, hash);
  const [path = "", tab = ""] = hash.split("#");
  return parse(path, tab);
}

export function href(path: string, tab = ""): string {
  const end = tab === "" ? "" : `#${tab}`;
  return inReport ? `#${path}${end}` : `${path}${end}`;
}

export function jobHref(id: string, tab = ""): string {
  return href(`/jobs/${encodeURIComponent(id)}`, tab);
}

const CHANGED = "foil-route";

export function navigate(to: string) {
  history.pushState(null, "", to);
  dispatchEvent(new Event(CHANGED));
}

/** Makes links within the pages change the address without loading a page. */
export function interceptLinks() {
  document.addEventListener("click", (event) => {
    const link = (event.target as Element | null)?.closest?.("a");
    if (!link || event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    if (link.target || link.hasAttribute("download") || link.origin !== location.origin || !link.dataset.route) return;
    event.preventDefault();
    navigate(link.href);
  });
}

export function useRoute(): Route {
  const [route, setRoute] = useState(current());
  useEffect(() => {
    const changed = () => setRoute(current());
    for (const name of [CHANGED, "popstate", "hashchange"]) addEventListener(name, changed);
    return () => {
      for (const name of [CHANGED, "popstate", "hashchange"]) removeEventListener(name, changed);
    };
  }, []);
  return route;
}
