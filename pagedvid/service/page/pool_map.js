// Paints runs of pages as squares, column by column: a session's color, hatched where sessions share, outlined where
// pages are only promised or in host memory.

import { colorOf } from "./colors.js";

const GAP = 1;
const HATCH = 3;
const FADED = 0.22;

export class PoolMap {
  /** `onPoint(run)`: the pointer is on a run of pages, or on none (undefined). */
  constructor(canvas, onPoint) {
    this.canvas = canvas;
    this.runs = [];
    this.grid = { pagesPerSquare: 1, size: 1, rows: 1 };
    this.highlighted = null;
    canvas.addEventListener("pointermove", (event) => onPoint(this.#runAt(event)));
    canvas.addEventListener("pointerdown", (event) => onPoint(this.#runAt(event)));
    canvas.addEventListener("pointerleave", () => onPoint(undefined));
  }

  show(runs, grid) {
    this.runs = runs;
    this.grid = grid;
    this.paint();
  }

  /** Fades everything that is not this session's; null: nothing. */
  highlight(id) {
    if (id === this.highlighted) return;
    this.highlighted = id;
    this.paint();
  }

  paint() {
    const { rows, size, pagesPerSquare } = this.grid;
    const pages = this.runs.reduce((total, run) => total + run.pages, 0);
    const columns = Math.ceil(Math.ceil(pages / pagesPerSquare) / rows);
    const context = this.#prepared(columns * size, rows * size);
    const style = getComputedStyle(this.canvas);
    const fadesOthers = this.runs.some((run) => run.ids.includes(this.highlighted));
    let first = 0;
    for (const run of this.runs) {
      const isOther = run.ids.length > 0 && !run.ids.includes(this.highlighted);
      context.globalAlpha = isOther && fadesOthers ? FADED : 1;
      this.#paintRun(context, run, this.#boxes(first, first + run.pages), style);
      first += run.pages;
    }
  }

  #prepared(width, height) {
    this.density = globalThis.devicePixelRatio || 1;
    this.canvas.width = Math.round(width * this.density);
    this.canvas.height = Math.round(height * this.density);
    this.canvas.style.width = `${width}px`;
    this.canvas.style.height = `${height}px`;
    const context = this.canvas.getContext("2d");
    context.scale(this.density, this.density);
    return context;
  }

  /** Squares of the pages [first, end): [x, y, width, height]; where a square holds several runs, a part of its width. */
  *#boxes(first, end) {
    const { rows, size, pagesPerSquare } = this.grid;
    for (let square = Math.floor(first / pagesPerSquare); square * pagesPerSquare < end; square += 1) {
      const from = Math.max(0, first / pagesPerSquare - square);
      const to = Math.min(1, end / pagesPerSquare - square);
      const [left, width] = this.#span(Math.floor(square / rows) * size);
      const [top, height] = this.#span((square % rows) * size);
      yield [left + from * width, top, (to - from) * width, height];
    }
  }

  /** Start and length of a square that begins at this place, on whole pixels of the screen so that edges are sharp. */
  #span(start) {
    const first = Math.round(start * this.density) / this.density;
    const next = Math.round((start + this.grid.size) * this.density) / this.density;
    return [first, next - GAP - first];
  }

  #paintRun(context, { kind, ids }, boxes, style) {
    const isOutlined = kind === "promised" || kind === "swapped";
    const path = new Path2D();
    for (const [x, y, width, height] of boxes) {
      if (isOutlined) path.rect(x + 0.5, y + 0.5, Math.max(0.5, width - 1), height - 1);
      else path.rect(x, y, width, height);
    }
    const color = ids.length ? colorOf(ids[0], style) : style.getPropertyValue(`--pool-${kind}`);
    if (kind === "shared") {
      hatch(context, path, ids.map((id) => colorOf(id, style)));
    } else if (isOutlined) {
      context.strokeStyle = color;
      context.stroke(path);
    } else {
      context.fillStyle = color;
      context.fill(path);
    }
  }

  #runAt({ offsetX, offsetY }) {
    const { rows, size, pagesPerSquare } = this.grid;
    const row = Math.min(rows - 1, Math.floor(offsetY / size));
    let page = (Math.floor(offsetX / size) * rows + row) * pagesPerSquare;
    return this.runs.find((run) => (page -= run.pages) < 0);
  }
}

/** Diagonal stripes in the colors of all who share, running on from square to square. */
function hatch(context, path, colors) {
  const { width, height } = context.canvas;
  const stripes = colors.length > 1 ? colors : [...colors, "transparent"];
  context.save();
  context.clip(path);
  context.lineWidth = HATCH + 0.5;
  for (let start = -height, i = 0; start < width; start += HATCH * Math.SQRT2, i += 1) {
    context.strokeStyle = stripes[i % stripes.length];
    context.beginPath();
    context.moveTo(start, height);
    context.lineTo(start + height, 0);
    context.stroke();
  }
  context.restore();
}
