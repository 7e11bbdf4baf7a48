// The form that starts a session.

import { post } from "./api.js";
import { attempt } from "./problem.js";

/** onCreated(session): the server has accepted it. */
export function prepareNewSession(form, problem, onCreated) {
  const { prompt, input_reference: file, start_seconds: start } = form.elements;
  const showStart = () => {
    start.closest("label").hidden = !isVideo(file.files[0]);
  };
  file.addEventListener("change", showStart);
  prompt.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const worked = await attempt(problem, form.querySelector("[type=submit]"), async () => {
      onCreated(await post("/v1/sessions", bodyOf(wishOf(form), file.files[0])));
    });
    if (!worked) return;
    for (const field of [prompt, file, start]) field.value = "";
    showStart();
  });
}

function wishOf(form) {
  const { prompt, num_frames, seed, live_frames_per_second: speed, input_reference, start_seconds } = form.elements;
  const wish = { prompt: prompt.value.trim() };
  // What is left empty is left to the server.
  if (num_frames.value) wish.num_frames = num_frames.valueAsNumber;
  if (seed.value) wish.seed = seed.valueAsNumber;
  if (speed.valueAsNumber > 0) wish.live_frames_per_second = speed.valueAsNumber;
  if (isVideo(input_reference.files[0]) && start_seconds.value) wish.start_seconds = start_seconds.valueAsNumber;
  return wish;
}

function isVideo(file) {
  return Boolean(file?.type.startsWith("video/"));
}

/** JSON, or a form that brings the file that the session starts from. */
function bodyOf(wish, file) {
  if (!file) return wish;
  const form = new FormData();
  for (const [name, value] of Object.entries(wish)) form.append(name, value);
  form.append("input_reference", file);
  return form;
}
