// SPDX-License-Identifier: MIT
// The page of one companion: what it is, how it ended, what it writes.

import { h, update } from "./dom.js";
import { MISSING, clock, count, number, percent, size, uptime } from "./format.js";
import { follow } from "./stream.js";
import { steer, stateOf, table } from "./views.js";

const LINES_KEPT = 2000;
const FIRST_LINES = 200;

/** What is known of it: `status` is the server's, `state.details` its own. */
export function details(name, status, { details: own, rates }) {
  const companion = (status.companions ?? []).find((one) => one.name === name);
  if (!companion) return [h("h1", null, name), h("p", null, "There is no companion of this name now.")];
  const copies = status.companions.filter((one) => one.group === companion.group).length;
  const more = own?.details ?? {};
  const facts = [
    ["Now", companion.description],
    ["Runs", more.runs && h("code", null, more.runs)],
    ["Directory", more.cwd],
    ["In this state since", more.since && clock(more.since)],
    ["Uptime", companion.pid && uptime(companion.uptime)],
    ["CPU", companion.pid && percent(rates.of(name))],
    ["Memory", companion.memory && `${size(companion.memory.private)} private, ${size(companion.memory.saved)} saved by sharing`],
    ["Limits", Object.entries(more.limits ?? {}).map(limit).join(" · ")],
    ["Lease", companion.lease?.summary],
    ["Addresses", (more.addresses ?? []).join(", ")],
    ["Descriptors", more.descriptors && `${more.descriptors.open} open, ${more.descriptors.sockets} of them sockets`],
    ["Restarts", `${count(companion.restart_count)}${more.starts_in_the_last_hour == null ? "" : `, ${count(more.starts_in_the_last_hour)} starts in the last hour`}`],
    ["Processes", (more.processes ?? []).map((process) => `${process.pid} ${process.name ?? ""}`.trim()).join(", ")],
    ["Output", companion.output?.dropped_lines ? `${count(companion.output.dropped_lines)} lines dropped: nobody read them` : null],
  ];
  return [
    h("div", { class: "title" }, h("h1", null, name), h("p", { class: "big" }, stateOf(companion)), h("p", { class: "do" }, steer(companion, copies))),
    h("dl", { class: "facts" }, facts.filter(([, value]) => value).map(([label, value]) => [h("dt", null, label), h("dd", null, value)])),
    ...(more.runs_of_schedule?.length ? [h("h2", null, "Latest runs"), table("Latest runs", [
      ["When", (run) => clock(run.started)], ["Why", (run) => run.why],
      ["How", (run) => (run.good === null ? "runs" : run.good ? "success" : `failed: ${run.how}`), "text"],
      ["Took", (run) => (run.took === null ? MISSING : `${number(run.took)} s`), "n"],
    ], [...more.runs_of_schedule].reverse(), (run) => `${run.started}`)] : []),
    h("h2", null, "Latest ends"),
    more.ends?.length ? table("Latest ends", [
      ["When", (end) => clock(end.time)], ["Cause", (end) => h("b", { class: `cause ${end.cause}` }, end.cause)],
      ["How", (end) => end.reason, "text"], ["After", (end) => uptime(end.uptime), "n"], ["Pid", (end) => end.pid, "n p2"],
    ], more.ends, (end) => `${end.time}`) : h("p", { class: "about" }, "None yet."),
  ];
}

function limit([name, { limit: most, now }]) {
  const show = name === "max_memory" ? size : number;
  return `${name} ${now === null ? MISSING : show(now)} of ${show(most)}`;
}

/** Show the last lines of its output, and follow it. */
export function followLog(place, name) {
  const list = h("ol", { class: "log", tabindex: 0, role: "log", "aria-live": "off", "aria-label": `Output of ${name}` });
  const box = h("input", { type: "checkbox", checked: true });
  const choice = h("label", null, box, " Follow");
  const about = h("small", null);
  update(place, h("h2", null, "Output", about, choice), list);
  let waiting = [];
  let due = false;

  function show() {
    due = false;
    list.append(...waiting.map((line) => h("li", { class: line.stream },
      h("time", { datetime: new Date(line.time * 1000).toISOString() }, clock(line.time)), h("span", null, line.line || " "))));
    waiting = [];
    while (list.children.length > LINES_KEPT) list.firstChild.remove();
    if (box.checked) list.scrollTop = list.scrollHeight;
  }

  function add(line) {
    if (typeof line.line !== "string") return;
    waiting.push(line);
    if (waiting.length > LINES_KEPT) waiting.splice(0, waiting.length - LINES_KEPT);
    if (!due) {
      due = true;
      setTimeout(show, 50);
    }
  }

  // Who scrolls up wants to read; at the end it follows again.
  list.addEventListener("scroll", () => {
    box.checked = list.scrollTop + list.clientHeight >= list.scrollHeight - 4;
  });
  box.addEventListener("change", () => {
    if (box.checked) list.scrollTop = list.scrollHeight;
  });

  follow(`/api/logs/stream?name=${encodeURIComponent(name)}&lines=${FIRST_LINES}`, {
    opened() {
      update(about);
      waiting = [];
      list.replaceChildren();
    },
    lost: () => update(about, "not connected"),
    events: { line: add },
  });
}
