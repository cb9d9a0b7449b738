// The two graphs in the browser, and the little mathematics around them. No page here: app.js draws.

import { textCode } from "./face_of.js";

const base = new URL("./", import.meta.url);
const FASTER = 0.8; // WebGPU must need less than this share of the time of WebAssembly to be taken

async function request(path) {
  const answer = await fetch(new URL(path, base));
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer;
}

/** The bytes of an answer, decompressed as they come if they are gzip. onBytes is told how many have come. */
async function bytesOf(answer, onBytes = () => {}) {
  const reader = answer.body.getReader();
  let part = await reader.read();
  const gzip = part.value?.[0] === 0x1f && part.value[1] === 0x8b; // else the server has said so, and the browser has done it
  const body = new ReadableStream({
    async pull(parts) {
      if (part.done) return parts.close();
      onBytes(part.value.length);
      parts.enqueue(part.value);
      part = await reader.read();
    },
  });
  return new Uint8Array(await new Response(gzip ? body.pipeThrough(new DecompressionStream("gzip")) : body).arrayBuffer());
}

const read = async (path, onBytes) => bytesOf(await request(path), onBytes);
const json = async (path, onBytes) => JSON.parse(new TextDecoder().decode(await read(path, onBytes)));

const engines = new Map();
/** ONNX Runtime Web with one provider, loaded once. */
function engine(provider, onBytes) {
  if (!engines.has(provider))
    engines.set(provider, (async () => {
      const name = provider === "wasm" ? "ort-wasm-simd-threaded" : "ort-wasm-simd-threaded.asyncify";
      const binary = read(`vendor/${name}.wasm.gz`, onBytes), ort = await import(new URL(`vendor/ort.${provider}.min.mjs`, base));
      ort.env.wasm.wasmPaths = { mjs: new URL(`vendor/${name}.mjs`, base).href };
      if (!self.crossOriginIsolated) ort.env.wasm.numThreads = 1;
      ort.env.wasm.wasmBinary = await binary;
      return ort;
    })());
  return engines.get(provider);
}

const bytes = (text) =>
  Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (letter) => letter.charCodeAt(0));
const floats = (text) => new Float32Array(bytes(text).buffer);

/** [{ name, poster, bytes: what must come before the first face }, ...] */
export const models = () => json("models/index.json");

export class VAE {
  /** Ready to decode. `complete` adds what the first face does without; the encoder comes when it is first needed. */
  static async load(name, onBytes = () => {}) {
    const place = `models/${name}/`, described = json(place + "model.json", onBytes), ort = await engine("wasm", onBytes);
    const open = (graph) => ort.InferenceSession.create(graph, { executionProviders: ["wasm"] });
    const coming = await request(place + "decoder.onnx.gz");
    open(new Uint8Array(1)).catch(() => {}); // refused; but the first one has the engine compiled, while the graph is coming
    const graph = await bytesOf(coming, onBytes), model = await described;
    const vae = new VAE();
    Object.assign(vae, {
      ort, place, graph, groups: [], sliders: [], provider: "wasm", name: model.name, size: model.image_size,
      dim: model.latent_dim, start: floats(model.start),
    });
    vae.decoder = await open(graph);
    let encoder, rest;
    vae.ready = () => (encoder ??= read(place + "encoder.onnx.gz").then(open));
    vae.complete = () => (rest ??= json(place + "prior.json.gz").then((found) => vae.take(found)));
    return vae;
  }

  /** The prior, and the directions of the sliders. */
  take({ groups, prior: { weights, means, scales, spreads, flow } }) {
    this.groups = groups.map((group) => ({
      ...group, sliders: group.sliders.map((slider) => ({ ...slider, step: floats(slider.step) })),
    }));
    this.sliders = this.groups.flatMap((group) => group.sliders);
    this.prior = {
      weights,
      means: floats(means),
      scales: scales && floats(scales),
      spreads: spreads && floats(spreads),
      flow: flow && unpackFlow(flow),
    };
    return this;
  }

  /** Take WebGPU for the decoder if there is an adapter, and it is faster: "wasm" or "webgpu", and the milliseconds. */
  async race() {
    const times = { wasm: await this.time(this.ort, this.decoder) };
    try {
      const wanted = !new URLSearchParams(location.search).has("wasm") && !navigator.connection?.saveData;
      if (wanted && (await navigator.gpu?.requestAdapter())) {
        const ort = await engine("webgpu");
        const decoder = await ort.InferenceSession.create(this.graph, { executionProviders: ["webgpu"] });
        times.webgpu = await this.time(ort, decoder);
        if (times.webgpu < FASTER * times.wasm) Object.assign(this, { decoder, decoderOrt: ort, provider: "webgpu" });
      }
    } catch (error) {
      console.warn("WebGPU is not used:", error);
    }
    this.graph = null;
    return times;
  }

  async time(ort, decoder) {
    const run = async () => {
      const z = new ort.Tensor("float32", new Float32Array(this.dim), [1, this.dim]);
      await (await decoder.run({ z })).image.getData();
    };
    await run(); // compiles its kernels
    const start = performance.now();
    for (let i = 0; i < 5; i++) await run();
    return (performance.now() - start) / 5;
  }

  /** The code of a name; see face_of.js. */
  codeOf(text) {
    return textCode(text, this.prior, this.dim);
  }

  /** Codes (Float32Array, n x dim) -> pictures, Uint8ClampedArray RGBA (n x size x size). */
  async decode(codes) {
    const count = codes.length / this.dim;
    const z = new (this.decoderOrt ?? this.ort).Tensor("float32", codes, [count, this.dim]);
    const { image } = await this.decoder.run({ z });
    const values = await image.getData();
    const plane = this.size * this.size;
    const pixels = new Uint8ClampedArray(count * plane * 4).fill(255);
    for (let n = 0; n < count; n++)
      for (let c = 0; c < 3; c++)
        for (let i = 0, from = (n * 3 + c) * plane; i < plane; i++)
          pixels[(n * plane + i) * 4 + c] = values[from + i] * 255; // clamps, and rounds half to even as NumPy does
    return pixels;
  }

  /** RGBA pictures -> mu and logvar, Float32Array (n x dim) each. */
  async encode(pixels) {
    const encoder = await this.ready();
    const plane = this.size * this.size;
    const count = pixels.length / 4 / plane;
    const values = new Float32Array(count * 3 * plane);
    for (let n = 0; n < count; n++)
      for (let c = 0; c < 3; c++)
        for (let i = 0; i < plane; i++) values[(n * 3 + c) * plane + i] = pixels[(n * plane + i) * 4 + c] / 255;
    const image = new this.ort.Tensor("float32", values, [count, 3, this.size, this.size]);
    const { mu, logvar } = await encoder.run({ image });
    return { mu: await mu.getData(), logvar: await logvar.getData() };
  }

  /** New codes from the prior: a component by its weight, mean + temperature * scale * (spread * eps), and the flow. */
  sample(count, random, temperature = 1) {
    const { weights, means, scales, spreads, flow } = this.prior, dim = this.dim;
    const shared = scales?.length === dim * dim;
    const codes = new Float32Array(count * dim), eps = new Float64Array(dim);
    for (let n = 0; n < count; n++) {
      let k = 0;
      for (let left = random(); k < weights.length - 1 && left >= weights[k]; k++) left -= weights[k];
      for (let i = 0; i < dim; i++) eps[i] = gauss(random) * (spreads ? spreads[k * dim + i] : 1);
      for (let i = 0; i < dim; i++) {
        let sum = scales ? 0 : eps[i];
        const row = ((shared ? 0 : k) * dim + i) * dim;
        if (scales) for (let j = 0; j < dim; j++) sum += scales[row + j] * eps[j];
        codes[n * dim + i] = means[k * dim + i] + temperature * sum;
      }
      if (flow) bend(flow, codes.subarray(n * dim, (n + 1) * dim));
    }
    return codes;
  }

  /** The golden vectors through these graphs: the largest difference to Python, of 255 and of mu and logvar. */
  async check() {
    const golden = await json(this.place + "golden.json");
    const rgb = bytes(golden.image), drawn = await this.decode(floats(golden.z));
    const rgba = new Uint8ClampedArray((rgb.length / 3) * 4).fill(255);
    let pixels = 0, codes = 0;
    for (let i = 0; i < rgb.length; i++) {
      const at = Math.floor(i / 3) * 4 + (i % 3);
      rgba[at] = rgb[i];
      pixels = Math.max(pixels, Math.abs(drawn[at] - rgb[i]));
    }
    for (const [name, found] of Object.entries(await this.encode(rgba))) {
      const expected = floats(golden[name]);
      found.forEach((value, i) => (codes = Math.max(codes, Math.abs(value - expected[i]))));
    }
    return { pixels, codes };
  }
}

/** The hidden pixels of RGBA `pixels` drawn anew: filled with the mean, then with what the model makes of it. */
export async function repaint(vae, pixels, hidden, rounds = 12) {
  const filled = pixels.slice(), mean = [0, 0, 0];
  const known = hidden.reduce((count, value) => count + !value, 0);
  for (let i = 0; i < hidden.length; i++)
    if (!hidden[i]) for (let c = 0; c < 3; c++) mean[c] += pixels[i * 4 + c] / known;
  for (let i = 0; i < hidden.length; i++) if (hidden[i]) for (let c = 0; c < 3; c++) filled[i * 4 + c] = mean[c];
  for (let round = 0; round < rounds; round++) {
    const drawn = await vae.decode((await vae.encode(filled)).mu);
    for (let i = 0; i < hidden.length; i++)
      if (hidden[i]) for (let c = 0; c < 3; c++) filled[i * 4 + c] = drawn[i * 4 + c];
  }
  return filled;
}

/** Children of the picked codes: each number of one of two parents, then turned towards a fresh draw; as demo.evolution. */
export function breed(vae, codes, picks, random, mutation = 0.35) {
  const { dim } = vae, count = codes.length / dim, angle = (mutation * Math.PI) / 2, children = new Float32Array(codes.length);
  const draws = vae.sample(count, random), { weights, means } = vae.prior;
  for (let n = 0; n < count; n++) {
    const parents = [0, 0].map(() => picks[Math.floor(random() * picks.length)]);
    for (let i = 0; i < dim; i++) {
      let mean = 0;
      if (!vae.prior.flow) for (let k = 0; k < weights.length; k++) mean += weights[k] * means[k * dim + i];
      const child = codes[parents[random() < 0.5 ? 0 : 1] * dim + i];
      children[n * dim + i] = mean + Math.cos(angle) * (child - mean) + Math.sin(angle) * (draws[n * dim + i] - mean);
    }
  }
  return children;
}

/** Codes as text for a link: 8 bits a number, after their scale. */
export function pack(codes) {
  const scale = Math.fround(codes.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-6) / 127);
  const data = new Uint8Array(4 + codes.length);
  new DataView(data.buffer).setFloat32(0, scale, true);
  codes.forEach((value, i) => { data[4 + i] = Math.round(value / scale); });
  return btoa(String.fromCharCode(...data)).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

export function unpack(text, count) {
  const data = bytes(text);
  if (data.length !== 4 + count) throw new Error("a link of another model");
  const scale = new DataView(data.buffer).getFloat32(0, true);
  return Float32Array.from({ length: count }, (_, i) => scale * ((data[4 + i] << 24) >> 24));
}

/** A seeded generator of numbers in [0, 1): mulberry32. */
export function seeded(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

function unpackFlow({ orders, ...packed }) {
  return { orders, ...Object.fromEntries(Object.entries(packed).map(([name, text]) => [name, floats(text)])) };
}

/** A matrix of rows of x.length numbers, from the number `at` on, times x, plus a vector. */
function affine(matrix, at, x, plus, from, rows) {
  const result = new Float64Array(rows);
  for (let i = 0; i < rows; i++) {
    let sum = plus[from + i];
    for (let j = 0; j < x.length; j++) sum += matrix[at + i * x.length + j] * x[j];
    result[i] = sum;
  }
  return result;
}

/** What the prior's flow makes of one code, in place; see vae_runtime.flow.Flow. */
function bend({ orders, inner, inner_bias, outer, outer_bias, basis, shift }, code) {
  const dim = code.length, half = dim >> 1, rest = dim - half, hidden = inner_bias.length / orders.length;
  orders.forEach((order, l) => {
    const kept = Float64Array.from(order.slice(0, half), (i) => code[i]);
    const units = affine(inner, l * hidden * half, kept, inner_bias, l * hidden, hidden).map((x) => x / (1 + Math.exp(-x)));
    const said = affine(outer, l * 2 * rest * hidden, units, outer_bias, l * 2 * rest, 2 * rest);
    for (let i = 0; i < rest; i++)
      code[order[half + i]] = code[order[half + i]] * Math.exp(Math.tanh(said[rest + i])) + said[i];
  });
  code.set(affine(basis, 0, Float64Array.from(code), shift, 0, dim));
}

function gauss(random) {
  return Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
}

/** Spherical interpolation, straight where there is no arc; see vae_runtime.latent.slerp. */
export function slerp(a, b, t) {
  let aa = 0, bb = 0, ab = 0;
  for (let i = 0; i < a.length; i++) { aa += a[i] * a[i]; bb += b[i] * b[i]; ab += a[i] * b[i]; }
  const angle = Math.acos(Math.min(1, Math.max(-1, ab / Math.sqrt(aa * bb || 1))));
  const arc = angle > 1e-4 && angle < Math.PI - 1e-3;
  const p = arc ? Math.sin((1 - t) * angle) / Math.sin(angle) : 1 - t;
  const q = arc ? Math.sin(t * angle) / Math.sin(angle) : t;
  return a.map((value, i) => p * value + q * b[i]);
}

/** A picture cut to its central square and resampled as vae_runtime.images.fit_square does: a triangle, 8 bits between. */
export function fitSquare(source, width, height, size) {
  const side = Math.min(width, height);
  const left = Math.floor((width - side) / 2), top = Math.floor((height - side) / 2);
  const taps = triangle(side, size);
  const rows = new Uint8ClampedArray(side * size * 4);
  const pixels = new Uint8ClampedArray(size * size * 4);
  for (let y = 0; y < side; y++)
    for (let x = 0; x < size; x++)
      mix(taps[x], (j) => ((top + y) * width + left + j) * 4, source, rows, (y * size + x) * 4);
  for (let y = 0; y < size; y++)
    for (let x = 0; x < size; x++) mix(taps[y], (j) => (j * size + x) * 4, rows, pixels, (y * size + x) * 4);
  return pixels;
}

function mix({ start, weights }, place, from, to, at) {
  for (let c = 0; c < 4; c++) {
    let sum = 0;
    for (let j = 0; j < weights.length; j++) sum += weights[j] * from[place(start + j) + c];
    to[at + c] = Math.floor(sum + 0.5);
  }
}

function triangle(from, to) {
  const scale = from / to, reach = Math.max(scale, 1);
  return Array.from({ length: to }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const start = Math.max(0, Math.floor(centre - reach + 0.5)), end = Math.min(from, Math.floor(centre + reach + 0.5));
    const weights = Array.from({ length: end - start }, (_, j) =>
      Math.max(0, 1 - Math.abs((start + j - centre + 0.5) / reach)));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    return { start, weights: weights.map((weight) => weight / sum) };
  });
}
