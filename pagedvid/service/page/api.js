// Requests to the server: JSON in (a form where a file goes along) and out, the API key, and errors with the server's own words.

const KEY_NAME = "pagedvid-api-key";

let askForKey = null;
let asking = null;

/** `ask(reason)` gives a promise of the key; it is called when the server answers 401. */
export function onKeyWanted(ask) {
  askForKey = ask;
}

/** What the server refused, or that it does not answer (status 0). */
export class ServerError extends Error {
  constructor(message, { status = 0, retryAfterSeconds = null } = {}) {
    super(message);
    this.status = status;
    this.retryAfterSeconds = retryAfterSeconds;
  }
}

/** Fetches a path; the response is one of success. Asks for the API key as often as the server wants one. */
export async function open(path, { method = "GET", body, signal } = {}) {
  for (;;) {
    const usedKey = sessionStorage.getItem(KEY_NAME);
    const response = await reach(path, { method, body, signal, key: usedKey });
    if (response.ok) return response;
    const error = await errorOf(response);
    if (response.status !== 401 || !askForKey) throw error;
    // Several requests meet a missing key at once: one question, and nobody asks again for a key that came meanwhile.
    if (sessionStorage.getItem(KEY_NAME) === usedKey) await newKey(error.message);
  }
}

/** The JSON that a path answers with. */
export async function json(path, options) {
  const response = await open(path, options);
  return response.json();
}

export function post(path, body = {}) {
  return json(path, { method: "POST", body });
}

/** The parts of a response as they arrive. */
export async function* parts(response) {
  const reader = response.body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function reach(path, { method, body, signal, key }) {
  const headers = {};
  const isForm = body instanceof FormData; // the browser says where its parts begin
  if (body !== undefined && !isForm) headers["Content-Type"] = "application/json";
  if (key) headers.Authorization = `Bearer ${key}`;
  try {
    const content = isForm ? body : body && JSON.stringify(body);
    return await fetch(path, { method, headers, signal, cache: "no-store", body: content });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer.");
  }
}

async function newKey(reason) {
  asking ??= askForKey(reason).finally(() => {
    asking = null;
  });
  sessionStorage.setItem(KEY_NAME, await asking);
}

async function errorOf(response) {
  let message = `The server answered ${response.status} ${response.statusText}`.trim();
  try {
    message = (await response.json()).error.message;
  } catch {
    // Not the server's own error, but that of something in between: its status must do.
  }
  const wait = Number.parseFloat(response.headers.get("Retry-After"));
  return new ServerError(message, {
    status: response.status,
    retryAfterSeconds: Number.isFinite(wait) ? wait : null,
  });
}
