// Large pictures are cut to their central square and reduced here, so that a photograph of 12 MB sends some kilobytes.
const root = element.firstElementChild, { label } = root.dataset;
const MOST_SIDE = 512, AS_IT_IS = 400_000, MOST_BYTES = 8 * 2 ** 20;
const make = (tag, options) => Object.assign(document.createElement(tag), options);

const file = make('input', { type: 'file', accept: 'image/*,.heic,.heif,.avif,.tif,.tiff', className: 'visually-hidden' });
file.setAttribute('aria-label', `${label}: choose a picture`);
const stage = make('label', { className: 'stage' });
const hint = make('span', { className: 'hint', innerHTML: '<b>Choose a picture</b><br>or drop or paste one here' });
const picture = make('div', { className: 'picture' });
const parts = animeVAE.face('', label);
picture.append(...parts);
stage.append(file, hint, picture);
const buttons = make('div', { className: 'buttons' });
const action = (text, run) => {
  const button = make('button', { type: 'button', textContent: text });
  button.setAttribute('aria-label', `${text}: ${label}`);
  button.addEventListener('click', run);
  buttons.append(button);
  return button;
};
const choose = action('Choose', () => file.click());
const camera = action('Camera', photograph);
const remove = action('Remove', () => set(null));
const wrong = make('p', { className: 'wrong' });
wrong.setAttribute('role', 'alert');
root.append(make('span', { className: 'name', textContent: label }), stage, buttons, wrong);

function render() {
  const src = props.value?.src;
  root.classList.toggle('empty-input', !src);
  remove.hidden = !src;
  if (src) animeVAE.update(parts, src);
}

function set(src) {
  wrong.textContent = '';
  props.value = src ? { src } : null;
  render();
  trigger('input');
}

function refuse(sentence) {
  set(null); // an old answer beside a new complaint would be read as its answer
  wrong.textContent = sentence;
}

const asURI = (blob) => new Promise((done, failed) => {
  const reader = new FileReader();
  reader.onload = () => done(reader.result);
  reader.onerror = failed;
  reader.readAsDataURL(blob);
});

async function take(blob) {
  if (!blob) return;
  root.classList.add('busy');
  try {
    let bitmap;
    try {
      bitmap = await createImageBitmap(blob, { imageOrientation: 'from-image' });
    } catch {
      return await takeUnreadable(blob);
    }
    const side = Math.min(bitmap.width, bitmap.height);
    if (Math.max(bitmap.width, bitmap.height) <= MOST_SIDE && blob.size <= AS_IT_IS && blob.type.startsWith('image/'))
      return set(await asURI(blob));
    const target = Math.min(side, MOST_SIDE), canvas = new OffscreenCanvas(target, target);
    const context = canvas.getContext('2d');
    context.imageSmoothingQuality = 'high';
    const left = (bitmap.width - side) / 2, top = (bitmap.height - side) / 2;
    context.drawImage(bitmap, left, top, side, side, 0, 0, target, target);
    bitmap.close();
    const alpha = /png|webp|gif|avif/.test(blob.type);
    set(await asURI(await canvas.convertToBlob(alpha ? { type: 'image/png' } : { type: 'image/jpeg', quality: 0.95 })));
  } finally {
    root.classList.remove('busy');
  }
}

async function takeUnreadable(blob) {
  if (blob.size > MOST_BYTES)
    return refuse('This browser cannot read that file, and it is larger than 8 MB; save it as JPEG or PNG.');
  const uri = await asURI(blob);
  const answer = await server.reduce('data:application/octet-stream' + uri.slice(uri.indexOf(';'))).catch(() => null);
  if (answer?.src) set(answer.src);
  else refuse(answer?.error ?? 'That file could not be sent; try again.');
}

async function photograph() {
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: 'user', width: 640, height: 640 } });
  } catch {
    wrong.textContent = 'There is no camera that this page may use.';
    return;
  }
  const video = make('video', { srcObject: stream, autoplay: true, muted: true, playsInline: true });
  video.setAttribute('aria-label', 'The camera');
  const shoot = make('button', { type: 'button', className: 'shoot', textContent: 'Take the picture' });
  const box = make('div', { className: 'camera' });
  box.append(video, shoot);
  root.append(box);
  const stop = () => {
    stream.getTracks().forEach((track) => track.stop());
    box.remove();
  };
  shoot.addEventListener('click', async () => {
    const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
    canvas.getContext('2d').drawImage(video, 0, 0);
    stop();
    await take(await canvas.convertToBlob({ type: 'image/png' }));
    choose.focus();
  });
  shoot.focus();
}

file.addEventListener('change', () => { take(file.files[0]); file.value = ''; });
stage.addEventListener('dragover', (event) => { event.preventDefault(); root.classList.add('over'); });
stage.addEventListener('dragleave', () => root.classList.remove('over'));
stage.addEventListener('drop', (event) => {
  event.preventDefault();
  root.classList.remove('over');
  take(event.dataTransfer.files[0]);
});
// A paste goes to the picture that has the focus or the mouse, else to the first one in sight.
document.addEventListener('paste', (event) => {
  const blob = event.clipboardData?.files[0];
  if (!blob || !root.isConnected || !root.offsetParent) return;
  const inputs = [...document.querySelectorAll('.face_input')].filter((box) => box.offsetParent);
  const chosen = inputs.find((box) => box.matches(':hover, :focus-within')) ?? inputs[0];
  if (chosen === root) take(blob);
});
camera.hidden = !navigator.mediaDevices;
watch('value', () => {
  if (props.value?.src) wrong.textContent = '';
  render();
});
render();
