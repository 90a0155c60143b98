// SPDX-License-Identifier: MIT
// The live page: listens to the monitor and draws the server, or one companion.

import { h, update } from "./dom.js";
import { clock, uptime } from "./format.js";
import { listen, steering } from "./steer.js";
import { charts, companions, events, memory, problems, workers } from "./views.js";
import { details, followLog } from "./companion.js";
import { Rates } from "./rates.js";
import { follow } from "./stream.js";

// The server sends a status at least every 2 s; without one for so long it is not there.
const SILENT = 6000;

const companion = document.body.dataset.companion ?? null;
const state = {
  status: null, samples: [], interval: 5, events: [], details: null, at: {},
  rates: new Rates(), lost: null, heard: Date.now(), trouble: null,
};

// -- asking ---------------------------------------------------------------------------------

async function get(path) {
  const answer = await fetch(path);
  const value = await answer.json();
  if (!answer.ok) throw new Error(value.error ?? answer.statusText);
  return value;
}

/** Ask at most once a second, and once more if somebody wanted to while it was asked. */
function sparing(ask) {
  let busy = false;
  let again = false;
  return async function asked() {
    if (busy) {
      again = true;
      return;
    }
    busy = true;
    again = false;
    await Promise.all([ask().catch(() => {}), new Promise((resolve) => setTimeout(resolve, 1000))]);
    busy = false;
    if (again) asked();
  };
}

const askHistory = sparing(async () => {
  const { interval, samples } = await get("/api/history");
  Object.assign(state, { interval, samples });
  drawCharts();
});

const askEvents = sparing(async () => {
  const { history } = await get(companion ? `/api/events?name=${encodeURIComponent(companion)}` : "/api/events");
  state.events = history;
  draw();
});

const askDetails = sparing(async () => {
  state.details = await get(`/api/companion/${encodeURIComponent(companion)}`);
  draw();
});

async function askSession() {
  steering.possible = (await get("/api/session")).actions;
  draw();
}

// -- listening ------------------------------------------------------------------------------

function listenToServer() {
  follow("/api/stream", {
    lost: lose,
    events: {
      status(value) {
        heard();
        state.trouble = null;
        state.status = value;
        state.rates.note(value);
        if (companion) askDetails();
        draw();
      },
      sample(value) {
        state.samples = [...state.samples.slice(-719), value];
        drawCharts();
      },
      event: askEvents,
      unavailable({ error }) {
        state.heard = Date.now();
        state.trouble = error;
        draw();
      },
    },
  });
}

function heard() {
  state.heard = Date.now();
  if (state.lost !== null || state.status === null) {
    state.lost = null;
    askSession().catch(() => {});
    askHistory();
    askEvents();
  }
}

function lose() {
  state.lost ??= new Date();
  draw();
}

setInterval(() => {
  if (document.hidden) state.heard = Date.now();
  if (Date.now() - state.heard > SILENT) lose();
}, 1000);

// -- drawing --------------------------------------------------------------------------------

function build() {
  const main = document.getElementById("main");
  update(main,
    h("section", { id: "verdict" }),
    companion
      ? [h("section", { id: "details" }), h("div", { class: "columns" },
        h("section", { id: "output" }), h("section", { id: "events" }))]
      : [h("section", { id: "charts", "aria-label": "The last hour" }), h("div", { class: "columns" },
        h("div", null, h("section", { id: "companions" }), h("section", { id: "workers" }), h("section", { id: "memory" })),
        h("section", { id: "events" }))]);
  main.before(h("p", { id: "lost", role: "alert" }));
  document.body.append(h("div", { id: "notice", role: "status" }), h("p", { id: "said", class: "unseen", "aria-live": "polite" }));
}

function fill(id, ...content) {
  const place = document.getElementById(id);
  if (place) update(place, ...content);
}

let drawing = false;

/** Draw soon: many changes at once are one drawing. */
function draw() {
  if (drawing) return;
  drawing = true;
  // Not with the next frame: a tab in the background has none.
  setTimeout(() => {
    drawing = false;
    drawNow();
  }, 16);
}

function drawNow() {
  const { status } = state;
  document.body.classList.toggle("stale", state.lost !== null);
  fill("lost", state.lost && `Not connected since ${clock(state.lost / 1000)}. What you see is older. Trying again…`,
    !state.lost && state.trouble);
  drawHead(status?.server);
  if (!status) return;
  if (companion) {
    fill("details", details(companion, status, state));
  } else {
    fill("companions", companions(status, state.rates));
    fill("workers", workers(status, state.rates));
    fill("memory", memory(status));
  }
  fill("events", events(state.events, companion));
  const { content, text, level } = problems(status, companion);
  fill("verdict", content);
  document.getElementById("verdict").className = `verdict ${level}`;
  announce(text);
  document.title = companion ? `${companion} · companion` : `${level === "good" ? "" : "⚠ "}${status.server?.application ?? "gunicorn"}`;
}

function drawHead(server) {
  const facts = server && [
    ...(server.addresses ?? []), `master ${server.pid}`, `up ${uptime(server.uptime)}`, `version ${server.version}`];
  fill("head",
    h("p", { class: "brand" }, h("a", { href: "/" }, companion ? "All processes" : server?.application ?? "gunicorn")),
    h("p", { class: "facts" }, facts ? facts.join(" · ") : "Connecting…"),
    (state.lost || state.status) && h("p", { class: state.lost ? "live lost" : "live" }, state.lost ? "not connected" : "live"),
    steering.possible
      ? h("button", { type: "button", "data-token": steering.token ? "forget" : "enter" }, steering.token ? "Lock actions" : "Unlock actions")
      : h("p", { class: "facts", title: "monitor_token is not set" }, "read-only"));
}

function drawCharts() {
  const place = document.getElementById("charts");
  if (place) update(place, charts(state, place.clientWidth));
}

// Said at most once a second, and only if it is news: nobody wants to hear every figure.
let said = null;
let saying = 0;

function announce(text) {
  if (text === said || Date.now() < saying) return;
  if (said !== null) {
    fill("said", text);
    saying = Date.now() + 1000;
  }
  said = text;
}

build();
listen(drawNow);
listenToServer();
if (companion) followLog(document.getElementById("output"), companion);
else {
  new ResizeObserver(drawCharts).observe(document.getElementById("charts"));
  document.getElementById("charts").addEventListener("pointermove", (event) => {
    const figure = event.target.closest("figure");
    if (!figure) return;
    state.at = { [figure.dataset.key]: event.clientX - figure.querySelector("svg").getBoundingClientRect().left };
    drawCharts();
  });
  document.getElementById("charts").addEventListener("pointerleave", () => {
    state.at = {};
    drawCharts();
  });
}
