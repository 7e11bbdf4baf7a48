// The figures at the top.

import { put } from "./dom.js";
import { bytes, count, decimals } from "./shown.js";

const GROUPS = [
  ["in_progress", "being made"],
  ["queued", "queued"],
  ["paused", "paused"],
  ["completed", "complete"],
  ["failed", "failed"],
];

export function showTotals(sessions, pool) {
  const all = sessions.all();
  const groups = GROUPS.map(([state, words]) => [all.filter((session) => session.state === state).length, words]);
  const states = groups.filter(([number]) => number).map(([number, words]) => `${number} ${words}`);
  show("total-sessions", count(all.length));
  show("total-states", states.join(", ") || "none yet");
  if (!pool) return;
  show("total-rate", decimals(pool.frames_per_second));
  show("total-pages", count(pool.used_pages));
  show("total-pages-more", `of ${count(pool.num_pages)}, ${count(pool.reserved_pages)} promised, ${count(pool.free_pages)} free`);
  show("total-bytes", bytes(pool.stored_bytes));
  show("total-bytes-more", `bf16 would be ${bytes(pool.bf16_bytes)}`);
}

function show(id, text) {
  put(document.getElementById(id), text);
}
