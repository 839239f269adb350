"""The rating page's program: a rater's order, the turns, what is kept in the browser and sent to the server.

Its `session` is that of `imagen_jax.ratings.study`, number for number; the server refuses ratings of another.
"""

SCRIPT = """
"use strict";
const study = JSON.parse(document.getElementById("study").textContent);
const $ = (id) => document.getElementById(id);
const NAME = /^[\\p{L}\\p{M}\\p{N} ._@-]{1,60}$/u;
const AGAIN_MS = 3000;
let rater = "", turns = [], ratings = [], place = 0, choices = [], active = 0, served = false, sending = false;

function stream(words) {
  let state = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(words)) state = Math.imul(state ^ byte, 0x01000193);
  return (n) => {
    state = (state + 0x6d2b79f5) | 0;
    let word = Math.imul(state ^ (state >>> 15), state | 1);
    word ^= word + Math.imul(word ^ (word >>> 7), word | 61);
    return Math.floor(((word ^ (word >>> 14)) >>> 0) * n / 4294967296);
  };
}

function shuffled(values, below) {
  const out = [...values];
  for (let last = out.length - 1; last > 0; last--) {
    const other = below(last + 1);
    [out[last], out[other]] = [out[other], out[last]];
  }
  return out;
}

function session(name) {
  const order = stream(`${study.seed}|${name}|order`), sides = stream(`${study.seed}|${name}|sides`);
  const parts = [...new Set(study.items.map((item) => item.part))].sort((a, b) => a - b);
  const items = parts.flatMap((part) => shuffled(study.items.filter((item) => item.part === part), order));
  const start = sides(2);
  const pairs = items.filter((item) => item.sets.length === 2);
  const lefts = shuffled(pairs.map((_, number) => (start + number) % 2), sides);
  let next = 0;
  return items.map((item) => ({ item, left: item.sets.length === 2 ? lefts[next++] : null }));
}

function keep(key, value) {
  try { localStorage.setItem(`ratings ${study.id} ${key}`, JSON.stringify(value)); }
  catch { tell("This browser keeps nothing: do not close the page before the end."); }
}

function kept(key, otherwise) {
  try { return JSON.parse(localStorage.getItem(`ratings ${study.id} ${key}`)) ?? otherwise; }
  catch { return otherwise; }
}

function tell(text) { $("status").textContent = text; }

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

async function start(name) {
  rater = name;
  keep("rater", rater);
  turns = session(rater);
  ratings = kept(`of ${rater}`, []);
  if (location.protocol.startsWith("http")) {
    try {
      const answer = await fetch(`session?rater=${encodeURIComponent(rater)}`);
      if (answer.ok) {
        served = true;
        for (const one of (await answer.json()).ratings) {
          const mine = ratings.find((own) => own.item === one.item && own.question === one.question);
          if (mine) Object.assign(mine, one, { sent: true });
          else ratings.push({ ...one, sent: true });
        }
        keep(`of ${rater}`, ratings);
      }
    } catch { tell("The server does not answer: your ratings are kept in this browser."); }
  }
  $("download").hidden = served;
  $("welcome").hidden = true;
  place = 0;
  send();
  show();
}

function rated(item, question) { return ratings.some((one) => one.item === item && one.question === question); }

function open(turn) { return turn.item.questions.filter((question) => !rated(turn.item.name, question)); }

function show() {
  while (place < turns.length && !open(turns[place]).length) place++;
  const done = turns.filter((turn) => !open(turn).length).length;
  $("progress").max = turns.length;
  $("progress").value = done;
  $("place").textContent = `${done} of ${turns.length} done`;
  $("turn").hidden = place === turns.length;
  $("end").hidden = place !== turns.length;
  if (place === turns.length) return finish();
  const turn = turns[place];
  choices = open(turn).map((question) => ({ question, answer: null }));
  active = 0;
  $("heading").textContent = `Number ${done + 1} of ${turns.length}`;
  $("prompt").textContent = turn.item.prompt ?? "";
  $("prompt").hidden = turn.item.prompt === null;
  showSides(turn);
  showQuestions();
  $("heading").focus();
  window.scrollTo(0, 0);
  const after = turns.slice(place + 1).find((other) => open(other).length);
  if (after) for (const name of after.item.sets.flat()) new Image().src = `images/${name}`;
}

function showSides(turn) {
  const order = turn.left === null ? [0] : [turn.left, 1 - turn.left];
  const words = turn.left === null ? ["Image"] : ["Left", "Right"];
  $("sides").replaceChildren(...order.map((set, side) => {
    const names = turn.item.sets[set];
    const box = element("div", "", { class: "side", role: "group", "aria-label": words[side] });
    const size = [1, 2, 4, 6, 8, 9].find((most) => names.length <= most) ?? 9;
    const images = element("div", "", { class: `images n${size}` });
    names.forEach((name, number) => {
      const alt = `${words[side]}, image ${number + 1} of ${names.length}`;
      const image = element("img", "", { src: `images/${name}`, alt, draggable: "false" });
      image.addEventListener("error", () => tell("An image cannot be loaded: tell who runs the study."));
      images.append(image);
    });
    if (turn.left !== null) box.append(element("h2", words[side]));
    box.append(images);
    return box;
  }));
}

function showQuestions() {
  $("questions").replaceChildren(...choices.map((choice, number) => {
    const { text, answers } = study.questions[choice.question];
    const id = `question-${number}`;
    const box = element("div", "", { class: "question", role: "group", "aria-labelledby": id });
    const row = element("div", "", { class: "answers" });
    answers.forEach(([value, label], position) => {
      const button = element("button", `${label} `, { type: "button", "aria-keyshortcuts": position + 1 });
      button.append(element("kbd", position + 1, { "aria-hidden": "true" }));
      button.addEventListener("click", () => { active = number; answer(value); });
      row.append(button);
    });
    box.append(element("p", text, { id }), row);
    return box;
  }));
  mark();
}

function mark() {
  [...$("questions").children].forEach((box, number) => {
    box.classList.toggle("active", number === active);
    const values = study.questions[choices[number].question].answers.map(([value]) => value);
    [...box.querySelectorAll("button")].forEach((button, position) => {
      button.setAttribute("aria-pressed", choices[number].answer === values[position]);
    });
  });
  $("next").disabled = !complete();
}

function complete() { return choices.length > 0 && choices.every((choice) => choice.answer !== null); }

function answer(value) {
  choices[active].answer = value;
  if (active < choices.length - 1) active++;
  mark();
}

function goOn() {
  if ($("turn").hidden || !complete()) return;
  const { item, left } = turns[place];
  for (const { question, answer } of choices) ratings.push({ item: item.name, question, answer, left, sent: false });
  tell("");
  keep(`of ${rater}`, ratings);
  send();
  show();
}

function plain(one) {
  return JSON.stringify({
    study: study.id, rater, item: one.item, question: one.question, answer: one.answer, left: one.left,
  });
}

async function send() {
  if (!served || sending) return;
  sending = true;
  let again = false;
  try {
    for (let one; (one = ratings.find((other) => !other.sent));) {
      const headers = { "Content-Type": "application/json" };
      const reply = await fetch("ratings", { method: "POST", headers, body: plain(one) });
      if (!reply.ok && reply.status !== 409) {
        tell(`Not saved: ${(await reply.json()).error}`);
        again = reply.status >= 500;
        break;
      }
      if (reply.status === 409) tell("That was answered before, under this name; the first answer stays.");
      one.sent = true;
      keep(`of ${rater}`, ratings);
    }
    if (!again && $("status").textContent.startsWith("The server")) tell("");
  } catch {
    tell("The server does not answer: your ratings are kept in this browser and sent later.");
    again = true;
  }
  sending = false;
  if (again) setTimeout(send, AGAIN_MS);
  if (!$("end").hidden) finish(false);
}

function finish(first = true) {
  const waiting = ratings.some((one) => !one.sent);
  $("outcome").textContent = !served
    ? "All is answered. Download your ratings and send the file to who runs the study."
    : waiting ? "All is answered. Leave the page open until your ratings are saved." : "All is answered and saved.";
  if (first) (served ? $("thanks") : $("download")).focus();
}

function download() {
  const lines = ratings.map((one) => plain(one) + "\\n");
  const link = element("a", "", { download: `ratings_${study.id}_${rater.replace(/[^\\p{L}\\p{N}]+/gu, "_")}.jsonl` });
  link.href = URL.createObjectURL(new Blob(lines, { type: "application/json" }));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

document.addEventListener("keydown", (event) => {
  if ($("turn").hidden || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === "Enter" && complete()) { event.preventDefault(); if (!event.repeat) goOn(); return; }
  if (event.key === "Backspace") { event.preventDefault(); active = Math.max(0, active - 1); mark(); return; }
  const found = study.questions[choices[active].question].answers[Number(event.key) - 1];
  if (found && event.key !== " " && !event.repeat) answer(found[0]);
});
$("next").addEventListener("click", goOn);
$("download").addEventListener("click", download);
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = $("name").value.normalize("NFC").trim();
  if (!NAME.test(name)) return tell("A name has 1 to 60 letters, digits, blanks or . _ @ -");
  tell("");
  start(name);
});
$("name").value = kept("rater", "");
$("name").focus();
"""
