/** Tab lists that work as the ARIA practices say: one stop of the Tab key, arrows within. */

const STEPS: Record<string, (at: number, last: number) => number> = {
  ArrowRight: (at, last) => (at === last ? 0 : at + 1),
  ArrowLeft: (at, last) => (at === 0 ? last : at - 1),
  Home: () => 0,
  End: (_, last) => last,
};

/** Let arrows, Home and End move among the tabs of a list; each tab is chosen by its own click. */
export function moveByKeys(tabList: HTMLElement): void {
  tabList.addEventListener("keydown", (event) => {
    const tabs = [...tabList.querySelectorAll<HTMLElement>("[role=tab]:not([hidden])")];
    const at = tabs.indexOf(event.target as HTMLElement);
    const step = STEPS[event.key];
    if (at < 0 || !step) return;
    event.preventDefault();
    const index = step(at, tabs.length - 1);
    tabs[index]?.click();
    tabList.querySelectorAll<HTMLElement>("[role=tab]:not([hidden])")[index]?.focus();
  });
}

/** Show which tab is chosen. */
export function mark(tab: HTMLElement, chosen: boolean): void {
  tab.setAttribute("aria-selected", String(chosen));
  tab.tabIndex = chosen ? 0 : -1;
}
