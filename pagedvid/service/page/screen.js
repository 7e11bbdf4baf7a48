// The video of a card: starts when it is on screen and a connection is free, and has a button to hold it.

import { partOf, prefersStillness, put } from "./dom.js";
import { PlayedReports } from "./played_reports.js";
import { Player } from "./player.js";
import { ENDED } from "./sessions.js";

const [SLOWEST, FASTEST] = [0.0625, 16]; // what browsers play

export class Screen {
  constructor(card, session, connections, onMoved) {
    this.video = card.querySelector("video");
    this.words = partOf(card, "screen-words");
    this.card = card;
    this.connections = connections;
    this.isOnScreen = false;
    this.error = null;
    this.player = new Player(this.video, session.id, (error) => this.#stopped(error));
    this.reports = new PlayedReports(this.video, session.id, () => this.isOnScreen);
    this.video.muted = true; // browsers start only silent videos by themselves; these are silent anyway
    this.video.autoplay = !prefersStillness.matches;
    this.video.addEventListener("timeupdate", onMoved);
    for (const name of ["play", "pause", "loadeddata", "emptied"]) this.video.addEventListener(name, () => this.#show());
    this.#prepareButtons();
    this.observer = new IntersectionObserver((entries) => {
      this.isOnScreen = entries.at(-1).isIntersecting;
      if (this.session) this.#ask();
    });
    this.observer.observe(card);
  }

  update(session) {
    this.session = session;
    this.video.loop = ENDED.has(session.state) && !prefersStillness.matches;
    if (session.width) this.card.style.setProperty("--ratio", session.width / session.height);
    this.video.classList.toggle("small", session.width < 400);
    this.#setSpeed(session);
    this.player.update(session);
    this.reports.update(session);
    this.#ask();
    this.#show();
  }

  /** A session that is made for a viewer of some speed is shown at that speed while it is made. */
  #setSpeed({ state, live_frames_per_second: speed, frames_per_second }) {
    const rate = speed && !ENDED.has(state) ? speed / frames_per_second : 1;
    const allowed = Math.min(FASTEST, Math.max(SLOWEST, rate));
    if (this.video.playbackRate !== allowed) this.video.playbackRate = this.video.defaultPlaybackRate = allowed;
  }

  close() {
    this.observer.disconnect();
    this.connections.release(this);
    this.reports.stop();
    this.player.close();
  }

  #ask(options) {
    const wants = this.session.frames_done > 0 && !this.error && this.player.wantsMore;
    if ((this.isOnScreen || options?.insists) && wants) this.connections.ask(this, options);
  }

  #stopped(error) {
    this.connections.release(this);
    this.error = error;
    this.#show();
  }

  #prepareButtons() {
    const toggle = () => {
      this.error = null;
      this.#ask({ insists: true });
      if (this.video.paused) this.video.play().catch(() => {});
      else this.video.pause();
    };
    partOf(this.card, "play").addEventListener("click", toggle);
    this.video.addEventListener("click", toggle);
    partOf(this.card, "full").addEventListener("click", () => this.video.requestFullscreen?.().catch(() => {}));
    this.video.addEventListener("fullscreenchange", () => {
      this.video.controls = document.fullscreenElement === this.video;
    });
  }

  #show() {
    const isPlaying = !this.video.paused;
    this.card.classList.toggle("playing", isPlaying);
    this.card.classList.toggle("blank", !this.session?.frames_done);
    partOf(this.card, "play").setAttribute("aria-label", isPlaying ? "Hold the video" : "Play the video");
    put(this.words, this.#wordsNow());
  }

  #wordsNow() {
    if (this.error) return this.error.message;
    if (this.video.readyState >= HTMLMediaElement.HAVE_CURRENT_DATA) return "";
    if (!this.session?.frames_done) return ENDED.has(this.session?.state) ? "no frames" : "no frames yet";
    return this.player.isReading ? "loading" : "press play to watch";
  }
}
