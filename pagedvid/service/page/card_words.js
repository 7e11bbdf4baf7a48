// What a card says about its session, in words.

import { bytes, count, counted, decimals, seconds } from "./shown.js";

const STATES = {
  queued: "waiting for its turn",
  in_progress: "being made",
  paused: "paused",
  completed: "complete",
  failed: "failed",
  cancelled: "cancelled",
};

export function stateWords({ state, pause_reason, held }) {
  let words = STATES[state] ?? state;
  if (pause_reason === "no_viewer") words = "paused, nobody watched";
  return held?.host_bytes > 0 ? `${words}, in host memory` : words;
}

export function originWords(session, source) {
  const seed = `seed ${session.seed}`;
  if (!session.source_id) return seed;
  return source ? `${seed}, fork of “${source.prompt}”` : `${seed}, fork of a deleted session`;
}

export function speedWords(session, rate) {
  const speed = session.live_frames_per_second;
  const words = [];
  if (session.state === "in_progress" && rate !== null) words.push(`${decimals(rate)} frames/s`);
  if (speed) words.push(`live at ${decimals(speed)} frames/s`);
  return words.join(", ");
}

/** `num_frames` counts the model's frames and `frames_done` those of the video, so only chunks have a common total. */
export function progressWords({ frames_done, chunks_done, num_chunks, num_frames }) {
  if (num_chunks) return `${counted(frames_done, "frame")}, ${count(chunks_done)} of ${counted(num_chunks, "chunk")}`;
  return `${count(frames_done)} of ${counted(num_frames, "frame")}, ${counted(chunks_done, "chunk")}`;
}

export function creditWords({ live_frames_per_second, state, credit_seconds, frames_done }) {
  if (!live_frames_per_second) return "no deadline";
  if (state === "completed") return "all made";
  if (state !== "in_progress" && state !== "queued") return "clock stopped";
  if (credit_seconds === null || credit_seconds === undefined || !frames_done) return "clock starts with the first chunk";
  return credit_seconds < 0 ? `stalled, ${seconds(credit_seconds)} late` : `${seconds(credit_seconds)} ahead`;
}

export function bytesWords({ stored_bytes, bf16_bytes }) {
  return bf16_bytes ? `${bytes(stored_bytes)}, bf16 would be ${bytes(bf16_bytes)}` : "nothing yet";
}
