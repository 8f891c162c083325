// Elements, and values as people read them. Text never becomes markup: the policy of
// the page (Trusted Types) would refuse it.

const svgNamespace = 'http://www.w3.org/2000/svg';
const properties = new Set(['value', 'checked', 'disabled', 'hidden', 'open', 'tabIndex', 'indeterminate']);

function fill(el, props, children) {
  for (const [name, v] of Object.entries(props ?? {})) {
    if (v === undefined || v === null) continue;
    if (typeof v === 'function') el.addEventListener(name.slice(2), v);
    else if (properties.has(name)) el[name] = v;
    else if (v !== false) el.setAttribute(name, v === true ? '' : v);
  }
  el.append(...children.flat(Infinity).filter((c) => c !== undefined && c !== null && c !== false));
  return el;
}

// h makes an element: h('a', {href, onclick}, 'text', child).
export const h = (tag, props, ...children) => fill(document.createElement(tag), props, children);

// s makes an element of SVG.
export const s = (tag, props, ...children) => fill(document.createElementNS(svgNamespace, tag), props, children);

export const $ = (selector, root = document) => root.querySelector(selector);

// setText leaves an element alone that has the text already, so that live views
// disturb neither selections nor screen readers.
export function setText(el, text) {
  text = String(text);
  if (el.textContent !== text) el.textContent = text;
}

// replace gives an element new children.
export function replace(el, ...children) {
  el.replaceChildren(...children.flat(Infinity).filter((c) => c !== undefined && c !== null && c !== false));
  return el;
}

export const button = (text, onclick, props = {}) => h('button', { type: 'button', onclick, ...props }, text);

let ids = 0;

// drawn marks, for measurements, that a view shows what it is for.
export const drawn = () => requestAnimationFrame(() => performance.mark('drawn'));

// field makes a labeled control.
export function field(label, control, hint) {
  control.id ||= `f${++ids}`;
  const note = hint && h('small', { id: `${control.id}h` }, hint);
  if (note) control.setAttribute('aria-describedby', note.id);
  return h('div', { class: 'field' }, h('label', { for: control.id }, label), control, note);
}

// toast says something for a moment, to everybody.
export function toast(text, bad = false) {
  const el = h('p', { class: bad ? 'toast bad' : 'toast' }, text);
  $('#toasts').append(el);
  setTimeout(() => el.remove(), bad ? 10000 : 4000);
}

// failure shows why something did not work, with a way on if there is one.
export function failure(err, ...ways) {
  return h('div', { class: 'note bad', role: 'alert' }, h('p', {}, explain(err)), ways.length > 0 && h('p', { class: 'row' }, ways));
}

export function explain(err) {
  if (err?.code) return err.message;
  if (err?.name === 'TypeError') return 'The node did not answer. It may have stopped, or the network may be interrupted.';
  return err?.message ?? String(err);
}

export const aborted = (err) => err?.name === 'AbortError';

const numbers = new Intl.NumberFormat('en-US');

export const count = (n) => numbers.format(n);

export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

export function bytes(n) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let u = 0;
  while (n >= 1024 && u < units.length - 1) { n /= 1024; u++; }
  return `${u === 0 || n >= 100 ? Math.round(n) : n.toFixed(1)} ${units[u]}`;
}

// goSeconds reads a duration as Go writes it.
export function goSeconds(text) {
  const unit = { h: 3600, m: 60, s: 1, ms: 1e-3, 'µs': 1e-6, us: 1e-6, ns: 1e-9 };
  let sum = 0;
  for (const [, n, u] of String(text ?? '').matchAll(/([\d.]+)(h|ms|µs|us|ns|m|s)/g)) sum += Number(n) * unit[u];
  return sum;
}

export function duration(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const [big, size, small, part] = seconds < 3600 ? ['min', 60, 's', 1] : seconds < 86400 ? ['h', 3600, 'min', 60] : ['d', 86400, 'h', 3600];
  const rest = Math.floor(seconds % size / part);
  return `${Math.floor(seconds / size)} ${big}${rest ? ` ${rest} ${small}` : ''}`;
}

// copier is a button that copies a text.
export function copier(text, what) {
  return button('Copy', async () => {
    try {
      await navigator.clipboard.writeText(text());
      toast(`${what} copied`);
    } catch {
      toast('The browser does not allow copying here; select the text instead', true);
    }
  }, { class: 'quiet', 'aria-label': `Copy ${what}` });
}

// every runs a function now and again and again while the page is visible, one run
// at a time, until the signal ends it.
export function every(millis, fn, signal) {
  let timer, running = false;
  const run = async () => {
    clearTimeout(timer);
    if (running || signal?.aborted || document.hidden) return;
    running = true;
    try { await fn(); } catch (err) { if (!aborted(err)) console.error(err); }
    running = false;
    if (!signal?.aborted) timer = setTimeout(run, millis);
  };
  document.addEventListener('visibilitychange', run, { signal });
  signal?.addEventListener('abort', () => clearTimeout(timer));
  run();
  return run;
}
