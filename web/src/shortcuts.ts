/** The keyboard shortcuts, and the dialog that lists them. */

import * as dialog from "./dialog.ts";
import { byId, make } from "./dom.ts";

export interface Actions {
  run(): void;
  stop(): void;
  share(): void;
  help(): void;
}

const KEYS: [string, string][] = [
  ["Ctrl+Enter", "Run"],
  ["Ctrl+.", "Stop"],
  ["Ctrl+S", "Share"],
  ["F1", "This list"],
  ["F6, Shift+F6", "To the next part of the page, or the one before"],
  ["F8", "To the next error in this file"],
  ["Escape, then Tab", "Leave the editor; Tab alone indents"],
  ["Ctrl+F", "Search in the editor"],
  ["Ctrl+Space", "Complete a word"],
  ["← → Home End", "Among the tabs of a list"],
];

const PARTS = ["language", "editor", "modes", "result"];

/** The name of the action that a key stands for; undefined if the page does not take it. */
function actionOf(event: KeyboardEvent): keyof Actions | "next" | "previous" | undefined {
  if (event.key === "F6") return event.shiftKey ? "previous" : "next";
  if (event.key === "F1") return "help";
  if (!(event.ctrlKey || event.metaKey) || event.altKey || event.shiftKey) return undefined;
  return ({ enter: "run", ".": "stop", s: "share" } as Record<string, keyof Actions>)[event.key.toLowerCase()];
}

/** Whether the page itself takes this key, so that a terminal does not. */
export const takes = (event: KeyboardEvent) => actionOf(event) !== undefined && event.key.toLowerCase() !== "s";

/** Act on keys wherever the focus is, unless a dialog is open or somebody has taken the key. */
export function listen(actions: Actions): void {
  addEventListener("keydown", (event) => {
    const action = actionOf(event);
    if (!action || event.defaultPrevented || byId<HTMLDialogElement>("dialog").open) return;
    event.preventDefault();
    if (action === "next" || action === "previous") move(action === "next" ? 1 : -1);
    else actions[action]();
  });
}

/** Move the focus to what can be focused first in the next part of the page. */
function move(by: number): void {
  const places = PARTS.map((id) => byId(id));
  const at = places.findIndex((place) => place.contains(document.activeElement));
  const place = places[at < 0 ? 0 : (at + by + places.length) % places.length]!;
  const inside = "select, textarea, [contenteditable=true], [aria-selected=true], #output";
  const found = [place, ...place.querySelectorAll<HTMLElement>(inside)].find((one) => one.matches(inside) && one.checkVisibility());
  found?.focus();
}

/** List the shortcuts. */
export async function showShortcuts(): Promise<void> {
  const rows = KEYS.map(([keys, what]) => make("div", {}, make("dt", {}, make("kbd", {}, keys)), make("dd", {}, what)));
  await dialog.show({ title: "Keyboard shortcuts", body: [make("dl", { className: "keys" }, ...rows)] });
}
