// SPDX-License-Identifier: MIT
// Actions: the token, the questions before them, and the requests. The token is kept for this tab alone.

import { h, update } from "./dom.js";

const KEPT = "gunicorn-monitor-token";

export const steering = { possible: false, token: sessionStorage.getItem(KEPT) };

/** A button that sends a request, after a question where there is one. */
export function button(text, request, { confirm, ask, danger, label, value } = {}) {
  if (!steering.possible || !steering.token) return null;
  return h("button", {
    type: "button", class: danger ? "danger" : null, "aria-label": label, "data-request": JSON.stringify(request),
    "data-confirm": confirm, "data-ask": ask, "data-value": value,
  }, text);
}

/** Have clicks on such buttons, and on those for the token, do their work; `changed` draws the page again. */
export function listen(changed) {
  document.addEventListener("click", (event) => {
    const target = event.target.closest?.("button");
    if (!target) return;
    if (target.dataset.request) run(target, changed);
    else if (target.dataset.token === "enter") enterToken(changed);
    else if (target.dataset.token === "forget") setToken(null, changed);
  });
}

function setToken(token, changed) {
  steering.token = token;
  if (token) sessionStorage.setItem(KEPT, token);
  else sessionStorage.removeItem(KEPT);
  changed();
}

async function enterToken(changed) {
  const token = await question("Actions need the server's monitor_token. It is kept in this tab until you close it.", "Unlock",
    { label: "Token", type: "password" });
  if (!token) return;
  const { reply } = await send("/api/session", {}, token);
  if (reply.authorized) {
    setToken(token, changed);
    notify("Actions are unlocked.");
  } else notify(`Refused: ${reply.error ?? "this is not the token"}.`, true);
}

async function run(target, changed) {
  const request = JSON.parse(target.dataset.request);
  const { ask, confirm, value } = target.dataset;
  if (confirm) {
    const given = await question(confirm, target.textContent, ask && { label: ask, type: "number", value });
    if (given === null) return;
    if (ask) request[ask] = Number(given);
  }
  const { status, reply } = await send("/api/action", {
    method: "POST", body: JSON.stringify(request), headers: { "Content-Type": "application/json" } }, steering.token);
  if (status === 200) {
    if (reply.dumps) showDumps(reply.dumps);
    else notify(reply.message || "Done.");
    return;
  }
  notify(`Refused: ${reply.error ?? "no answer"}`, true);
  if (status === 401) setToken(null, changed);
}

async function send(path, options, token) {
  try {
    const answer = await fetch(path, { ...options, headers: { ...options.headers, Authorization: `Bearer ${token}` } });
    return { status: answer.status, reply: await answer.json() };
  } catch (error) {
    return { status: 0, reply: { error: `no answer (${error.message})` } };
  }
}

/** Say something for some seconds; what is refused stays until it is closed. */
export function notify(text, refused = false) {
  const place = document.getElementById("notice");
  clearTimeout(notify.timer);
  update(place, h("p", { class: refused ? "bad" : "good" }, text),
    h("button", { type: "button", class: "close", "aria-label": "Close message" }, "×"));
  place.querySelector("button").onclick = () => update(place);
  if (!refused) notify.timer = setTimeout(() => update(place), 6000);
}

/** Ask in a dialog; null if it is cancelled, otherwise what was entered, or true. */
function question(text, verb, input) {
  return new Promise((resolve) => {
    const field = input && h("input", {
      id: "answer", type: input.type, value: input.value, required: true, autocomplete: "off", min: input.type === "number" && 0,
    });
    const form = h("form", null, h("p", { id: "question" }, text),
      field && h("label", { for: "answer" }, input.label), field,
      h("menu", null, h("button", { type: "button", class: "cancel" }, "Cancel"), h("button", { type: "submit", class: "main" }, verb)));
    const dialog = show(form);
    let answer = null;
    form.onsubmit = (event) => {
      event.preventDefault();
      answer = field ? field.value : true;
      dialog.close();
    };
    form.querySelector(".cancel").onclick = () => dialog.close();
    dialog.addEventListener("close", () => resolve(answer));
  });
}

function showDumps(dumps) {
  const closing = h("button", { type: "button", class: "main" }, "Close");
  const dialog = show(h("div", null,
    dumps.map((dump) => [h("h2", { id: "question" }, `${dump.name} (pid ${dump.pid})`), h("pre", { tabindex: 0 }, dump.stacks ?? dump.error)]),
    h("menu", null, closing)));
  dialog.classList.add("wide");
  closing.onclick = () => dialog.close();
}

function show(content) {
  const dialog = h("dialog", { "aria-labelledby": "question" }, content);
  document.body.append(dialog);
  dialog.addEventListener("close", () => dialog.remove());
  dialog.showModal();
  return dialog;
}
