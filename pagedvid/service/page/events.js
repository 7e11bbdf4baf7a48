// Server-sent events of all sessions, read with fetch (an EventSource cannot send the API key), with reconnection.

import { open, parts } from "./api.js";

const FIRST_WAIT_SECONDS = 1;
const LONGEST_WAIT_SECONDS = 15;

/**
 * Follows `/v1/events` for ever.
 *
 * onEvent(name, data): what the server sends. onState(state, seconds): "open" after each connection, when everything
 * may have changed meanwhile, or "lost" with the seconds until the next attempt.
 */
export async function follow({ onEvent, onState }) {
  let wait = FIRST_WAIT_SECONDS;
  for (;;) {
    try {
      const response = await open("/v1/events");
      onState("open");
      wait = FIRST_WAIT_SECONDS;
      for await (const { name, data } of eventsOf(response)) onEvent(name, data);
    } catch (error) {
      console.warn("events:", error.message);
    }
    onState("lost", wait);
    await new Promise((resolve) => setTimeout(resolve, wait * 1000));
    wait = Math.min(2 * wait, LONGEST_WAIT_SECONDS);
  }
}

async function* eventsOf(response) {
  const decoder = new TextDecoder();
  let text = "";
  for await (const part of parts(response)) {
    text += decoder.decode(part, { stream: true });
    const blocks = text.split(/\r?\n\r?\n/);
    text = blocks.pop();
    for (const block of blocks) {
      const event = parse(block);
      if (event) yield event;
    }
  }
}

/** One block of lines: its name and data, or null for a comment that only keeps the connection alive. */
function parse(block) {
  let name = "message";
  const data = [];
  for (const line of block.split(/\r?\n/)) {
    if (line.startsWith("event:")) name = line.slice(6).trim();
    if (line.startsWith("data:")) data.push(line.slice(5));
  }
  return data.length ? { name, data: JSON.parse(data.join("\n")) } : null;
}
