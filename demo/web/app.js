// The page: four corners, one face between them, and sliders that bend it. Nothing leaves the device.

import { VAE, fitSquare, models, seeded, slerp } from "./vae.js";

const SAMPLES = 24, LARGEST = 25e6, OWN_SIDE = 1024;
const $ = (id) => document.getElementById(id);
const corners = [...document.querySelectorAll(".corner")];
const state = { vae: null, codes: [], at: [0.5, 0.5], bend: [], corner: 0, seed: 7 };

function draw(canvas, pixels, size, n = 0) {
  canvas.width = canvas.height = size;
  const plane = size * size * 4;
  canvas.getContext("2d").putImageData(new ImageData(pixels.slice(n * plane, (n + 1) * plane), size, size), 0, 0);
}

function code() {
  const [u, v] = state.at, c = state.codes;
  const z = slerp(slerp(c[0], c[2], v), slerp(c[1], c[3], v), u);
  state.vae.sliders.forEach(({ step }, k) => {
    if (state.bend[k]) for (let i = 0; i < z.length; i++) z[i] += state.bend[k] * step[i];
  });
  return z;
}

// One picture at a time: while one is drawn, only the last wish is kept.
let wanted = false, busy = false;
async function show() {
  wanted = true;
  if (busy) return;
  busy = true;
  while (wanted) {
    wanted = false;
    const start = performance.now();
    draw($("face"), await state.vae.decode(code()), state.vae.size);
    document.documentElement.dataset.milliseconds = (performance.now() - start).toFixed(1);
    document.documentElement.dataset.frames = 1 + Number(document.documentElement.dataset.frames || 0);
    await new Promise(requestAnimationFrame);
  }
  busy = false;
}

function moveTo(u, v) {
  state.at = [u, v].map((x) => Math.min(1, Math.max(0, x)));
  const stage = $("face");
  $("dot").style.left = `${stage.offsetLeft + state.at[0] * stage.offsetWidth}px`;
  $("dot").style.top = `${stage.offsetTop + state.at[1] * stage.offsetHeight}px`;
  show();
}

async function setCorner(place, z) {
  state.codes[place] = z;
  draw(corners[place].firstElementChild, await state.vae.decode(z), state.vae.size);
}

function choose(place) {
  state.corner = place;
  corners.forEach((button, i) => button.setAttribute("aria-pressed", i === place));
}

async function newFaces() {
  const { vae } = state, dim = vae.dim;
  const codes = vae.sample(SAMPLES, seeded(state.seed), Number($("temperature").value));
  const pixels = await vae.decode(codes);
  $("samples").replaceChildren(...Array.from({ length: SAMPLES }, (_, n) => {
    const button = document.createElement("button"), canvas = document.createElement("canvas");
    button.setAttribute("aria-label", `Face ${n + 1} into the chosen corner`);
    button.append(canvas);
    draw(canvas, pixels, vae.size, n);
    button.onclick = async () => {
      await setCorner(state.corner, codes.slice(n * dim, (n + 1) * dim));
      choose((state.corner + 1) % 4);
      show();
    };
    return button;
  }));
  for (let k = 0; k < 4; k++) await setCorner(k, codes.slice(k * dim, (k + 1) * dim));
  show();
}

async function ownPicture(file) {
  if (!file) return;
  const { vae } = state;
  try {
    if (file.size > LARGEST) throw new Error("too large");
    const bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
    const scale = Math.min(1, OWN_SIDE / Math.min(bitmap.width, bitmap.height));
    const canvas = new OffscreenCanvas(Math.max(1, bitmap.width * scale), Math.max(1, bitmap.height * scale));
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.fillStyle = "#fff"; // transparency is blended on white, as vae_runtime does
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    const source = context.getImageData(0, 0, canvas.width, canvas.height).data;
    const pixels = fitSquare(source, canvas.width, canvas.height, vae.size);
    const { mu: z } = await vae.encode(pixels), again = await vae.decode(z);
    draw($("before"), pixels, vae.size);
    draw($("after"), again, vae.size);
    const error = pixels.reduce((sum, value, i) => sum + ((value - again[i]) / 255) ** 2, 0) / ((pixels.length * 3) / 4);
    $("psnr").textContent = error ? `${(-10 * Math.log10(error)).toFixed(1)} dB` : "exact";
    $("pair").hidden = false;
    await setCorner(0, z);
    moveTo(0, 0);
    say("");
  } catch {
    say("That file is no picture this browser can read; try a JPEG, PNG or WebP.", true);
  }
}

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

function sliders() {
  state.bend = state.vae.sliders.map(() => 0);
  $("sliders").replaceChildren(...state.vae.sliders.map(({ label }, k) => {
    const row = document.createElement("label"), input = document.createElement("input");
    Object.assign(input, { type: "range", min: -3, max: 3, step: 0.05, value: 0 });
    input.oninput = () => { state.bend[k] = Number(input.value); show(); };
    row.append(label, input);
    return row;
  }));
}

async function start(name) {
  delete document.documentElement.dataset.ready;
  say("Loading the model …");
  try {
    state.vae = await VAE.load(name);
    const { pixels, codes } = await state.vae.check();
    sliders();
    document.querySelector("main").hidden = false;
    $("pair").hidden = true;
    await newFaces();
    choose(0);
    moveTo(...state.at);
    say("");
    const where = state.vae.provider === "webgpu" ? "WebGPU" : "WebAssembly";
    $("about").textContent = `${name}: ${state.vae.size} x ${state.vae.size} pixels, ${state.vae.dim} numbers a face. `
      + `Runs on ${where}. Its pictures differ from Python's by ${pixels} of 255 at most, its codes by ${codes.toExponential(1)}.`;
    Object.assign(document.documentElement.dataset, { ready: name, provider: state.vae.provider, pixels, codes });
  } catch (error) {
    console.error(error);
    say("The model could not be loaded; reload the page, or try another browser.", true);
  }
}

const face = $("face");
const drag = (event) => {
  const box = face.getBoundingClientRect();
  moveTo((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
};
face.onpointerdown = (event) => { face.setPointerCapture(event.pointerId); drag(event); };
face.onpointermove = (event) => { if (face.hasPointerCapture(event.pointerId)) drag(event); };
face.onkeydown = (event) => {
  const step = { ArrowLeft: [-0.05, 0], ArrowRight: [0.05, 0], ArrowUp: [0, -0.05], ArrowDown: [0, 0.05] }[event.key];
  if (step) { event.preventDefault(); moveTo(state.at[0] + step[0], state.at[1] + step[1]); }
};
corners.forEach((button, place) => (button.onclick = () => { choose(place); moveTo(place % 2, place > 1 ? 1 : 0); }));
$("new").onclick = () => { state.seed = Math.floor(Math.random() * 1e6); newFaces(); };
$("temperature").oninput = newFaces;
$("zero").onclick = () => { sliders(); show(); };
$("own").onchange = (event) => ownPicture(event.target.files[0]);
document.ondragover = (event) => event.preventDefault();
document.ondrop = (event) => { event.preventDefault(); ownPicture(event.dataTransfer.files[0]); };
document.onpaste = (event) => ownPicture(event.clipboardData.files[0]);
$("save").onclick = () => {
  const link = document.createElement("a");
  link.href = face.toDataURL("image/png");
  link.download = "face.png";
  link.click();
};
window.onresize = () => state.vae && moveTo(...state.at);
$("model").onchange = (event) => start(event.target.value);

const names = await models();
$("model").replaceChildren(...names.map((name) => new Option(name)));
await start(names[0]);
