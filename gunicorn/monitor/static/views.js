// SPDX-License-Identifier: MIT
// What the page of the server shows, from the monitor's answers.

import { chart } from "./charts.js";
import { h } from "./dom.js";
import { age, clock, count, duration, number, percent, plural, size, uptime } from "./format.js";
import { button } from "./steer.js";

const EVENTS_SHOWN = 60;

// -- what is wrong ----------------------------------------------------------------------------

/** The level, a short text to be said, and what is shown. Of one companion its own page shows all that there is. */
export function problems(status, name) {
  const found = (status.problems ?? []).filter((problem) => !name || problem.about === name);
  if (name) return { level: "", text: found[0]?.text ?? "All is well.", content: null };
  if (!found.length) {
    const runs = (status.companions ?? []).filter((companion) => companion.state === "RUNNING").length;
    const text = `${plural(status.web?.workers.length ?? 0, "web worker")} and ${plural(runs, "companion")} run.`;
    return { level: "good", text: "All is well.", content: [h("h1", null, "All is well"), h("p", null, text)] };
  }
  const names = new Set((status.companions ?? []).map((companion) => companion.name));
  return {
    level: found[0].level,
    text: `${plural(found.length, "problem")}: ${found.map((problem) => problem.about).join(", ")}`,
    content: [
      h("h1", null, plural(found.length, "problem")),
      h("ul", null, found.map((problem) => h("li", { "data-key": problem.about + problem.level, class: problem.level },
        names.has(problem.about) ? h("a", { href: link(problem.about) }, problem.about) : h("b", null, problem.about),
        " ", problem.text))),
    ],
  };
}

// -- charts -----------------------------------------------------------------------------------

export function charts({ samples, interval, at }, width) {
  const columns = width >= 1100 ? 5 : width >= 700 ? 3 : 2;
  const common = { samples, interval, width: Math.floor((width - (columns - 1) * 12) / columns) - 24 };
  const latest = samples[samples.length - 1] ?? {};
  const restarts = samples.reduce((sum, sample) => sum + (sample.restarts ?? 0), 0);
  const all = [
    { title: "Requests", show: (value) => `${number(value)}/s`, series: [{ name: "requests", of: (sample) => sample.rps }],
      aside: latest.workers === undefined ? "" : `${latest.busy} of ${plural(latest.workers, "worker")} busy` },
    { title: "Duration", show: duration, headline: latest.p95 == null ? undefined : `${duration(latest.p95)}`,
      series: ["p50", "p95", "p99"].map((name) => ({ name, of: (sample) => sample[name] })),
      aside: latest.p95 == null ? "no requests" : `p95 · p50 ${duration(latest.p50)} · p99 ${duration(latest.p99)}` },
    { title: "Errors (5xx)", show: (value) => `${number(value)}/s`, series: [{ name: "errors", of: (sample) => sample.errors }] },
    { title: "Private memory", show: size, bytes: true, series: [{ name: "memory", of: (sample) => sample.memory ?? null }],
      aside: latest.saved == null ? "" : `sharing saves ${size(latest.saved)}` },
    { title: "Restarts", show: count, bars: true, headline: count(restarts), aside: "last hour",
      series: [{ name: "restarts", of: (sample) => sample.restarts ?? 0 }] },
  ];
  return all.map((one) => h("figure", { "data-key": one.title }, chart({ ...common, ...one, at: at[one.title] })));
}

// -- tables -----------------------------------------------------------------------------------

/** Columns are [title, cell of a row, class]; classes p2 and p3 are left out where there is little room. */
export function table(title, columns, rows, key) {
  return h("div", { class: "scroll", role: "region", "aria-label": title, tabindex: 0 },
    h("table", null,
      h("thead", null, h("tr", null, columns.map(([name, , kind]) => h("th", { scope: "col", class: kind }, name)))),
      h("tbody", null, rows.map((row) => h("tr", { "data-key": key(row) },
        columns.map(([, cell, kind]) => h("td", { class: kind }, cell(row))))))));
}

export function link(name) {
  return `/companion/${encodeURIComponent(name)}`;
}

export function stateOf(companion) {
  return [
    h("span", { class: `state ${companion.state.toLowerCase()}` }, companion.state),
    companion.flapping && h("span", { class: "flapping" }, "flapping"),
  ];
}

export function companions(status, rates) {
  const all = status.companions ?? [];
  const columns = [
    ["Name", (one) => h("a", { href: link(one.name) }, one.name)],
    ["State", stateOf],
    ["Last end", note, "text p2"],
    ["Uptime", (one) => uptime(one.uptime), "n"],
    ["Restarts", (one) => count(one.restart_count), "n"],
    ["CPU", (one) => percent(one.pid ? rates.of(one.name) : null), "n p2"],
    ["Memory", (one) => size(one.memory?.private), "n p2"],
    ["Saved", (one) => size(one.memory?.saved), "n p3"],
    ["Pid", (one) => one.pid ?? "", "n p3"],
    ["", (one) => steer(one), "do p2"],
  ];
  return [
    h("h2", null, "Companions", h("small", null, summary(all))),
    all.length ? table("Companions", columns, all, (one) => one.name) : h("p", null, "There are none."),
  ];
}

function summary(all) {
  const states = new Map();
  for (const { state } of all) states.set(state, (states.get(state) ?? 0) + 1);
  return [...states].map(([state, amount]) => `${amount} ${state}`).join(" · ");
}

/** How the latest process ended; of one that has none: what it does now. */
function note(companion) {
  if (!companion.pid || companion.state === "STOPPING") return companion.description;
  const words = companion.last_exit_cause && companion.exited_at
    ? [h("b", { class: `cause ${companion.last_exit_cause}` }, companion.last_exit_cause), " ",
      companion.last_exit_reason, ` · ${age(Date.now() / 1000 - companion.exited_at)} ago`] : [];
  const text = companion.status_text && h("em", null, companion.status_text);
  return text && words.length ? [text, " · ", words] : [text, words];
}

/** The buttons of a companion. */
export function steer(companion, more = false) {
  const { name, state } = companion;
  const named = (verb) => ({ label: `${verb} ${name}` });
  const stopped = state === "STOPPED";
  return [
    stopped ? button("Start", { action: "start", name }, named("Start"))
      : button("Restart", { action: "restart", name }, named("Restart")),
    !stopped && button("Stop", { action: "stop", name }, { ...named("Stop"), danger: true,
      confirm: `Stop ${name}? It ends gracefully and stays stopped until somebody starts it.` }),
    more && companion.pid && button("Dump stacks", { action: "dump", what: name }),
    more && companion.index !== null && button("Scale", { action: "scale", name: companion.group },
      { confirm: `How many copies of ${companion.group} are to run?`, ask: "numprocs", value: more }),
  ];
}

export function workers(status, rates) {
  const { web } = status;
  if (!web) return null;
  const busy = web.workers.filter((worker) => worker.state === "busy").length;
  const columns = [
    ["Pid", (worker) => worker.pid, "pid"],
    ["State", (worker) => h("span", { class: `state ${worker.state}` }, worker.state)],
    ["Oldest request", (worker) => worker.oldest && oldest(worker.oldest, web.now), "text"],
    ["Uptime", (worker) => uptime(web.now - worker.started), "n p2"],
    ["Requests", (worker) => count(worker.requests), "n"],
    ["Running", (worker) => count(worker.running), "n p2"],
    ["Connections", (worker) => count(worker.connections), "n p3"],
    ["CPU", (worker) => percent(rates.of(worker.pid)), "n p2"],
    ["Memory", (worker) => size(worker.memory?.private), "n p2"],
    ["", (worker) => [
      button("Dump", { action: "dump", what: String(worker.pid) }, { label: `Dump stacks of worker ${worker.pid}` }),
      button("Kill", { action: "web", do: "kill", pid: worker.pid }, { label: `Kill worker ${worker.pid}`, danger: true,
        confirm: `Kill worker ${worker.pid}? Its ${plural(worker.running, "running request")} will be cut off. Another worker takes its place.` }),
    ], "do p2"],
  ];
  return [
    h("h2", null, "Web workers", h("small", null,
      `${web.class} · ${busy} of ${web.workers.length} busy · ${web.wanted} wanted${web.threads > 1 ? ` · ${web.threads} threads each` : ""}`)),
    h("p", { class: "do" },
      button("Add a worker", { action: "web", do: "add", count: 1 }),
      button("Remove a worker", { action: "web", do: "remove", count: 1 }, { confirm: "Remove one worker? It finishes its requests first." }),
      button("Reload workers", { action: "web", do: "reload" }, { confirm: "Start new workers in the place of all? The old ones finish their requests first." })),
    table("Web workers", columns, web.workers, (worker) => String(worker.pid)),
    h("p", { class: "about" }, [...(web.listeners ?? []).map(listener), ends(web.totals?.ends)].filter(Boolean).join(" · ")),
  ];
}

function oldest(request, now) {
  const seconds = now - request.since;
  return [h("code", null, `${request.method} ${request.path}`), " ",
    h("span", { class: seconds > 10 ? "long" : null }, seconds < 2 ? duration(Math.max(0, seconds)) : age(seconds))];
}

function listener({ address, waiting, backlog }) {
  return waiting === null ? address : `${address}: ${waiting} of ${count(backlog)} wait`;
}

function ends(counts) {
  const some = Object.entries(counts ?? {}).filter(([, amount]) => amount);
  return some.length && `ended: ${some.map(([cause, amount]) => `${cause.replace("_", " ")} ${amount}`).join(", ")}`;
}

export function memory(status) {
  const total = status.memory;
  if (!total) return null;
  const web = (status.web?.workers ?? []).reduce((sum, worker) => sum + (worker.memory?.private ?? 0), 0);
  const parts = [["Companions", total.private, "own"], ["Saved by sharing", total.saved, "saved"], ["Web workers", web, "own"],
    ["Manager", total.manager?.private, "own"]];
  const most = Math.max(1, ...parts.map(([, bytes]) => bytes ?? 0));
  return [
    h("h2", null, "Memory", h("small", null, "private to each, and what copy-on-write saves")),
    h("dl", { class: "meters" }, parts.map(([name, bytes, kind]) => [
      h("dt", null, name), h("dd", null,
        h("meter", { class: kind, value: bytes ?? 0, max: most, "aria-hidden": "true" }), h("span", null, size(bytes)))])),
  ];
}

// -- events -----------------------------------------------------------------------------------

function inWords(event) {
  if (event.event === "start") return `started, pid ${event.pid}`;
  if (event.cause) return `${event.cause}: ${event.reason ?? event.description}`;
  return `${event.event} ${event.description ?? ""}`;
}

export function events(history, name) {
  const shown = history.slice(-EVENTS_SHOWN).reverse();
  return [
    h("h2", null, "Latest events"),
    shown.length ? h("ol", { class: "events" }, shown.map((event) => h("li", {
      "data-key": `${event.time} ${event.name} ${event.event}`, class: event.cause ? `cause ${event.cause}` : event.event },
    h("time", { datetime: new Date(event.time * 1000).toISOString() }, clock(event.time)), " ",
    !name && event.name && h("a", { href: link(event.name) }, event.name), " ",
    h("span", null, inWords(event)))))
      : h("p", null, "None yet."),
  ];
}
