// Each session's own color: hues a golden section apart, so that the ones next to each other differ most.

const GOLDEN_SECTION = 0.618034;
const FIRST = 0.62;
const RED_END = 45; // hues up to here, and from RED_START on, say that something is late or wrong
const RED_START = 365;

const hues = new Map();

/** Hue of a session in degrees; the same for as long as the page is open. */
export function hueOf(id) {
  if (!hues.has(id)) {
    const share = (FIRST + GOLDEN_SECTION * hues.size) % 1;
    hues.set(id, Math.round(RED_END + share * (RED_START - RED_END)));
  }
  return hues.get(id);
}

/** The color as drawn on a canvas. Lightness and strength are the style sheet's, so that they suit light and dark. */
export function colorOf(id, style) {
  const [lightness, chroma] = ["--session-lightness", "--session-chroma"].map((name) => style.getPropertyValue(name));
  return `oklch(${lightness} ${chroma} ${hueOf(id)})`;
}
