// Keys as a tree by delimiter. A level shows one page at a time, however many keys it
// has: what the page holds does not grow with the store.
import { bytesIn, escape, fromText, getJSON, placeOf, sendJSON, show, textOf, call, once, keyPath } from './api.js';
import { ask } from './dialog.js';
import { $, aborted, button, count, drawn, explain, field, h, plural, replace, toast } from './dom.js';
import { live } from './live.js';
import { openValue } from './value.js';
import { writes } from './who.js';

export const title = 'Keys';

const pageSize = 100, maxSkip = 50; // pages that are read again to get back to one

// addressOf returns the address of what a view shows, with a change.
const addressOf = (view, change) => placeOf('keys', { ...view, delimiter: view.delimiter === '/' ? undefined : view.delimiter || 'none', ...change });

// entries merges the keys and the groups of a page in the order of bytes.
function entries(doc) {
  const list = doc.kvs.map((kv) => ({ name: bytesIn(kv, 'key'), kv }));
  for (const p of doc.prefixes ?? []) list.push({ name: fromText(p) });
  for (const p of doc.prefixes_base64 ?? []) list.push({ name: atob(p) });
  return list.sort((a, b) => a.name < b.name ? -1 : 1);
}

// Tree is the list of keys with one prefix, with groups that open. It shows the same pages of
// the same groups as another tree before it, if there was one.
class Tree {
  constructor(view, choose, signal, before) {
    Object.assign(this, { view, choose, signal, chosen: view.key, before: before?.levels ?? new Map(), levels: new Map() });
    this.root = h('ul', { class: 'tree', role: 'tree', 'aria-label': 'Keys', onkeydown: (e) => this.key(e), onclick: (e) => this.click(e) });
    const base = view.delimiter ? view.prefix.lastIndexOf(view.delimiter) : -1;
    this.ready = this.open({ list: this.root, prefix: view.prefix, base: base < 0 ? 0 : base + view.delimiter.length, level: 0 });
  }

  open(level) {
    level.cursors = []; // those of the other tree are bound to the revision that it was read at
    level.skip = Math.min(maxSkip, this.before.get(level.prefix)?.cursors.length ?? 0);
    this.levels.set(level.prefix, level);
    return this.load(level);
  }

  // load shows the page of a level that its last cursor names, with the groups that are open.
  async load(level, focus) {
    const { view } = this;
    const wait = setTimeout(() => level.list.append(h('li', { class: 'wait', role: 'none' }, 'reading…')), 150);
    level.list.setAttribute('aria-busy', 'true');
    let doc;
    try {
      for (;; level.skip--) {
        doc = await getJSON('/v1/kv', {
          prefix: level.prefix, delimiter: view.delimiter || undefined, keys_only: true, limit: pageSize, cursor: level.cursors.at(-1),
          revision: view.rev, consistency: view.stale ? 'stale' : undefined,
        }, this.signal);
        if (!level.skip || !doc.next) break;
        level.cursors.push(doc.next);
      }
    } catch (err) {
      if (!aborted(err)) replace(level.list, h('li', { role: 'none' }, this.trouble(err, level)));
      return;
    } finally {
      clearTimeout(wait);
      level.list.removeAttribute('aria-busy');
    }
    const items = entries(doc).map((e) => e.kv ? this.leaf(e, level) : this.group(e.name, level));
    const groups = items.map((el) => el.opened);
    const first = level.cursors.length * pageSize;
    if (level.cursors.length) items.unshift(this.pager(level, `‹ previous ${pageSize}`, () => level.cursors.pop()));
    if (doc.next) items.push(this.pager(level, `${count(first + 1)} to ${count(first + doc.count)} are shown; next ${pageSize} ›`, () => level.cursors.push(doc.next)));
    replace(level.list, items.length ? items : h('li', { class: 'empty', role: 'none' }, !level.prefix ? 'The store is empty.'
      : ['No key begins with this. ', h('a', { href: addressOf(view, { key: level.prefix }) }, 'Look for the history of a key of this name')]));
    drawn();
    this.mark(this.chosen);
    this.rove(focus ? level.list.querySelector('[role=treeitem]') : null, focus);
    await Promise.all(groups);
  }

  trouble(err, level) {
    const ways = [button('Try again', () => { level.cursors = []; this.load(level); })];
    if (['no_leader', 'read_timeout'].includes(err.code)) {
      ways.push(h('a', { class: 'button', href: addressOf(this.view, { stale: '1' }) }, 'Show this node’s own copy'));
    }
    return h('div', { class: 'note bad', role: 'alert' }, h('p', {}, explain(err)), h('p', { class: 'row' }, ways));
  }

  // item has a label of its own: a screen reader would else read all that is below it.
  item(level, label, cls, ...content) {
    const line = h('div', { class: `line ${cls}` }, content);
    const el = h('li', { role: 'treeitem', tabindex: -1, 'aria-level': level.level + 1, 'aria-label': label }, line);
    line.style.setProperty('--level', level.level);
    return el;
  }

  leaf({ name, kv }, level) {
    const text = show(name.slice(level.base)) || '(the prefix itself)';
    const el = this.item(level, text, '', h('span', { class: 'twist', 'aria-hidden': 'true' }), h('span', { class: 'key' }, text),
      h('span', { class: 'rev', title: `last changed at revision ${kv.mod_revision}` }, count(kv.mod_revision)));
    el.act = (entered) => this.choose(name, entered);
    el.dataset.key = escape(name);
    el.setAttribute('aria-selected', 'false');
    return el;
  }

  group(name, level) {
    const twist = h('span', { class: 'twist', 'aria-hidden': 'true' }, '▸');
    const text = show(name.slice(level.base));
    const el = this.item(level, text, 'group', twist, h('span', { class: 'key' }, text));
    const list = h('ul', { role: 'group', hidden: true }), below = { list, prefix: name, base: name.length, level: level.level + 1 };
    el.append(list);
    el.setAttribute('aria-expanded', 'false');
    el.toggle = (open) => {
      el.setAttribute('aria-expanded', String(open));
      twist.textContent = open ? '▾' : '▸';
      list.hidden = !open;
      if (!open) this.levels.delete(name);
      else if (!list.firstChild) return this.open(below);
      else this.levels.set(name, below);
      return undefined;
    };
    el.act = () => el.toggle(list.hidden);
    if (this.chosen?.startsWith(name) || this.before.has(name)) el.opened = el.toggle(true);
    return el;
  }

  pager(level, text, move) {
    const el = this.item(level, text, 'pager', h('span', { class: 'twist', 'aria-hidden': 'true' }), h('span', { class: 'key' }, text));
    el.act = () => { move(); this.load(level, true); };
    return el;
  }

  visible() { return [...this.root.querySelectorAll('[role=treeitem]')].filter((el) => !el.closest('ul[hidden]')); }

  // rove makes one item the one that Tab reaches.
  rove(el, focus) {
    const items = this.visible();
    el ??= items.find((i) => i.tabIndex === 0) ?? items[0];
    for (const i of this.root.querySelectorAll('[tabindex="0"]')) i.tabIndex = -1;
    if (!el) return;
    el.tabIndex = 0;
    if (focus) { el.focus(); el.firstChild.scrollIntoView({ block: 'nearest' }); }
  }

  click(event) {
    const el = event.target.closest('[role=treeitem]');
    if (!el) return;
    this.rove(el, true);
    el.act();
  }

  key(event) {
    const el = event.target.closest('[role=treeitem]');
    if (!el || event.ctrlKey || event.metaKey || event.altKey) return;
    const items = this.visible(), i = items.indexOf(el);
    const open = el.getAttribute('aria-expanded');
    const moves = {
      ArrowDown: () => items[i + 1], ArrowUp: () => items[i - 1], Home: () => items[0], End: () => items.at(-1),
      ArrowRight: () => open === 'false' ? void el.toggle(true) : open ? items[i + 1] : undefined,
      ArrowLeft: () => open === 'true' ? void el.toggle(false) : el.parentElement.closest('[role=treeitem]'),
      Enter: () => void el.act(true), ' ': () => void el.act(),
    };
    if (!moves[event.key]) return;
    event.preventDefault();
    const to = moves[event.key]();
    if (to) this.rove(to, true);
  }

  // mark highlights the key that is shown beside the tree.
  mark(key) {
    this.chosen = key;
    const name = key === undefined ? null : escape(key);
    for (const el of this.root.querySelectorAll('[data-key]')) el.setAttribute('aria-selected', String(el.dataset.key === name));
  }
}

async function newKey(prefix, done) {
  const name = h('input', { required: true, autocomplete: 'off', spellcheck: 'false', class: 'mono', value: textOf(prefix) ?? '' });
  const value = h('textarea', { rows: 6, class: 'code', spellcheck: 'false' });
  const ttl = h('input', { autocomplete: 'off', placeholder: 'never', class: 'mono' });
  const made = await ask({
    title: 'New key', action: 'Create',
    body: [h('p', {}, 'It is created only if there is no such key yet.'), field('Key', name), field('Value', value), field('Expires after', ttl, 'a duration, for example 30s or 24h')],
    run: async () => {
      const key = fromText(name.value);
      await call('PUT', keyPath(key), { query: { ttl: ttl.value.trim() || undefined }, headers: { 'If-None-Match': '*', ...once() }, body: value.value });
      return { key };
    },
  });
  if (made) done(made.key);
}

// clear deletes all keys below a prefix.
async function clear(prefix, done) {
  let n;
  try { ({ count: n } = await getJSON('/v1/kv', { prefix, count_only: true })); } catch (err) { toast(explain(err), true); return; }
  const deleted = await ask({
    title: `Delete ${plural(n, 'key')}?`, action: `Delete all ${count(n)}`, danger: true,
    body: [h('p', {}, 'Every key that begins with ', h('span', { class: 'key' }, show(prefix)), ' is deleted in one revision, including keys created until then. Their history stays readable until it is compacted. At most 100,000 keys can be deleted at once.')],
    run: () => sendJSON('DELETE', '/v1/kv', { query: { prefix }, headers: once() }),
  });
  if (deleted) { toast(`${plural(deleted.deleted, 'key')} deleted`); done(); }
}

// pastBar chooses the revision at which everything is read.
function pastBar(view, go) {
  const status = live.cluster?.members.find((m) => m.id === live.self?.id)?.status;
  const low = status?.compact_revision ?? 1, high = Math.max(status?.revision ?? 1, Number(view.rev) || 1);
  const at = Number(view.rev) || high;
  const number = h('input', { type: 'number', min: low, max: high, value: at, class: 'mono' });
  const slide = h('input', { type: 'range', min: low, max: high, value: at, 'aria-label': 'Revision' });
  slide.addEventListener('input', () => { number.value = slide.value; });
  slide.addEventListener('change', () => go({ rev: slide.value }));
  number.addEventListener('change', () => go({ rev: number.value }));
  return h('div', { class: 'note warn' },
    h('p', {}, h('strong', {}, `The whole store as of revision ${count(at)}. `), `Revisions from ${count(low)} to ${count(high)} can be read.`),
    h('div', { class: 'row' }, h('label', { class: 'row' }, 'Revision', number), h('span', { class: 'grow' }, slide), button('Back to now', () => go({ rev: undefined }))));
}

export function open(main, params, signal) {
  let view = null, tree = null, shown = null, pane = new AbortController();
  const here = (change) => addressOf(view, change);
  const go = (change) => { location.hash = here(change); };

  const search = h('input', { type: 'search', autocomplete: 'off', spellcheck: 'false', placeholder: 'all keys', class: 'mono' });
  const delimiter = h('input', { size: 3, maxlength: 16, autocomplete: 'off', class: 'mono' });
  // The prefix that the field itself asked for last. Its text is left alone when that arrives,
  // because the person may have typed on; any other address sets it.
  let timer, asked;
  const find = () => {
    clearTimeout(timer);
    asked = fromText(search.value);
    location.replace(here({ prefix: asked, key: undefined }));
  };
  search.addEventListener('input', () => { clearTimeout(timer); timer = setTimeout(find, 250); });
  delimiter.addEventListener('change', () => go({ delimiter: fromText(delimiter.value) || 'none' }));
  const past = h('div'), narrow = matchMedia('(max-width: 900px)');
  const list = h('div'), detail = h('section', { 'aria-label': 'Key', tabindex: -1 });
  const split = h('div', { class: 'split' }, list, detail);
  detail.addEventListener('keydown', (e) => {
    if (e.key !== 'Escape' || e.target.closest('textarea, input, select')) return;
    if (narrow.matches) go({ key: undefined });
    list.querySelector('[tabindex="0"]')?.focus();
  });
  const pastButton = button('As of revision…', () => go({ rev: live.cluster?.members.find((m) => m.status)?.status.revision ?? 1 }));
  const newButton = button('New key…', () => newKey(view.prefix, (key) => { go({ key }); rebuild(); }), { class: 'primary' });
  const clearButton = button('Delete prefix…', () => clear(view.prefix, rebuild));
  const watchLink = h('a', { class: 'button' }, 'Watch');
  main.append(
    h('form', { class: 'bar', role: 'search', onsubmit: (e) => { e.preventDefault(); find(); list.querySelector('[tabindex="0"]')?.focus(); } },
      h('div', { class: 'grow' }, field('Prefix', search)), field('Delimiter', delimiter), pastButton,
      button('Reload', () => rebuild()), watchLink, writes() && clearButton, writes() && newButton),
    past, split);

  let entered = false;
  const choose = (key, byEnter) => {
    entered = byEnter;
    if (key !== view.key) go({ key });
    else if (byEnter) detail.focus();
  };

  // rebuild reads the tree again, and shows it in place of the old one once it is complete.
  async function rebuild() {
    const next = tree = new Tree(view, choose, signal, shown);
    await next.ready;
    if (tree !== next) return;
    shown = next;
    const at = list.scrollTop, focused = list.contains(document.activeElement);
    replace(list, next.root);
    list.scrollTop = at;
    if (focused) next.rove(next.root.querySelector('[aria-selected=true]'), true);
  }

  function showKey(focus) {
    pane.abort();
    pane = new AbortController();
    signal.addEventListener('abort', () => pane.abort(), { signal: pane.signal });
    split.classList.toggle('chosen', view.key !== undefined);
    if (view.key === undefined) {
      replace(detail, h('p', { class: 'empty' }, 'Choose a key to see its value and history.'));
      return;
    }
    const back = h('a', { class: 'back', href: here({ key: undefined }) }, '‹ Keys');
    const body = h('div');
    replace(detail, back, body);
    openValue(body, view.key, { revision: view.rev && Number(view.rev), stale: view.stale, prefix: view.prefix, onChange: (gone) => { rebuild(); if (gone) go({ key: undefined }); } }, pane.signal);
    // Walking through the tree leaves the focus there; Enter moves it to the key, as
    // everything does where only one of both fits.
    if (focus && (entered || narrow.matches)) detail.focus({ preventScroll: !narrow.matches });
    entered = false;
  }

  function update(p) {
    const before = view;
    view = { prefix: p.prefix ?? '', delimiter: p.delimiter === 'none' ? '' : p.delimiter ?? '/', rev: /^\d+$/.test(p.rev ?? '') ? p.rev : undefined, stale: p.stale, key: p.key };
    if (view.prefix !== asked) {
      clearTimeout(timer);
      search.value = textOf(view.prefix) ?? show(view.prefix);
    }
    asked = undefined;
    delimiter.value = textOf(view.delimiter) ?? '';
    const same = (...names) => before && names.every((n) => before[n] === view[n]);
    if (!same('rev')) replace(past, view.rev && pastBar(view, go));
    pastButton.hidden = newButton.hidden = watchLink.hidden = view.rev !== undefined;
    clearButton.hidden = view.rev !== undefined || view.prefix === '';
    watchLink.href = placeOf('watch', { prefix: view.prefix });
    if (!same('prefix', 'delimiter', 'rev', 'stale')) {
      tree = shown = new Tree(view, choose, signal);
      replace(list, tree.root);
    }
    tree.mark(view.key);
    if (!same('key', 'rev', 'stale')) showKey(before && before.key !== view.key);
  }
  update(params);
  return update;
}
