const root = element.firstElementChild, { most, columns, note, kind, label } = root.dataset;
root.classList.add('faces', kind);
root.style.setProperty('--columns', columns);
root.setAttribute('role', 'group');
root.setAttribute('aria-label', label);
let cells = [];

const cell = () => {
  const box = document.createElement(Number(most) ? 'button' : 'span');
  box.className = 'face';
  if (Number(most)) box.type = 'button';
  const parts = animeVAE.face('', '');
  box.append(...parts);
  return { box, parts };
};

function render() {
  const faces = Array.isArray(props.value) ? props.value : [];
  if (!faces.length) {
    cells = [];
    root.replaceChildren(Object.assign(document.createElement('p'), { className: 'empty', textContent: note }));
    return;
  }
  if (!cells.length) root.replaceChildren();
  while (cells.length > faces.length) cells.pop().box.remove();
  while (cells.length < faces.length) {
    cells.push(cell());
    root.append(cells.at(-1).box);
  }
  faces.forEach(({ src, picked }, index) => {
    const { box, parts } = cells[index], name = faces.length === 1 ? label : `${label} ${index + 1}`;
    parts[0].alt = Number(most) ? '' : name;
    animeVAE.update(parts, src);
    if (Number(most)) {
      box.dataset.index = index;
      box.setAttribute('aria-label', name);
      box.setAttribute('aria-pressed', String(Boolean(picked)));
    }
  });
}

root.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-index]');
  if (!button) return;
  const index = Number(button.dataset.index);
  const faces = props.value.map((face, at) => (at === index ? { ...face, picked: !face.picked } : face));
  const picked = faces.filter((face) => face.picked);
  if (picked.length > most) picked.find((face) => face !== faces[index]).picked = false;
  props.value = faces;
  render();
  trigger('select', { index });
});
watch('value', render);
if (element.closest('#favorites')) { // the only grid that the browser fills; the server's value for it is empty
  const show = () => {
    props.value = animeVAE.favorites().map((src) => ({ src, picked: false }));
    render();
  };
  animeVAE.watchers.add(show);
  watch('value', () => { if (!props.value?.length && animeVAE.favorites().length) show(); });
  setTimeout(show);
}
render();
