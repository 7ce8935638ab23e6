// Light, dark, or the system's preference.
import { store } from "./store.js";

export type ThemeChoice = "system" | "light" | "dark";

const KEY = "foil-theme";
const CHOICES: ThemeChoice[] = ["system", "light", "dark"];

function saved(): ThemeChoice {
  try {
    const found = localStorage.getItem(KEY);
    return CHOICES.find((choice) => choice === found) ?? "system";
  } catch {
    // A page opened from a file may have no storage.
    return "system";
  }
}

export const themeChoice = store<ThemeChoice>(saved());
/** Increases when colors change, so that canvases are redrawn. */
export const themeVersion = store(0);

function apply() {
  const choice = themeChoice.get();
  if (choice === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = choice;
  themeVersion.set(themeVersion.get() + 1);
}

export function initTheme() {
  apply();
  themeChoice.subscribe(apply);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", apply);
}

export function nextTheme() {
  const next = CHOICES[(CHOICES.indexOf(themeChoice.get()) + 1) % CHOICES.length]!;
  try {
    localStorage.setItem(KEY, next);
  } catch {
    // Same as above.
  }
  themeChoice.set(next);
}
