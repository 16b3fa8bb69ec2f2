/** Places in the program that compilers, interpreters and panics name in their output. */

/** A place in a file; lines and columns begin with 1. Column 0 is the whole line. */
export interface Place {
  file: string;
  line: number;
  column: number;
}

export interface Diagnostic extends Place {
  severity: "error" | "warning";
  message: string;
}

export interface Link extends Place {
  from: number;
  to: number;
}

const PLACE = /(?:File "([^"\n]{1,255})", line |(?<![\w/.-])([\w./-]{1,255}\.\w{1,10})(?:: ?|\())(\d{1,7})(?:[:,](\d{1,7}))?/g;
/** `main.rs:3:5`, `./main.go:4:2`, `main.sh: 3`, `main.ts(3,5)`, `File "/work/main.py", line 3`. */

const RUST = /^(error|warning)(?:\[\w+\])?: (.+)$/;
const SAME_LINE = /^[)\s:]*(?:(?:fatal )?(error|warning)\b[^:]*:)?\s*(.*)$/;
const LATER = /^(\w*(?:Error|Exception|Warning)\b.*)$/m;
/** Where the place comes first: Python's and Node's last line. */

const MOST = 100;
/** Diagnostics that are shown. */
const FURTHER = 20;
/** Lines below a place in which its message is looked for. */

/** A file's name as the page has it: relative to the program's folder. */
const plain = (name: string) => name.replace(/^(?:\.\/|\/work\/)+/, "");

/** The places in `text` that are in one of the files. */
export function findLinks(text: string, files: ReadonlySet<string>): Link[] {
  const found: Link[] = [];
  for (const match of text.matchAll(PLACE)) {
    const file = plain((match[1] ?? match[2])!);
    if (files.has(file)) {
      found.push({ file, line: Number(match[3]), column: Number(match[4] ?? 0), from: match.index, to: match.index + match[0].length });
    }
  }
  return found;
}

/** What a build step's output says about the files. */
export function diagnose(text: string, files: ReadonlySet<string>): Diagnostic[] {
  const found: Diagnostic[] = [];
  const lines = text.split("\n");
  lines.forEach((line, index) => {
    if (found.length >= MOST) return;
    const [link] = findLinks(line, files);
    if (!link) return;
    const { file, line: number, column } = link;
    const before = line.slice(0, link.from).trim();
    let severity: Diagnostic["severity"] = "error";
    let message = "";
    if (before === "-->") {
      const title = RUST.exec(lines[index - 1] ?? "");
      if (!title) return; // a note's place
      severity = title[1] as Diagnostic["severity"];
      message = title[2]!;
    } else if (before === "") {
      const rest = line.slice(link.to);
      if (/^[)\s:]*note\b/.test(rest)) return;
      const said = SAME_LINE.exec(rest);
      message = said?.[2] || (LATER.exec(lines.slice(index + 1, index + 1 + FURTHER).join("\n"))?.[1] ?? "");
      severity = said?.[1] === "warning" || /^\w*Warning/.test(message) ? "warning" : "error";
    } else {
      return;
    }
    const known = found.some((one) => one.file === file && one.line === number && one.message === message);
    if (!known) found.push({ file, line: number, column, severity, message: message || "an error is here" });
  });
  return found;
}
