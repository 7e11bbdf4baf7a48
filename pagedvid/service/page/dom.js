// Texts and templates. Everything that a person or the server wrote enters the page as text, never as markup.

export function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A copy of the one element inside a template of index.html. */
export function cloned(id) {
  return document.getElementById(id).content.cloneNode(true).firstElementChild;
}

export function partOf(root, name) {
  return root.querySelector(`[data-part="${name}"]`);
}

export const prefersStillness = matchMedia("(prefers-reduced-motion: reduce)");
