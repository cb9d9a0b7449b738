// The page: four corners, one face between them, and what can be done with it. Nothing leaves the device.

import { enlarge } from "./enlarge.js";
import { VAE, breed, fitSquare, models, pack, repaint, seeded, slerp, unpack } from "./vae.js";

const SAMPLES = 24, GENERATION = 16, LARGEST = 100e6, OWN_SIDE = 1024, LOOP_SECONDS = 6;
const $ = (id) => document.getElementById(id);
const root = document.documentElement;
const corners = [...document.querySelectorAll(".corner")];
const state = { vae: null, codes: [], at: [0.5, 0.5], bend: {}, corner: 0, seed: 7, picks: new Set() };

/** RGBA pixels of picture `n`, enlarged to what is shown. */
function draw(canvas, pixels, size, n = 0) {
  const plane = size * size * 4, shown = (canvas.clientWidth || 80) * devicePixelRatio;
  const target = size * Math.min(8, Math.max(1, Math.ceil(shown / size - 0.25)));
  canvas.width = canvas.height = target;
  canvas.getContext("2d").putImageData(enlarge(pixels.subarray(n * plane, (n + 1) * plane), size, target), 0, 0);
}

function code() {
  const [u, v] = state.at, c = state.codes;
  const z = slerp(slerp(c[0], c[2], v), slerp(c[1], c[3], v), u);
  for (const { name, step } of state.vae.sliders)
    if (state.bend[name]) for (let i = 0; i < z.length; i++) z[i] += state.bend[name] * step[i];
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
    state.pixels = await state.vae.decode(code());
    draw($("face"), state.pixels, state.vae.size);
    root.dataset.milliseconds = (performance.now() - start).toFixed(1);
    root.dataset.frames = 1 + Number(root.dataset.frames || 0);
    await new Promise(requestAnimationFrame);
  }
  busy = false;
  remember();
}

function moveTo(u, v) {
  state.at = [u, v].map((x) => Math.min(1, Math.max(0, x)));
  $("dot").hidden = false;
  $("dot").style.left = `${100 * state.at[0]}%`;
  $("dot").style.top = `${100 * state.at[1]}%`;
  return show();
}

async function setCorner(place, z) {
  state.codes[place] = z;
  draw(corners[place].firstElementChild, await state.vae.decode(z), state.vae.size);
}

async function setCorners(codes) {
  const { vae } = state, all = new Float32Array(4 * vae.dim);
  codes.forEach((z, place) => all.set(z, place * vae.dim));
  state.codes = [...codes];
  const pixels = await vae.decode(all);
  corners.forEach((corner, place) => draw(corner.firstElementChild, pixels, vae.size, place));
}

function choose(place) {
  state.corner = place;
  corners.forEach((button, i) => button.setAttribute("aria-pressed", i === place));
}

/** Buttons with the faces of `codes` in a box; a click calls `use` with the number of the face. */
async function fill(box, codes, label, use) {
  const { dim, size } = state.vae, pixels = await state.vae.decode(codes);
  const buttons = Array.from({ length: codes.length / dim }, (_, n) => {
    const button = document.createElement("button"), canvas = document.createElement("canvas");
    button.setAttribute("aria-label", label(n));
    button.append(canvas);
    button.onclick = () => use(n, button);
    return button;
  });
  box.replaceChildren(...buttons);
  buttons.forEach((button, n) => draw(button.firstElementChild, pixels, size, n));
}

async function newFaces(intoCorners = true) {
  const { vae } = state, dim = vae.dim;
  const codes = vae.sample(SAMPLES, seeded(state.seed), Number($("temperature").value));
  await fill($("samples"), codes, (n) => `Face ${n + 1} into the chosen corner`, async (n) => {
    await setCorner(state.corner, codes.slice(n * dim, (n + 1) * dim));
    choose((state.corner + 1) % 4);
    show();
  });
  if (!intoCorners) return;
  await setCorners([0, 1, 2, 3].map((k) => codes.slice(k * dim, (k + 1) * dim)));
  await show();
}

// ---- your picture
async function ownPicture(file) {
  if (!file) return;
  openTab("own");
  const { vae } = state;
  $("pair").hidden = true;
  if (file.size > LARGEST) return say(`That file has ${Math.round(file.size / 1e6)} MB; choose one of at most 100 MB.`, true);
  try {
    const bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
    const scale = Math.min(1, OWN_SIDE / Math.min(bitmap.width, bitmap.height));
    const canvas = new OffscreenCanvas(Math.max(1, bitmap.width * scale), Math.max(1, bitmap.height * scale));
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.fillStyle = "#fff"; // transparency is blended on white, as vae_runtime does
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    bitmap.close();
    const source = context.getImageData(0, 0, canvas.width, canvas.height).data;
    const pixels = fitSquare(source, canvas.width, canvas.height, vae.size);
    say("Reading your picture …");
    const { mu: z } = await vae.encode(pixels), again = await vae.decode(z);
    $("pair").hidden = false;
    draw($("before"), pixels, vae.size);
    draw($("after"), again, vae.size);
    state.own = { pixels, again };
    const error = pixels.reduce((sum, value, i) => sum + ((value - again[i]) / 255) ** 2, 0) / ((pixels.length * 3) / 4);
    $("psnr").title = error ? `PSNR ${(-10 * Math.log10(error)).toFixed(1)} dB` : "the same pixels";
    await setCorner(0, z);
    await moveTo(0, 0);
    say("");
  } catch {
    say("This browser cannot read that file as a picture; try a JPEG, PNG or WebP.", true);
  }
}

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

// ---- edit
function sliders() {
  $("sliders").replaceChildren(...state.vae.groups.map(({ title, folded, sliders }) => {
    const box = document.createElement(folded ? "details" : "fieldset");
    const head = document.createElement(folded ? "summary" : "legend");
    head.textContent = title;
    box.append(head, ...sliders.map(({ name, label }) => {
      const row = document.createElement("label"), input = document.createElement("input");
      Object.assign(input, { type: "range", min: -3, max: 3, step: 0.05, value: state.bend[name] ?? 0 });
      input.oninput = () => { state.bend[name] = Number(input.value); show(); };
      row.append(label, input);
      return row;
    }));
    return box;
  }));
}

// ---- by name
async function named(text) {
  if (!text.trim()) return;
  const z = await state.vae.codeOf(text);
  draw($("named"), await state.vae.decode(z), state.vae.size);
  await intoCorner(z);
}

/** A face in the chosen corner, which becomes the face that is shown. */
async function intoCorner(z) {
  await setCorner(state.corner, z);
  await moveTo(state.corner % 2, state.corner > 1 ? 1 : 0);
}

// ---- evolve
async function generation(codes) {
  state.generation = codes;
  state.picks.clear();
  await fill($("generation"), codes, (n) => `Face ${n + 1}`, (n, button) => {
    state.picks[state.picks.has(n) ? "delete" : "add"](n);
    button.setAttribute("aria-pressed", state.picks.has(n));
  });
  for (const button of $("generation").children) button.setAttribute("aria-pressed", "false");
}
const fresh = () => generation(state.vae.sample(GENERATION, Math.random));
async function nextGeneration() {
  if (!state.picks.size) return say("Pick the faces you like first.", true);
  say("");
  await generation(breed(state.vae, state.generation, [...state.picks], Math.random));
}
async function takePicked() {
  const [first] = state.picks, { dim } = state.vae;
  if (first === undefined) return say("Pick a face first.", true);
  await intoCorner(state.generation.slice(first * dim, (first + 1) * dim));
  say("It is in the chosen corner now, to be edited and downloaded.");
}

// ---- repaint
let last = null;
function paintStart() {
  draw($("under"), state.pixels, state.vae.size);
  $("strokes").width = $("strokes").height = state.vae.size;
}
function stroke(to) {
  const context = $("strokes").getContext("2d");
  Object.assign(context, { strokeStyle: "#fff", lineCap: "round", lineWidth: state.vae.size * 0.16 });
  context.beginPath();
  context.moveTo(...last);
  context.lineTo(to[0] + 0.01, to[1]);
  context.stroke();
  last = to;
}
async function anew() {
  const size = state.vae.size, pixels = state.pixels;
  const covered = $("strokes").getContext("2d").getImageData(0, 0, size, size).data;
  const hidden = Array.from({ length: size * size }, (_, i) => covered[i * 4 + 3] > 127);
  if (!hidden.includes(true)) return say("Paint over a part of the face first.", true);
  if (!hidden.includes(false)) return say("Leave some of the face for the model to go by.", true);
  say("Drawing …");
  const painted = await repaint(state.vae, pixels, hidden);
  say("");
  state.pixels = painted;
  paintStart();
  draw($("face"), painted, size);
}

// ---- a loop through the corners, recorded from the canvas
async function loop() {
  const canvas = $("face"), kind = ["video/webm;codecs=vp9", "video/webm", "video/mp4"].find((k) => MediaRecorder.isTypeSupported(k));
  const recorder = new MediaRecorder(canvas.captureStream(24), { mimeType: kind, videoBitsPerSecond: 4e6 }), parts = [];
  recorder.ondataavailable = ({ data }) => parts.push(data);
  const done = new Promise((resolve) => { recorder.onstop = resolve; });
  recorder.start();
  $("loop").disabled = true;
  for (let start = performance.now(), share = 0; share < 1; share = (performance.now() - start) / 1000 / LOOP_SECONDS) {
    const angle = 2 * Math.PI * share - (3 * Math.PI) / 4;
    await moveTo(0.5 + 0.6 * Math.cos(angle), 0.5 + 0.6 * Math.sin(angle));
  }
  recorder.stop();
  await done;
  $("loop").disabled = false;
  download(new Blob(parts, { type: kind }), `anime-vae-loop.${kind.includes("mp4") ? "mp4" : "webm"}`);
}

function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// ---- links: the whole state, in the part of the address that no server sees
const link = () => new URLSearchParams({
  model: state.vae.name,
  at: state.at.map((x) => x.toFixed(3)).join(","),
  bend: JSON.stringify(Object.fromEntries(Object.entries(state.bend).filter(([, value]) => value))),
  faces: state.codes.map(pack).join("."),
});
let waiting;
function remember() {
  clearTimeout(waiting);
  waiting = setTimeout(() => { if (state.codes.length === 4) history.replaceState(null, "", "#" + link()); }, 300);
}
/** The state that a link asks for: { codes, at, bend }, or null for no link, a damaged one, or one of another model. */
function fromLink(vae, asked) {
  try {
    const codes = asked.get("faces").split(".").map((text) => unpack(text, vae.dim));
    const at = asked.get("at").split(",").map(Number), bend = JSON.parse(asked.get("bend") || "{}");
    if (codes.length !== 4 || !at.every((x) => x >= 0 && x <= 1) || codes.some((code) => code.some((x) => !(Math.abs(x) < 1e3)))) return null;
    return { codes, at, bend: Object.fromEntries(vae.sliders.map(({ name }) => [name, Math.max(-3, Math.min(3, Number(bend[name]) || 0))])) };
  } catch {
    return null;
  }
}
async function copyLink() {
  const address = location.href.split("#")[0] + "#" + link();
  try {
    await navigator.clipboard.writeText(address);
    say("Link copied: it opens what you see here.");
  } catch {
    prompt("Copy this link:", address);
  }
}

// ---- start
async function start(name, asked = new URLSearchParams()) {
  delete root.dataset.ready;
  const began = performance.now(), entry = names.find((each) => each.name === name);
  $("loading").hidden = false;
  $("poster").src = entry.poster;
  $("poster").hidden = false;
  say("");
  try {
    let come = 0;
    const loading = VAE.load(name, (count) => { $("progress").value = Math.min(1, (come += count) / entry.bytes); });
    enlarge(new Uint8ClampedArray(64 * 64 * 4), 64, 512); // while the line is busy: the first call takes ten times as long
    const vae = await loading;
    if (asked.has("faces")) await vae.complete();
    const start = [0, 1, 2, 3].map((k) => vae.start.slice(k * vae.dim, (k + 1) * vae.dim));
    Object.assign(state, { vae, ...(fromLink(vae, asked) ?? { codes: start, bend: {} }) });
    await moveTo(...state.at);
    root.dataset.first = Math.round(performance.now() - (root.dataset.first ? began : 0));
    $("poster").hidden = true;
    $("loading").hidden = true;
    choose(0);
    await setCorners(state.codes);
    await vae.complete();
    sliders();
    $("pair").hidden = true;
    await newFaces(false);
    await fresh();
    const times = await vae.race();
    const { pixels, codes } = await vae.check();
    const where = { webgpu: "WebGPU", wasm: "WebAssembly" }[vae.provider];
    $("about").textContent = `${name}: ${vae.size} x ${vae.size} pixels, ${vae.dim} numbers a face. Runs on ${where}, `
      + `${times[vae.provider].toFixed(0)} ms a face. Its pictures differ from Python's by ${pixels} of 255 at most, `
      + `its codes by ${codes.toExponential(1)}. MIT license; no picture that the models were trained on is in this page.`;
    Object.assign(root.dataset, { ready: name, provider: vae.provider, pixels, codes });
  } catch (error) {
    console.error(error);
    $("loading").hidden = true;
    say("The model could not be loaded. Reload the page, or try another browser.", true);
  }
}

function openTab(name) {
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const chosen = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = !chosen;
  }
  if (!state.vae) return;
  if (name === "repaint") paintStart();
  if (name === "evolve" && state.generation) generation(state.generation);
}

const tabs = [...document.querySelectorAll("[role=tab]")];
tabs.forEach((tab, i) => {
  tab.onclick = () => openTab(tab.id.slice(4));
  tab.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(i + step + tabs.length) % tabs.length];
    next.focus();
    next.click();
  };
});
const face = $("face");
const drag = (event) => {
  const box = face.getBoundingClientRect();
  if (state.vae) moveTo((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
};
const ARROWS = { ArrowLeft: [-0.05, 0], ArrowRight: [0.05, 0], ArrowUp: [0, -0.05], ArrowDown: [0, 0.05] };
face.onpointerdown = (event) => { face.setPointerCapture(event.pointerId); drag(event); };
face.onpointermove = (event) => { if (face.hasPointerCapture(event.pointerId)) drag(event); };
face.onkeydown = (event) => {
  const step = ARROWS[event.key];
  if (step && state.vae) { event.preventDefault(); moveTo(state.at[0] + step[0], state.at[1] + step[1]); }
};
corners.forEach((button, place) => (button.onclick = () => { choose(place); moveTo(place % 2, place > 1 ? 1 : 0); }));
$("new").onclick = () => { state.seed = Math.floor(Math.random() * 1e6); newFaces(); };
$("temperature").oninput = () => newFaces(false);
$("zero").onclick = () => { state.bend = {}; sliders(); show(); };
$("own").onchange = (event) => { ownPicture(event.target.files[0]); event.target.value = ""; };
$("name").oninput = (event) => named(event.target.value);
$("breed").onclick = nextGeneration;
$("take").onclick = takePicked;
$("fresh").onclick = fresh;
$("anew").onclick = anew;
$("clear").onclick = paintStart;
$("loop").onclick = loop;
$("share").onclick = copyLink;
$("save").onclick = () => {
  const { size } = state.vae, canvas = document.createElement("canvas");
  canvas.width = canvas.height = 512;
  canvas.getContext("2d").putImageData(enlarge(state.pixels, size, 512), 0, 0);
  canvas.toBlob((blob) => download(blob, "face.png"));
};
const strokes = $("strokes"), spot = [0.5, 0.5];
const at = (event) => {
  const box = strokes.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height].map((x) => x * state.vae.size);
};
strokes.onpointerdown = (event) => { strokes.setPointerCapture(event.pointerId); last = at(event); stroke(last); };
strokes.onpointermove = (event) => { if (last && strokes.hasPointerCapture(event.pointerId)) stroke(at(event)); };
strokes.onpointerup = () => { last = null; };
strokes.onkeydown = (event) => {
  const step = ARROWS[event.key];
  if (step) spot.forEach((value, axis) => { spot[axis] = Math.min(1, Math.max(0, value + step[axis])); });
  else if (event.key === " ") { last = spot.map((x) => x * state.vae.size); stroke(last); last = null; }
  else return;
  event.preventDefault();
};
document.ondragover = (event) => event.preventDefault();
document.ondrop = (event) => { event.preventDefault(); ownPicture(event.dataTransfer.files[0]); };
document.onpaste = (event) => ownPicture(event.clipboardData.files[0]);
window.onresize = () => state.vae && moveTo(...state.at);
$("model").onchange = (event) => { history.replaceState(null, "", location.pathname + location.search); start(event.target.value); };

const names = await models();
$("model").replaceChildren(...names.map(({ name }) => new Option(name)));
const asked = new URLSearchParams(location.hash.slice(1));
const first = names.some(({ name }) => name === asked.get("model")) ? asked.get("model") : names[0].name;
$("model").value = first;
await start(first, asked);
// After the first face: what it keeps would come before it on the same line.
if ("serviceWorker" in navigator && isSecureContext) navigator.serviceWorker.register("sw.js").catch(() => {});
