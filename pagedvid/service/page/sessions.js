// The sessions as the page knows them: what the server listed, what its events changed since, and measured speeds.

import { json } from "./api.js";

const PAGE_SIZE = 100;
const MOST_SESSIONS = 300;
const GATHER_SECONDS = 0.25; // of events, before the list is read for all of them
const RATE_WINDOW_SECONDS = 10;

export const ENDED = new Set(["completed", "failed", "cancelled"]);

export class Sessions {
  /** onChange(session, before): a session is new (no `before`), other than before, or gone (`session` undefined). */
  constructor(onChange) {
    this.byId = new Map();
    this.onChange = onChange;
    this.arrivals = new Map();
    this.reloading = null;
  }

  /** Newest first. */
  all() {
    return [...this.byId.values()].sort((a, b) => b.created_at - a.created_at || (a.id < b.id ? 1 : -1));
  }

  /** Reads the list anew; sessions that are not in it any more are gone. */
  async reload() {
    const known = [...this.byId.keys()]; // one that is new by the time of the answer may be missing from it
    const listed = [];
    let page;
    do {
      const after = page ? `&after=${encodeURIComponent(page.data.at(-1).id)}` : "";
      page = await json(`/v1/sessions?limit=${PAGE_SIZE}${after}`);
      listed.push(...page.data);
    } while (page.has_more && page.data.length && listed.length < MOST_SESSIONS);
    const ids = new Set(listed.map((session) => session.id));
    for (const id of known) if (!ids.has(id)) this.#remove(id);
    for (const session of listed.reverse()) this.put(session); // oldest first: colors go by age
  }

  put(session) {
    const before = this.byId.get(session.id);
    this.byId.set(session.id, { ...before, ...session });
    this.onChange(this.byId.get(session.id), before);
  }

  /** Takes in what the pool says about the sessions' pages, as their `held`, and their credit. */
  putHeld(entries) {
    const heldById = new Map(entries.map((entry) => [entry.id, entry]));
    for (const { id, credit_seconds } of this.byId.values()) {
      const held = heldById.get(id);
      this.put({ id, held, credit_seconds: held?.credit_seconds ?? credit_seconds });
    }
  }

  /** Takes in what the server's event says; a promise if there is more to ask for. */
  apply(name, { id, state, credit_seconds, ...chunk }) {
    const known = this.byId.get(id);
    if (known && name === "chunk") {
      this.#arrived(id, chunk.num_frames);
      this.put({ id, frames_done: chunk.frames_done, chunks_done: chunk.chunk_index + 1 });
      if (!known.width) return this.#reloadSoon(); // the first chunk tells the size of the frames
    } else if (known && name === "credit") {
      this.put({ id, credit_seconds });
    } else if (state !== known?.state) {
      return this.#reloadSoon();
    }
    return Promise.resolve();
  }

  /** Frames per second that were made for a session of late; null where too few chunks came to tell. */
  rate(id) {
    const recent = this.#recent(id);
    if (recent.length < 2) return null;
    const frames = recent.slice(1).reduce((sum, chunk) => sum + chunk.frames, 0);
    return frames / (recent.at(-1).seconds - recent[0].seconds);
  }

  #arrived(id, frames) {
    this.arrivals.set(id, [...this.#recent(id), { seconds: performance.now() / 1000, frames }]);
  }

  #recent(id) {
    const start = performance.now() / 1000 - RATE_WINDOW_SECONDS;
    return (this.arrivals.get(id) ?? []).filter((chunk) => chunk.seconds > start);
  }

  #reloadSoon() {
    this.reloading ??= new Promise((resolve) => setTimeout(resolve, GATHER_SECONDS * 1000)).then(() => {
      this.reloading = null;
      return this.reload();
    });
    return this.reloading;
  }

  #remove(id) {
    const before = this.byId.get(id);
    this.byId.delete(id);
    this.arrivals.delete(id);
    if (before) this.onChange(undefined, before);
  }
}
