const root = element.firstElementChild, limit = Number(root.dataset.limit);
const make = (tag, options) => Object.assign(document.createElement(tag), options);
let drawn = '', inputs = new Map(), past = [];

const bar = make('div', { className: 'bar' });
const undo = make('button', { type: 'button', textContent: 'Undo', disabled: true });
const reset = make('button', { type: 'button', textContent: 'Reset', disabled: true });
bar.append(undo, reset);
const board = make('div', { className: 'board' });
root.append(board, bar);

function build(groups) {
  inputs = new Map();
  board.replaceChildren(...groups.map(({ title, folded, sliders }) => {
    const box = make(folded ? 'details' : 'fieldset', {});
    box.append(make(folded ? 'summary' : 'legend', { textContent: title }));
    const list = make('div', { className: 'list' });
    for (const { name, label } of sliders) {
      const row = make('label', {}), value = make('output', {});
      const input = make('input', { type: 'range', min: -limit, max: limit, step: 0.1, value: 0 });
      input.dataset.name = name;
      input.addEventListener('input', () => move(name, Number(input.value)));
      row.append(make('span', { textContent: label }), input, value);
      list.append(row);
      inputs.set(name, { input, value });
    }
    box.append(list);
    return box;
  }));
}

const strengths = () => props.value?.strengths ?? {};
let moving = null;

function move(name, strength) {
  if (moving !== name) remember();
  moving = name;
  const { [name]: _, ...rest } = strengths();
  set(strength ? { ...rest, [name]: strength } : rest);
}
function remember() {
  past = [...past, { ...strengths() }].slice(-50);
}
function set(values) {
  props.value = { ...props.value, strengths: values };
  show();
  trigger('input');
}
board.addEventListener('change', () => { moving = null; });
undo.addEventListener('click', () => { moving = null; if (past.length) set(past.pop()); });
reset.addEventListener('click', () => { moving = null; remember(); set({}); });

function show() {
  const values = strengths();
  for (const [name, { input, value }] of inputs) {
    const strength = values[name] ?? 0;
    input.value = strength;
    value.textContent = strength ? (strength > 0 ? '+' : '') + Number(strength).toFixed(1) : '';
    input.setAttribute('aria-valuetext', Number(strength).toFixed(1));
  }
  undo.disabled = !past.length;
  reset.disabled = !Object.keys(values).length;
}

function render() {
  const groups = props.value?.groups ?? [], text = JSON.stringify(groups);
  if (text !== drawn) {
    build(groups);
    drawn = text;
    past = [];
  }
  show();
}
watch('value', render);
render();
