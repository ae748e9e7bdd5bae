// Read half-precision weights, merge a LoRA, draw noise from a seed.

let halves; // Float32Array of the values of all 65,536 half-precision numbers

/** Return the float32 values of an ArrayBuffer of half-precision numbers. */
export function fromHalf(buffer) {
  halves ??= Float32Array.from({ length: 65536 }, (_, bits) => {
    const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return exponent ? sign * 2 ** (exponent - 15) * (1 + fraction / 1024) : sign * 2 ** -24 * fraction;
  });
  return Float32Array.from(new Uint16Array(buffer), (bits) => halves[bits]);
}

/** Add B A of each layer to its weight in place: what a LoRA learned, with scale = alpha / rank. */
export function mergeLora(weights, layout, lora, values) {
  for (const { weight, a, b, rank, inputs, outputs } of lora.layers) {
    const [start] = layout[weight];
    for (let o = 0; o < outputs; o++) {
      for (let r = 0; r < rank; r++) {
        const left = lora.scale * values[b + o * rank + r];
        for (let i = 0; i < inputs; i++) weights[start + o * inputs + i] += left * values[a + r * inputs + i];
      }
    }
  }
}

/** Draw `count` standard normal numbers from a seed: the generator sfc32, and Box and Muller's transform. */
export function normal(seed, count) {
  let a = 0x9e3779b9, b = 0x243f6a88, c = 0xb7e15162, d = seed >>> 0;
  const uniform = () => {
    const t = (a + b + d) | 0;
    d = (d + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = ((c << 21) | (c >>> 11)) + t | 0;
    return ((t >>> 0) + 0.5) / 4294967296; // inside (0, 1)
  };
  for (let i = 0; i < 16; i++) uniform();
  return Float32Array.from({ length: count }, () =>
    Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform()));
}
