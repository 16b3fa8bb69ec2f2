/** The files that the program left and the user wanted back, as links that save them. */

import { bytesOf } from "./api.ts";
import { byId, make } from "./dom.ts";
import type { Result } from "./types.ts";
import { sentence, size } from "./words.ts";

export class Collected {
  private readonly place = byId("collected");
  private urls: string[] = [];

  /** Show none, and let their content go. */
  clear(): void {
    this.urls.forEach((url) => URL.revokeObjectURL(url));
    this.urls = [];
    this.place.replaceChildren();
    this.place.hidden = true;
  }

  /** Show those of a result, or why there are none; nothing if none were asked for. */
  show({ files, files_error: error }: Result): void {
    if (!files) return;
    const items = Object.entries(files).map(([name, { base64 }]) => this.link(name, bytesOf(undefined, base64)));
    const note = error ? `No file came back: ${error.message}. ${sentence(error.hint)}` : "The program left no file that matches.";
    this.place.replaceChildren(...(items.length ? items : [note]).map((item) => make("li", {}, item)));
    this.place.hidden = false;
  }

  private link(name: string, data: Uint8Array): HTMLElement {
    // Of a type that no browser shows: a page of the program's must not become one of this origin.
    const url = URL.createObjectURL(new Blob([data as Uint8Array<ArrayBuffer>], { type: "application/octet-stream" }));
    this.urls.push(url);
    return make("a", { href: url, download: name.split("/").at(-1)! }, `${name} (${size(data.length)})`);
  }
}
