// A live watch: Server-Sent Events, filtered, and paused without losing any.
import { fromText, getJSON, pairOf, placeOf, show, textOf, url } from './api.js';
import { button, bytes, count, explain, field, h, plural, replace, setText } from './dom.js';
import { diffView } from './diff.js';
import { bestForm, comparable, valueView } from './value.js';

export const title = 'Watch';

const maxRows = 500;      // that are shown
const maxWaiting = 5000;  // that are kept during a pause
const peekBytes = 200;

class Watching {
  constructor(signal, say) {
    this.rows = h('tbody');
    this.waiting = [];
    this.paused = false;
    this.dropped = 0;
    this.say = say;
    this.filter = '';
    signal.addEventListener('abort', () => this.stop());
  }

  start(query) {
    this.stop();
    replace(this.rows);
    this.waiting = [];
    this.dropped = 0;
    this.source = new EventSource(url('/v1/watch', { ...query, previous: true }));
    this.source.onopen = () => this.say();
    this.source.onmessage = (m) => this.receive(JSON.parse(m.data));
    this.source.onerror = () => this.broken(query);
  }

  stop() {
    this.source?.close();
    this.source = null;
  }

  // broken tells why there is no stream: a browser knows only that there is none. One
  // that it opens again by itself needs no word.
  async broken(query) {
    if (this.source?.readyState !== EventSource.CLOSED) { this.say(null, 'reconnecting…'); return; }
    this.stop();
    try {
      await getJSON('/v1/watch', { ...query, timeout: '1ms' });
      this.say(null, 'The stream has ended.');
    } catch (err) {
      this.say(err.code ? err : null, 'The stream has ended.');
    }
  }

  receive(event) {
    if (event.type === 'progress') { this.at = event.revision; this.say(); return; }
    if (event.type === 'compacted') {
      this.stop();
      this.say(null, `The history before revision ${count(event.compact_revision)} was compacted before it could be sent. Start again.`);
      return;
    }
    this.at = event.mod_revision;
    this.waiting.push(event);
    if (this.waiting.length > maxWaiting) { this.waiting.shift(); this.dropped++; }
    this.frame ??= requestAnimationFrame(() => { this.frame = null; this.flush(); });
    if (document.hidden) this.flush(); // no frames are drawn then
  }

  // flush shows what has come since the last frame.
  flush() {
    if (!this.paused && this.waiting.length) {
      const fresh = this.waiting.splice(0).slice(-maxRows).map((e) => this.row(e)).reverse();
      this.rows.prepend(...fresh);
      while (this.rows.rows.length > maxRows) this.rows.lastElementChild.remove();
    }
    this.say();
  }

  row(doc) {
    const e = pairOf(doc), removed = doc.type === 'delete';
    const before = doc.previous ? pairOf(doc.previous) : null;
    const value = removed ? before?.value : e.value;
    const peek = value === undefined ? '' : show(value.slice(0, peekBytes)) + (value.length > peekBytes ? '…' : '');
    const tr = h('tr', {},
      h('td', { class: 'num', 'data-label': 'Revision' }, count(e.modified)),
      h('td', { 'data-label': 'Change' }, h('span', { class: `badge ${doc.type}` }, removed ? 'delete' : e.version === 1 ? 'create' : 'put')),
      h('td', { class: 'key', 'data-label': 'Key' }, h('a', { href: placeOf('keys', { key: e.key }) }, show(e.key))),
      h('td', { class: 'peek mono faint', 'data-label': removed ? 'Was' : 'Value' }, peek),
      h('td', { class: 'num', 'data-label': 'Size' }, value === undefined ? '' : bytes(value.length)),
      h('td', { class: 'actions' }, value !== undefined && button('Show', (ev) => this.expand(tr, ev.currentTarget, value, removed ? undefined : before), { class: 'quiet', 'aria-expanded': 'false', 'aria-label': `Show the value of ${show(e.key)} at revision ${e.modified}` })));
    tr.text = `${show(e.key)}\n${peek}`.toLowerCase();
    tr.hidden = !tr.text.includes(this.filter);
    return tr;
  }

  expand(tr, b, value, before) {
    const open = b.getAttribute('aria-expanded') === 'true';
    b.setAttribute('aria-expanded', String(!open));
    b.textContent = open ? 'Show' : 'Hide';
    if (open) tr.nextElementSibling?.classList.contains('more') && tr.nextElementSibling.remove();
    else tr.after(h('tr', { class: 'more' }, h('td', { colspan: 6 }, before?.value === undefined ? valueView(value, bestForm(value))
      : diffView(comparable(before.value), comparable(value), `before, revision ${count(before.modified)}`, 'this change'))));
  }

  narrow(text) {
    this.filter = text.toLowerCase();
    for (const tr of this.rows.rows) if (tr.text !== undefined) tr.hidden = !tr.text.includes(this.filter);
  }
}

export function open(main, params, signal) {
  const status = h('p', { class: 'faint', role: 'status' });
  const trouble = h('div'), nothing = h('p', { class: 'empty' });
  const kind = h('select', {}, h('option', { value: 'prefix' }, 'prefix'), h('option', { value: 'key' }, 'key'));
  const given = params.prefix ?? params.key ?? '';
  const text = h('input', { type: 'search', autocomplete: 'off', spellcheck: 'false', class: 'mono', placeholder: 'everything', value: textOf(given) ?? show(given) });
  const shown = text.value; // stands for what was given, which may be no text
  const events = h('select', {}, h('option', { value: '' }, 'all changes'), h('option', { value: 'put' }, 'puts'), h('option', { value: 'delete' }, 'deletes'));
  const from = h('input', { inputmode: 'numeric', size: 10, placeholder: 'now', autocomplete: 'off', class: 'mono' });
  const filter = h('input', { type: 'search', autocomplete: 'off', spellcheck: 'false', placeholder: 'text in key or value' });
  if (params.key !== undefined) kind.value = 'key';

  const w = new Watching(signal, (err, word) => {
    replace(trouble, err && h('p', { class: 'note bad', role: 'alert' }, explain(err)));
    const parts = [word ?? (w.source ? w.paused ? 'paused' : 'live' : 'stopped'), w.at && `revision ${count(w.at)}`,
      w.paused && `${plural(w.waiting.length, 'change')} waiting`, w.dropped && `${count(w.dropped)} dropped`];
    const line = parts.filter(Boolean).join(' · ');
    setText(status, line);
    const rows = [...w.rows.rows].filter((tr) => tr.text !== undefined), visible = rows.filter((tr) => !tr.hidden).length;
    setText(nothing, visible ? '' : rows.length ? `None of the ${plural(rows.length, 'change')} matches the filter.` : w.source ? 'Changes appear here as they happen.' : '');
    stop.hidden = pause.hidden = !w.source;
    start.hidden = !!w.source;
  });
  const begin = () => {
    const query = { [kind.value]: text.value === shown ? given : fromText(text.value), events: events.value || undefined, from_revision: from.value.trim() || undefined };
    hold(false);
    w.start(query);
    w.say(null, 'connecting…');
  };
  const hold = (paused) => { w.paused = paused; setText(pause, paused ? 'Resume' : 'Pause'); };
  const pause = button('Pause', () => { hold(!w.paused); w.flush(); }, { hidden: true });
  const stop = button('Stop', () => { w.stop(); w.say(); }, { hidden: true });
  const start = h('button', { type: 'submit', class: 'primary' }, 'Start');
  filter.addEventListener('input', () => { w.narrow(filter.value); w.say(); });
  for (const el of [kind, events]) el.addEventListener('change', () => { if (w.source) begin(); });

  main.append(h('form', { class: 'bar', onsubmit: (e) => { e.preventDefault(); begin(); } },
    field('Watch a', kind), h('div', { class: 'grow' }, field('named', text)), field('Show', events), field('From revision', from),
    start, pause, stop), trouble,
  h('div', { class: 'bar' }, h('div', { class: 'grow' }, field('Filter what is shown', filter)), status, button('Clear', () => { replace(w.rows); w.say(); })),
  h('div', { class: 'scroll' }, h('table', { class: 'stack events' }, h('caption', { class: 'unseen' }, 'Changes, newest first'),
    h('thead', {}, h('tr', {}, [['Revision', 'num'], ['Change'], ['Key'], ['Value'], ['Size', 'num']].map(([t, c]) => h('th', { scope: 'col', class: c }, t)), h('th', { scope: 'col' }, h('span', { class: 'unseen' }, 'Actions')))),
    w.rows)), nothing);
  begin();
}
