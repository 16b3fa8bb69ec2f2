/** What the program prints: both streams in the order in which they came, told apart. */

import { byId, make, unseen } from "./dom.ts";
import { type Place, findLinks } from "./places.ts";

type Stream = "stdout" | "stderr";

const MOST = 2 << 20;
/** Characters that are shown; a browser becomes slow with more. */
const MOST_PARTS = 20_000;
const COLOURS = /\x1b\[[\d;]*[A-Za-z]/g;

interface Part {
  stream: Stream;
  text: string;
  element: HTMLElement;
}

export class Output {
  private readonly place = byId("output");
  private waiting: { stream: Stream; text: string }[] = [];
  private last: Part | null = null;
  private decoders = newDecoders();
  private size = 0;
  private parts = 0;
  private files: ReadonlySet<string> = new Set();
  private frame = 0;
  private whole: string[] = [];

  /** `jump` is called for a place in the output that the user has chosen. */
  constructor(private readonly jump: (place: Place) => void) {
    byId("streams").addEventListener("change", (event) => {
      this.place.dataset.only = (event.target as HTMLInputElement).value;
    });
  }

  /** Begin anew; places in `files` become links. */
  clear(files: Iterable<string>): void {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    this.waiting = [];
    this.whole = [];
    this.last = null;
    this.decoders = newDecoders();
    this.size = this.parts = 0;
    this.files = new Set(files);
    this.place.replaceChildren();
  }

  /** Add bytes of a stream. */
  write(stream: Stream, data: Uint8Array): void {
    this.add(stream, this.decoders[stream].decode(data, { stream: true }));
  }

  /** Everything is there: show it now, or `note` if it is nothing. */
  end(note: string): void {
    for (const stream of ["stdout", "stderr"] as const) this.add(stream, this.decoders[stream].decode());
    cancelAnimationFrame(this.frame);
    this.flush();
    this.close();
    if (!this.place.hasChildNodes()) this.place.append(make("span", { className: "note" }, note));
  }

  /** The text of both streams. */
  get text(): string {
    return this.whole.join("");
  }

  private add(stream: Stream, text: string): void {
    if (!text) return;
    this.whole.push(text);
    const last = this.waiting.at(-1);
    if (last?.stream === stream) last.text += text;
    else this.waiting.push({ stream, text });
    this.frame ||= requestAnimationFrame(() => this.flush());
  }

  private flush(): void {
    this.frame = 0;
    const follows = this.place.scrollTop + this.place.clientHeight >= this.place.scrollHeight - 8;
    for (const { stream, text } of this.waiting) this.append(stream, text);
    this.waiting = [];
    if (follows) this.place.scrollTop = this.place.scrollHeight;
  }

  private append(stream: Stream, text: string): void {
    if (this.size > MOST || this.parts > MOST_PARTS) return;
    this.size += text.length;
    if (this.last?.stream !== stream) {
      this.close();
      const element = make("span", { className: stream });
      if (stream === "stderr") element.append(unseen("standard error: "));
      this.place.append(element);
      this.last = { stream, text: "", element };
      this.parts++;
    }
    // What may go on (a line, for its links) is a text node of its own, which is replaced when more comes.
    if (this.last.text) this.last.element.lastChild?.remove();
    const lines = this.last.text + text;
    const end = lines.lastIndexOf("\n") + 1;
    this.render(this.last.element, lines.slice(0, end));
    this.last.text = lines.slice(end);
    if (this.last.text) this.last.element.append(this.last.text.replace(COLOURS, ""));
    if (this.size > MOST || this.parts > MOST_PARTS) {
      this.place.append(make("span", { className: "note" }, "\nMore than this page shows. Copy gives all of it."));
    }
  }

  /** The last part does not go on: a line without an end may have links, too. */
  private close(): void {
    if (!this.last?.text) return;
    this.last.element.lastChild?.remove();
    this.render(this.last.element, this.last.text);
    this.last.text = "";
  }

  private render(element: HTMLElement, raw: string): void {
    const text = raw.replace(COLOURS, "");
    let at = 0;
    for (const link of findLinks(text, this.files)) {
      if (++this.parts > MOST_PARTS) break;
      const button = make("button", { type: "button", className: "place" }, text.slice(link.from, link.to));
      button.addEventListener("click", () => this.jump(link));
      element.append(text.slice(at, link.from), button);
      at = link.to;
    }
    if (at < text.length) element.append(text.slice(at));
  }
}

const newDecoders = () => ({ stdout: new TextDecoder(), stderr: new TextDecoder() });
