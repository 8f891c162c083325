// One key: its value in three forms, its metadata, and changes to it.
import { call, fromText, getJSON, keyPath, once, pairOf, placeOf, show, textOf, toBytes, tokenOf, url } from './api.js';
import { writes } from './who.js';
import { ask } from './dialog.js';
import { diffView } from './diff.js';
import { aborted, button, bytes, copier, count, duration, explain, failure, goSeconds, h, replace, toast } from './dom.js';
import { openHistory } from './history.js';

const shownText = 256 << 10, shownHex = 16 << 10; // bytes that are shown at first

// drafts are edits that were neither saved nor canceled, by key: whatever leads away from an
// editor loses nothing. They end with the page, which asks first.
const drafts = new Map();
addEventListener('beforeunload', (e) => { if (drafts.size) e.preventDefault(); });

export function hexDump(bin, limit = bin.length) {
  const out = [];
  for (let at = 0; at < Math.min(bin.length, limit); at += 16) {
    const row = bin.slice(at, at + 16);
    const hex = Array.from(row, (c) => c.charCodeAt(0).toString(16).padStart(2, '0'));
    out.push(`${at.toString(16).padStart(8, '0')}  ${hex.join(' ').padEnd(47)}  ${row.replace(/[^\x20-\x7e]/g, '·')}`);
  }
  return out.join('\n');
}

export function jsonOf(text) {
  try { return JSON.parse(text); } catch { return undefined; }
}

// bestForm returns how a value is best shown.
export function bestForm(bin) {
  const text = textOf(bin);
  if (text === null || /[\u0000-\u0008\u000e-\u001f]/.test(text)) return 'hex';
  const doc = /^\s*[[{]/.test(text) ? jsonOf(text) : undefined;
  return doc === undefined ? 'text' : 'json';
}

// comparable returns a value as lines that are worth comparing. JSON.stringify would
// change numbers that JavaScript cannot hold, so JSON is indented only where that is
// all that happens.
export function comparable(bin) {
  const form = bestForm(bin);
  return form === 'hex' ? hexDump(bin, shownText) + (bin.length > shownText ? `\n(the first ${bytes(shownText)} of ${bytes(bin.length)})` : '') : form === 'json' ? indent(textOf(bin)) : textOf(bin);
}

const tokensOf = (text) => text.match(/"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/g) ?? [];

// compact takes out what indent put in.
const compact = (text) => tokensOf(text).join('');

// indent formats JSON without touching its tokens: numbers keep all their digits.
export function indent(text) {
  const tokens = tokensOf(text);
  let out = '', depth = 0;
  const line = () => `\n${'  '.repeat(depth)}`;
  tokens.forEach((t, i) => {
    if (t === '{' || t === '[') {
      const empty = tokens[i + 1] === (t === '{' ? '}' : ']');
      if (!empty) depth++;
      out += t + (empty ? '' : line());
    } else if (t === '}' || t === ']') {
      const empty = tokens[i - 1] === (t === '}' ? '{' : '[');
      if (!empty) depth--;
      out += (empty ? '' : line()) + t;
    } else if (t === ',') out += t + line();
    else if (t === ':') out += ': ';
    else out += t;
  });
  return out;
}

export function valueView(bin, form) {
  const text = form === 'hex' ? null : textOf(bin);
  const limit = form === 'hex' ? shownHex : shownText;
  const whole = () => form === 'hex' ? hexDump(bin) : form === 'json' ? indent(text) : text;
  const part = () => form === 'hex' ? hexDump(bin, limit) : form === 'json' ? indent(text).slice(0, limit) : text.slice(0, limit);
  const pre = h('pre', { class: `value ${form}`, tabindex: 0, 'aria-label': `Value as ${form}` }, bin.length === 0 ? h('span', { class: 'faint' }, 'empty') : part());
  if (bin.length <= limit) return pre;
  const more = h('p', { class: 'row' }, h('span', { class: 'faint' }, `The first ${bytes(limit)} of ${bytes(bin.length)}.`),
    button('Show all', () => { pre.textContent = whole(); more.remove(); }, { class: 'quiet' }));
  return h('div', {}, pre, more);
}

// lineEnds tells how a text can survive a textarea, which turns every line end into \n:
// "\n", "\r\n", or null if it cannot.
function lineEnds(text) {
  const lone = text.replace(/\r\n/g, '');
  if (lone.includes('\r')) return null;
  if (!text.includes('\r')) return '\n';
  return lone.includes('\n') ? null : '\r\n';
}

// unhex reads bytes from pairs of digits, and from the lines of a dump.
export function unhex(text) {
  const digits = text.replace(/^[0-9a-f]{8} {2}|  .{1,16}$/gim, '').replace(/\s/g, '');
  if (!/^([0-9a-f]{2})*$/i.test(digits)) throw new Error('The value is not in hexadecimal: write two digits for each byte.');
  return digits.replace(/../g, (d) => String.fromCharCode(parseInt(d, 16)));
}

// fileName is a name for a download.
const fileName = (key) => show(key).split('/').filter(Boolean).at(-1)?.replace(/[^\w.-]/g, '_') || 'value';

// put stores a value if the key is still at a revision (0: does not exist).
const put = (key, body, base, query = {}) => call('PUT', keyPath(key), {
  query, body, headers: { ...(base ? { 'If-Match': `"${base}"` } : { 'If-None-Match': '*' }), ...once() },
});

class Pane {
  constructor(root, key, options, signal) {
    Object.assign(this, { root, key, options, signal });
    this.read();
  }

  async read() {
    try {
      const { revision, stale } = this.options;
      const doc = await getJSON(keyPath(this.key), { meta: true, revision, consistency: stale || revision ? 'stale' : undefined }, this.signal);
      this.kv = pairOf(doc);
      this.readAt = performance.now();
      this.render();
      if (!revision) this.follow();
    } catch (err) {
      if (!aborted(err)) this.missing(err);
    }
  }

  heading() {
    return h('div', { class: 'row' }, h('h2', { class: 'key' }, show(this.key)), copier(() => textOf(this.key) ?? show(this.key), 'key'));
  }

  missing(err) {
    const gone = err.code === 'key_not_found';
    this.history = h('div');
    const draft = gone && !this.options.revision && writes(this.key) && drafts.get(this.key);
    const again = async () => { try { await put(this.key, toBytes(draft.current()), 0); this.saved('Created'); } catch (e) { toast(explain(e), true); } };
    const now = this.options.revision && h('p', {}, h('a', { href: placeOf('keys', { prefix: this.options.prefix, key: this.key }) }, 'The key as it is now'));
    replace(this.root, this.heading(), gone ? h('p', { class: 'note' }, this.options.revision ? `The key does not exist at revision ${count(this.options.revision)}.` : 'The key does not exist now.') : failure(err, button('Try again', () => this.read())),
      now, draft && h('div', { class: 'note' }, h('p', {}, 'You have an unsaved edit of it:'), h('pre', { class: 'value', tabindex: 0, 'aria-label': 'Your edit' }, draft.text),
        h('p', { class: 'row' }, button('Create the key with it', again), button('Discard it', () => { drafts.delete(this.key); this.read(); }, { class: 'quiet' }))), gone && this.history);
    if (gone && !this.options.revision) this.showHistory();
  }

  render() {
    const { kv, options } = this;
    this.form = bestForm(kv.value);
    this.body = h('div');
    this.notice = h('div', { 'aria-live': 'polite' });
    this.history = h('div');
    const file = h('input', { type: 'file', class: 'unseen', tabindex: -1, 'aria-hidden': 'true', onchange: () => this.upload(file) });
    const editable = writes(this.key) && !options.revision;
    replace(this.root, this.heading(), this.notice, this.facts(),
      this.tools = h('div', { class: 'row' }, this.tabs(),
        editable && button('Edit', () => this.edit(), { class: 'primary' }), editable && button('Upload…', () => file.click()), editable && file,
        h('a', { class: 'button', href: url(keyPath(this.key), { revision: options.revision }), download: fileName(this.key), onclick: (e) => this.download(e) }, 'Download'),
        editable && button('Delete…', () => this.remove()),
        options.revision ? h('a', { class: 'button', href: placeOf('keys', { prefix: options.prefix, key: this.key }) }, 'As it is now') : h('a', { class: 'button', href: placeOf('watch', { key: this.key }) }, 'Watch'),
        button('History', () => this.showHistory(), { 'aria-expanded': 'false', class: 'history' })),
      this.body, this.history);
    this.changed = null;
    this.showValue();
    this.notify();
  }

  // notify says what the person should know before going on with the key. While the value is
  // being edited, it offers nothing that would replace the editor.
  notify() {
    const { changed, editing } = this, draft = !editing && drafts.get(this.key);
    const texts = { put: 'This key has changed since.', delete: 'This key has been deleted.' };
    const way = changed === 'put' && (editing ? button('Compare with yours', editing.compare) : button('Show the new value', () => this.read()));
    replace(this.notice, changed && h('div', { class: 'note warn' }, h('p', { class: 'row' }, texts[changed], way)),
      draft && writes(this.key) && !this.options.revision && h('div', { class: 'note' }, h('p', { class: 'row' }, `You have an unsaved edit of revision ${count(draft.base)}.`,
        button('Continue editing', () => this.edit(draft)), button('Discard it', () => { drafts.delete(this.key); this.notify(); }, { class: 'quiet' }))));
  }

  // download sends the token of a login, which a link cannot.
  async download(event) {
    if (!tokenOf()) return;
    event.preventDefault();
    try {
      const res = await call('GET', keyPath(this.key), { query: { revision: this.options.revision } });
      const address = URL.createObjectURL(await res.blob());
      h('a', { href: address, download: fileName(this.key) }).click();
      setTimeout(() => URL.revokeObjectURL(address), 60000);
    } catch (err) { toast(explain(err), true); }
  }

  facts() {
    const { kv } = this;
    const pairs = [['Size', bytes(kv.value.length)], ['Version', count(kv.version)], ['Last changed', `revision ${count(kv.modified)}`], ['Created', `revision ${count(kv.created)}`]];
    if (kv.lease) pairs.push(['Lease', h('a', { href: placeOf('leases', { id: kv.lease }) }, String(kv.lease))]);
    if (kv.ttl) pairs.push(['Expires in', this.countdown(goSeconds(kv.ttl))]);
    return h('dl', { class: 'facts wide' }, pairs.map(([k, v]) => h('div', {}, h('dt', {}, k), h('dd', {}, v))));
  }

  countdown(seconds) {
    const el = h('span', {}, duration(seconds)), end = performance.now() + seconds * 1000;
    const timer = setInterval(() => { el.textContent = duration(Math.max(0, (end - performance.now()) / 1000)); }, 1000);
    this.signal.addEventListener('abort', () => clearInterval(timer));
    return el;
  }

  tabs() {
    const text = textOf(this.kv.value);
    const possible = { text: text !== null, json: text !== null && jsonOf(text) !== undefined, hex: true };
    const make = (form, label) => button(label, () => { this.form = form; this.showValue(); }, { 'data-form': form, disabled: !possible[form] });
    this.forms = h('div', { class: 'tabs', role: 'group', 'aria-label': 'Show value as' }, make('text', 'Text'), make('json', 'JSON'), make('hex', 'Hex'));
    return this.forms;
  }

  showValue() {
    this.editing = null;
    this.tools.hidden = false;
    for (const b of this.forms.children) b.setAttribute('aria-pressed', String(b.dataset.form === this.form));
    replace(this.body, valueView(this.kv.value, this.form));
  }

  showHistory() {
    const b = this.root.querySelector('button.history');
    if (this.history.firstChild) {
      replace(this.history);
      b?.setAttribute('aria-expanded', 'false');
      return;
    }
    b?.setAttribute('aria-expanded', 'true');
    openHistory(this.history, this.key, { revision: this.options.revision, prefix: this.options.prefix, restore: (value, revision) => this.restore(value, revision) }, this.signal);
  }

  // follow waits until the key changes from a revision, and says so.
  async follow(from = this.kv.modified) {
    const mine = this.kv;
    while (!this.signal.aborted && this.kv === mine) {
      try {
        const res = await call('HEAD', keyPath(this.key), { query: { wait: '60s' }, headers: { 'If-None-Match': `"${from}"` }, signal: this.signal });
        if (res.status === 304 || this.kv !== mine) continue;
        const at = Number(res.headers.get('ETag')?.replace(/\D/g, ''));
        if (at <= this.editing?.base) { from = at; continue; } // the editor has compared with it already
        this.changed = 'put';
      } catch (err) {
        if (err.status !== 404 || this.kv !== mine) return;
        this.changed = 'delete';
      }
      this.notify();
      return;
    }
  }

  saved(what) {
    drafts.delete(this.key);
    toast(what);
    this.read();
    this.options.onChange(false);
  }

  // leaseChoice asks what becomes of the lease, which a put would end.
  leaseChoice() {
    const select = h('select', {}, this.kv.lease && h('option', { value: 'keep' }, `keep lease ${this.kv.lease}`), h('option', { value: '' }, 'never'), h('option', { value: 'ttl' }, 'after…'));
    const ttl = h('input', { placeholder: '30s', size: 6, hidden: true, 'aria-label': 'Duration', class: 'mono' });
    select.addEventListener('change', () => { ttl.hidden = select.value !== 'ttl'; });
    const query = () => select.value === 'keep' ? { lease: this.kv.lease } : select.value === 'ttl' ? { ttl: ttl.value.trim() } : {};
    return { el: h('div', { class: 'row' }, h('label', { class: 'row' }, 'Expires', select), ttl), query };
  }

  // edit opens the editor on the value, or on a draft of it.
  edit(draft) {
    const { value, form: shape } = draft ?? { value: this.kv.value, form: this.form };
    const text = textOf(value), ends = text === null ? null : lineEnds(text);
    const asText = ends !== null && shape !== 'hex';
    // JSON on one line is edited on many, and stored on one again.
    const folded = asText && shape === 'json' && compact(text) === text;
    const area = h('textarea', { class: 'code', rows: 14, spellcheck: 'false', 'aria-label': asText ? 'Value' : 'Value in hexadecimal' });
    area.value = !asText ? hexDump(value) : folded ? indent(text) : text;
    const begun = area.value;
    if (draft) area.value = draft.text;
    const lease = this.leaseChoice(), trouble = h('div', { role: 'alert' }), hint = h('span', { class: 'faint', 'aria-live': 'polite' });
    const typed = () => folded && jsonOf(area.value) !== undefined ? compact(area.value) : ends === '\r\n' ? area.value.replace(/\n/g, '\r\n') : area.value;
    const current = () => asText ? fromText(typed()) : unhex(area.value);
    if (shape === 'json') area.addEventListener('input', () => { hint.textContent = jsonOf(area.value) === undefined ? 'not valid JSON' : ''; });
    const condition = h('span', { class: 'faint' });
    const keep = () => {
      if (area.value === begun) drafts.delete(this.key);
      else drafts.set(this.key, { text: area.value, base: editing.base, value, form: shape, current });
    };
    const at = (base) => {
      editing.base = base;
      condition.textContent = base ? `Saved only if the key is still at revision ${count(base)}.` : 'Saved only if there is no such key.';
      keep();
    };
    const compare = async () => {
      try { current(); } catch (err) { replace(trouble, failure(err)); return; }
      at(await this.conflict(trouble, current, lease.query, editing.base));
      if (this.changed === 'put' && editing.base) this.follow(editing.base);
      this.changed = null;
      this.notify();
    };
    const editing = { base: 0, compare };
    at(draft?.base ?? this.kv.modified);
    area.addEventListener('input', keep);
    const save = async () => {
      replace(trouble);
      try {
        await put(this.key, toBytes(current()), editing.base, lease.query());
        this.saved('Saved');
      } catch (err) {
        if (err.code === 'precondition_failed') await compare();
        else replace(trouble, failure(err));
      }
    };
    const leave = () => { drafts.delete(this.key); this.showValue(); this.notify(); };
    const form = h('form', { onsubmit: (e) => { e.preventDefault(); save(); } }, area, lease.el, trouble,
      h('div', { class: 'row' }, h('button', { class: 'primary', type: 'submit' }, 'Save'), button('Cancel', leave),
        condition, hint));
    form.addEventListener('keydown', (e) => {
      if ((e.ctrlKey || e.metaKey) && (e.key === 's' || e.key === 'Enter')) { e.preventDefault(); save(); }
      if (e.key === 'Escape' && area.value === begun) { e.stopPropagation(); leave(); this.root.querySelector('button.primary').focus(); }
    });
    this.editing = editing;
    this.tools.hidden = true; // they would replace what is being typed
    replace(this.body, form);
    this.notify();
    area.focus();
    area.setSelectionRange(0, 0);
    area.scrollTop = 0;
  }

  // conflict shows both versions side by side and returns the revision that the next
  // save expects: the person has seen it. If the other cannot be read, that stays as it was.
  async conflict(place, current, query, before) {
    let theirs = null;
    try { theirs = pairOf(await getJSON(keyPath(this.key), { meta: true }, this.signal)); } catch (err) { if (err.status !== 404) { replace(place, failure(err)); return before; } }
    const base = theirs?.modified ?? 0;
    const overwrite = async () => {
      try { await put(this.key, toBytes(current()), base, theirs?.lease || !query().lease ? query() : {}); this.saved('Saved'); } catch (err) { replace(place, failure(err)); }
    };
    replace(place, h('div', { class: 'note warn' },
      h('p', {}, h('strong', {}, theirs ? `Somebody else changed the key meanwhile, at revision ${count(base)}. ` : 'Somebody else deleted the key meanwhile. '), 'Your version is not saved.')),
    theirs && diffView(comparable(theirs.value), comparable(current()), `in the store, revision ${count(base)}`, 'yours, not saved'),
    h('div', { class: 'row' }, button(theirs ? 'Save mine over it' : 'Create it again', overwrite, { class: 'danger' }),
      theirs && button('Take theirs', () => { drafts.delete(this.key); this.read(); }), h('span', { class: 'faint' }, 'or edit yours above, and save again.')));
    place.scrollIntoView({ block: 'nearest' });
    return base;
  }

  async upload(input) {
    const [file] = input.files;
    input.value = '';
    if (!file) return;
    const lease = this.leaseChoice();
    const done = await ask({
      title: 'Replace the value with a file?', action: 'Upload',
      body: [h('p', {}, h('span', { class: 'mono' }, file.name), `, ${bytes(file.size)}, replaces ${bytes(this.kv.value.length)} at revision ${count(this.kv.modified)}. It is stored only if the key has not changed since.`), lease.el],
      run: async () => { await put(this.key, file, this.kv.modified, lease.query()); return true; },
    });
    if (done) this.saved('Uploaded');
  }

  async restore(value, revision) {
    const done = await ask({
      title: `Restore the value of revision ${count(revision)}?`, action: 'Restore',
      body: h('p', {}, `The key gets a new version with the ${bytes(value.length)} that it had then. Its history stays.`, this.kv?.lease ? ` It keeps lease ${this.kv.lease}.` : ''),
      run: async () => { await put(this.key, toBytes(value), this.kv?.modified ?? 0, this.kv?.lease ? { lease: this.kv.lease } : {}); return true; },
    });
    if (done) this.saved('Restored');
  }

  async remove() {
    const done = await ask({
      title: 'Delete this key?', action: 'Delete', danger: true,
      body: [h('p', { class: 'key' }, show(this.key)), h('p', {}, `It is deleted only if it is still at revision ${count(this.kv.modified)}. Its history stays readable until it is compacted.`)],
      run: async () => { await call('DELETE', keyPath(this.key), { headers: { 'If-Match': `"${this.kv.modified}"`, ...once() } }); return true; },
    });
    if (!done) return;
    toast('Deleted');
    this.options.onChange(true);
  }
}

export function openValue(root, key, options, signal) { return new Pane(root, key, options, signal); }
