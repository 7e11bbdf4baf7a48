// Numbers as people read them.

const UNITS = ["B", "kB", "MB", "GB", "TB"];

export function count(number) {
  return Math.round(number).toLocaleString("en");
}

export function counted(number, word) {
  return `${count(number)} ${word}${Math.round(number) === 1 ? "" : "s"}`;
}

/** 12 MB, 1.2 GB: two or three digits. */
export function bytes(number) {
  let unit = 0;
  while (number >= 999.5 && unit < UNITS.length - 1) {
    number /= 1000;
    unit += 1;
  }
  return `${decimals(number)} ${UNITS[unit]}`;
}

/** One decimal below ten, none above. */
export function decimals(number) {
  return number >= 9.95 || Number.isInteger(number) ? count(number) : number.toFixed(1);
}

export function seconds(number) {
  return `${Math.abs(number).toFixed(1)} s`;
}
