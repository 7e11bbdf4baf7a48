// A file that grows on the server, read to its present end and, while it is being made, on as it grows.

import { open, parts, ServerError } from "./api.js";

const WAIT_SECONDS = 2;

export class GrowingFile {
  constructor(path) {
    this.path = path;
    this.received = 0;
  }

  /**
   * The bytes that were not read before. Ends where the server ends the file, and goes on after a lost connection:
   * what is there already never changes, so as many bytes as were received are skipped.
   */
  async *read(signal) {
    for (;;) {
      try {
        yield* this.#attempt(signal);
        return;
      } catch (error) {
        const isLost = error instanceof TypeError || (error instanceof ServerError && error.status === 0);
        if (signal.aborted || !isLost) throw error;
        await new Promise((resolve) => setTimeout(resolve, WAIT_SECONDS * 1000));
        if (signal.aborted) return;
      }
    }
  }

  async *#attempt(signal) {
    let skip = this.received;
    for await (const part of parts(await open(this.path, { signal }))) {
      const fresh = part.subarray(Math.min(skip, part.length));
      skip -= part.length - fresh.length;
      if (!fresh.length) continue;
      this.received += fresh.length;
      yield fresh;
    }
  }
}
