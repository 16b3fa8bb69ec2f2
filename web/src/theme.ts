/** Dark or light: as the system has it, until the user chooses. */

import { byId } from "./dom.ts";

const CHOICE = "mayfly-theme";
const system = matchMedia("(prefers-color-scheme: dark)");

/** Follow the system and the button; `changed` is called now and after each change. */
export function followTheme(changed: () => void): void {
  const button = byId("theme");
  const apply = () => {
    const dark = (localStorage.getItem(CHOICE) ?? (system.matches ? "dark" : "light")) === "dark";
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    button.setAttribute("aria-pressed", String(dark));
    changed();
  };
  button.addEventListener("click", () => {
    localStorage.setItem(CHOICE, button.getAttribute("aria-pressed") === "true" ? "light" : "dark");
    apply();
  });
  system.addEventListener("change", apply);
  apply();
}

/** A colour of the style sheet as it is now, as rgb(). */
export function colour(name: string): string {
  const probe = document.createElement("span");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}
