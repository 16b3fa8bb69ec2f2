/** Which parser a file gets, by its extension; each is loaded when the first such file is shown. */

import type { Extension } from "@codemirror/state";
import { HighlightStyle, indentUnit, syntaxHighlighting } from "@codemirror/language";
import { tags } from "@lezer/highlight";

const cpp = () => import("@codemirror/lang-cpp").then((found) => found.cpp());
const script = (typescript: boolean) => () => import("@codemirror/lang-javascript").then((found) => found.javascript({ typescript }));
const PARSERS: Record<string, () => Promise<Extension>> = {
  rs: () => import("@codemirror/lang-rust").then((found) => found.rust()),
  go: () => import("@codemirror/lang-go").then((found) => found.go()),
  py: () => import("@codemirror/lang-python").then((found) => found.python()),
  java: () => import("@codemirror/lang-java").then((found) => found.java()),
  js: script(false),
  mjs: script(false),
  cjs: script(false),
  ts: script(true),
  mts: script(true),
  c: cpp,
  h: cpp,
  cc: cpp,
  cpp,
  cxx: cpp,
  hpp: cpp,
};
const UNITS: Record<string, string> = { go: "\t", js: "  ", mjs: "  ", cjs: "  ", ts: "  ", mts: "  " };

/** What a file of this name is edited with. */
export async function parserFor(name: string): Promise<Extension> {
  const extension = name.split(".").at(-1)!.toLowerCase();
  const unit = indentUnit.of(UNITS[extension] ?? "    ");
  return [unit, (await PARSERS[extension]?.()) ?? []];
}

const style = HighlightStyle.define([
  { tag: [tags.keyword, tags.modifier, tags.operatorKeyword, tags.self], color: "var(--code-keyword)" },
  { tag: [tags.string, tags.character, tags.special(tags.string), tags.regexp], color: "var(--code-string)" },
  { tag: [tags.number, tags.bool, tags.null, tags.atom], color: "var(--code-number)" },
  { tag: [tags.comment, tags.lineComment, tags.blockComment], color: "var(--code-comment)", fontStyle: "italic" },
  { tag: [tags.function(tags.variableName), tags.function(tags.propertyName), tags.macroName], color: "var(--code-function)" },
  { tag: [tags.typeName, tags.className, tags.namespace], color: "var(--code-type)" },
  { tag: [tags.meta, tags.annotation, tags.processingInstruction], color: "var(--code-comment)" },
]);

export const colours = syntaxHighlighting(style);
