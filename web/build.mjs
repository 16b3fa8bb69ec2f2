// Bundle the page into api/playground/static/. Each build replaces what an earlier one left there.
import { copyFile, mkdir, rm, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = fileURLToPath(new URL(".", import.meta.url));
const target = fileURLToPath(new URL("../api/playground/static/", import.meta.url));

const made = await build({
  absWorkingDir: here,
  entryPoints: { page: "src/main.ts" },
  outdir: target,
  bundle: true,
  splitting: true, // a language's parser and the terminal are loaded when they are wanted
  format: "esm",
  target: ["chrome123", "firefox120", "safari17.5"],
  minify: true,
  write: false,
  legalComments: "eof",
  logLevel: "warning",
});
await rm(target, { recursive: true, force: true });
await mkdir(target, { recursive: true });
for (const file of made.outputFiles) await writeFile(file.path, file.contents);
for (const name of ["index.html", "icon.svg"]) await copyFile(here + name, target + name);
const size = made.outputFiles.reduce((sum, file) => sum + file.contents.length, 0);
console.log(`${made.outputFiles.length} files, ${Math.round(size / 1024)} KiB`);
