/** The phases of a run as a bar and as a list: while it goes on by our clock, then by the server's. */

import { byId, make } from "./dom.ts";
import { seconds } from "./words.ts";

const NAMES: Record<string, string> = {
  queue: "waiting",
  start: "starting the machine",
  build: "building",
  run: "running",
  copies: "copying the machine",
  cases: "running the cases",
  rest: "around it",
};

export class Phases {
  private readonly place = byId("phases");
  private readonly track = this.place.querySelector<HTMLElement>(".track")!;
  private readonly list = this.place.querySelector("ul")!;
  private laps: { name: string; from: number }[] = [];
  private timer = 0;

  /** A run begins. */
  begin(): void {
    this.laps = [];
    this.enter("start");
    clearInterval(this.timer);
    this.timer = setInterval(() => this.draw(this.measured()), 100);
  }

  /** The next phase begins. */
  enter(name: string): void {
    this.laps.push({ name, from: performance.now() });
    this.draw(this.measured());
  }

  /** The run is over; `phases` are the server's figures in seconds, if it gave some. */
  end(phases: Record<string, number> | null): void {
    clearInterval(this.timer);
    this.draw(phases ? told(phases) : this.measured());
  }

  private measured(): [string, number][] {
    const until = [...this.laps.slice(1).map((lap) => lap.from), performance.now()];
    return this.laps.map((lap, index) => [lap.name, (until[index]! - lap.from) / 1000]);
  }

  private draw(phases: [string, number][]): void {
    this.place.hidden = !phases.length;
    const shown = phases.map(([name, value]) => ({ name, value, words: NAMES[name] ?? name }));
    this.track.replaceChildren(
      ...shown.map(({ name, value }) => {
        const part = make("span", { className: "part", "data-phase": name });
        part.style.flexGrow = String(Math.max(value, 0.0001));
        return part;
      }),
    );
    this.list.replaceChildren(
      ...shown.map(({ name, value, words }) => make("li", { "data-phase": name }, `${words} ${seconds(value)}`)),
    );
  }
}

/** The server's phases in the order in which they were; what the machine did besides its steps is the rest. */
function told(phases: Record<string, number>): [string, number][] {
  const { queue = 0, start = 0, steps, guest_boot: _, ...named } = phases;
  const rest = steps === undefined ? 0 : steps - Object.values(named).reduce((sum, value) => sum + value, 0);
  const all: [string, number][] = [["queue", queue], ["start", start], ...Object.entries(named), ["rest", Math.max(rest, 0)]];
  return all.filter(([, value]) => value >= 0.0005);
}
