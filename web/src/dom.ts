/** Short ways to find and to make elements. Text is always set as text, never as HTML. */

/** The element with this id, which index.html has. */
export function byId<T extends HTMLElement = HTMLElement>(id: string): T {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return found as T;
}

/** An element with properties and children. `aria-…` and `data-…` become attributes. */
export function make<K extends keyof HTMLElementTagNameMap>(
  name: K,
  properties: Record<string, unknown> = {},
  ...children: (Node | string)[]
): HTMLElementTagNameMap[K] {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-") || key === "role" || key === "for") made.setAttribute(key, String(value));
    else (made as unknown as Record<string, unknown>)[key] = value;
  }
  made.append(...children);
  return made;
}

/** Text that only a screen reader gives. */
export const unseen = (text: string) => make("span", { className: "hidden" }, text);

/** "1 error", "2 errors". */
export const count = (number: number, noun: string) => `${number} ${noun}${number === 1 ? "" : "s"}`;
