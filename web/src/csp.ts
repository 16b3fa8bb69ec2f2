/**
 * Lets libraries set styles under the page's Content-Security-Policy, which has no 'unsafe-inline'.
 *
 * Style elements get the nonce that the server put on the style sheet's link; style attributes,
 * which a policy forbids, are set through the CSS object model, which it does not concern.
 */

export const nonce = document.querySelector<HTMLLinkElement>("link[rel=stylesheet]")?.nonce ?? "";

const create = document.createElement.bind(document) as (name: string, options?: ElementCreationOptions) => HTMLElement;
document.createElement = ((name: string, options?: ElementCreationOptions) => {
  const made = create(name, options);
  if (made instanceof HTMLStyleElement) made.nonce = nonce;
  return made;
}) as typeof document.createElement;

const setAttribute = Element.prototype.setAttribute;
HTMLElement.prototype.setAttribute = function (name: string, value: string) {
  if (name === "style") this.style.cssText = value;
  else setAttribute.call(this, name, value);
};
