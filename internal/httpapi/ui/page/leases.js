// Leases with the time they have left, and locks with their holder and queue.
import { bytesIn, escape, getJSON, once, placeOf, sendJSON, show, textOf } from './api.js';
import { ask } from './dialog.js';
import { aborted, button, count, duration, every, failure, field, goSeconds, h, plural, replace, setText, toast } from './dom.js';
import { writes } from './who.js';

export const title = 'Leases and locks';

const pageSize = 50; // each lease that is shown is asked for its time
const interval = 5000;

// Clock shows times that run out, between the answers that say how long they are.
class Clock {
  constructor(signal) {
    this.ends = new Map();
    const timer = setInterval(() => this.tick(), 500);
    signal.addEventListener('abort', () => clearInterval(timer));
  }

  set(el, seconds) { this.ends.set(el, performance.now() + seconds * 1000); this.tick(); }

  tick() {
    for (const [el, end] of this.ends) {
      if (!el.isConnected) { this.ends.delete(el); continue; }
      const left = (end - performance.now()) / 1000;
      setText(el, left > 0 ? duration(left) : 'ending');
    }
  }
}

// Pages shows one page of a list, whose rows stay while their ids do.
class Pages {
  constructor({ path, name, idOf, make, signal, empty, columns, caption }) {
    Object.assign(this, { path, name, idOf, make, signal });
    this.cursors = [];
    this.body = h('tbody');
    this.note = h('p', { class: 'faint' }, 'reading…');
    this.before = button('‹ previous', () => { this.cursors.pop(); this.refresh(); }, { hidden: true });
    this.after = button('next ›', () => { this.cursors.push(this.next); this.refresh(); }, { hidden: true });
    this.empty = empty;
    this.el = h('div', {}, h('div', { class: 'scroll' }, h('table', { class: 'stack' }, h('caption', { class: 'unseen' }, caption),
      h('thead', {}, h('tr', {}, columns.map(([t, c]) => h('th', { scope: 'col', class: c }, t)))), this.body)), h('div', { class: 'row' }, this.note, this.before, this.after));
    this.refresh = every(interval, () => this.read(), signal);
  }

  async read() {
    let doc;
    try {
      doc = await getJSON(this.path, { limit: pageSize, cursor: this.cursors.at(-1) }, this.signal);
    } catch (err) {
      if (!aborted(err)) replace(this.note, failure(err));
      return;
    }
    const items = doc[this.name], old = new Map([...this.body.rows].map((r) => [r.id_, r]));
    items.forEach((item, i) => {
      const id = this.idOf(item);
      const row = old.get(id) ?? Object.assign(this.make(item), { id_: id });
      old.delete(id);
      if (this.body.rows[i] !== row) this.body.insertBefore(row, this.body.rows[i] ?? null);
      row.show(item);
    });
    for (const row of old.values()) row.remove();
    this.next = doc.next;
    this.before.hidden = this.cursors.length === 0;
    this.after.hidden = !doc.next;
    replace(this.note, items.length ? `${plural(items.length, this.name.slice(0, -1))}${doc.next || this.cursors.length ? ' on this page' : ''}` : this.empty);
  }
}

async function revoke(id, refresh) {
  await ask({
    title: `Revoke lease ${id}?`, action: 'Revoke', danger: true,
    body: h('p', {}, 'Its keys are deleted in one revision, and the locks that it holds go to the next in their queues.'),
    run: () => sendJSON('DELETE', `/v1/leases/${id}`, { headers: once() }).then((r) => toast(`Lease ${id} was revoked; ${plural(r.deleted, 'key')} deleted`)),
  });
  refresh();
}

async function grant(refresh) {
  const ttl = h('input', { required: true, value: '30s', autocomplete: 'off', class: 'mono' });
  const name = h('input', { autocomplete: 'off' });
  await ask({
    title: 'Create a lease', action: 'Create',
    body: [h('p', {}, 'It ends, with the keys that are bound to it, unless it is kept alive in time.'), field('Time to live', ttl, 'for example 30s or 1h; at least two election timeouts'), field('Name', name, 'optional, for people')],
    run: () => sendJSON('POST', '/v1/leases', { headers: once(), doc: { ttl: ttl.value.trim(), ...(name.value && { name: name.value }) } }).then((l) => toast(`Lease ${l.id} was created`)),
  });
  refresh();
}

async function listKeys(id, place, cursor) {
  try {
    const doc = await getJSON(`/v1/leases/${id}`, { keys: true, limit: 100, cursor });
    if (!cursor) replace(place);
    place.append(...doc.keys.map((k) => { const key = bytesIn(k, 'key'); return h('li', {}, h('a', { class: 'key', href: placeOf('keys', { key }) }, show(key))); }));
    if (doc.next) { const more = h('li', {}, button('more', () => { more.remove(); listKeys(id, place, doc.next); }, { class: 'quiet' })); place.append(more); }
    if (!place.firstChild) place.append(h('li', { class: 'faint' }, 'no keys'));
  } catch (err) { replace(place, h('li', {}, failure(err))); }
}

function leaseRow(clock, signal, refresh) {
  return (item) => {
    const id = String(item.id);
    const left = h('td', { class: 'num', 'data-label': 'Time left' }, '…'), name = h('td', { 'data-label': 'Name' }), ttl = h('td', { class: 'num', 'data-label': 'Time to live' }), locks = h('td', { class: 'num', 'data-label': 'Locks' });
    const list = h('ul', { hidden: true }), keys = button('', () => {
      list.hidden = !list.hidden;
      keys.setAttribute('aria-expanded', String(!list.hidden));
      if (!list.hidden) listKeys(id, list);
    }, { class: 'quiet', 'aria-expanded': 'false' });
    const row = h('tr', { 'data-id': id }, h('th', { scope: 'row', class: 'mono' }, id), name, left, ttl, h('td', { 'data-label': 'Keys' }, keys, list), locks,
      writes() && h('td', { class: 'actions' },
        button('Keep alive', () => sendJSON('POST', `/v1/leases/${id}/keepalive`).then((l) => { clock.set(left, goSeconds(l.ttl)); toast(`Lease ${id} has its full time again`); }, (err) => toast(err.message, true)), { class: 'quiet', 'aria-label': `Keep lease ${id} alive` }),
        button('Revoke…', () => revoke(id, refresh()), { class: 'quiet', 'aria-label': `Revoke lease ${id}` })));
    row.show = (l) => {
      setText(name, l.name ?? ''); setText(ttl, duration(goSeconds(l.ttl))); setText(locks, count(l.lock_count)); setText(keys, plural(l.key_count, 'key')); keys.disabled = !l.key_count && list.hidden;
      getJSON(`/v1/leases/${id}`, {}, signal).then((one) => clock.set(left, goSeconds(one.remaining)), () => {});
    };
    return row;
  };
}

const ticketText = (t) => { const text = bytesIn(t, 'text'); return textOf(text) ?? show(text); };

function lockRow(clock, signal, refresh) {
  return (item) => {
    const name = bytesIn(item, 'name'), path = `/v1/locks/${escape(name)}`;
    const left = h('td', { class: 'num', 'data-label': 'Time left' }, '…'), holder = h('td', { 'data-label': 'Holder' }), token = h('td', { class: 'num', 'data-label': 'Token' }), lease = h('td', { class: 'num', 'data-label': 'Lease' });
    const queue = h('ol', { class: 'queue' }), waiting = h('span', {});
    let now = item;
    const row = h('tr', {}, h('th', { scope: 'row', class: 'key' }, show(name)), holder, token, lease, left, h('td', { 'data-label': 'Queue' }, h('div', {}, waiting, queue)),
      writes(undefined, 'locks') && h('td', { class: 'actions' }, button('Release…', () => release(), { class: 'quiet', 'aria-label': `Release lock ${show(name)}` })));
    const release = async () => {
      const h0 = now.holder;
      await ask({
        title: 'Release this lock?', action: 'Release', danger: true,
        body: [h('p', {}, 'It goes to the next in the queue. ', h('strong', {}, 'The holder is not told:'), ' it may go on working. Only the fencing token protects what it works on, if that checks tokens.'),
          h('dl', { class: 'facts' }, h('dt', {}, 'lock'), h('dd', { class: 'key' }, show(name)), h('dt', {}, 'holder'), h('dd', {}, ticketText(h0) || '(no text)'), h('dt', {}, 'token'), h('dd', {}, count(h0.token)))],
        run: () => sendJSON('DELETE', path, { query: { lease: h0.lease }, headers: once() }).then(() => toast('Released')),
      });
      refresh()();
    };
    row.show = (l) => {
      now = l;
      setText(holder, ticketText(l.holder) || '(no text)'); setText(token, count(l.holder.token)); setText(lease, l.holder.lease); setText(waiting, l.waiting ? `${count(l.waiting)} waiting` : 'nobody waits');
      getJSON(`/v1/leases/${l.holder.lease}`, {}, signal).then((one) => clock.set(left, goSeconds(one.remaining)), () => {});
      if (!l.waiting) replace(queue);
      else getJSON(path, { limit: 20 }, signal).then((d) => replace(queue, d.queue.map((t) => h('li', {}, `${ticketText(t) || '(no text)'} `, h('small', {}, `token ${count(t.token)}, lease ${t.lease}`)))), () => {});
    };
    return row;
  };
}

export function open(main, _, signal) {
  const clock = new Clock(signal);
  const actions = (shown) => shown ? [[h('span', { class: 'unseen' }, 'Actions')]] : [];
  let locks, leases;
  locks = new Pages({ path: '/v1/locks', name: 'locks', signal, caption: 'Locks', empty: 'No lock is held.', idOf: (l) => bytesIn(l, 'name'), make: lockRow(clock, signal, () => locks.refresh),
    columns: [['Lock'], ['Holder'], ['Token', 'num'], ['Lease', 'num'], ['Time left', 'num'], ['Queue'], ...actions(writes(undefined, 'locks'))] });
  leases = new Pages({ path: '/v1/leases', name: 'leases', signal, caption: 'Leases', empty: 'There are no leases.', idOf: (l) => String(l.id), make: leaseRow(clock, signal, () => leases.refresh),
    columns: [['Lease'], ['Name'], ['Time left', 'num'], ['Time to live', 'num'], ['Keys'], ['Locks', 'num'], ...actions(writes())] });
  main.append(h('section', { 'aria-label': 'Locks' }, h('h2', {}, 'Locks'), locks.el),
    h('section', { 'aria-label': 'Leases' }, h('h2', {}, 'Leases'), leases.el, writes() && h('p', {}, button('Create a lease…', () => grant(leases.refresh)))));
}
