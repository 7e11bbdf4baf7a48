// What can be done with a session: verbs that act at once, and panels that ask for more first.

import { open, post } from "./api.js";
import { cloned, partOf, put } from "./dom.js";
import { model } from "./model.js";
import { attempt, hideProblem } from "./problem.js";
import { ENDED } from "./sessions.js";
import { Pad } from "./steering.js";

const SEEDS = 2 ** 31;

const IS_POSSIBLE = {
  pause: ({ state }) => state === "in_progress" || state === "queued",
  resume: ({ state }) => state === "paused",
  // Before its first chunk another prompt would be another video.
  steer: ({ state, chunks_done, later_prompts }) =>
    model.actions.length > 0 && !ENDED.has(state) && chunks_done > 0 && later_prompts.length === 0,
  prompt: ({ state }) => !ENDED.has(state),
  fork: ({ state, chunks_done }) => state !== "failed" && state !== "cancelled" && chunks_done > 0,
  extend: ({ state }) => state !== "failed" && state !== "cancelled",
  delete: () => true,
};

/** How a panel is filled, and what it sends. One that goes on changing with its session has a `show` of its own. */
const PANELS = {
  steer: {
    fill: (_, session, panel, turn) => {
      const pad = new Pad(panel, turn);
      pad.show(session);
      return pad;
    },
  },
  prompt: {
    fill: ({ prompt }, session, panel) => {
      prompt.value = session.prompt;
      showWhetherSteered(panel);
    },
    send: ({ prompt, recache }, path) => post(`${path}/prompt`, { prompt: prompt.value.trim(), recache: recache.checked }),
  },
  fork: {
    fill: ({ prompt, num_frames }, session, panel) => {
      prompt.value = session.prompt;
      showWhetherSteered(panel);
      num_frames.value = session.state === "completed" ? 2 * session.num_frames : session.num_frames;
    },
    send: ({ prompt, num_frames, seed, copies }, path) => {
      const first = seed.value ? seed.valueAsNumber : Math.floor(Math.random() * SEEDS);
      const continuations = Array.from({ length: copies.valueAsNumber }, (_, i) => ({
        prompt: prompt.value.trim(),
        num_frames: num_frames.valueAsNumber,
        seed: first + i,
      }));
      return post(`${path}/fork`, { continuations });
    },
  },
  extend: {
    fill: ({ num_frames }, session) => {
      num_frames.min = session.num_frames + 1;
      num_frames.value = 2 * session.num_frames;
    },
    send: ({ num_frames }, path) => post(`${path}/extend`, { num_frames: num_frames.valueAsNumber }),
  },
  delete: {
    fill: (_, session, panel) => {
      const question = ENDED.has(session.state) ? "Delete this session and its video?" : "Cancel this session and delete what is made of it?";
      put(partOf(panel, "question"), question);
      put(panel.querySelector("[type=submit]"), deleteWord(session));
    },
    send: (_, path) => open(path, { method: "DELETE" }),
  },
};

/** Connects a card's buttons; gives a function that shows which of them are possible for a session. */
export function prepareActions(card, id, sessions) {
  const panel = partOf(card, "panel");
  const problem = partOf(card, "problem");
  const path = `/v1/sessions/${encodeURIComponent(id)}`;
  const buttons = [...partOf(card, "actions").children];
  let opened = null;

  const closePanel = () => {
    const opener = buttons.find((button) => button.getAttribute("aria-expanded") === "true");
    opener?.setAttribute("aria-expanded", "false");
    opened = null;
    panel.hidden = true;
    panel.replaceChildren();
    return opener;
  };

  const run = async (button, action) => {
    const worked = await attempt(problem, button, async () => {
      await action();
      await sessions.reload();
    });
    if (worked && !card.isConnected) document.getElementById("sessions").focus();
    return worked;
  };

  const turn = (prompt) =>
    attempt(problem, null, async () => sessions.put(await post(`${path}/prompt`, { prompt })));

  const openPanel = (button, name) => {
    const opener = closePanel();
    hideProblem(problem);
    if (opener === button) return;
    const form = cloned(`${name}-panel`);
    const { fill, send } = PANELS[name];
    opened = fill(form.elements, sessions.byId.get(id), form, turn);
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const worked = await run(form.querySelector("[type=submit]"), () => send(form.elements, path));
      if (worked) closePanel()?.focus();
    });
    form.querySelector("[data-close]").addEventListener("click", () => closePanel()?.focus());
    form.addEventListener("keydown", (event) => {
      if (event.key === "Escape") closePanel()?.focus();
    });
    panel.replaceChildren(form);
    panel.hidden = false;
    button.setAttribute("aria-expanded", "true");
    panel.scrollIntoView({ block: "nearest" });
    (form.querySelector("textarea, input, [tabindex='0']") ?? form.querySelector("[data-close]")).focus();
  };

  for (const button of buttons) {
    const { verb, panel: name } = button.dataset;
    if (name) button.setAttribute("aria-expanded", "false");
    button.addEventListener("click", () => (name ? openPanel(button, name) : run(button, () => post(`${path}/${verb}`))));
  }

  return (session) => {
    for (const button of buttons) {
      const name = button.dataset.verb ?? button.dataset.panel;
      button.hidden = !IS_POSSIBLE[name](session);
      button.setAttribute("aria-describedby", `prompt-${id}`);
      if (name === "delete") put(button, deleteWord(session));
    }
    opened?.show(session);
  };
}

function showWhetherSteered(panel) {
  partOf(panel, "steered").hidden = model.actions.length === 0;
}

function deleteWord(session) {
  return ENDED.has(session.state) ? "Delete" : "Cancel";
}
