// Show the 2-D world: the exact target, and samples that a sampler or a student draws. Everything is computed here, but
// for the weights of the students that were trained at each beta.

import { constants, file } from "./models.mjs";
import { fromHalf, normal } from "./numbers.mjs";
import { density, meanReward, mixtureOf, posteriorMean, rewardAt, sample, student, studentAt, tilted } from "./toy.mjs";

const POINTS = 600, SPAN = 2.6; // the plane shown is [-SPAN, SPAN] squared
const find = (id) => document.getElementById(id);
const form = find("plane-form"), canvas = find("plane");
const METHODS = {
  exact: { sampler: "euler-ancestral" },
  base: { sampler: "renoise", file: "toy-base.bin" },
  votes: { sampler: "renoise", file: "toy-bradley-terry.bin" },
  hard: { sampler: "renoise", file: "toy-hard.bin" },
};

async function weights(name) {
  return fromHalf(await file(name));
}

/** Return step -> (x_t -> x0_hat) of the chosen method, with the last step held by the student before alignment. */
async function predictor(toy, method, label, betaIndex, target) {
  if (method === "exact") return ({ signal, noise }) => (x) => posteriorMean(target, x, signal, noise);
  const base = await weights("toy-base.bin");
  const before = student(toy.shapes, base);
  if (method === "base") return (step) => studentAt(before, step, label);
  const all = await weights(METHODS[method].file);
  const after = student(toy.shapes, all.subarray(betaIndex * base.length, (betaIndex + 1) * base.length));
  return (step, last) => studentAt(last ? before : after, step, label);
}

function paint(target, points, toy) {
  const style = getComputedStyle(document.documentElement), side = canvas.width, context = canvas.getContext("2d");
  const cells = 130, image = context.createImageData(cells, cells);
  const values = Float64Array.from({ length: cells * cells }, (_, i) => {
    const x = (((i % cells) + 0.5) / cells) * 2 - 1, y = 1 - ((Math.floor(i / cells) + 0.5) / cells) * 2;
    return density(target, [SPAN * x, SPAN * y]);
  });
  const top = Math.max(...values);
  const [r, g, b] = style.getPropertyValue("--density").split(",").map(Number);
  values.forEach((value, i) => image.data.set([r, g, b, 235 * Math.sqrt(value / top)], 4 * i));
  const small = new OffscreenCanvas(cells, cells);
  small.getContext("2d").putImageData(image, 0, 0);
  context.clearRect(0, 0, side, side);
  context.drawImage(small, 0, 0, side, side);
  const place = ([x, y]) => [((x / SPAN + 1) / 2) * side, ((1 - y / SPAN) / 2) * side];
  context.fillStyle = style.getPropertyValue("--points");
  for (const point of points) {
    context.beginPath();
    context.arc(...place(point), side / 240, 0, 7);
    context.fill();
  }
  // Where the reward is largest: the solution of A x = b, for A a multiple of the identity.
  const best = toy.reward.linear[0].map((v, i) => v / toy.reward.quadratic[0][i][i]), [x, y] = place(best);
  context.strokeStyle = style.getPropertyValue("--text");
  context.lineWidth = side / 200;
  context.beginPath();
  for (const [dx, dy] of [[1, 0], [0, 1]]) {
    context.moveTo(x - (dx * side) / 45, y - (dy * side) / 45);
    context.lineTo(x + (dx * side) / 45, y + (dy * side) / 45);
  }
  context.stroke();
}

let latest = 0; // a picture that was asked for later must not be painted over
export async function update() {
  const mine = ++latest, { toy } = await constants;
  const method = form.method.value, label = Number(form.class.value);
  const betaIndex = Number(form.beta.value), beta = toy.betas[betaIndex];
  const steps = Object.keys(toy.samplers.renoise).map(Number)[Number(form.steps.value)];
  find("beta-value").textContent = beta;
  find("steps-value").textContent = steps;
  const data = mixtureOf(toy, label), target = tilted(data, toy, label, beta);
  const predict = await predictor(toy, method, label, betaIndex, target);
  if (mine !== latest) return;
  const sampler = toy.samplers[METHODS[method].sampler][steps];
  const points = sample(sampler, predict, normal(Number(form.seed.value), POINTS * 2 * (steps + 1)));
  paint(target, points, toy);
  const mean = points.reduce((total, x) => total + rewardAt(toy, label, x), 0) / points.length;
  const told = { data: meanReward(toy, label, data), target: meanReward(toy, label, target), samples: mean };
  for (const [name, value] of Object.entries(told)) find(`reward-${name}`).textContent = value.toFixed(2);
  canvas.setAttribute("aria-label", `${POINTS} samples of ${toy.classes[label]} over the target's density: mean reward `
    + `${mean.toFixed(2)}, the target's is ${told.target.toFixed(2)}`);
  canvas.dataset.points = JSON.stringify(points.slice(0, 50));
}

const { toy } = await constants;
form.class.replaceChildren(...toy.classes.map((name, i) => new Option(name, i)));
form.beta.max = toy.betas.length - 1;
form.beta.value = toy.betas.indexOf(1);
form.steps.max = Object.keys(toy.samplers.renoise).length - 1;
form.steps.value = Object.keys(toy.samplers.renoise).indexOf(String(toy.trained_at));
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("input", update);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", update);
await update();
