// Shared by the components: large faces, downloads, and the state of the page in its address and history.
const animeVAE = (() => {
  // ---- faces
  const pixelsOf = (img) => {
    const side = img.naturalWidth, canvas = new OffscreenCanvas(side, img.naturalHeight);
    const context = canvas.getContext('2d', { willReadFrequently: true });
    context.drawImage(img, 0, 0);
    return context.getImageData(0, 0, side, side).data;
  };

  /** An <img> with the model's own pixels, and over it a <canvas> that shows them enlarged. */
  function face(src, alt) {
    const img = Object.assign(document.createElement('img'), { alt }), canvas = document.createElement('canvas');
    canvas.setAttribute('aria-hidden', 'true');
    update([img, canvas], src);
    return [img, canvas];
  }

  async function update([img, canvas], src) {
    if (img.getAttribute('src') === src) return;
    img.src = src;
    try {
      await img.decode();
    } catch {
      return; // replaced by a later one, or not a picture
    }
    if (img.getAttribute('src') === src) paint(img, canvas);
  }

  function paint(img, canvas) {
    const size = img.naturalWidth, shown = (canvas.clientWidth || 160) * (window.devicePixelRatio || 1);
    if (size !== img.naturalHeight || size > 256) { // photographs are large enough
      canvas.width = canvas.height = 0;
      canvas.hidden = true;
      return;
    }
    canvas.hidden = false;
    const factor = Math.min(8, Math.max(2, Math.ceil(shown / size - 0.25)));
    canvas.width = canvas.height = size * factor;
    canvas.getContext('2d').putImageData(enlarge(pixelsOf(img), size, size * factor), 0, 0);
  }

  // A canvas that was drawn while its tab was hidden does not know how large it is shown.
  const repaint = () => document.querySelectorAll('img + canvas').forEach((canvas) => {
    const img = canvas.previousElementSibling;
    if (img.complete && img.naturalWidth && canvas.clientWidth > canvas.width) paint(img, canvas);
  });
  addEventListener('resize', repaint);

  /** One picture of all faces, each `side` pixels wide, as a canvas. */
  async function sheet(sources, side, columns = Math.ceil(Math.sqrt(sources.length))) {
    const gap = sources.length > 1 ? 4 : 0, rows = Math.ceil(sources.length / columns);
    const canvas = document.createElement('canvas');
    canvas.width = columns * (side + gap) - gap;
    canvas.height = rows * (side + gap) - gap;
    const context = canvas.getContext('2d');
    context.fillStyle = '#fff';
    context.fillRect(0, 0, canvas.width, canvas.height);
    for (const [index, src] of sources.entries()) {
      const img = new Image();
      img.src = src;
      await img.decode();
      const size = img.naturalWidth, target = Math.max(side, size);
      const large = enlarge(pixelsOf(img), size, target);
      context.putImageData(large, (index % columns) * (side + gap), Math.floor(index / columns) * (side + gap));
    }
    return canvas;
  }

  async function download(sources, name, columns) {
    if (!sources.length) return say('There is nothing to download yet.');
    const canvas = await sheet(sources, sources.length === 1 ? 512 : 256, columns);
    const blob = await new Promise((done) => canvas.toBlob(done, 'image/png'));
    const link = Object.assign(document.createElement('a'), { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    say(sources.length === 1 ? 'Face saved.' : `${sources.length} faces saved as one picture.`);
  }

  // ---- one sentence at the bottom of the page, read out by screen readers
  let silence;
  function say(text) {
    let box = document.querySelector('#say');
    if (!box) {
      box = Object.assign(document.createElement('div'), { id: 'say' });
      box.setAttribute('role', 'status');
      document.body.append(box);
    }
    box.textContent = text;
    box.classList.add('shown');
    clearTimeout(silence);
    silence = setTimeout(() => box.classList.remove('shown'), 4000);
  }

  // ---- favorites, in this browser
  const KEY = 'anime-vae-favorites', MOST = 60;
  const favorites = () => {
    try {
      const found = JSON.parse(localStorage.getItem(KEY) || '[]');
      return Array.isArray(found) ? found.filter((src) => typeof src === 'string' && src.startsWith('data:image/')) : [];
    } catch {
      return [];
    }
  };
  const watchers = new Set();
  function store(faces) {
    try {
      localStorage.setItem(KEY, JSON.stringify(faces));
    } catch {
      return say('This browser does not let the page keep favorites.');
    }
    watchers.forEach((watcher) => watcher());
  }
  function keep(sources) {
    if (!sources.length) return say('Pick a face first.');
    const before = favorites(), added = sources.filter((src) => !before.includes(src));
    store([...added, ...before].slice(0, MOST));
    say(added.length ? `${added.length === 1 ? 'Face' : `${added.length} faces`} added to your favorites.` : 'Already a favorite.');
  }
  const picked = (faces) => (faces ?? []).filter((face) => face.picked).map((face) => face.src);
  const chosen = (faces) => (picked(faces).length ? picked(faces) : (faces ?? []).map((face) => face.src));
  const drop = (sources) => (sources.length ? store(favorites().filter((src) => !sources.includes(src))) : say('Pick a favorite first.'));

  // ---- state: { model, tab, tabs: { edit: {...}, ... } } lives in the entry of the browser's history. The address holds
  // what is short; pictures stay in the entry, which survives a reload, until a link is asked for.
  let state = history.state?.animeVAE ?? fromAddress();
  function fromAddress() {
    const { model, tab, ...rest } = Object.fromEntries(new URLSearchParams(location.search));
    return { model, tab, tabs: tab ? { [tab]: rest } : {} };
  }
  const isPicture = (value) => value !== null && typeof value === 'object' && ('src' in value || 'mask' in value);
  function write(push) {
    const query = new URLSearchParams();
    if (state.model) query.set('model', state.model);
    if (state.tab) query.set('tab', state.tab);
    for (const [name, value] of Object.entries(state.tabs[state.tab] ?? {}))
      if (value !== null && value !== '' && !isPicture(value) && String(value).length < 1000)
        query.set(name, typeof value === 'object' ? JSON.stringify(value) : value);
    const address = location.pathname + (query.size ? '?' + query : '');
    const entry = { ...history.state, animeVAE: state };
    try {
      history[push ? 'pushState' : 'replaceState'](entry, '', address);
    } catch { // larger than this browser takes: the address alone
      history.replaceState(null, '', address);
    }
  }
  function remember(tab, model, names, values) {
    const found = Object.fromEntries(names.map((name, i) => {
      const value = values[i];
      return [name, value && typeof value === 'object' && 'strengths' in value ? value.strengths : value];
    }));
    // Through JSON: Gradio's values are proxies, which a history entry cannot hold.
    const tabs = { ...state.tabs, [tab]: JSON.parse(JSON.stringify(found)) };
    state = { model, tab: state.tab ?? tab, tabs };
    write(false);
  }
  function select(tab) {
    setTimeout(repaint, 60);
    if (!ready || tab === (state.tab ?? first)) return;
    state = { ...state, tab };
    write(true);
  }
  function switchModel(model) {
    state = { ...state, model };
    write(false);
  }
  let first, ready = false; // while a page is restored, Gradio selects its first tab
  const read = () => JSON.stringify(state);
  addEventListener('popstate', () => {
    state = history.state?.animeVAE ?? fromAddress();
    document.querySelector('#restore')?.click();
  });

  async function copyLink(query) {
    if (!query) return;
    const address = location.origin + location.pathname + '?' + query;
    try {
      await navigator.clipboard.writeText(address);
      say('Link copied: it opens what you see here.');
    } catch {
      prompt('Copy this link:', address);
    }
  }

  return {
    face, update, paint, sheet, download, say, favorites, keep, drop, picked, chosen, watchers, remember, select, switchModel, read, copyLink,
    start: (tab) => { first = tab; },
    restored: () => { ready = true; document.documentElement.dataset.restored = ''; }, // the attribute is for the tests
  };
})();
