// SPDX-License-Identifier: MIT
// Charts of the last hour, as SVG: lines or bars over time, with axes, a text in words, and a readout.

import { h, svg } from "./dom.js";
import { MISSING, clock } from "./format.js";

const HEIGHT = 112;
const EDGE = { top: 6, right: 2, bottom: 16, left: 50 };
const HOUR = 3600;
const SHORTEST = 60;

/**
 * Make a figure. `series`: [{name, of: sample => number or null}], the first gives the figure in large type;
 * `show`: how a value is written; `bars`: draw sums of some minutes; `bytes`: values are bytes; `aside`: more words beside the figure.
 */
export function chart({ title, series, show, samples, interval, width, bars, bytes, aside, headline, at }) {
  const end = samples.length ? samples[samples.length - 1].time : Date.now() / 1000;
  const begin = end - Math.min(HOUR, Math.max(SHORTEST, end - (samples[0]?.time ?? end)));
  const shown = samples.filter((sample) => sample.time >= begin);
  const lines = series.map((one) => ({ ...one, points: shown.map((sample) => [sample.time, one.of(sample)]) }));
  if (bars) lines.forEach((line) => { line.points = summed(line.points, begin, end); });
  const values = lines.flatMap((line) => line.points.map(([, value]) => value)).filter((value) => value !== null);
  const highest = Math.max(0, ...values);
  const top = bytes ? 2 ** Math.ceil(Math.log2(Math.max(2, highest))) : ceiling(highest, bars);
  const inner = { width: width - EDGE.left - EDGE.right, height: HEIGHT - EDGE.top - EDGE.bottom };
  const x = (time) => round(EDGE.left + ((time - begin) / (end - begin)) * inner.width);
  const y = (value) => round(EDGE.top + inner.height * (1 - value / top));

  const latest = lines[0].points.length ? lines[0].points[lines[0].points.length - 1][1] : null;
  const text = inWords(title, lines, show, bars);
  const marked = at === undefined || !shown.length ? null : nearest(shown, begin + ((at - EDGE.left) / inner.width) * (end - begin));
  const readout = marked && `${clock(marked.time)}  ${lines.map((line) =>
    `${lines.length > 1 ? `${line.name} ` : ""}${written(line.of(marked), show)}`).join(" · ")}`;
  return [
    h("figcaption", null,
      h("span", { class: "title" }, title),
      h("b", { class: "value" }, headline ?? written(latest, show)),
      h("span", { class: "aside" }, readout ?? aside ?? "")),
    svg("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": text },
      [0, 0.5, 1].map((part) => [
        svg("line", { class: part ? "grid" : "axis", x1: EDGE.left, x2: width - EDGE.right, y1: y(part * top), y2: y(part * top) }),
        svg("text", { class: "tick", x: EDGE.left - 6, y: y(part * top) + 3.5, "text-anchor": "end" }, show(part * top).replace(".0 ", " ")),
      ]),
      [[begin, "start"], [end, "end"]].map(([time, anchor]) =>
        svg("text", { class: "tick", x: x(time), y: HEIGHT - 3, "text-anchor": anchor }, moment(time, end - begin))),
      lines.map((line, place) => (bars
        ? line.points.filter(([, value]) => value).map(([time, value]) => svg("rect", {
          class: "bar", x: x(time), width: Math.max(2, inner.width / line.points.length - 1), y: y(value), height: round(y(0) - y(value)) }))
        : svg("path", { class: `line line${place}`, d: path(line.points, x, y, interval) }))),
      marked && svg("line", { class: "mark", x1: x(marked.time), x2: x(marked.time), y1: EDGE.top, y2: y(0) })),
  ];
}

/** The time of day; with seconds where the whole chart is some minutes. */
function moment(time, span) {
  const text = new Date(time * 1000).toLocaleTimeString("sv");
  return span < 600 ? text : text.slice(0, 5);
}

function written(value, show) {
  return value === null || value === undefined ? MISSING : show(value);
}

function round(value) {
  return Math.round(value * 10) / 10;
}

/** The next number from 1, 2, 5, 10, … that is not below the value. */
function ceiling(value, whole) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  const found = [1, 2, 5, 10].find((step) => step * power >= value * 0.999) * power;
  return whole ? Math.max(2, found) : found;
}

function path(points, x, y, interval) {
  let text = "";
  let before = null;
  for (const [time, value] of points) {
    if (value === null || value === undefined) {
      before = null;
      continue;
    }
    const joined = before !== null && time - before < interval * 4;
    text += `${joined ? "L" : "M"}${x(time)} ${y(value)}${joined ? "" : "h.1"}`;
    before = time;
  }
  return text;
}

function summed(points, begin, end) {
  const length = Math.max(15, (end - begin) / 60);
  const slots = Array.from({ length: Math.ceil((end - begin) / length) }, (_, place) => [begin + place * length, 0]);
  for (const [time, value] of points) {
    slots[Math.min(slots.length - 1, Math.floor((time - begin) / length))][1] += value ?? 0;
  }
  return slots;
}

function nearest(samples, time) {
  return samples.reduce((best, sample) => (Math.abs(sample.time - time) < Math.abs(best.time - time) ? sample : best));
}

function inWords(title, lines, show, bars) {
  const parts = lines.map((line) => {
    const values = line.points.filter(([, value]) => value !== null && value !== undefined);
    const name = lines.length > 1 ? `${line.name}: ` : "";
    if (!values.length) return `${name}no data`;
    if (bars) return `${values.reduce((sum, [, value]) => sum + value, 0)} in all`;
    const highest = values.reduce((best, point) => (point[1] > best[1] ? point : best));
    return `${name}now ${show(values[values.length - 1][1])}, highest ${show(highest[1])} at ${clock(highest[0])}`;
  });
  return `${title}, last hour. ${parts.join("; ")}.`;
}
