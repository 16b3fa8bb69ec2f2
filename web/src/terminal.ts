/** A terminal for interactive runs: xterm.js, loaded when the first such run begins. */

import { FitAddon } from "@xterm/addon-fit";
import { Terminal as Xterm } from "@xterm/xterm";
import { colour } from "./theme.ts";

export interface Size {
  columns: number;
  rows: number;
}

export class Terminal {
  private readonly xterm: Xterm;
  private readonly fit = new FitAddon();
  /** What gets typed bytes, and the new size after a resize. */
  typed: (data: Uint8Array) => void = () => {};
  resized: (size: Size) => void = () => {};

  /** `ours` says of a key whether the page itself takes it. */
  constructor(
    private readonly place: HTMLElement,
    ours: (event: KeyboardEvent) => boolean,
  ) {
    this.xterm = new Xterm({
      cursorBlink: !matchMedia("(prefers-reduced-motion: reduce)").matches,
      fontFamily: getComputedStyle(place).fontFamily,
      fontSize: 14,
      minimumContrastRatio: 4.5,
      screenReaderMode: true,
      scrollback: 5000,
    });
    this.xterm.loadAddon(this.fit);
    this.xterm.open(place);
    this.xterm.textarea?.setAttribute("aria-label", "Terminal: type to the program. F6 leaves it.");
    this.xterm.attachCustomKeyEventHandler((event) => !ours(event));
    this.xterm.onData((data) => this.typed(new TextEncoder().encode(data)));
    this.xterm.onBinary((data) => this.typed(Uint8Array.from(data, (character) => character.charCodeAt(0))));
    this.xterm.onResize(({ cols, rows }) => this.resized({ columns: cols, rows }));
    new ResizeObserver(() => this.resize()).observe(place);
    this.recolour();
  }

  /** Its size, after it has been fitted to its place. */
  get size(): Size {
    this.resize();
    return { columns: this.xterm.cols, rows: this.xterm.rows };
  }

  clear(): void {
    this.xterm.reset();
  }

  write(data: Uint8Array | string): void {
    this.xterm.write(data);
  }

  focus(): void {
    this.xterm.focus();
  }

  /** Take the colours of the page as they are now. */
  recolour(): void {
    const [background, foreground] = [colour("panel"), colour("text")];
    this.xterm.options.theme = { background, foreground, cursor: colour("accent"), selectionBackground: colour("selection") };
  }

  private resize(): void {
    if (this.place.clientWidth) this.fit.fit();
  }
}
