/** The page's one dialog: the key, file names, the share link and the shortcuts. */

import { byId } from "./dom.ts";

export interface Question {
  title: string;
  body: (Node | string)[];
  /** The button that does it; without one there is only "Close". */
  action?: string;
  /** Called when that button is pressed. A text keeps the dialog open and is shown. */
  act?: () => string | void | Promise<string | void>;
}

/** Show the dialog; whether its action was done. */
export function show(question: Question): Promise<boolean> {
  const dialog = byId<HTMLDialogElement>("dialog");
  const ok = byId<HTMLButtonElement>("dialog-ok");
  const error = byId("dialog-error");
  const form = dialog.querySelector("form")!;
  byId("dialog-title").textContent = question.title;
  byId("dialog-body").replaceChildren(...question.body);
  error.textContent = "";
  ok.hidden = !question.action;
  ok.textContent = question.action ?? "";
  byId("dialog-cancel").textContent = question.action ? "Cancel" : "Close";
  return new Promise((resolve) => {
    let done = false;
    form.onsubmit = async (event) => {
      event.preventDefault();
      const wrong = await question.act?.();
      error.textContent = wrong ?? "";
      if (wrong) return;
      done = true;
      dialog.close();
    };
    byId("dialog-cancel").onclick = () => dialog.close();
    dialog.onclose = () => resolve(done);
    dialog.showModal();
    dialog.querySelector<HTMLElement>("#dialog-body input, #dialog-body textarea")?.focus();
  });
}
