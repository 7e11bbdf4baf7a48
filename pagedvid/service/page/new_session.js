// The form that starts a session.

import { post } from "./api.js";
import { attempt } from "./problem.js";

/** onCreated(session): the server has accepted it. */
export function prepareNewSession(form, problem, onCreated) {
  const { prompt } = form.elements;
  prompt.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const worked = await attempt(problem, form.querySelector("[type=submit]"), async () => {
      onCreated(await post("/v1/sessions", wishOf(form)));
    });
    if (worked) prompt.value = "";
  });
}

function wishOf(form) {
  const { prompt, num_frames, seed, live_frames_per_second: speed } = form.elements;
  const wish = { prompt: prompt.value.trim() };
  // What is left empty is left to the server.
  if (num_frames.value) wish.num_frames = num_frames.valueAsNumber;
  if (seed.value) wish.seed = seed.valueAsNumber;
  if (speed.valueAsNumber > 0) wish.live_frames_per_second = speed.valueAsNumber;
  return wish;
}
