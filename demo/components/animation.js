const root = element.firstElementChild, { note, label } = root.dataset;

function render() {
  const { src, name } = props.value ?? {};
  if (!src) {
    root.replaceChildren(Object.assign(document.createElement('p'), { className: 'empty', textContent: note }));
    return;
  }
  const still = matchMedia('(prefers-reduced-motion: reduce)').matches;
  const view = src.startsWith('data:video')
    ? Object.assign(document.createElement('video'),
        { src, loop: true, muted: true, autoplay: !still, controls: still, playsInline: true })
    : Object.assign(document.createElement('img'), { src, alt: label });
  if (view.tagName === 'VIDEO') view.setAttribute('aria-label', label);
  const link = Object.assign(document.createElement('a'),
    { href: src, download: name, textContent: `Download ${name}`, className: 'download' });
  root.replaceChildren(view, link);
}
watch('value', render);
render();
