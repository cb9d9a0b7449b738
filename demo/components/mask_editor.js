// A stroke is drawn on the canvas; when it ends it is joined to the mask, black and white, which becomes the value.
const root = element.firstElementChild, { note } = root.dataset;
const make = (tag, options) => Object.assign(document.createElement(tag), options);
let parts, brush, mask, canvas, box, last = null, width = 14;

function build() {
  box = make('div', { className: 'painter' });
  parts = animeVAE.face('', 'The face to paint on');
  mask = make('img', { className: 'mask', alt: '' });
  canvas = make('canvas', { className: 'strokes', tabIndex: 0 });
  canvas.setAttribute('role', 'img');
  canvas.setAttribute('aria-label',
    'Paint over what should be drawn anew: drag, or move the spot with the arrow keys and press space');
  box.append(...parts, mask, canvas);
  brush = make('div', { className: 'brush' });
  const size = make('input', { type: 'range', min: 4, max: 50, value: width });
  size.addEventListener('input', () => { width = Number(size.value); spot(); });
  const name = make('label', { textContent: 'Brush ' });
  name.append(size);
  const clear = make('button', { type: 'button', className: 'clear', textContent: 'Clear' });
  clear.addEventListener('click', () => { update(''); });
  brush.append(name, clear);
  root.replaceChildren(box, brush);
  canvas.addEventListener('pointerdown', (event) => {
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    last = at(event);
    line(last);
  });
  canvas.addEventListener('pointermove', (event) => { if (last) line(at(event)); });
  canvas.addEventListener('pointerup', end);
  canvas.addEventListener('pointercancel', end);
  canvas.addEventListener('keydown', keyboard);
  canvas.addEventListener('blur', () => box.style.removeProperty('--spot'));
}

function render() {
  const { src, mask: hidden } = props.value ?? {};
  if (!src) {
    box = null;
    root.replaceChildren(make('p', { className: 'empty', textContent: note }));
    return;
  }
  if (!box) build();
  animeVAE.update(parts, src);
  mask.hidden = !hidden;
  if (hidden) mask.src = hidden;
  else mask.removeAttribute('src');
  canvas.width = canvas.height = 0; // its strokes are in the mask by now
}

const side = () => parts[0].naturalWidth;
const at = (event) => {
  const area = canvas.getBoundingClientRect();
  return [((event.clientX - area.left) / area.width) * side(), ((event.clientY - area.top) / area.height) * side()];
};

function line(to) {
  if (canvas.width !== side()) canvas.width = canvas.height = side();
  const context = canvas.getContext('2d');
  Object.assign(context, { strokeStyle: '#fff', lineCap: 'round', lineWidth: (width / 100) * side() });
  context.beginPath();
  context.moveTo(...last);
  context.lineTo(to[0] + 0.01, to[1]);
  context.stroke();
  last = to;
}

function end() {
  if (!last) return;
  last = null;
  const joined = make('canvas', { width: side(), height: side() }), context = joined.getContext('2d');
  context.fillRect(0, 0, side(), side());
  if (mask.getAttribute('src')) context.drawImage(mask, 0, 0);
  context.globalCompositeOperation = 'lighter';
  context.drawImage(canvas, 0, 0);
  update(joined.toDataURL('image/png'));
}

function update(hidden) {
  props.value = { ...props.value, mask: hidden };
  render();
  trigger('input');
}

let place = [0.5, 0.5];
function spot() {
  box.style.setProperty('--spot', `${place[0] * 100}% ${place[1] * 100}%`);
  box.style.setProperty('--brush', `${width / 2}%`);
}
function keyboard(event) {
  const step = { ArrowLeft: [-0.05, 0], ArrowRight: [0.05, 0], ArrowUp: [0, -0.05], ArrowDown: [0, 0.05] }[event.key];
  if (step) {
    event.preventDefault();
    place = place.map((value, axis) => Math.min(1, Math.max(0, value + step[axis])));
    spot();
  } else if (event.key === ' ') {
    event.preventDefault();
    last = place.map((value) => value * side());
    line(last);
    end();
  }
}
watch('value', render);
render();
