// What an mp4 file's first bytes say about its codec, as a browser wants it named.

const CONFIGURATION = [..."avcC"].map((letter) => letter.charCodeAt(0));

/** "avc1.42c00d" and the like, from the H.264 configuration record; null while these bytes do not hold it yet. */
export function codecOf(bytes) {
  // The box's name, then: version, profile, compatible profiles, level.
  const at = bytes.findIndex((_, start) => CONFIGURATION.every((letter, i) => bytes[start + i] === letter));
  if (at < 0 || bytes.length < at + 8) return null;
  const hex = [...bytes.subarray(at + 5, at + 8)].map((byte) => byte.toString(16).padStart(2, "0"));
  return `avc1.${hex.join("")}`;
}
