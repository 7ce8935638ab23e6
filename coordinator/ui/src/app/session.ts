// The bearer token of this tab, and whether it is accepted.
import { store } from "./store.js";

const KEY = "foil-token";

export interface SignIn {
  /** Whether the page waits for a token. */
  needed: boolean;
  message: string;
}

export const signIn = store<SignIn>({ needed: false, message: "" });

function read(): string | undefined {
  try {
    return sessionStorage.getItem(KEY) ?? undefined;
  } catch {
    return undefined;
  }
}

// Kept in memory too, for browsers that forbid storage.
let token = read();

export function bearer(): string | undefined {
  return token;
}

/** Removes white space that comes from copying; undefined if the text is not a valid header value. */
export function cleanToken(text: string): string | undefined {
  const found = text.trim().replace(/^Bearer\s+/i, "");
  return /^[\x21-\x7e]{1,16384}$/.test(found) ? found : undefined;
}

export function setBearer(next: string | undefined) {
  token = next;
  try {
    if (next === undefined) sessionStorage.removeItem(KEY);
    else sessionStorage.setItem(KEY, next);
  } catch {
    // The token then lasts until the page is closed.
  }
}

/** Keeps the first reason, since later ones come from calls already in flight. Shows none before a token has been tried: it would be advice for the command line. */
export function requireSignIn(message: string) {
  if (!signIn.get().needed) signIn.set({ needed: true, message: token === undefined ? "" : message });
}

export function signedIn(next: string) {
  setBearer(next);
  signIn.set({ needed: false, message: "" });
}

export function signOut() {
  setBearer(undefined);
  signIn.set({ needed: true, message: "You have signed out." });
}
