/** The cases as a table: inputs, expected outputs and, after a run, verdicts. */

import { textOf } from "./api.ts";
import { byId, make, unseen } from "./dom.ts";
import type { Case, CaseResult } from "./types.ts";
import { VERDICTS, describeEnd } from "./words.ts";

const MOST = 200;

export class Cases {
  private readonly body = byId("cases").querySelector("tbody")!;
  private readonly more = byId<HTMLButtonElement>("add-case");

  /** `changed` is called when the user has edited. */
  constructor(private readonly changed: () => void) {
    this.more.addEventListener("click", () => {
      this.append({ stdin: "", expected: "" });
      this.body.rows[this.body.rows.length - 1]?.querySelector("textarea")?.focus();
      changed();
    });
  }

  load(cases: Case[]): void {
    this.body.replaceChildren();
    for (const one of cases.slice(0, MOST)) this.append(one);
    if (!cases.length) this.append({ stdin: "", expected: "" });
  }

  get cases(): Case[] {
    return [...this.body.rows].map((row) => {
      const [stdin, expected] = row.querySelectorAll("textarea");
      return { stdin: stdin!.value, expected: expected!.value === "" ? null : expected!.value };
    });
  }

  /** A run begins: earlier verdicts are gone. */
  begin(): void {
    for (const row of this.body.rows) this.verdict(row).replaceChildren("…");
  }

  /** A case is done. */
  show(result: CaseResult): void {
    const row = this.body.rows[result.index];
    if (!row) return;
    const told = result.wall_ms === undefined ? result.error?.message : describeEnd(result);
    const details = make("details", { open: result.verdict !== "passed" }, make("summary", {}, told ?? ""));
    for (const stream of ["stdout", "stderr"] as const) {
      const text = textOf(result[stream], result[`${stream}_base64`]);
      if (text) details.append(make("p", {}, stream), make("pre", { className: stream, tabIndex: 0 }, text));
    }
    const verdict = make("strong", {}, VERDICTS[result.verdict] ?? result.verdict);
    this.verdict(row).replaceChildren(verdict, ...(told ? [details] : []));
    row.dataset.verdict = result.verdict;
  }

  /** A run is over: what has no verdict was not run. */
  end(): void {
    for (const row of this.body.rows) if (!row.dataset.verdict) this.verdict(row).replaceChildren();
  }

  private append(one: Case): void {
    const row = make("tr", { role: "row" });
    const area = (value: string, what: string) => {
      const made = make("textarea", { value, rows: 2, spellcheck: false, autocapitalize: "off" });
      made.dataset.what = what;
      made.addEventListener("input", () => {
        this.clear(row);
        this.changed();
      });
      return made;
    };
    const remove = make("button", { type: "button", className: "icon" }, make("span", { "aria-hidden": "true" }, "×"), unseen("Remove"));
    remove.addEventListener("click", () => {
      const next = row.nextElementSibling ?? row.previousElementSibling;
      row.remove();
      this.number();
      (next?.querySelector("textarea") ?? this.more).focus();
      this.changed();
    });
    row.append(
      make("th", { role: "rowheader", scope: "row" }),
      make("td", { role: "cell" }, area(one.stdin, "Standard input")),
      make("td", { role: "cell" }, area(one.expected ?? "", "Expected output")),
      make("td", { role: "cell", className: "verdict" }),
      make("td", { role: "cell" }, remove),
    );
    this.body.append(row);
    this.number();
  }

  private number(): void {
    [...this.body.rows].forEach((row, index) => {
      row.cells[0]!.textContent = String(index + 1);
      for (const area of row.querySelectorAll("textarea")) area.setAttribute("aria-label", `${area.dataset.what} of case ${index + 1}`);
    });
    this.more.disabled = this.body.rows.length >= MOST;
  }

  private clear(row: HTMLTableRowElement): void {
    delete row.dataset.verdict;
    this.verdict(row).replaceChildren();
  }

  private verdict(row: HTMLTableRowElement): HTMLElement {
    delete row.dataset.verdict;
    return row.querySelector<HTMLElement>(".verdict")!;
  }
}
