// The pad that steers a session while it is made: a button for each action of the model, and the arrow keys.

import { cloned, partOf, put } from "./dom.js";
import { model } from "./model.js";
import { ENDED } from "./sessions.js";
import { seconds } from "./shown.js";

const STEPS = 1000; // an action is taken until the next one is chosen, or for so many frames
const WAYS = { ArrowUp: "up", ArrowDown: "down", ArrowLeft: "left", ArrowRight: "right" };
const OPPOSITES = { up: "down", down: "up", left: "right", right: "left" };
const STAY_KEYS = new Set([" ", "."]);

export class Pad {
  /** `turn(prompt)` gives the session a prompt; its promise is kept whether the server takes that or not. */
  constructor(form, turn) {
    this.pad = partOf(form, "pad");
    this.words = partOf(form, "pad-words");
    this.delay = partOf(form, "pad-delay");
    this.turn = turn;
    this.held = new Set();
    this.wanted = null;
    this.isSending = false;
    this.buttons = new Map(model.actions.map((action) => [action, this.#button(action)]));
    this.pad.replaceChildren(...this.buttons.values());
    this.pad.addEventListener("keydown", (event) => this.#pressed(event));
    this.pad.addEventListener("keyup", ({ key }) => this.held.delete(WAYS[key]));
    this.pad.addEventListener("focusout", () => this.held.clear());
  }

  show(session) {
    this.session = session;
    const isOver = ENDED.has(session.state);
    this.now = this.wanted ?? model.actions.find((action) => promptOf(action) === session.prompt);
    for (const [action, button] of this.buttons) {
      button.disabled = isOver;
      button.setAttribute("aria-pressed", action === this.now);
    }
    put(this.words, isOver ? "It is over." : this.now ? `${this.now}, until you choose another` : "as its prompt says");
    put(this.delay, delayWords(session));
  }

  #button(action) {
    const button = cloned("pad-button");
    const ways = waysOf(action);
    const [row, column] = [offset(ways, "up", "down"), offset(ways, "left", "right")];
    button.setAttribute("aria-label", action);
    button.classList.toggle("rest", !row && !column);
    button.style.gridArea = `${row + 2} / ${column + 2}`;
    button.style.setProperty("--angle", `${Math.atan2(column, -row)}rad`);
    button.addEventListener("click", () => {
      this.pad.focus({ preventScroll: true }); // the keys go on from here
      this.#take(action);
    });
    return button;
  }

  #pressed(event) {
    const way = WAYS[event.key];
    if ((!way && !STAY_KEYS.has(event.key)) || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault(); // the page would scroll
    if (event.repeat) return;
    if (way) {
      this.held.delete(OPPOSITES[way]);
      this.held.add(way);
    } else {
      this.held.clear();
    }
    this.#take(model.actions.find((action) => isMadeOf(action, this.held)));
  }

  /** One request at a time: of the actions that are chosen meanwhile, the last one counts. */
  async #take(action) {
    if (!action || action === this.now || ENDED.has(this.session.state)) return;
    this.wanted = action;
    this.show(this.session);
    if (this.isSending) return;
    this.isSending = true;
    for (let sent; this.wanted !== sent; ) {
      sent = this.wanted;
      await this.turn(promptOf(sent));
    }
    this.isSending = false;
    this.wanted = null;
    this.show(this.session);
  }
}

/** What was made ahead of its viewers is played first. */
function delayWords({ live_frames_per_second: speed, credit_seconds: credit }) {
  return speed && credit > 0 ? `From the next chunk on, to be seen in ${seconds(credit)}.` : "From the next chunk on.";
}

function promptOf(action) {
  return `${action} ${STEPS}`;
}

/** The ways in an action's name: "up-left" has two, "stay" none. */
function waysOf(action) {
  return action.split("-").filter((word) => word in OPPOSITES);
}

function isMadeOf(action, ways) {
  const own = waysOf(action);
  return own.length === ways.size && own.every((way) => ways.has(way));
}

function offset(ways, back, forth) {
  return Number(ways.includes(forth)) - Number(ways.includes(back));
}
