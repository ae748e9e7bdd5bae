// Load networks when they are first asked for, and draw pictures with them: text -> few steps of the denoiser -> decoder.
//
// Every number of the sampler comes from constants.json, which export.py writes from the library's own kernels. All runs
// in WebAssembly on one thread of this machine; files are fetched from the folder of this page and from nowhere else.

import { tokens } from "./grammar.mjs";
import { fromHalf, mergeLora } from "./numbers.mjs";

const here = (name) => new URL(name, import.meta.url).href;
const files = new Map(); // name -> promise of an ArrayBuffer
const sessions = new Map(); // place -> {key, session}: see session()
let runtime; // promise of onnxruntime-web
let turn = Promise.resolve(); // of making sessions: two at once would mix up their files, which have one name

export const constants = fetch(here("data/constants.json")).then((answer) => answer.json());

export function file(name) {
  if (!files.has(name)) {
    const bytes = fetch(here(`data/${name}`)).then((answer) => {
      if (!answer.ok) throw new Error(`${name} could not be loaded (${answer.status}): reload the page`);
      return answer.arrayBuffer();
    });
    bytes.catch(() => files.delete(name)); // so that the next draw asks again
    files.set(name, bytes);
  }
  return files.get(name);
}

function onnxruntime() {
  runtime ??= import("./vendor/ort.wasm.min.mjs").then((ort) => {
    ort.env.wasm.wasmPaths = here("vendor/");
    ort.env.wasm.numThreads = 1; // more would need headers that a page of static files does not have
    return ort;
  });
  return runtime;
}

/** Make a network ready to run. One is kept for each `place`, and another one there takes its room. */
function session(place, network, weightsFile, lora) {
  const made = turn.then(() => makeSession(place, network, weightsFile, lora));
  turn = made.catch(() => {});
  return made;
}

async function makeSession(place, network, weightsFile, lora) {
  const key = `${weightsFile} ${lora ? lora.file : ""}`;
  if (sessions.get(place)?.key === key) return sessions.get(place).session;
  const [ort, graph, half, low] = await Promise.all([
    onnxruntime(), file(network.graph), file(weightsFile), lora ? file(lora.file) : null,
  ]);
  const weights = fromHalf(half);
  if (lora) mergeLora(weights, network.layout, lora, fromHalf(low));
  await sessions.get(place)?.session.release();
  sessions.delete(place);
  const made = await ort.InferenceSession.create(new Uint8Array(graph), {
    executionProviders: ["wasm"],
    logSeverityLevel: 3, // errors alone
    externalData: [{ path: "weights", data: new Uint8Array(weights.buffer) }],
  });
  sessions.set(place, { key, session: made });
  return made;
}

async function run(made, inputs) {
  const ort = await onnxruntime();
  const feeds = {};
  for (const [name, [kind, values, shape]] of Object.entries(inputs)) feeds[name] = new ort.Tensor(kind, values, shape);
  const { out } = await made.run(feeds);
  return out.data;
}

const integers = (values) => BigInt64Array.from(values, BigInt);

// ---- drawing ----

/**
 * Draw a picture.
 *
 * @param {string} name of a model in constants.json, such as "pocket-turbo" or "pso-online"
 * @param {number} snapshot of its training: 0 is the base student
 * @param {string} prompt of the grammar
 * @param {Float32Array} noise of (steps + 1) x 4 x 16 x 16 numbers: the start, and what each step adds
 * @returns {Promise<Float32Array>} 3 x 64 x 64 values in [0, 1]
 */
export async function draw(name, snapshot, prompt, noise) {
  const { networks, models, tokenizer } = await constants;
  const model = models[name], sampler = model.sampler, size = sampler.latent.reduce((a, b) => a * b);
  const lora = snapshot ? { ...model.lora, file: model.snapshots[snapshot - 1].file } : null;
  const [text, denoiser, decoder] = await Promise.all([
    session("text", networks.text, networks.text.weights),
    session(`denoiser of ${name}`, networks.denoiser, model.weights, lora),
    session("decoder", networks.decoder, networks.decoder.weights),
  ]);
  const ids = tokens(tokenizer, prompt);
  const cond = await run(text, { ids: ["int64", integers(ids), [1, ids.length]] });

  // Each step: predict the noise, and with it the clean latent; then mean = a x + b x0, and s of fresh noise.
  let x = noise.slice(0, size).map((z) => sampler.initial * z);
  for (const [n, step] of sampler.steps.entries()) {
    const input = x.map((value) => step.input * value);
    const eps = await run(denoiser, {
      x: ["float32", input, [1, ...sampler.latent]],
      t: ["int64", integers([step.t]), [1]],
      cond: ["float32", cond, [1, ids.length, cond.length / ids.length]],
    });
    const fresh = noise.subarray((n + 1) * size, (n + 2) * size);
    x = x.map((value, i) => {
      const x0 = (input[i] - step.noise * eps[i]) / step.signal;
      return step.a * value + step.b * x0 + (step.s ? step.s * fresh[i] : 0);
    });
  }
  return run(decoder, { latent: ["float32", x, [1, ...sampler.latent]] });
}

/** Score a picture with every judge: {name: number}, and what the classifier sees: {animal, probability}. */
export async function judge(picture, prompt) {
  const { networks, judges, tokenizer, grammar } = await constants;
  const image = ["float32", picture, [1, 3, 64, 64]], ids = tokens(tokenizer, prompt);
  const text = ["int64", integers(ids), [1, ids.length]];
  const scores = {};
  for (const { name, network, weights, reads } of judges) {
    const made = await session(`judge ${name}`, networks[network], weights);
    scores[name] = (await run(made, reads ? { picture: image, ids: text } : { picture: image }))[0];
  }
  const classifier = await session("classifier", networks.classifier, networks.classifier.weights);
  const shares = [...(await run(classifier, { picture: image }))];
  const probability = Math.max(...shares);
  return { scores, animal: Object.keys(grammar.animals)[shares.indexOf(probability)], probability };
}
