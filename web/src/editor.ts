/** The editor: CodeMirror with the files of a program, one shown at a time. */

import { autocompletion, closeBrackets, closeBracketsKeymap, completeAnyWord, completionKeymap } from "@codemirror/autocomplete";
import { defaultKeymap, history, historyKeymap, indentWithTab } from "@codemirror/commands";
import { bracketMatching, foldGutter, foldKeymap, indentOnInput } from "@codemirror/language";
import { type Diagnostic as Mark, lintGutter, lintKeymap, setDiagnostics } from "@codemirror/lint";
import { highlightSelectionMatches, searchKeymap } from "@codemirror/search";
import { Compartment, EditorState, type Line, type Text } from "@codemirror/state";
import {
  EditorView,
  drawSelection,
  highlightActiveLine,
  highlightActiveLineGutter,
  highlightSpecialChars,
  keymap,
  lineNumbers,
} from "@codemirror/view";
import { nonce } from "./csp.ts";
import { colours, parserFor } from "./highlighting.ts";
import type { Diagnostic, Place } from "./places.ts";

export class Editor {
  private readonly view: EditorView;
  private readonly states = new Map<string, EditorState>();
  private readonly parser = new Compartment();
  private diagnostics: Diagnostic[] = [];
  private shown = "";

  /** `changed` is called when the user has edited. */
  constructor(
    parent: HTMLElement,
    private readonly changed: () => void,
  ) {
    this.view = new EditorView({ parent, state: this.state("", "") });
  }

  /** The files' texts in the order in which they were added. */
  get files(): { name: string; text: string }[] {
    this.keep();
    return [...this.states].map(([name, state]) => ({ name, text: state.doc.toString() }));
  }

  get current(): string {
    return this.shown;
  }

  /** Have these files and no others, and show the first. */
  load(files: { name: string; text: string }[]): void {
    this.states.clear();
    this.diagnostics = [];
    this.shown = "";
    for (const { name, text } of files) this.states.set(name, this.state(name, text));
    this.show(files[0]!.name);
  }

  /** Add a file and show it. */
  add(name: string): void {
    this.states.set(name, this.state(name, ""));
    this.show(name);
    this.changed();
  }

  /** Remove the file that is shown. */
  remove(): void {
    this.states.delete(this.shown);
    this.shown = "";
    this.show([...this.states.keys()][0]!);
    this.changed();
  }

  /** Give the file that is shown another name; it keeps its place. */
  rename(name: string): void {
    this.keep();
    const old = this.shown;
    const all = [...this.states].map(([known, state]) => [known === old ? name : known, state] as const);
    this.states.clear();
    for (const [known, state] of all) this.states.set(known, state);
    this.shown = "";
    this.show(name);
    this.changed();
  }

  show(name: string): void {
    this.keep();
    this.shown = name;
    this.view.setState(this.states.get(name)!);
    this.mark();
    void parserFor(name).then((parser) => {
      if (this.shown === name) this.view.dispatch({ effects: this.parser.reconfigure(parser) });
    });
  }

  /** Show the place, with the cursor there. */
  jump(place: Place): void {
    if (!this.states.has(place.file)) return;
    if (place.file !== this.shown) this.show(place.file);
    const at = offset(this.view.state.doc, place);
    this.view.dispatch({ selection: { anchor: at }, effects: EditorView.scrollIntoView(at, { y: "center" }) });
    this.view.focus();
  }

  /** Mark these places, and no others, in all files. */
  diagnose(diagnostics: Diagnostic[]): void {
    this.diagnostics = diagnostics;
    this.mark();
  }

  focus(): void {
    this.view.focus();
  }

  private keep(): void {
    if (this.states.has(this.shown)) this.states.set(this.shown, this.view.state);
  }

  private mark(): void {
    const { doc } = this.view.state;
    const marks = this.diagnostics.filter((one) => one.file === this.shown).map((one): Mark => {
      const at = offset(doc, one);
      const line = doc.lineAt(at);
      const word = /^\w+/.exec(doc.sliceString(at, line.to));
      const whole = one.column === 0 || at === line.to; // behind a line's end there is nothing to mark
      const [from, to] = whole ? [indented(line), line.to] : [at, at + (word?.[0].length ?? 1)];
      return { from, to, severity: one.severity, message: one.message };
    });
    this.view.dispatch(setDiagnostics(this.view.state, marks));
  }

  private state(name: string, doc: string): EditorState {
    return EditorState.create({
      doc,
      extensions: [
        EditorView.cspNonce.of(nonce),
        lineNumbers(),
        lintGutter(),
        foldGutter(),
        highlightActiveLineGutter(),
        highlightActiveLine(),
        highlightSpecialChars(),
        highlightSelectionMatches(),
        history(),
        drawSelection(),
        EditorState.allowMultipleSelections.of(true),
        indentOnInput(),
        bracketMatching(),
        closeBrackets(),
        autocompletion({ override: [completeAnyWord], activateOnTyping: false }),
        this.parser.of([]),
        colours,
        EditorView.contentAttributes.of({ "aria-label": `Source of ${name}`, "aria-describedby": "editor-help" }),
        EditorView.updateListener.of((update) => {
          if (update.docChanged) this.changed();
        }),
        keymap.of([
          ...closeBracketsKeymap,
          ...completionKeymap,
          ...searchKeymap,
          ...historyKeymap,
          ...foldKeymap,
          ...lintKeymap,
          indentWithTab,
          ...defaultKeymap.filter((binding) => binding.key !== "Mod-Enter"), // it runs the program
        ]),
      ],
    });
  }
}

/** Where a place is in a document that may have changed since it was named. */
function offset(doc: Text, place: Place): number {
  const line = doc.line(Math.min(Math.max(place.line, 1), doc.lines));
  return place.column ? Math.min(line.from + place.column - 1, line.to) : indented(line);
}

/** Where the text of a line begins. */
const indented = (line: Line) => line.from + /^\s*/.exec(line.text)![0].length;
