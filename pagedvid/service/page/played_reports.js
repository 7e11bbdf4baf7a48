// Tells the server how far a live video was watched here, so that the session is made for this viewer.

import { post } from "./api.js";

const REPORT_SECONDS = 2;
const ROUNDING_FRAMES = 0.01;

export class PlayedReports {
  /** `isSeen()`: whether the video is where a person sees it. One that is not goes by the server's clock. */
  constructor(video, id, isSeen) {
    this.video = video;
    this.path = `/v1/sessions/${encodeURIComponent(id)}/played`;
    this.isSeen = isSeen;
    this.timer = null;
    this.isSending = false;
  }

  /** Takes in how the session stands: only a live one that is being made waits for reports. */
  update(session) {
    this.session = session;
    const isWanted = session.live_frames_per_second && session.state === "in_progress";
    if (!isWanted) this.stop();
    else this.timer ??= setInterval(() => this.#report(), REPORT_SECONDS * 1000);
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
  }

  async #report() {
    const hasFrames = this.video.readyState >= HTMLMediaElement.HAVE_CURRENT_DATA && !this.video.seeking;
    if (this.isSending || !hasFrames || document.hidden || !this.isSeen()) return;
    this.isSending = true;
    try {
      await post(this.path, { num_frames: this.#framesPlayed() });
    } catch (error) {
      console.warn("played:", error.message); // the server's clock goes on without it
    } finally {
      this.isSending = false;
    }
  }

  /** A video that has run out of frames has played all that it has, although it stands a little before their end. */
  #framesPlayed() {
    const { buffered, currentTime, paused, readyState } = this.video;
    const hasRunOut = !paused && readyState < HTMLMediaElement.HAVE_FUTURE_DATA && buffered.length > 0;
    const end = hasRunOut ? buffered.end(buffered.length - 1) : currentTime;
    const frames = Math.floor(end * this.session.frames_per_second + ROUNDING_FRAMES);
    return Math.min(frames, this.session.frames_done);
  }
}
