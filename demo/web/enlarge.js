// Faces are small, screens are large: Lanczos resampling with three lobes, as Pillow's LANCZOS does when it enlarges.

/** RGBA pixels (size x size) -> ImageData (target x target), target >= size. */
export function enlarge(pixels, size, target) {
  const taps = lanczos(size, target);
  const rows = new Uint8ClampedArray(size * target * 3); // clamped and rounded between the passes, as in Pillow
  for (let y = 0; y < size; y++)
    for (let x = 0; x < target; x++) {
      const { start, weights } = taps[x];
      let r = 0, g = 0, b = 0;
      for (let j = 0; j < weights.length; j++) {
        const at = (y * size + start + j) * 4, w = weights[j];
        r += w * pixels[at];
        g += w * pixels[at + 1];
        b += w * pixels[at + 2];
      }
      const to = (y * target + x) * 3;
      rows[to] = r;
      rows[to + 1] = g;
      rows[to + 2] = b;
    }
  const image = new ImageData(target, target), data = image.data;
  for (let y = 0; y < target; y++) {
    const { start, weights } = taps[y];
    for (let x = 0; x < target; x++) {
      let r = 0, g = 0, b = 0;
      for (let j = 0; j < weights.length; j++) {
        const at = ((start + j) * target + x) * 3, w = weights[j];
        r += w * rows[at];
        g += w * rows[at + 1];
        b += w * rows[at + 2];
      }
      const to = (y * target + x) * 4;
      data[to] = r; // clamped and rounded by Uint8ClampedArray
      data[to + 1] = g;
      data[to + 2] = b;
      data[to + 3] = 255;
    }
  }
  return image;
}

const tables = new Map();
function lanczos(from, to) {
  const key = `${from}:${to}`;
  if (!tables.has(key)) {
    const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
    tables.set(key, Array.from({ length: to }, (_, i) => {
      const center = ((i + 0.5) * from) / to;
      const start = Math.max(0, Math.floor(center - 2.5)), end = Math.min(from, Math.floor(center + 3.5));
      const weights = Array.from({ length: end - start }, (_, j) => {
        const x = start + j + 0.5 - center;
        return Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0;
      });
      const sum = weights.reduce((total, weight) => total + weight, 0);
      return { start, weights: weights.map((weight) => weight / sum) };
    }));
  }
  return tables.get(key);
}
