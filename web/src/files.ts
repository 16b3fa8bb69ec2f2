/** The tabs of the program's files, and what adds, renames and removes one. */

import * as dialog from "./dialog.ts";
import { byId, make } from "./dom.ts";
import type { Editor } from "./editor.ts";
import { mark, moveByKeys } from "./tabs.ts";

export class Files {
  private readonly list = byId("files");
  private readonly panel = byId("editor");

  constructor(private readonly editor: Editor) {
    moveByKeys(this.list);
    byId("add-file").addEventListener("click", async () => {
      const name = await this.ask("Add a file", "Add", "");
      if (name) this.changed(() => editor.add(name), true);
    });
    byId("rename-file").addEventListener("click", async () => {
      const name = await this.ask(`Rename ${editor.current}`, "Rename", editor.current);
      if (name) this.changed(() => editor.rename(name), true);
    });
    byId("remove-file").addEventListener("click", async () => {
      const name = editor.current;
      const body = [`${name} and what is in it are gone then.`];
      if (await dialog.show({ title: `Remove ${name}?`, body, action: "Remove" })) this.changed(() => editor.remove());
    });
  }

  /** Show tabs for the files that the editor has. */
  draw(): void {
    const names = this.editor.files.map((file) => file.name);
    this.list.replaceChildren(
      ...names.map((name, index) => {
        const tab = make("button", { type: "button", role: "tab", id: `file-${index}`, "aria-controls": "editor" }, name);
        mark(tab, name === this.editor.current);
        if (name === this.editor.current) this.panel.setAttribute("aria-labelledby", tab.id);
        tab.addEventListener("click", () => this.changed(() => this.editor.show(name)));
        return tab;
      }),
    );
    byId<HTMLButtonElement>("remove-file").disabled = names.length < 2;
  }

  private changed(change: () => void, focus = false): void {
    change();
    this.draw();
    if (focus) this.editor.focus();
  }

  private async ask(title: string, action: string, value: string): Promise<string> {
    const input = make("input", { id: "file-name", value, autocomplete: "off", spellcheck: false, autocapitalize: "off" });
    const others = new Set(this.editor.files.map((file) => file.name).filter((name) => name !== value));
    const act = () => wrong(input.value, others);
    const done = await dialog.show({ title, action, act, body: [make("label", { for: "file-name" }, "Name"), input] });
    return done && input.value !== value ? input.value : "";
  }
}

/** Why a file cannot have this name; empty if it can. */
function wrong(name: string, others: Set<string>): string {
  if (!name) return "Give a name, such as util.rs";
  if (others.has(name)) return `There is a file ${name} already`;
  const parts = name.split("/");
  if (parts.some((part) => part === "" || part === "." || part === "..")) return "Give a relative name without . or ..";
  return "";
}
