// SPDX-License-Identifier: MIT
// Numbers and times as people read them.

export const MISSING = "–";

/** A number with three digits that count: 0.012, 3.4, 128, 1,204. */
export function number(value) {
  if (value === null || value === undefined) return MISSING;
  if (value === 0) return "0";
  const size = Math.abs(value);
  const digits = size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3;
  return value.toLocaleString("en", { maximumFractionDigits: digits });
}

export function count(value) {
  return value === null || value === undefined ? MISSING : value.toLocaleString("en");
}

export function size(bytes) {
  if (bytes === null || bytes === undefined) return MISSING;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  let value = bytes;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value >= 100 || unit === 0 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

/** A time that something takes: 840 µs, 12 ms, 3.1 s. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return MISSING;
  if (seconds >= 1) return `${number(seconds)} s`;
  return seconds >= 0.001 ? `${number(seconds * 1000)} ms` : `${Math.round(seconds * 1e6)} µs`;
}

/** How long ago, or for how long, in one unit: 8s, 12m, 3h, 2d. */
export function age(seconds) {
  const units = [["d", 86400], ["h", 3600], ["m", 60]];
  for (const [unit, length] of units) {
    if (seconds >= 2 * length) return `${Math.floor(seconds / length)}${unit}`;
  }
  return `${Math.max(0, Math.floor(seconds))}s`;
}

/** 03:12:44, or 2d 03:12. */
export function uptime(seconds) {
  if (seconds === null || seconds === undefined) return MISSING;
  const whole = Math.max(0, Math.floor(seconds));
  const two = (value) => String(value).padStart(2, "0");
  const [days, hours, minutes] = [Math.floor(whole / 86400), Math.floor(whole / 3600) % 24, Math.floor(whole / 60) % 60];
  return days ? `${days}d ${two(hours)}:${two(minutes)}` : `${two(hours)}:${two(minutes)}:${two(whole % 60)}`;
}

export function percent(share) {
  return share === null || share === undefined ? MISSING : `${number(share < 0.0005 ? 0 : Math.round(share * 1000) / 10)} %`;
}

/** The time of day of seconds since the epoch; of another day with its date. */
export function clock(epoch) {
  const time = new Date(epoch * 1000);
  const day = time.toDateString() === new Date().toDateString() ? "" : `${time.toLocaleDateString("sv")} `;
  return day + time.toLocaleTimeString("sv");
}

export function plural(amount, noun) {
  return `${count(amount)} ${noun}${amount === 1 ? "" : "s"}`;
}
