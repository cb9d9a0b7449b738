// A code for any text, to the last bit that of vae_runtime/prior/text_codes.py, which says how and why.

const DOMAIN = "anime-vae face 1\0", UNIFORMS = 12, CENTER = 393210;
const LN2_HIGH = 0.6931471803691238, LN2_LOW = 1.9082149292705877e-10, LOG2_E = 1.4426950408889634, LARGEST = 700;
const INVERSE_FACTORIALS = Array.from({ length: 14 }, (_, n) => 1 / Array.from({ length: n }, (_, i) => i + 1).reduce((a, b) => a * b, 1));

/**
 * A draw from `prior` that depends on the text and the temperature alone: Float32Array of `dim` numbers.
 * prior: { weights, means, scales, spreads, flow }, arrays of float32 in rows, as vae.js unpacks them; the last three may
 * be missing. A page needs a secure context (https or localhost) for crypto.subtle.
 */
export async function textCode(text, prior, dim, temperature = 0.8) {
  const stream = await bytesOf(fold(text), 4 + 2 * UNIFORMS * dim);
  const { weights, means, scales, spreads, flow } = prior;
  const share = stream.getUint32(0) / 4294967296;
  let k = 0;
  for (let edge = weights[0]; k < weights.length - 1 && share >= edge; k++, edge += weights[k]);
  let eps = new Float64Array(dim);
  for (let i = 0; i < dim; i++) {
    let sum = 0;
    for (let j = 0; j < UNIFORMS; j++) sum += stream.getUint16(4 + 2 * (UNIFORMS * i + j));
    eps[i] = (sum - CENTER) / 65536;
    if (spreads) eps[i] *= spreads[k * dim + i];
  }
  if (scales) eps = product(scales, scales.length === dim * dim ? 0 : k * dim * dim, eps, dim);
  const x = eps.map((value, i) => means[k * dim + i] + temperature * value);
  return Float32Array.from(flow ? applyFlow(flow, x) : x);
}

/** The text as it counts: case, composition and white space do not. */
export function fold(text) {
  return text.normalize("NFC").toUpperCase().toLowerCase().normalize("NFC").replace(/[ \t\n\r\f\v]+/g, " ").replace(/^ | $/g, "");
}

async function bytesOf(text, count) {
  const seed = await sha256(new TextEncoder().encode(DOMAIN + text));
  const blocks = Array.from({ length: Math.ceil(count / 32) }, (_, index) => {
    const block = new Uint8Array(36);
    block.set(seed);
    new DataView(block.buffer).setUint32(32, index);
    return sha256(block);
  });
  const stream = new Uint8Array(blocks.length * 32);
  (await Promise.all(blocks)).forEach((block, index) => stream.set(block, index * 32));
  return new DataView(stream.buffer);
}

async function sha256(data) {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", data));
}

/** A matrix of rows of vector.length numbers, from the number `at` on, times the vector; sums from first to last. */
function product(matrix, at, vector, rows) {
  const result = new Float64Array(rows);
  for (let i = 0; i < rows; i++) {
    let sum = 0;
    for (let j = 0; j < vector.length; j++) sum += matrix[at + i * vector.length + j] * vector[j];
    result[i] = sum;
  }
  return result;
}

function applyFlow({ orders, inner, inner_bias, outer, outer_bias, basis, shift }, x) {
  const dim = x.length, half = dim >> 1, rest = dim - half, hidden = inner_bias.length / orders.length;
  const y = Float64Array.from(x);
  orders.forEach((order, layer) => {
    const kept = Float64Array.from(order.slice(0, half), (i) => y[i]);
    const units = product(inner, layer * hidden * half, kept, hidden).map((value, i) => {
      const before = value + inner_bias[layer * hidden + i];
      return before * (1 / (1 + exactExp(-before)));
    });
    const said = product(outer, layer * 2 * rest * hidden, units, 2 * rest).map((value, i) => value + outer_bias[layer * 2 * rest + i]);
    for (let i = 0; i < rest; i++) {
      const scale = 1 - 2 / (1 + exactExp(2 * said[rest + i]));
      y[order[half + i]] = y[order[half + i]] * exactExp(scale) + said[i];
    }
  });
  return product(basis, 0, y, dim).map((value, i) => shift[i] + value);
}

function exactExp(x) {
  const cut = Math.min(LARGEST, Math.max(-LARGEST, x));
  const power = Math.floor(cut * LOG2_E + 0.5);
  const rest = (cut - power * LN2_HIGH) - power * LN2_LOW;
  let result = INVERSE_FACTORIALS[13];
  for (let n = 12; n >= 0; n--) result = result * rest + INVERSE_FACTORIALS[n];
  for (let n = 0; n < Math.abs(power); n++) result *= power > 0 ? 2 : 0.5;
  return result;
}
