// A session as a card: its video, how it stands, and what can be done with it.

import { prepareActions } from "./card_actions.js";
import { bytesWords, creditWords, originWords, progressWords, speedWords, stateWords } from "./card_words.js";
import { hueOf } from "./colors.js";
import { cloned, partOf, put } from "./dom.js";
import { Screen } from "./screen.js";

const SMALLEST_CHUNK = 0.0125; // of the strip; smaller ones are not marked
const GAUGE_SECONDS = 10; // at either end of the gauge

export class SessionCard {
  constructor(session, { sessions, connections, onHighlight }) {
    this.sessions = sessions;
    this.element = cloned("card-template");
    this.element.dataset.id = session.id;
    this.element.style.setProperty("--hue", hueOf(session.id));
    this.element.addEventListener("pointerenter", () => onHighlight(session.id));
    this.element.addEventListener("pointerleave", () => onHighlight(null));
    const prompt = partOf(this.element, "prompt");
    prompt.id = `prompt-${session.id}`;
    this.element.setAttribute("aria-labelledby", prompt.id);
    this.screen = new Screen(this.element, session, connections, () => this.#showPlayhead());
    this.showActions = prepareActions(this.element, session.id, sessions);
  }

  update(session) {
    this.session = session;
    const { element } = this;
    const { held } = session;
    element.dataset.state = session.state;
    element.classList.toggle("shares", (held?.shared_pages ?? 0) > 0);
    element.classList.toggle("swapped", held?.host_bytes > 0); // paused ones, too
    this.#put("state", stateWords(session));
    this.#put("prompt", session.prompt);
    partOf(element, "prompt").title = session.prompt; // long ones are cut
    this.#put("origin", originWords(session, this.sessions.byId.get(session.source_id)));
    this.#put("speed", speedWords(session, this.sessions.rate(session.id)));
    this.#put("bytes", bytesWords(session));
    this.#showError(session.error);
    this.#showProgress(session);
    this.#showCredit(session);
    element.style.setProperty("--stored", session.bf16_bytes ? session.stored_bytes / session.bf16_bytes : 0);
    this.showActions(session);
    this.screen.update(session);
  }

  point(isPointed) {
    this.element.classList.toggle("pointed", isPointed);
  }

  remove() {
    this.screen.close();
    this.element.remove();
  }

  #put(name, text) {
    put(partOf(this.element, name), text);
  }

  #showError(error) {
    partOf(this.element, "error").hidden = !error;
    this.#put("error", error?.message ?? "");
  }

  #showProgress(session) {
    const strip = partOf(this.element, "strip");
    const words = progressWords(session);
    this.#put("progress", words);
    strip.setAttribute("aria-valuetext", words);
    strip.setAttribute("aria-valuemax", totalFrames(session));
    strip.setAttribute("aria-valuenow", session.frames_done);
    strip.style.setProperty("--made", Math.min(1, session.frames_done / totalFrames(session)));
    const chunk = session.chunks_done ? framesPerChunk(session) / totalFrames(session) : 1;
    strip.style.setProperty("--chunk", chunk < SMALLEST_CHUNK ? 1 : chunk);
  }

  #showCredit(session) {
    const words = creditWords(session);
    const isRunning = session.live_frames_per_second && session.state === "in_progress" && session.frames_done;
    const credit = isRunning ? session.credit_seconds ?? 0 : 0;
    const gauge = partOf(this.element, "gauge");
    const shown = Math.max(-GAUGE_SECONDS, Math.min(GAUGE_SECONDS, credit));
    this.element.classList.toggle("stalled", credit < 0);
    this.#put("credit", words);
    gauge.setAttribute("aria-valuenow", shown.toFixed(1));
    gauge.setAttribute("aria-valuetext", words);
    gauge.style.setProperty("--credit", Math.abs(shown) / GAUGE_SECONDS);
    gauge.classList.toggle("idle", !isRunning);
  }

  #showPlayhead() {
    const frames = this.screen.video.currentTime * this.session.frames_per_second;
    const share = frames / totalFrames(this.session);
    partOf(this.element, "strip").style.setProperty("--played", Math.min(1, share));
  }
}

function framesPerChunk({ frames_done, chunks_done }) {
  return frames_done / chunks_done;
}

/** Frames that the video will have, judged by those of the chunks so far. */
function totalFrames(session) {
  const { chunks_done, num_chunks, num_frames, frames_done, state } = session;
  if (state === "completed") return Math.max(1, frames_done);
  if (!num_chunks || !chunks_done) return num_frames;
  return framesPerChunk(session) * num_chunks;
}
