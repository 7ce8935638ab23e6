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

// Kept beside the storage for browsers that forbid it.
let token = read();

export function bearer(): string | undefined {
  return token;
}

/** What a header value may hold; white space around it comes from copying. */
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
    // The token then lasts as long as the page.
  }
}

/** The first reason stays: later ones are of calls that were on their way. Who has not tried a token yet needs none: it would be advice for the command line. */
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
