// How the pool's pages are laid out on the map. The server tells how many pages each session holds, not which ones,
// so pages are grouped by session, sessions that share history stand together, and what they share stands before them.

const SMALLEST_BUSY_SHARE = 0.05; // of the pool, in use or promised; with less, not all free pages are drawn
const DRAWN_BUSY_SHARE = 0.25;

/** Pages that the map shows: all, but where nearly all are free only as many of them as leave the others visible. */
export function drawnPages(pool) {
  const busy = pool.used_pages + pool.reserved_pages;
  if (busy === 0 || busy >= pool.num_pages * SMALLEST_BUSY_SHARE) return pool.num_pages;
  return Math.min(pool.num_pages, roundedUp(busy / DRAWN_BUSY_SHARE));
}

/**
 * Runs of pages in the order of the map: {kind, ids, pages} with kind "shared" (ids: all who share), "own", "promised"
 * (reserved for streams that have not filled them yet) or "free". They add up to the pool.
 */
export function layOut(pool, sourceOf) {
  const holders = pool.sessions.filter(({ own_pages, shared_pages }) => own_pages + shared_pages > 0);
  const families = groupBy(holders, ({ id }) => rootOf(id, sourceOf));
  const runs = [];
  const toShare = Math.max(0, pool.used_pages - sum(holders.map(({ own_pages }) => own_pages)));
  for (const [family, shared] of sharesOf(families, toShare)) {
    const ids = family.filter(({ shared_pages }) => shared_pages > 0).map(({ id }) => id);
    runs.push({ kind: "shared", ids, pages: shared });
    runs.push(...family.map(({ id, own_pages }) => ({ kind: "own", ids: [id], pages: own_pages })));
  }
  const free = pool.num_pages - pool.used_pages - pool.reserved_pages;
  runs.push({ kind: "promised", ids: [], pages: pool.reserved_pages }, { kind: "free", ids: [], pages: free });
  return runs.filter(({ pages }) => pages > 0);
}

/** Runs of pages in host memory. */
export function layOutSwapped(pool) {
  return pool.sessions
    .filter(({ host_bytes }) => host_bytes > 0)
    .map(({ id, host_bytes }) => ({ kind: "swapped", ids: [id], pages: Math.ceil(host_bytes / pool.page_bytes) }));
}

/**
 * Squares for a number of pages on a map `width` wide and about `height` high: {pagesPerSquare, size, rows}.
 * As many pages per square (1, 2, 5, 10, 20, ...) as keep squares large enough to see; whole columns fill the width.
 */
export function gridFor(numPages, width, height, { smallest = 9, largest = 26 } = {}) {
  const most = Math.max(1, Math.floor(width / smallest) * Math.floor(height / smallest));
  const pagesPerSquare = roundedUp(numPages / most);
  const squares = Math.ceil(numPages / pagesPerSquare);
  const size = Math.min(largest, Math.max(smallest, Math.sqrt((width * height) / squares)));
  const rows = Math.max(1, Math.round((squares * size) / width));
  return { pagesPerSquare, rows, size: Math.min(largest, width / Math.ceil(squares / rows)) };
}

/** Pages that all members of a family share, in the proportion of what its members say; they add up to `total`. */
function sharesOf(families, total) {
  const wanted = families.map((family) => Math.max(...family.map(({ shared_pages }) => shared_pages)));
  let leftWanted = sum(wanted);
  let left = total;
  return families.map((family, i) => {
    const pages = leftWanted ? Math.round((left * wanted[i]) / leftWanted) : 0;
    leftWanted -= wanted[i];
    left -= pages;
    return [family, pages];
  });
}

function rootOf(id, sourceOf) {
  const seen = new Set();
  while (sourceOf(id) && !seen.has(id)) {
    seen.add(id);
    id = sourceOf(id);
  }
  return id;
}

function groupBy(items, keyOf) {
  const groups = new Map();
  for (const item of items) groups.set(keyOf(item), [...(groups.get(keyOf(item)) ?? []), item]);
  return [...groups.values()];
}

function roundedUp(number) {
  const power = 10 ** Math.floor(Math.log10(Math.max(1, number)));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= number);
}

function sum(numbers) {
  return numbers.reduce((total, number) => total + number, 0);
}
