// Each session's own color: hues a golden angle apart, so that the ones next to each other differ most.

const GOLDEN_ANGLE = 137.508;
const FIRST_HUE = 250;

const hues = new Map();

/** Hue of a session in degrees; the same for as long as the page is open. */
export function hueOf(id) {
  if (!hues.has(id)) hues.set(id, (FIRST_HUE + GOLDEN_ANGLE * hues.size) % 360);
  return hues.get(id);
}

/** The color as drawn on a canvas. Lightness and strength are the style sheet's, so that they suit light and dark. */
export function colorOf(id, style) {
  const [lightness, chroma] = ["--session-lightness", "--session-chroma"].map((name) => style.getPropertyValue(name));
  return `oklch(${lightness} ${chroma} ${hueOf(id)})`;
}
