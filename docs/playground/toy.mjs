// Compute the 2-D world: Gaussian mixtures with exact density, score and posterior mean, as fsalign_lib/toy/mixture.py,
// the small student of fsalign_lib/toy/student.py, and the few-step samplers, whose numbers are those of the library.
//
// In two dimensions a symmetric matrix is [a, b, d] for [[a, b], [b, d]].

const symmetric = ([[a, b], [, d]]) => [a, b, d];
const det = ([a, b, d]) => a * d - b * b;
const inverse = (m) => [m[2] / det(m), -m[1] / det(m), m[0] / det(m)];
const times = ([a, b, d], [x, y]) => [a * x + b * y, b * x + d * y];
const dot = (u, v) => u[0] * v[0] + u[1] * v[1];

/** Return the components of one class, [{weight, mean, cov}], with weights that sum to one. */
export function mixtureOf({ mixture }, label) {
  const own = mixture.labels.flatMap((l, k) => (l === label ? [k] : []));
  const sum = own.reduce((total, k) => total + mixture.weights[k], 0);
  return own.map((k) => ({
    weight: mixture.weights[k] / sum, mean: mixture.means[k], cov: symmetric(mixture.covs[k]),
  }));
}

/** Return the target of alignment, p(x | c) exp(r(x, c) / beta) / Z(c), as a mixture again: `GaussianMixture.tilted`. */
export function tilted(parts, { reward }, label, beta) {
  const linear = reward.linear[label].map((v) => v / beta);
  const quadratic = symmetric(reward.quadratic[label]).map((v) => v / beta);
  const found = parts.map(({ weight, mean, cov }) => {
    const prior = inverse(cov), precision = prior.map((v, i) => v + quadratic[i]);
    const pull = times(prior, mean), h = [pull[0] + linear[0], pull[1] + linear[1]];
    const own = inverse(precision), at = times(own, h);
    const log = Math.log(weight) + 0.5 * (dot(h, at) - dot(mean, pull) - Math.log(det(precision) * det(cov)));
    return { log, mean: at, cov: own };
  });
  const top = Math.max(...found.map(({ log }) => log));
  const sum = found.reduce((total, { log }) => total + Math.exp(log - top), 0);
  return found.map(({ log, mean, cov }) => ({ weight: Math.exp(log - top) / sum, mean, cov }));
}

/** Return log w_k N(x; sqrt(ab) m_k, C_k) of each component, and C_k^-1 (x - sqrt(ab) m_k). */
function components(parts, x, signal, noise) {
  return parts.map(({ weight, mean, cov }) => {
    const wide = [signal ** 2 * cov[0] + noise ** 2, signal ** 2 * cov[1], signal ** 2 * cov[2] + noise ** 2];
    const off = [x[0] - signal * mean[0], x[1] - signal * mean[1]], whitened = times(inverse(wide), off);
    const log = Math.log(weight) - 0.5 * dot(off, whitened) - 0.5 * Math.log(4 * Math.PI ** 2 * det(wide));
    return { log, whitened, mean, cov };
  });
}

/** Return the density of the mixture at a point. */
export const density = (parts, x) =>
  components(parts, x, 1, 0).reduce((total, { log }) => total + Math.exp(log), 0);

/** Return E[x_0 | x_t] exactly, for x_t = signal x_0 + noise eps: `GaussianMixture.posterior_mean`. */
export function posteriorMean(parts, x, signal, noise) {
  const found = components(parts, x, signal, noise), top = Math.max(...found.map(({ log }) => log));
  let sum = 0, at = [0, 0];
  for (const { log, whitened, mean, cov } of found) {
    const share = Math.exp(log - top), gain = times(cov, whitened);
    sum += share;
    at = [0, 1].map((i) => at[i] + share * (mean[i] + signal * gain[i]));
  }
  return at.map((v) => v / sum);
}

/** Return r(x, c) = b.x - x.A x / 2. */
export function rewardAt({ reward }, label, x) {
  return dot(reward.linear[label], x) - 0.5 * dot(times(symmetric(reward.quadratic[label]), x), x);
}

/** Return the mean of the reward over a mixture, in closed form. */
export function meanReward(toy, label, parts) {
  const [a, b, d] = symmetric(toy.reward.quadratic[label]);
  return parts.reduce((total, { weight, mean, cov }) =>
    total + weight * (rewardAt(toy, label, mean) - 0.5 * (a * cov[0] + 2 * b * cov[1] + d * cov[2])), 0);
}

/** Name the tensors of a student in its flat weights. */
export function student(shapes, weights) {
  let place = 0;
  return Object.fromEntries(Object.entries(shapes).map(([name, shape]) => {
    const size = shape.reduce((a, b) => a * b);
    place += size;
    return [name, { values: weights.subarray(place - size, place), shape }];
  }));
}

const silu = (v) => v / (1 + Math.exp(-v));

function linear(net, name, x) {
  const { values, shape: [outputs, inputs] } = net[`${name}.weight`], bias = net[`${name}.bias`].values;
  return Float64Array.from({ length: outputs }, (_, o) => {
    let sum = bias[o];
    for (let i = 0; i < inputs; i++) sum += values[o * inputs + i] * x[i];
    return sum;
  });
}

/** Return the function x_t -> x0_hat of a student at one time, for one class: `ToyStudent.forward`. */
export function studentAt(net, { t, signal, noise }, label) {
  const k = [1, 2, 3, 4, 5, 6, 7, 8].map((n) => ((Math.PI / 2) * n * (t + 1)) / 1000);
  const { values, shape: [, width] } = net["classes.weight"];
  const about = [...k.map(Math.sin), ...k.map(Math.cos), ...values.subarray(label * width, (label + 1) * width)];
  const condition = linear(net, "condition", about).map(silu);
  const modulation = [0, 1, 2].map((i) => linear(net, `modulation.${i}`, condition)); // scale, then shift
  return (x) => {
    let h = x;
    for (const [i, m] of modulation.entries()) {
      const size = m.length / 2;
      h = linear(net, `hidden.${i}`, h).map((v, j) => silu(v * (1 + m[j]) + m[size + j]));
    }
    const v = linear(net, "out", h);
    return [signal * x[0] - noise * v[0], signal * x[1] - noise * v[1]];
  };
}

/**
 * Sample points.
 *
 * @param {object} sampler one of constants.toy.samplers[kernel][steps]
 * @param {function} predictor step -> (x_t -> x0_hat)
 * @param {Float32Array} noise of points x (steps + 1) x 2 numbers
 */
export function sample(sampler, predictor, noise) {
  const steps = sampler.steps, each = 2 * (steps.length + 1);
  const at = steps.map((step, n) => predictor(step, n === steps.length - 1));
  return Array.from({ length: noise.length / each }, (_, p) => {
    let x = [0, 1].map((i) => sampler.initial * noise[p * each + i]);
    for (const [n, { input, a, b, s }] of steps.entries()) {
      const x0 = at[n]([input * x[0], input * x[1]]);
      x = [0, 1].map((i) => a * x[i] + b * x0[i] + s * noise[p * each + 2 * (n + 1) + i]);
    }
    return x;
  });
}
