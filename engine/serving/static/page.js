// The page: polls /v1/status each second, draws it, and shows one user's list as it changes.
// No library, nothing from elsewhere. Text enters the document as text only.
"use strict";

const POLL_MS = 1000;
const REQUEST_MS = 5000;
const LOG_MS = 12000; // the service waits up to 10 s for Kafka's acknowledgement
const REFLECTED_MS = 15000;
const FIRST_ITEMS = 20;
const MORE_ITEMS = 50;
const TONES = 8;
const FRESH_MS = 4000;
const SVG = "http://www.w3.org/2000/svg";

const byId = (id) => document.getElementById(id);
const shown = { user: null, items: FIRST_ITEMS, ids: null, freshUntil: new Map(), asked: 0 };
let lastStatus = null;

/* ---------- asking ---------- */

class Refused extends Error {
  constructor(status, body) {
    super(body.message || "the service answered " + status);
    this.status = status;
  }
}

async function ask(path, body, withinMs = REQUEST_MS) {
  const headers = {};
  const token = sessionStorage.getItem("mindstream-token");
  if (token) headers["Authorization"] = "Bearer " + token;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const response = await fetch(path, {
    method: body === undefined ? "GET" : "POST",
    headers,
    body: body === undefined ? undefined : JSON.stringify(body),
    cache: "no-store",
    signal: AbortSignal.timeout(withinMs),
  });
  const answer = await response.json();
  if (response.status === 401) askForToken(Boolean(token));
  if (!response.ok) throw new Refused(response.status, answer);
  return answer;
}

function askForToken(refused) {
  const dialog = byId("token-dialog");
  sessionStorage.removeItem("mindstream-token");
  byId("token-error").hidden = !refused;
  if (!dialog.open) dialog.showModal();
  byId("token").focus();
}

async function tryToken(token) {
  sessionStorage.setItem("mindstream-token", token);
  byId("token").value = "";
  byId("token-error").hidden = true;
  try {
    showStatus(await ask("/v1/status"));
  } catch (error) {
    if (error instanceof Refused && error.status === 401) return;
  }
  byId("token-dialog").close();
}

/* ---------- words for figures ---------- */

const whole = new Intl.NumberFormat("en-US");

function duration(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 1000) return Math.round(ms) + " ms";
  const s = ms / 1000;
  if (s < 10) return s.toFixed(1) + " s";
  if (s < 100) return Math.round(s) + " s";
  if (s < 6000) return Math.round(s / 60) + " min";
  if (s < 172800) return Math.round(s / 3600) + " h";
  return whole.format(Math.round(s / 86400)) + " days";
}

function rate(perSecond) {
  if (perSecond === null || perSecond === undefined) return "–";
  return perSecond >= 100 ? whole.format(Math.round(perSecond)) : String(perSecond);
}

function nameOf(entry) {
  return entry.title || entry.item_id;
}

/* ---------- building ---------- */

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function drawn(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function setText(id, text) {
  const target = byId(id);
  if (target.textContent !== text) target.textContent = text;
}

function toneOf(interest) {
  return interest === null || interest === undefined ? "" : "tone-" + (interest % TONES);
}

function badge(interest) {
  const made = element("span", "badge " + toneOf(interest), interest === null || interest === undefined ? "·" : String(interest + 1));
  made.title = interest === null || interest === undefined ? "popular" : "interest " + (interest + 1);
  return made;
}

function words(entry, under) {
  const made = element("span", "words");
  const title = element("span", "title", nameOf(entry));
  title.title = nameOf(entry);
  made.append(title, element("span", "under", under));
  return made;
}

/* ---------- the figures ---------- */

function showStatus(status) {
  lastStatus = status;
  const failing = Object.entries(status.failing);
  setState(failing.length ? "starting" : "ready", failing.length ? "waiting for " + failing.map(([part]) => part).join(", ") : "ready",
    failing.map(([part, problem]) => part + ": " + problem).join("\n"));
  const { freshness, clicks, lists, model } = status;
  setText("p50", duration(freshness.p50_ms));
  setText("p99", duration(freshness.p99_ms));
  setText("refreshed", whole.format(freshness.count));
  drawFreshness(freshness);
  setText("clicks-rate", rate(clicks.per_s));
  setText("clicks-total", clicks.total === null ? "–" : whole.format(clicks.total));
  drawClicks(clicks);
  showLists(lists, model);
  showModel(model);
  showRecent(status.recent_users);
}

function setState(state, text, detail) {
  const pill = byId("state");
  pill.dataset.state = state;
  if (pill.textContent !== text) pill.textContent = text;
  setText("failing", detail || "");
  byId("failing").hidden = !detail;
}

function showLists(lists, model) {
  setText("lists-held", whole.format(lists.held));
  const share = lists.held && lists.on_current_version !== null ? lists.on_current_version / lists.held : 0;
  const meter = byId("lists-meter");
  meter.firstElementChild.style.width = 100 * share + "%";
  meter.setAttribute("aria-valuenow", String(Math.round(100 * share)));
  setText("lists-current", model === null ? "no model version yet"
    : Math.floor(100 * share) + " % made by version " + model.version + (lists.lag ? ", " + whole.format(lists.lag) + " behind" : ""));
}

function showModel(model) {
  setText("model-version", model === null ? "–" : model.version);
  setText("model-age", model === null ? "" : "trained " + duration(model.age_ms) + " ago · " + whole.format(model.items) + " items");
  const figures = model === null ? {} : model.metrics;
  const rows = [["This model", figures.recall_at_50], ["Item-CF", figures.itemcf_recall_at_50], ["Popular", figures.popular_recall_at_50]];
  const known = rows.filter(([, value]) => typeof value === "number");
  const greatest = Math.max(1e-9, ...known.map(([, value]) => value));
  const bars = byId("recalls");
  if (bars.dataset.drawn === JSON.stringify(known)) return;
  bars.dataset.drawn = JSON.stringify(known);
  bars.replaceChildren(...known.flatMap(([name, value], place) => {
    const mine = place === 0 && name === "This model";
    const holder = element("dd");
    const bar = element("div", mine ? "bar ours" : "bar");
    bar.style.width = 100 * value / greatest + "%";
    holder.append(bar);
    return [element("dt", mine ? "mine" : "", name), holder, element("dd", mine ? "value mine" : "value", value.toFixed(4))];
  }));
  setText("recall-note", recallNote(figures));
}

function recallNote(figures) {
  if (typeof figures.recall_at_50 !== "number") return "Recall@50 on later clicks appears with the first trained version.";
  const spread = typeof figures.standard_error === "number" ? " ± " + figures.standard_error.toFixed(4) : "";
  const gain = figures.popular_recall_at_50 > 0 ? "; " + (figures.recall_at_50 / figures.popular_recall_at_50).toFixed(1) + " times popular" : "";
  return "Recall@50 on the same later clicks" + spread + gain;
}

function showRecent(users) {
  const holder = byId("recent");
  const wanted = JSON.stringify(users.slice(0, 5));
  if (!users.length || holder.dataset.users === wanted || holder.matches(":hover, :focus-within")) return;
  holder.dataset.users = wanted;
  holder.replaceChildren(...users.slice(0, 5).map((user) => {
    const button = element("button", "plain", user);
    button.type = "button";
    button.title = user;
    button.addEventListener("click", () => choose(user));
    return button;
  }));
}

/* ---------- drawing ---------- */

function niceCeiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].map((step) => step * power).find((step) => step >= value);
}

function drawFreshness(freshness) {
  const chart = byId("chart");
  const box = chart.getBoundingClientRect();
  const [width, height] = [Math.max(200, box.width), Math.max(120, box.height)];
  const [left, right, top, bottom] = [52, 8, 10, 22];
  const values = freshness.series.map((second) => second.p99_ms).filter((value) => value !== null);
  const ceiling = niceCeiling(Math.max(100, ...values));
  const x = (place) => left + (width - left - right) * place / (freshness.series.length - 1);
  const y = (value) => height - bottom - (height - top - bottom) * Math.min(1, value / ceiling);
  const parts = [];
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    const at = y(share * ceiling);
    parts.push(drawn("line", { class: "grid", x1: left, x2: width - right, y1: at, y2: at }));
    if (share * 2 % 1 === 0) parts.push(drawn("text", { x: left - 8, y: at + 4, "text-anchor": "end" }, share === 0 ? "0" : duration(share * ceiling)));
  }
  for (const [place, label, anchor] of [[0, "60 s ago", "start"], [30, "30 s", "middle"], [59, "now", "end"]]) {
    parts.push(drawn("text", { x: x(place), y: height - 5, "text-anchor": anchor }, label));
  }
  for (const run of runs(freshness.series)) {
    const low = run.map(([place, second]) => x(place) + "," + y(second.p50_ms));
    const high = run.map(([place, second]) => x(place) + "," + y(second.p99_ms));
    if (run.length > 1) parts.push(drawn("path", { class: "area", d: "M" + high.concat([...low].reverse()).join("L") + "Z" }));
    parts.push(drawn("path", { class: "p99", d: "M" + high.join("L") + (run.length === 1 ? "h.01" : "") }));
    parts.push(drawn("path", { class: "p50", d: "M" + low.join("L") + (run.length === 1 ? "h.01" : "") }));
  }
  if (!values.length) parts.push(drawn("text", { class: "idle", x: (left + width) / 2, y: height / 2, "text-anchor": "middle" }, "no clicks in the last minute"));
  chart.setAttribute("viewBox", "0 0 " + width + " " + height);
  chart.replaceChildren(...parts);
  chart.setAttribute("aria-label", values.length
    ? "Latency from click to fresh list, second by second over the last minute: p50 " + duration(freshness.p50_ms) + ", p99 "
      + duration(freshness.p99_ms) + ", worst second " + duration(Math.max(...values)) + ", " + freshness.count + " lists."
    : "No list was refreshed within the last minute.");
}

function runs(series) {
  const found = [];
  let open = null;
  series.forEach((second, place) => {
    if (second.p50_ms === null) { open = null; return; }
    if (open === null) found.push(open = []);
    open.push([place, second]);
  });
  return found;
}

function drawClicks(clicks) {
  const chart = byId("clicks-chart");
  const slots = 60;
  const series = clicks.series.slice(-slots);
  const greatest = Math.max(1, ...series);
  chart.setAttribute("viewBox", "0 0 " + slots * 4 + " 34");
  chart.setAttribute("preserveAspectRatio", "none");
  chart.replaceChildren(...series.map((value, place) => {
    const height = value > 0 ? Math.max(1.5, 33 * value / greatest) : 0.5;
    return drawn("rect", { x: (slots - series.length + place) * 4, y: 34 - height, width: 3, height });
  }));
  chart.setAttribute("aria-label", series.length
    ? "Clicks in each of the last " + series.length + " seconds: from " + rate(Math.min(...series)) + " to " + rate(Math.max(...series)) + " per second."
    : "No clicks seen yet.");
}

/* ---------- one user ---------- */

function choose(user) {
  byId("user").value = user;
  location.hash = "user=" + encodeURIComponent(user);
}

function readHash() {
  const found = /^#user=(.+)$/.exec(location.hash);
  if (!found && location.hash.length > 1) return; // a place on the page, such as the skip link's: who is shown stays
  let user = null;
  try { user = found ? decodeURIComponent(found[1]) : null; } catch { user = null; }
  if (user === shown.user) return;
  Object.assign(shown, { user, items: FIRST_ITEMS, ids: null, freshUntil: new Map() });
  byId("echo").textContent = "";
  byId("lookup-error").hidden = true;
  byId("answer").hidden = true;
  byId("empty").hidden = user !== null;
  if (user !== null) {
    byId("user").value = user;
    refreshUser();
  }
}

async function fetchUser(user) {
  return ask("/v1/users/" + encodeURIComponent(user) + "/recall?explain=true");
}

async function refreshUser() {
  const user = shown.user;
  const turn = ++shown.asked;
  if (user === null) return;
  try {
    const answer = await fetchUser(user);
    if (user === shown.user && turn === shown.asked) showUser(answer);
  } catch (error) {
    if (user === shown.user && error instanceof Refused && error.status !== 401) showLookupError(error.message);
  }
}

function showLookupError(message) {
  byId("lookup-error").textContent = message;
  byId("lookup-error").hidden = false;
}

function showUser(answer) {
  byId("lookup-error").hidden = true;
  byId("empty").hidden = true;
  byId("answer").hidden = false;
  const nowMs = answer.computed_at_ms + answer.age_ms;
  const latest = new Map();
  for (const interest of answer.interests) {
    for (const click of interest.clicks) {
      const best = latest.get(click.item_id);
      if (!best || click.weight > best.weight) latest.set(click.item_id, { interest: interest.interest, weight: click.weight });
    }
  }
  showSummary(answer, nowMs);
  showWindow(answer, nowMs, latest);
  showInterests(answer);
  showList(answer);
}

function showSummary(answer, nowMs) {
  const line = byId("summary");
  if (answer.source === "popular") {
    line.replaceChildren(element("b", "", answer.user_id), " has no personal list, so these are the popular items of version " + answer.model_version + ".");
    return;
  }
  line.replaceChildren(element("b", "", answer.user_id), ": the list reflects a click made ",
    element("b", "", duration(nowMs - answer.as_of_ms) + " ago"),
    answer.accepted_at_ms === null ? ". It was computed " + duration(answer.age_ms) + " ago" :
      ". It was computed " + duration(answer.computed_at_ms - answer.accepted_at_ms) + " after the log took the click",
    ", by version " + answer.model_version + ".");
}

function showWindow(answer, nowMs, latest) {
  const clicks = [...answer.window].reverse();
  setText("window-count", clicks.length ? "last " + clicks.length + " clicks" : "no clicks yet");
  byId("window").replaceChildren(...clicks.slice(0, 20).map((click) => {
    const row = element("li");
    const formed = latest.get(click.item_id);
    row.append(badge(formed ? formed.interest : null), words(click, duration(nowMs - click.clicked_at_ms) + " ago"
      + (click.event_type === "click" ? "" : " · " + click.event_type) + " · " + click.item_id));
    if (!formed) row.firstElementChild.title = "not among the clicks that an interest names";
    return row;
  }));
}

function showInterests(answer) {
  setText("interests-count", answer.interests.length ? String(answer.interests.length) : "none");
  byId("interests").replaceChildren(...answer.interests.map((interest) => {
    const row = element("li", toneOf(interest.interest));
    const head = element("div", "interest-head");
    const share = element("div", "share");
    const filled = element("span");
    filled.style.width = 100 * interest.weight + "%";
    share.append(filled);
    const items = answer.items.filter((item) => item.interest === interest.interest).length;
    head.append(badge(interest.interest), share, element("span", "percent", Math.round(100 * interest.weight) + " %"));
    const forming = element("ol", "forming");
    forming.append(...interest.clicks.map((click) => {
      const line = element("li");
      line.append(element("span", "title", nameOf(click)), element("span", "", click.weight.toFixed(2)));
      line.firstElementChild.title = nameOf(click);
      return line;
    }));
    forming.append(element("li", "", items + " of the " + answer.items.length + " best items"));
    row.append(head, forming);
    return row;
  }));
}

function showList(answer) {
  const holder = byId("list");
  const items = answer.items.slice(0, shown.items);
  setText("list-count", items.length ? "best " + items.length + ", colored by interest" : "empty");
  byId("more").hidden = answer.items.length <= shown.items;
  const focused = document.activeElement && holder.contains(document.activeElement) ? document.activeElement.closest("li") : null;
  const focusedPlace = focused ? [...holder.children].indexOf(focused) : -1;
  const focusedId = focused ? focused.dataset.item : null;
  markFresh(answer.items);
  const known = new Map([...holder.children].map((row) => [row.dataset.item, row]));
  const rows = items.map((item, place) => listRow(known.get(item.item_id) || newRow(item), item, place));
  if (rows.length !== holder.children.length || rows.some((row, place) => holder.children[place] !== row)) holder.replaceChildren(...rows);
  if (focused) {
    const row = rows.find((each) => each.dataset.item === focusedId) || rows[Math.min(focusedPlace, rows.length - 1)];
    const target = row ? row.querySelector("button") : byId("list-title");
    if (document.activeElement !== target) target.focus({ preventScroll: true });
  }
}

function markFresh(items) {
  const now = Date.now();
  if (shown.ids !== null) {
    for (const item of items) if (!shown.ids.has(item.item_id)) shown.freshUntil.set(item.item_id, now + FRESH_MS);
  }
  shown.ids = new Set(items.map((item) => item.item_id));
}

function newRow(item) {
  const row = element("li");
  row.dataset.item = item.item_id;
  const button = element("button", "plain", "Click");
  button.type = "button";
  button.addEventListener("click", () => click(item.item_id, nameOf(item)));
  row.append(element("span", "rank"), badge(item.interest), words(item, item.item_id), element("span", "new"), element("span", "score"), button);
  return row;
}

function listRow(row, item, place) {
  const fresh = (shown.freshUntil.get(item.item_id) || 0) > Date.now();
  const className = (toneOf(item.interest) + (fresh ? " fresh" : "")).trim();
  if (row.className !== className) row.className = className;
  const [rank, mark, text, isNew, score, button] = row.children;
  rank.textContent = String(place + 1);
  mark.replaceWith(badge(item.interest));
  text.firstElementChild.textContent = nameOf(item);
  isNew.textContent = fresh ? "new" : "";
  score.textContent = item.score.toFixed(3);
  button.setAttribute("aria-label", "Click " + nameOf(item) + " as this user");
  return row;
}

async function click(itemId, name) {
  const user = shown.user;
  const startedAt = performance.now();
  echo("Sending a click on " + name + " …");
  let place;
  try {
    [place] = await ask("/v1/clicks", { user_id: user, item_id: itemId }, LOG_MS);
  } catch (error) {
    const refused = error instanceof Refused && error.status < 500;
    echo((refused ? "The click was not logged: " : "The click may not have been logged: ") + error.message, true);
    return;
  }
  echo("Logged at partition " + place.partition + ", offset " + place.offset + "; waiting for the list …");
  const took = await untilReflected(user, place, startedAt);
  if (user !== shown.user) return;
  echo(took === null ? "The click on " + name + " is logged; the list has not changed within 15 s. Is an engine running?"
    : "The list reflects your click on " + name + " " + duration(took) + " after you made it.", took === null);
}

async function untilReflected(user, place, startedAt) {
  while (performance.now() - startedAt < REFLECTED_MS) {
    const answer = await fetchUser(user).catch(() => null); // the click is in the log: a failed look is a look too early
    if (answer !== null && answer.source === "personal" && answer.window_offset >= place.offset) {
      const took = performance.now() - startedAt;
      if (user === shown.user) {
        shown.asked += 1;
        showUser(answer);
      }
      return took;
    }
    await new Promise((resolve) => setTimeout(resolve, 40));
  }
  return null;
}

function echo(text, wrong) {
  byId("echo").textContent = text;
  byId("echo").classList.toggle("wrong", Boolean(wrong));
}

/* ---------- running ---------- */

async function poll() {
  if (!document.hidden && !byId("token-dialog").open) {
    try {
      showStatus(await ask("/v1/status"));
      await refreshUser();
    } catch (error) {
      if (!(error instanceof Refused)) setState("away", "not reachable", String(error));
      else if (error.status !== 401) setState("starting", "waiting", error.message);
    }
  }
  setTimeout(poll, POLL_MS);
}

byId("lookup-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const user = byId("user").value;
  if (user) choose(user);
});
byId("more").addEventListener("click", () => {
  shown.items = MORE_ITEMS;
  refreshUser();
});
byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  tryToken(byId("token").value);
});
byId("token-dialog").addEventListener("cancel", (event) => event.preventDefault());
addEventListener("hashchange", readHash);
addEventListener("resize", () => { if (lastStatus) drawFreshness(lastStatus.freshness); });
readHash();
poll();
