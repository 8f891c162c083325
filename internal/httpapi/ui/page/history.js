// The history of a key as a timeline, newest first, as far back as the store keeps it.
//
// While the key existed, each version leads to the one before it: a read as of the
// revision before finds it, without its value, at the cost of one lookup. A gap, where
// the key did not exist, hides how long it lasted; what came before it is looked for in
// the change log, which a watch from the oldest revision reads.
import { binary, call, getJSON, keyPath, lines, placeOf } from './api.js';
import { writes } from './who.js';
import { diffView } from './diff.js';
import { aborted, button, count, failure, h, replace, setText } from './dom.js';
import { bestForm, comparable, valueView } from './value.js';

const step = 20;         // versions that are shown at once
const maxEarlier = 2000; // events before a gap that are kept, the newest ones

async function versionAt(key, revision, signal) {
  const doc = await getJSON('/v1/kv', { start: key, end: `${key}\0`, keys_only: true, limit: 1, revision, consistency: revision ? 'stale' : undefined }, signal);
  const kv = doc.kvs[0];
  return { at: doc.revision, kv: kv && { type: 'put', revision: kv.mod_revision, version: kv.version, lease: kv.lease, created: kv.create_revision } };
}

async function valueAt(key, revision, signal) {
  const res = await call('GET', keyPath(key), { query: { revision, consistency: 'stale' }, signal });
  return binary(new Uint8Array(await res.arrayBuffer()));
}

// earlier returns the events of a key up to a revision that the change log still has,
// newest first. A watch says how far it has come when it is silent, which may take long,
// and when its time is over; so each gets little time, and the next one goes on there.
async function earlier(key, upTo, signal) {
  const { compact_revision: oldest } = await getJSON('/v1/status', {}, signal);
  const events = [];
  for (let from = oldest, millis = 200; from <= upTo; millis *= 2) {
    const stream = lines('/v1/watch', { key, from_revision: from, consistency: 'stale', timeout: `${millis}ms` }, signal);
    for await (const e of stream) {
      from = Math.max(from, (e.mod_revision ?? e.compact_revision ?? e.revision) + 1);
      if (e.mod_revision > upTo) break;
      if (!e.mod_revision) continue;
      events.push({ type: e.type, revision: e.mod_revision, version: e.version, lease: e.lease, created: e.create_revision });
      if (events.length > maxEarlier) events.shift();
    }
  }
  return events.reverse();
}

// versions yields the events of a key, newest first, and at the end {end: reason}.
async function* versions(key, revision, signal) {
  let next = revision;
  try {
    for (;;) {
      const { at, kv } = await versionAt(key, next, signal);
      if (!kv) {
        yield* await earlier(key, at, signal);
        yield { end: 'That is all that the store has.' };
        return;
      }
      yield kv;
      next = kv.revision - 1;
      if (next < 1) break;
    }
    yield { end: 'The history begins here.' };
  } catch (err) {
    if (err.code !== 'revision_compacted') throw err;
    yield { end: `What was before revision ${count(err.doc.compact_revision)} has been compacted.` };
  }
}

class Timeline {
  constructor(root, key, options, signal) {
    Object.assign(this, { root, key, options, signal, shown: [], picked: [] });
    this.source = versions(key, options.revision, signal);
    this.list = h('ol', { class: 'timeline', 'aria-label': 'Versions, newest first' });
    this.foot = h('p', { class: 'row faint', 'aria-live': 'polite' }, 'reading the history…');
    this.pair = h('div');
    this.hint = h('small', { role: 'status' });
    this.say(0);
    replace(root, h('div', { class: 'row' }, h('h3', {}, 'History'), this.hint), this.pair, this.list, this.foot);
    this.more();
  }

  async more() {
    try {
      for (let i = 0; i < step; i++) {
        const { value: event, done } = await this.source.next();
        if (done) return;
        if (event.end) { replace(this.foot, event.end); return; }
        this.shown.push(event);
        this.list.append(this.entry(event, this.shown.length - 1));
      }
      replace(this.foot, button(`Show ${step} older versions`, () => this.more()));
    } catch (err) {
      if (!aborted(err)) replace(this.foot, failure(err));
    }
  }

  entry(e, i) {
    const detail = h('div', { class: 'detail', hidden: true });
    const text = e.type === 'delete' ? 'deleted' : e.version === 1 ? 'created' : `version ${count(e.version)}`;
    const head = button([h('span', { class: `badge ${e.type}` }, e.type), h('strong', {}, `revision ${count(e.revision)}`), h('span', { class: 'faint' }, text, e.lease ? ` · lease ${e.lease}` : '')], () => {
      detail.hidden = !detail.hidden;
      head.setAttribute('aria-expanded', String(!detail.hidden));
      if (!detail.hidden && !detail.firstChild) this.expand(detail, e, i);
    }, { class: 'event', 'aria-expanded': 'false' });
    const pick = e.type === 'put' && h('input', { type: 'checkbox', class: 'pick', 'aria-label': `Compare revision ${count(e.revision)}`, onchange: () => this.pick(pick, e) });
    return h('li', { 'data-type': e.type, 'data-revision': e.revision }, h('div', { class: 'version' }, head, pick), detail);
  }

  say(picked) { setText(this.hint, ['Select two versions to compare them.', 'Select another one to compare it with.', 'The two selected versions are compared here.'][picked]); }

  // pick selects a version for the comparison, or no longer. With a third one, the first goes.
  async pick(box, e) {
    this.picked = this.picked.filter((p) => p.box !== box);
    if (box.checked) this.picked.push({ box, e });
    if (this.picked.length > 2) this.picked.shift().box.checked = false;
    const pair = this.picked.map((p) => p.e.revision).sort((a, b) => a - b), mine = this.pairing = pair.join();
    this.say(pair.length);
    if (pair.length < 2) { replace(this.pair); return; }
    try {
      const [old, now] = await Promise.all(pair.map((revision) => valueAt(this.key, revision, this.signal)));
      if (mine !== this.pairing) return;
      const clear = () => { for (const p of this.picked.splice(0)) p.box.checked = false; replace(this.pair); this.say(0); };
      replace(this.pair, diffView(comparable(old), comparable(now), `revision ${count(pair[0])}`, `revision ${count(pair[1])}`), h('p', { class: 'row' }, button('Close the comparison', clear, { class: 'quiet' })));
      this.pair.scrollIntoView({ block: 'nearest' });
    } catch (err) {
      if (!aborted(err) && mine === this.pairing) replace(this.pair, failure(err));
    }
  }

  // before returns the version that an event replaced: the next one of the list, which
  // may have to be read first.
  async before(e, i) {
    if (e.version === 1) return null;
    if (i + 1 === this.shown.length) await this.more();
    const b = this.shown[i + 1];
    return b?.type === 'put' ? b : null;
  }

  async expand(place, e, i) {
    replace(place, h('p', { class: 'faint' }, 'reading…'));
    try {
      const before = await this.before(e, i);
      const [now, old] = await Promise.all([e.type === 'put' ? valueAt(this.key, e.revision, this.signal) : null, before && valueAt(this.key, before.revision, this.signal)]);
      const body = h('div');
      const show = (what) => replace(body, this.view(what, e, now, before, old));
      const ways = h('div', { class: 'row' },
        now !== null && before && button('Changes', () => show('changes'), { class: 'quiet' }), now !== null && button('Value', () => show('value'), { class: 'quiet' }),
        now !== null && button('Compare with now', () => this.compareWithNow(body, e, now), { class: 'quiet' }),
        h('a', { class: 'button quiet', href: placeOf('keys', { prefix: this.options.prefix, key: this.key, rev: e.revision }) }, `The whole store at ${count(e.revision)}`),
        now !== null && writes(this.key) && !this.options.revision && button('Restore…', () => this.options.restore(now, e.revision), { class: 'quiet' }));
      replace(place, ways, body);
      show(before ? 'changes' : 'value');
    } catch (err) {
      if (!aborted(err)) replace(place, failure(err));
    }
  }

  view(what, e, now, before, old) {
    if (now === null) return old === null ? null : [h('p', { class: 'faint' }, `Its last value, of revision ${count(before.revision)}:`), valueView(old, bestForm(old))];
    if (what === 'value' || old === null) return valueView(now, bestForm(now));
    return diffView(comparable(old), comparable(now), `revision ${count(before.revision)}`, `revision ${count(e.revision)}`);
  }

  async compareWithNow(body, e, then) {
    try {
      const res = await call('GET', keyPath(this.key), { signal: this.signal });
      const now = binary(new Uint8Array(await res.arrayBuffer()));
      replace(body, diffView(comparable(then), comparable(now), `revision ${count(e.revision)}`, 'now'));
    } catch (err) {
      replace(body, err.status === 404 ? h('p', { class: 'note' }, 'The key does not exist now.') : failure(err));
    }
  }
}

export function openHistory(root, key, options, signal) { return new Timeline(root, key, options, signal); }
