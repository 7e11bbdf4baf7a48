// The section of the page pool: its map, its scale and what the pointer is on, in words as well.

import { put } from "./dom.js";
import { drawnPages, gridFor, layOut, layOutSwapped } from "./pool_layout.js";
import { PoolMap } from "./pool_map.js";
import { bytes, count, counted } from "./shown.js";

const WIDE_HEIGHT = 170;
const NARROW_HEIGHT = 220;
const NARROW = 600;
const FEW_SQUARES = 30; // stand in one row

const HINT = "Point at the map to see whose pages they are.";
const WORDS = {
  shared: "shared by several sessions",
  promised: "promised to sessions that have not filled them yet",
  free: "free",
};

export class PoolView {
  /** `onHighlight(id)`: the pointer is on a session's pages, or on none (null). */
  constructor(sessions, onHighlight) {
    this.sessions = sessions;
    this.onHighlight = onHighlight;
    this.pool = null;
    this.isPointed = false;
    this.map = new PoolMap(document.getElementById("pool-canvas"), (run) => this.#point(run));
    this.host = new PoolMap(document.getElementById("host-canvas"), (run) => this.#point(run));
    this.section = this.map.canvas.parentElement;
    new ResizeObserver(() => this.#draw()).observe(this.section);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#draw());
  }

  show(pool) {
    this.pool = pool;
    this.#draw();
  }

  highlight(id) {
    this.map.highlight(id);
    this.host.highlight(id);
  }

  #draw() {
    const { pool, section } = this;
    if (!pool) return;
    const width = section.clientWidth;
    const drawn = drawnPages(pool);
    const grid = gridFor(drawn, width, width < NARROW ? NARROW_HEIGHT : WIDE_HEIGHT);
    const sourceOf = (id) => this.sessions.byId.get(id)?.source_id;
    this.map.show(layOut({ ...pool, num_pages: drawn }, sourceOf), grid);
    const words = layOut(pool, sourceOf).map((run) => this.#named(run));
    this.map.canvas.setAttribute("aria-label", `Map of the page pool: ${words.join("; ")}`);
    put(document.getElementById("pool-scale"), scaleWords(grid, pool, drawn));
    this.#drawHost(grid, width);
    if (!this.isPointed) this.#tell(HINT);
  }

  #drawHost({ pagesPerSquare, size }, width) {
    const runs = layOutSwapped(this.pool);
    document.getElementById("host").hidden = !runs.length;
    const squares = runs.reduce((total, run) => total + run.pages, 0) / pagesPerSquare;
    const rows = Math.max(Math.ceil((squares * size) / width), squares < FEW_SQUARES ? 1 : 3);
    this.host.show(runs, { pagesPerSquare, size, rows });
    const { swapped_bytes, host_bytes } = this.pool;
    document.getElementById("host-bytes").textContent = `${bytes(swapped_bytes)} of ${bytes(host_bytes)}`;
  }

  #point(run) {
    const id = run?.ids.length === 1 ? run.ids[0] : null;
    this.isPointed = run !== undefined;
    this.onHighlight(id);
    this.highlight(id);
    this.#tell(run ? this.#named(run) : HINT);
  }

  #tell(text) {
    put(document.getElementById("pool-pointed"), text);
  }

  #named({ kind, ids, pages }) {
    const names = ids.map((id) => this.sessions.byId.get(id)?.prompt ?? id);
    const number = counted(pages, "page");
    if (kind === "own") return `${number}: ${names[0]}`;
    if (kind === "swapped") return `${number} in host memory: ${names[0]}`;
    if (kind === "shared") return `${number} ${WORDS.shared}: ${names.join(" + ")}`;
    return `${number} ${WORDS[kind]}`;
  }
}

function scaleWords({ pagesPerSquare }, { page_bytes, num_pages }, drawn) {
  const pages = pagesPerSquare === 1 ? "a page" : `${count(pagesPerSquare)} pages`;
  const left = num_pages > drawn ? `; ${count(num_pages - drawn)} more free pages are not drawn` : "";
  return `One square is ${pages} of ${bytes(page_bytes)}${left}`;
}
