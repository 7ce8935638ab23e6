// The frame of every page: name, navigation, the signed-in user, and the state of the connection.
import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { Credential, Role } from "../../gen/foil/v1/access.js";
import { duration } from "../model/format.js";
import { useNow } from "./clock.js";
import { connection, runDirectory } from "./connection.js";
import { useSource } from "./context.js";
import { useAnswer } from "./poll.js";
import { href, useRoute } from "./router.js";
import { bearer, cleanToken, signedIn, signIn, signOut } from "./session.js";
import { useStore } from "./store.js";
import { nextTheme, themeChoice } from "./theme.js";

const ROLES: Record<Role, string> = {
  [Role.UNSPECIFIED]: "unknown role",
  [Role.VIEWER]: "viewer",
  [Role.SUBMITTER]: "submitter",
  [Role.OPERATOR]: "operator",
  [Role.ADMIN]: "admin",
  [Role.AGENT]: "agent",
};

export function Shell({ children, links }: { children: ComponentChildren; links: { path: string; name: string; page: string }[] }) {
  const route = useRoute();
  const source = useSource();
  const theme = useStore(themeChoice);
  const focused = route.page === "job" ? "jobs" : route.page;
  return (
    <>
      <a class="skip" href="#main" onClick={(event) => (event.preventDefault(), document.getElementById("main")?.focus())}>
        Skip to content
      </a>
      <header class="top">
        <a class="brand" href={href("/")} data-route="1" aria-label="Foil, to the start page">
          <svg width="20" height="20" viewBox="0 0 32 32" aria-hidden="true">
            <path class="blade-a" d="M5 27 27 5" />
            <path class="blade-b" d="M27 27 5 5" />
          </svg>
          Foil
        </a>
        <nav aria-label="Pages">
          {links.map((link) => (
            <a key={link.path} href={href(link.path)} data-route="1" aria-current={focused === link.page ? "page" : undefined}>
              {link.name}
            </a>
          ))}
        </nav>
        <div class="top-end">
          {source.kind === "live" && <Health />}
          {source.kind === "live" && <Who />}
          <button type="button" class="quiet" onClick={nextTheme} title="Colors: as the system, light or dark" aria-label={`Colors: ${theme}. Change`}>
            {theme === "system" ? "◐" : theme === "light" ? "☀" : "☾"}
          </button>
        </div>
      </header>
      {source.kind === "live" && <ConnectionBanner />}
      {children}
    </>
  );
}

const HEALTH_MS = 10_000;

function Health() {
  const answer = useAnswer(
    async (signal) => {
      const response = await fetch("/readyz", { signal, cache: "no-store" });
      const text = await response.text();
      runDirectory.set(/^run directory: (.+)/m.exec(text)?.[1] ?? "");
      return { ready: response.ok, text: text.trim().slice(0, 300) };
    },
    [],
    { every: HEALTH_MS },
  );
  const { value, problem } = answer;
  const [kind, text] = problem ? ["bad", "The coordinator does not answer."] : !value ? ["", "Asking the coordinator …"] : [value.ready ? "good" : "bad", value.text];
  return (
    <span class={`health ${kind}`} role="status" title={text}>
      <span class="dot" aria-hidden="true" />
      <span class="health-text">{problem ? "unreachable" : !value ? "…" : value.ready ? "ready" : "not ready"}</span>
      <span class="visually-hidden">: {text}</span>
    </span>
  );
}

function Who() {
  const source = useSource();
  const need = useStore(signIn);
  const answer = useAnswer(async (signal) => (need.needed ? undefined : await source.whoAmI(signal)), [need.needed]);
  const me = answer.value;
  if (!me || need.needed) return null;
  if (me.credential === Credential.NONE) return <span class="who muted" title="The coordinator has no authentication: every caller is an admin.">no authentication</span>;
  return (
    <span class="who">
      <span title={`${ROLES[me.role]}${me.tenant ? `, tenant ${me.tenant}` : ""}`}>
        <bdi>{me.name}</bdi> <span class="muted">{ROLES[me.role]}</span>
      </span>
      {bearer() !== undefined && (
        <button type="button" class="quiet" onClick={signOut}>
          Sign out
        </button>
      )}
    </span>
  );
}

/** Seconds until the page redirects to the leader. */
const REDIRECT_AFTER = 5;

/** Two standbys may name each other, so a page that was redirected here does not redirect again. */
const CAME_FROM_STANDBY = new URLSearchParams(location.search).has("from-standby");

function ConnectionBanner() {
  const now = useNow();
  const state = useStore(connection);
  const run = useStore(runDirectory);
  const [stays, setStays] = useState(false);
  const leader = state.state === "standby" ? state.leader : undefined;
  const left = state.state === "connected" ? 0 : REDIRECT_AFTER - (now - state.since) / 1000;
  const goes = leader !== undefined && !stays && !CAME_FROM_STANDBY;
  useEffect(() => {
    if (goes && left <= 0) location.replace(leaderUrl(leader));
  }, [goes, left <= 0]);
  if (state.state === "connected" || now - state.since < 800) return null;
  if (state.state === "standby") {
    return (
      <div class="banner" role="alert">
        <span>
          This coordinator stands by.{" "}
          {leader ? (
            <>
              The leader is <a href={leaderUrl(leader)}>{leader}</a>
              {goes ? `; going there in ${Math.max(0, Math.ceil(left))} s.` : "."}
            </>
          ) : (
            "No leader is known yet; trying again."
          )}
        </span>
        {goes && (
          <button type="button" onClick={() => setStays(true)}>
            Stay here
          </button>
        )}
      </div>
    );
  }
  const wait = state.retryAt === undefined ? undefined : Math.ceil((state.retryAt - now) / 1000);
  return (
    <div class="banner" role="alert">
      <span>
        Disconnected for {duration(Math.floor((now - state.since) / 1000))}: <bdi>{state.message}</bdi> {wait !== undefined && wait > 0 ? `Trying again in ${wait} s.` : "Trying again …"} What is shown may be old.{" "}
        {run !== "" && (
          <>
            If the run has ended, <code>foil ui {run}</code> shows it.
          </>
        )}
      </span>
    </div>
  );
}

function leaderUrl(leader: string): string {
  const query = new URLSearchParams(location.search);
  query.set("from-standby", "1");
  return `${leader}${location.pathname}?${query}${location.hash}`;
}

export function SignInPage() {
  const { message } = useStore(signIn);
  const [text, setText] = useState("");
  const [problem, setProblem] = useState("");
  const input = useRef<HTMLInputElement>(null);
  useEffect(() => {
    document.title = "Sign in · Foil";
    input.current?.focus();
  }, []);
  const submit = (event: Event) => {
    event.preventDefault();
    const token = cleanToken(text);
    if (token === undefined) setProblem("This is no token: one line of printable characters without spaces.");
    else signedIn(token);
  };
  return (
    <main id="main" class="sign-in" tabIndex={-1}>
      <form class="card" onSubmit={submit}>
        <h1>Sign in</h1>
        <p class="muted">This coordinator asks for a bearer token. It is kept in this tab only, until you sign out or close it.</p>
        {message !== "" && (
          <p class="note problem" role="alert" dir="auto">
            {message}
          </p>
        )}
        <label class="stacked">
          Bearer token
          <input ref={input} type="password" autocomplete="off" spellcheck={false} value={text} onInput={(event) => setText(event.currentTarget.value)} />
        </label>
        {problem !== "" && (
          <p class="error-text" role="alert">
            {problem}
          </p>
        )}
        <button type="submit" class="primary">
          Sign in
        </button>
      </form>
    </main>
  );
}
