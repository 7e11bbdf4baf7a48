// Plays a session's video while it is made: its file, fetched as it grows, is appended to a media source.

import { codecOf } from "./codec.js";
import { GrowingFile } from "./growing_file.js";
import { ENDED } from "./sessions.js";

const Source = globalThis.ManagedMediaSource ?? globalThis.MediaSource;
const KEPT_SECONDS = 30; // behind the playhead, when the browser's buffer is full
const JOIN_BEHIND_SECONDS = 2; // a video that is long under way is joined this far before its end
const LONG_SECONDS = 8;
const MISSED_SECONDS = 1; // of a live video, before its viewers' clock is joined rather than its beginning
const SLACK_FRAMES = 0.5;

export class Player {
  /** `onStop(error)`: no more is read for now, for want of bytes or because of an error. */
  constructor(video, id, onStop) {
    this.video = video;
    this.onStop = onStop;
    this.path = `/v1/sessions/${encodeURIComponent(id)}/stream.mp4`;
    this.file = new GrowingFile(this.path);
    this.session = null;
    this.reading = null;
    this.buffer = null;
  }

  get isReading() {
    return this.reading !== null;
  }

  /** Whether the server has, or soon will have, frames that are not here. A viewer is what some sessions wait for. */
  get wantsMore() {
    const { state, pause_reason: reason } = this.session;
    return state === "in_progress" || reason === "no_viewer" || this.#lacksFrames();
  }

  /** Takes in how the session stands. A connection is kept open only for one that is being made. */
  update(session) {
    this.session = session;
    if (!this.isReading || this.wantsMore) return;
    this.stop();
    this.onStop(null);
  }

  start() {
    if (this.isReading) return;
    if (!Source) {
      this.video.src ||= this.path;
      return;
    }
    const reading = new AbortController();
    this.reading = reading;
    this.#read(reading.signal)
      .then(() => null, (error) => error)
      .then((error) => {
        if (this.reading !== reading) return; // stopped, and perhaps started again
        this.reading = null;
        this.onStop(error);
      });
  }

  stop() {
    this.reading?.abort();
    this.reading = null;
    this.#endIfComplete();
  }

  /** Stops for good and lets go of the video's memory. */
  close() {
    this.stop();
    this.video.removeAttribute("src");
    this.video.load();
  }

  async #read(signal) {
    for await (const part of this.file.read(signal)) await this.#append(part);
    this.#endIfComplete();
  }

  async #append(part) {
    if (!this.buffer) {
      this.head = joined(this.head, part);
      const codec = codecOf(this.head);
      if (!codec) return;
      await this.#openSource(`video/mp4; codecs="${codec}"`);
      part = this.head;
      this.head = undefined;
    }
    await this.#push(part);
  }

  async #openSource(type) {
    if (!Source.isTypeSupported(type)) throw new Error(`This browser cannot play ${type}.`);
    this.source = new Source();
    const url = URL.createObjectURL(this.source);
    this.video.disableRemotePlayback = true; // a ManagedMediaSource opens only then
    this.video.src = url;
    await once(this.source, "sourceopen");
    URL.revokeObjectURL(url);
    this.buffer = this.source.addSourceBuffer(type);
    const start = ENDED.has(this.session.state) ? 0 : joinSeconds(this.session);
    if (start > 0) this.video.currentTime = start;
  }

  async #push(part) {
    if (this.buffer.updating) await once(this.buffer, "updateend");
    for (;;) {
      try {
        this.buffer.appendBuffer(part);
        break;
      } catch (error) {
        if (error.name !== "QuotaExceededError") throw error;
        await this.#makeRoom();
      }
    }
    await once(this.buffer, "updateend");
  }

  async #makeRoom() {
    const end = this.video.currentTime - KEPT_SECONDS;
    if (end > 0 && this.video.buffered.length && this.video.buffered.start(0) < end) {
      this.buffer.remove(0, end);
      await once(this.buffer, "updateend");
    } else {
      await once(this.video, "timeupdate");
    }
  }

  #lacksFrames() {
    const { buffered } = this.video;
    const end = buffered.length ? buffered.end(buffered.length - 1) : 0;
    return this.session.frames_done - end * this.session.frames_per_second > SLACK_FRAMES;
  }

  #endIfComplete() {
    const isOpen = this.source?.readyState === "open" && this.buffer && !this.buffer.updating;
    if (isOpen && ENDED.has(this.session.state) && !this.#lacksFrames()) this.source.endOfStream();
  }
}

/** Where a video that is being made is joined: a live one where its viewers are, others shortly before their end. */
function joinSeconds({ frames_done, frames_per_second, live_frames_per_second: speed, credit_seconds: credit }) {
  if (speed && Number.isFinite(credit)) {
    const played = frames_done - Math.max(1, credit * speed);
    return played / speed > MISSED_SECONDS ? played / frames_per_second : 0;
  }
  const made = frames_done / frames_per_second;
  return made > LONG_SECONDS ? made - JOIN_BEHIND_SECONDS : 0;
}

function once(target, name) {
  return new Promise((resolve) => target.addEventListener(name, resolve, { once: true }));
}

function joined(first = new Uint8Array(), second) {
  const both = new Uint8Array(first.length + second.length);
  both.set(first);
  both.set(second, first.length);
  return both;
}
