// The pictures' half of the page: read the form, draw with each chosen student from one noise, show scores beneath.

import { captions, parse } from "./grammar.mjs";
import { constants, draw, judge } from "./models.mjs";
import { normal } from "./numbers.mjs";

const find = (id) => document.getElementById(id);
const form = find("draw-form"), message = find("message"), cards = find("cards");
const { grammar, models, judges, sizes } = await constants;
const known = captions(grammar);

function say(text, wrong = false) {
  message.textContent = text;
  message.classList.toggle("wrong", wrong);
}

function chosen() {
  return [...find("models").querySelectorAll("input:checked")].map((box) => box.value);
}

/** Say how far its training is at a position of the slider. */
function stage({ base, snapshots, unit, of }, snapshot) {
  if (!base) return "not aligned";
  return snapshot ? `after ${unit} ${snapshots[snapshot - 1].step} of ${of}` : "before training";
}

function showSnapshot() {
  const snapshot = Number(form.snapshot.value), last = Number(form.snapshot.max);
  find("snapshot-value").textContent = snapshot ? `${snapshot} of ${last} quarters` : "0: the base student";
}

/** Say how much a draw fetches: networks, the chosen students, judges. */
function showSize() {
  const names = new Set(chosen().map((name) => models[name].base ?? name));
  let bytes = sizes.drawing + (find("score").checked ? sizes.judges : 0);
  for (const name of names) bytes += sizes.models[name];
  const place = find("size");
  if (place) place.textContent = `about ${Math.round(bytes / 2 ** 20)} MB`;
}

function card(name) {
  const model = models[name], figure = document.createElement("figure");
  figure.className = "card";
  figure.dataset.model = name;
  figure.innerHTML = `<canvas width="64" height="64" role="img"></canvas><figcaption></figcaption><table></table>`;
  figure.querySelector("figcaption").append(model.title, document.createElement("small"));
  return figure;
}

function paint(figure, picture, prompt) {
  const canvas = figure.querySelector("canvas"), size = 64 * 64, context = canvas.getContext("2d");
  const image = context.createImageData(64, 64);
  for (let i = 0; i < size; i++) {
    image.data.set([0, 1, 2].map((c) => 255 * picture[c * size + i]).concat(255), 4 * i);
  }
  context.putImageData(image, 0, 0);
  canvas.setAttribute("aria-label", `${prompt}, drawn by ${figure.querySelector("figcaption").firstChild.data}`);
}

/** Fill the table of a card: each judge's score, and the change from the base student's picture. */
function report(figure, found, base, reward) {
  const rows = judges.map(({ name, title, digits }) => {
    const score = found.scores[name], change = base ? score - base.scores[name] : 0;
    const text = Math.abs(change).toFixed(digits), moved = Number(text) > 0;
    const by = moved ? `<td class="${change > 0 ? "better" : "worse"}">${change > 0 ? "+" : "−"}${text}</td>` : "<td></td>";
    const head = name === reward ? `<strong>${title}</strong>` : title; // in bold what it was trained with
    return `<tr><th scope="row">${head}</th><td>${score.toFixed(digits)}</td>${by}</tr>`;
  });
  const sure = Math.round(100 * found.probability);
  rows.push(`<tr><th scope="row">sees</th><td colspan="2">${found.animal}, ${sure}%</td></tr>`);
  figure.querySelector("table").innerHTML = `<tbody>${rows.join("")}</tbody>`;
}

const pause = () => new Promise((done) => setTimeout(done)); // let the browser show what was painted

let busy = false, again = false;

async function drawAll() {
  if (busy) {
    again = true; // the form changed while a draw went on: draw once more when it is done
    return;
  }
  let prompt;
  try {
    parse(known, grammar.message, form.prompt.value);
    prompt = form.prompt.value;
  } catch (error) {
    say(error.message, true);
    form.prompt.setAttribute("aria-invalid", "true");
    return;
  }
  form.prompt.removeAttribute("aria-invalid");
  const names = chosen(), snapshot = Number(form.snapshot.value), seed = Number(form.seed.value);
  if (!names.length) return say("Choose at least one student.", true);
  busy = true;
  const button = form.querySelector("button");
  button.disabled = true;
  cards.replaceChildren(...names.map((name) => cards.querySelector(`[data-model="${name}"]`) ?? card(name)));
  const begun = performance.now(), found = {};
  try {
    for (const name of names) {
      const figure = cards.querySelector(`[data-model="${name}"]`), { sampler, base } = models[name];
      say(`Drawing: ${models[name].title}…`);
      await pause();
      const size = sampler.latent.reduce((a, b) => a * b);
      const noise = normal(seed, (sampler.steps.length + 1) * size); // a longer draw begins with the shorter one
      const picture = await draw(name, base ? snapshot : 0, prompt, noise);
      paint(figure, picture, prompt);
      figure.querySelector("small").textContent = stage(models[name], snapshot);
      figure.querySelector("table").replaceChildren();
      if (find("score").checked) {
        say(`Scoring: ${models[name].title}…`);
        await pause();
        found[name] = await judge(picture, prompt);
        report(figure, found[name], found[base], models[name].reward);
      }
    }
    const drawn = names.length === 1 ? "1 picture" : `${names.length} pictures`;
    say(`“${prompt}”, noise ${seed}: ${drawn} in ${((performance.now() - begun) / 1000).toFixed(1)} s.`);
  } catch (error) {
    say(error.message, true);
    throw error;
  } finally {
    busy = button.disabled = false;
    if (again) {
      again = false;
      drawAll();
    }
  }
}

// ---- the form ----

for (const [name, { title }] of Object.entries(models)) {
  const label = document.createElement("label"), box = document.createElement("input");
  Object.assign(box, { type: "checkbox", value: name, checked: true });
  label.append(box, title);
  find("models").append(label);
}
form.snapshot.max = Math.max(...Object.values(models).map(({ snapshots }) => snapshots.length));
form.snapshot.value = form.snapshot.max;
find("examples").replaceChildren(...grammar.examples.map((prompt) => new Option(prompt, prompt)));
find("choose").append(...grammar.examples.map((prompt) => new Option(prompt, prompt)));
find("choose").addEventListener("change", ({ target }) => {
  if (target.value) form.prompt.value = target.value;
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  drawAll();
});
form.addEventListener("input", () => {
  showSnapshot();
  showSize();
});
form.snapshot.addEventListener("change", () => {
  if (cards.childElementCount) drawAll(); // once pictures are there, the slider moves them
});
showSnapshot();
showSize();
