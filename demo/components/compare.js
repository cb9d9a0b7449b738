const root = element.firstElementChild, { note, label } = root.dataset;
let before, after, box;

function build() {
  box = document.createElement('div');
  box.className = 'pair';
  const [left, right] = ['before', 'after'].map((name) => {
    const layer = Object.assign(document.createElement('div'), { className: `layer ${name}` });
    const parts = animeVAE.face('', name === 'before' ? 'Your picture' : 'As the model draws it');
    layer.append(...parts);
    return { layer, parts };
  });
  [before, after] = [left.parts, right.parts];
  const slider = Object.assign(document.createElement('input'), { type: 'range', min: 0, max: 100, value: 50 });
  slider.setAttribute('aria-label', `${label}: slide between both`);
  slider.addEventListener('input', () => box.style.setProperty('--cut', slider.value + '%'));
  const tag = (side, text) => Object.assign(document.createElement('span'), { className: side, textContent: text });
  box.append(right.layer, left.layer, slider, tag('left', 'your picture'), tag('right', 'redrawn'));
  root.replaceChildren(box);
}

function render() {
  if (!props.value?.before) {
    box = null;
    root.replaceChildren(Object.assign(document.createElement('p'), { className: 'empty', textContent: note }));
    return;
  }
  if (!box) build();
  animeVAE.update(before, props.value.before);
  animeVAE.update(after, props.value.after);
}
watch('value', render);
render();
