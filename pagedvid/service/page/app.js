// The page: reads the sessions and the pool, follows the server's events, and shows what changes.

import { json, onKeyWanted, ServerError } from "./api.js";
import { CardList } from "./card_list.js";
import { put } from "./dom.js";
import { follow } from "./events.js";
import { askForKey } from "./key_dialog.js";
import { model, readModel } from "./model.js";
import { prepareNewSession } from "./new_session.js";
import { PoolView } from "./pool_view.js";
import { hideProblem, showProblem } from "./problem.js";
import { Sessions } from "./sessions.js";
import { showTotals } from "./totals.js";

const POOL_SECONDS = 1.5;
const LIST_SECONDS = 3;

const TOLD = { completed: "Complete", failed: "Failed", paused: "Paused", cancelled: "Cancelled" };

const sessions = new Sessions(changed);
const cards = new CardList(sessions, (id) => poolView.highlight(id));
const poolView = new PoolView(sessions, (id) => cards.point(id));
const listProblem = document.getElementById("list-problem");
const poolProblem = document.getElementById("pool-problem");
let pool = null;
let isFollowing = false;
let totalsFrame = 0;

function changed(session, before) {
  if (session) cards.show(session);
  else cards.remove(before.id);
  const state = session?.state;
  if (before && TOLD[state] && state !== before.state) announce(`${TOLD[state]}: ${session.prompt}`);
  showTotalsSoon();
}

/** Once for many changes. */
function showTotalsSoon() {
  totalsFrame ||= requestAnimationFrame(() => {
    totalsFrame = 0;
    showTotals(sessions, pool);
  });
}

function showModel() {
  document.querySelector("#new-session [name=prompt]").placeholder = model.example_prompt;
  for (const element of document.querySelectorAll("[data-takes-frames]")) element.hidden = !model.takes_frames;
}

function announce(text) {
  put(document.getElementById("announcements"), text);
}

async function reload() {
  try {
    await sessions.reload();
    hideProblem(listProblem);
  } catch (error) {
    if (!(error instanceof ServerError)) throw error;
    if (error.status) showProblem(listProblem, error); // a server that does not answer shows in the connection
  }
}

async function readPool() {
  try {
    pool = await json("/v1/pool");
  } catch (error) {
    if (error.status) showProblem(poolProblem, error);
    else showConnection("lost", POOL_SECONDS); // events may hang on a dead connection for long
    return;
  }
  hideProblem(poolProblem);
  if (isFollowing) showConnection("open");
  poolView.show(pool);
  sessions.putHeld(pool.sessions);
  showTotalsSoon();
}

function showConnection(state, seconds) {
  const sign = document.getElementById("connection");
  document.body.classList.toggle("stale", state === "lost");
  sign.dataset.state = state;
  put(sign, state === "lost" ? `Connection lost. What you see may be old; next attempt in ${seconds} s.` : "Connected");
}

/** Does something again and again while the page is looked at. */
async function repeat(action, seconds) {
  for (;;) {
    if (!document.hidden) await action();
    await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
  }
}

onKeyWanted(askForKey);
prepareNewSession(document.getElementById("new-session"), document.getElementById("new-problem"), (session) => {
  sessions.put(session);
  cards.reveal(session.id);
  announce(`Accepted: ${session.prompt}`);
});
repeat(readPool, POOL_SECONDS);
repeat(reload, LIST_SECONDS);
document.addEventListener("visibilitychange", () => document.hidden || reload());
follow({
  onEvent: (name, data) => sessions.apply(name, data).catch((error) => console.warn(error.message)),
  onState: (state, seconds) => {
    isFollowing = state === "open";
    showConnection(state, seconds);
    if (state === "open") readModel().then(showModel, (error) => console.warn(error.message)).then(reload);
  },
});
