// An error in place: the server's own words and, where it says so, how long to wait.

const timers = new WeakMap();

/** Shows why something did not work; a wait is counted down. */
export function showProblem(element, error) {
  if (!element.hidden && element.textContent === error.message) return; // an alert that is set again is read again
  hideProblem(element);
  element.hidden = false;
  element.textContent = error.message;
  if (!error.retryAfterSeconds) return;
  // Once, not per second: the element is an alert, and a screen reader would read out every change of it.
  const wait = document.createElement("span");
  wait.setAttribute("aria-live", "off");
  element.append(" ", wait);
  const end = performance.now() + error.retryAfterSeconds * 1000;
  const tick = () => {
    const left = Math.ceil((end - performance.now()) / 1000);
    wait.textContent = left > 0 ? `Try again in ${left} s.` : "You can try again now.";
    if (left <= 0) clearInterval(timers.get(element));
  };
  timers.set(element, setInterval(tick, 500));
  tick();
}

export function hideProblem(element) {
  clearInterval(timers.get(element));
  element.hidden = true;
  element.textContent = "";
}

/** Runs what a form asks for with its button off meanwhile; whether it worked. An error is shown in `element`. */
export async function attempt(element, button, action) {
  hideProblem(element);
  if (button) button.disabled = true;
  try {
    await action();
    return true;
  } catch (error) {
    showProblem(element, error);
    return false;
  } finally {
    if (button) button.disabled = false;
  }
}
