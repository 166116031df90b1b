// The page of attempts: a list, filters, keys. Text from models is only ever set as text.
"use strict";
const read = id => JSON.parse(document.getElementById(id).textContent);
const find = id => document.getElementById(id);
const [arms, cases, legend] = ["arms", "cases", "legend"].map(read);
const MARKS = { right: "✓", wrong: "✗", unscored: "–" };
const SPEAKERS = {
  thinks: "policy thinks", selects: "policy", calls: "policy", answers: "policy", writes: "policy",
  tool: "tool", user: "tool", system: "tool", problem: "problem",
};
const list = find("list"), search = find("text");
let current = -1;
let tokensOpen = true;

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const anchor = number => `#${encodeURIComponent(cases[number].id)}`;
const rows = cases.map((one, number) => make("li", {}, make("a", { href: anchor(number) },
  make("span", { className: "mark", role: "img" }), " ", make("small", { textContent: `${one.kind} ${one.id}` }),
  make("q", { textContent: one.asked.at(-1)?.[1] ?? "" }))));

// What can be chosen: a filter is offered where the cases differ in it.
const FILTERS = {
  verdict: ["verdict", (one, attempt) => attempt?.verdict],
  kind: ["kind", one => one.kind],
  mode: ["mode", (one, attempt) => attempt?.mode],
  stop: ["stopped", (one, attempt) => attempt?.stop],
  why: ["wrong since", (one, attempt) => attempt?.why],
};
const DIFFERS = "differs";
const selects = {};

function offer(id, label, options, all) {
  if (options.length < 2) return;
  const select = make("select", { id }, ...(all === undefined ? [] : [new Option(all, "")]),
    ...options.map(text => new Option(text, text)));
  selects[id] = select;
  find("choices").append(make("label", {}, label, select));
}

const chosen = id => selects[id]?.value ?? "";
const attemptOf = (one, arm) => one.attempts.find(attempt => attempt.arm === arm);
const arm = () => chosen("arm") || arms[0];

function texts(one, attempt = one) {
  attempt.text ??= [one.id, ...[...one.asked, ...one.gold, ...(attempt.said ?? [])].map(([, text]) => text)]
    .join("\n").toLowerCase();
  return attempt.text;
}

const differs = one => new Set(one.attempts.map(attempt => attempt.verdict)).size > 1;

function choose() {
  const wanted = search.value.trim().toLowerCase(), name = arm();
  const picked = Object.entries(FILTERS).map(([id, [, value]]) => [chosen(id), value]).filter(([option]) => option);
  let count = 0;
  cases.forEach((one, number) => {
    const attempt = attemptOf(one, name);
    const fits = picked.every(([option, value]) => option === DIFFERS ? differs(one) : value(one, attempt) === option)
      && (!wanted || texts(one, attempt).includes(wanted));
    rows[number].hidden = !fits;
    count += fits;
  });
  find("count").textContent = `${count} of ${cases.length}`;
}

function markRows() {
  const name = arm();
  rows.forEach((row, number) => {
    const verdict = attemptOf(cases[number], name)?.verdict ?? "";
    Object.assign(row.querySelector(".mark"),
      { textContent: MARKS[verdict] ?? "", className: `mark ${verdict}`, ariaLabel: verdict || "no attempt" });
  });
}

function talk(parts, speakers = {}) {
  return parts.map(([who, text]) =>
    make("div", { className: `said ${speakers[who] ?? ""}` }, make("b", { textContent: who }), text));
}

function column(one, attempt, name) {
  if (!attempt) return make("section", {}, make("h3", { textContent: name }), "no attempt");
  const facts = [attempt.why, attempt.mode, attempt.stop].filter(Boolean).map(fact =>
    make("span", { className: "note", textContent: fact }));
  const verdict = `${MARKS[attempt.verdict]} ${attempt.verdict}`;
  const head = make("h3", {}, make("span", { className: `mark ${attempt.verdict}`, textContent: verdict }),
    arms.length > 1 ? name : "attempt", ...facts);
  return make("section", {}, head, ...talk(attempt.said, SPEAKERS));
}

function tokens(attempt, name) {
  const key = make("p", {}, ...Object.entries(legend).map(([kind, text]) =>
    make("span", { className: `key ${kind}`, textContent: text })));
  const text = make("div", { className: "tokens" }, ...attempt.spans.map(([part, kind]) =>
    make("span", { className: kind, textContent: part })));
  const details = make("details", { open: tokensOpen, className: "by-token" },
    make("summary", { textContent: arms.length > 1 ? `token by token: ${name}` : "token by token" }), key, text);
  details.addEventListener("toggle", () => { tokensOpen = details.open; });
  return details;
}

function show(number) {
  rows[current]?.firstChild.removeAttribute("aria-current");
  current = number;
  const one = cases[number];
  if (!one) {
    find("case").replaceChildren(make("p", { className: "note", textContent: "No such question." }));
    return;
  }
  const link = rows[number].firstChild;
  link.ariaCurrent = "true";
  const box = list.getBoundingClientRect(), row = link.getBoundingClientRect();
  if (row.top < box.top || row.bottom > box.bottom) list.scrollTop += row.top - box.top - box.height / 3;
  const names = [...new Set([arm(), chosen("beside")])].filter(Boolean);
  const attempts = names.map(name => [attemptOf(one, name), name]);
  find("case").replaceChildren(
    make("h2", {}, one.id, make("span", { className: "note", textContent: one.kind })),
    make("div", { className: "beside" },
      make("section", {}, make("h3", { textContent: "asked" }), ...talk(one.asked),
        make("h3", { textContent: "gold" }), ...talk(one.gold)),
      ...attempts.map(([attempt, name]) => column(one, attempt, name))),
    ...attempts.filter(([attempt]) => attempt?.spans.length).map(pair => tokens(...pair)));
}

function fromHash() {
  let id = location.hash.slice(1);
  try { id = decodeURIComponent(id); } catch { /* no anchor of ours has a lone % */ }
  return cases.findIndex(one => one.id === id);
}

function open(number) {
  show(number);
  location.replace(anchor(number));
}

function step(by) {
  let next = current + by;
  while (cases[next] && rows[next].hidden) next += by;
  if (cases[next]) open(next);
}

function turnArm(by) {
  const select = selects.arm;
  if (!select) return;
  select.selectedIndex = Math.min(Math.max(select.selectedIndex + by, 0), select.options.length - 1);
  markRows();
  refresh();
}

function refresh() {
  choose();
  if (rows[current]?.hidden ?? true) {
    const first = rows.findIndex(row => !row.hidden);
    if (first >= 0) open(first);
  } else show(current);
}

const KEYS = {
  j: () => step(1),
  k: () => step(-1),
  "[": () => turnArm(-1),
  "]": () => turnArm(1),
  t: () => { tokensOpen = !tokensOpen; document.querySelectorAll(".by-token").forEach(e => { e.open = tokensOpen; }); },
  "/": () => search.focus(),
  "?": () => find("help").showModal(),
};

addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || find("help").open) return;
  if (event.target.matches("input, select")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const act = KEYS[event.key];
  if (act) { event.preventDefault(); act(); }
});

offer("arm", "arm", arms);
offer("beside", "beside it", arms, "none");
for (const [id, [label, value]] of Object.entries(FILTERS)) {
  const values = new Set(cases.flatMap(one => [undefined, ...one.attempts].map(attempt => value(one, attempt))));
  const options = [...values].filter(Boolean).sort();
  offer(id, label, id === "verdict" && arms.length > 1 ? [...options, DIFFERS] : options, "all");
}
list.append(...rows);
document.querySelector("form").addEventListener("submit", event => event.preventDefault());
search.addEventListener("input", refresh);
find("choices").addEventListener("change", () => { markRows(); refresh(); });
find("skip").addEventListener("click", event => { event.preventDefault(); find("case").focus(); });
addEventListener("hashchange", () => { if (fromHash() !== current) show(fromHash()); });
markRows();
choose();
if (location.hash) show(fromHash()); else if (cases.length) open(0);
