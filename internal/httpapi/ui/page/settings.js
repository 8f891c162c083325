// The limits of the cluster, the log of this node, and compaction.
import { call, getJSON, once, sendJSON } from './api.js';
import { ask } from './dialog.js';
import { button, bytes, count, duration, failure, field, h, plural, replace, toast } from './dom.js';
import { live, nameOf } from './live.js';
import { can, sees } from './who.js';

export const title = 'Settings';

const millis = (n) => duration(n / 1000);
const orNone = (f) => (n) => n === 0 ? 'no limit' : f(n);

// meaning says what a setting does, and shows its value in a better unit.
const meaning = {
  max_key_bytes: ['the longest key', bytes],
  max_value_bytes: ['the largest value', bytes],
  quota_bytes: ['how much live data the store takes; puts beyond it are refused until deletes make room', orNone(bytes)],
  retention_millis: ['how long history is kept', millis],
  retention_revisions: ['how many revisions of history are kept at least', count],
  max_txn_ops: ['operations in a transaction', count],
  max_txn_bytes: ['the size of a transaction', bytes],
  idempotency_millis: ['how long the answers of requests with an Idempotency-Key are remembered', millis],
  idempotency_bytes: ['how much memory and disk they may take', bytes],
};

async function change(name, value, tag, done) {
  const input = h('input', { type: 'number', min: 0, required: true, value, class: 'mono' });
  const preview = h('small', { 'aria-live': 'polite' });
  const show = () => { preview.textContent = meaning[name] && input.value ? meaning[name][1](Number(input.value)) : ''; };
  input.addEventListener('input', show);
  show();
  const saved = await ask({
    title: `Change ${name}`, action: 'Change for the whole cluster',
    body: [h('p', {}, `${meaning[name]?.[0] ?? ''}. Every member follows it from the next write on. Stored data stays readable and deletable.`), field('New value', input), preview],
    run: () => sendJSON('PATCH', '/v1/settings', { headers: { 'If-Match': tag, ...once() }, doc: { [name]: Number(input.value) } }),
  });
  if (saved) { toast(`${name} is ${count(saved[name])} now`); done(); }
}

async function limits(place, signal) {
  const again = () => limits(place, signal);
  try {
    const res = await call('GET', '/v1/settings', { signal });
    const doc = await res.json(), tag = res.headers.get('ETag');
    replace(place, h('div', { class: 'scroll' }, h('table', { class: 'stack' }, h('caption', { class: 'unseen' }, 'Limits of the cluster'),
      h('thead', {}, h('tr', {}, h('th', { scope: 'col' }, 'Setting'), h('th', { scope: 'col', class: 'num' }, 'Value'), h('th', { scope: 'col' }, 'Meaning'), can('settings') && h('th', { scope: 'col' }, h('span', { class: 'unseen' }, 'Actions')))),
      h('tbody', {}, Object.entries(doc).map(([name, value]) => h('tr', { 'data-name': name }, h('th', { scope: 'row', class: 'mono' }, name),
        h('td', { class: 'num', 'data-label': 'Value', title: count(value) }, meaning[name]?.[1](value) ?? count(value)), h('td', { class: 'faint', 'data-label': 'Meaning' }, meaning[name]?.[0] ?? ''),
        can('settings') && h('td', { class: 'actions' }, button('Change…', () => change(name, value, tag, again), { class: 'quiet', 'aria-label': `Change ${name}` }))))))));
  } catch (err) {
    if (!signal.aborted) replace(place, failure(err, button('Try again', again)));
  }
}

async function logLevel(place, signal) {
  try {
    const doc = await getJSON('/v1/operator/log-level', {}, signal);
    const level = h('select', {}, ['debug', 'info', 'warn', 'error'].map((l) => h('option', { value: l }, l)));
    level.value = doc.level;
    const period = h('input', { value: '10m', size: 6, autocomplete: 'off', class: 'mono' });
    const trouble = h('div');
    replace(place, h('p', {}, 'This node logs from level ', h('strong', {}, doc.level), ' up', doc.until ? `, until ${new Date(doc.until).toLocaleTimeString()}` : '', '.'),
      can('operate') && h('form', { class: 'bar', onsubmit: async (e) => {
        e.preventDefault();
        try {
          await sendJSON('PUT', '/v1/operator/log-level', { doc: { level: level.value, ...(period.value.trim() && { for: period.value.trim() }) } });
          toast(`The level is ${level.value} now`);
          logLevel(place, signal);
        } catch (err) { replace(trouble, failure(err)); }
      } }, field('Level', level), field('For', period), h('button', { type: 'submit' }, 'Set')), trouble);
  } catch (err) {
    if (!signal.aborted) replace(place, err.status === 404 ? h('p', { class: 'faint' }, 'The level cannot be changed here.') : failure(err));
  }
}

async function history(place, signal) {
  try {
    const st = await getJSON('/v1/status', {}, signal);
    replace(place, h('p', {}, `Revisions ${count(st.compact_revision)} to ${count(st.revision)} can be read, ${plural(st.revision - st.compact_revision + 1, 'revision')}. History is compacted automatically, within the limits above.`),
      can('operate') && button('Compact now…', async () => {
        const to = h('input', { type: 'number', min: st.compact_revision, max: st.revision, value: st.revision, required: true, class: 'mono' });
        const done = await ask({
          title: 'Compact the history', action: 'Discard history', danger: true,
          body: [h('p', {}, 'All revisions before the one below can no longer be read, on no member, and watches cannot begin there. What is stored now stays. This cannot be undone.'), field('Oldest revision to keep', to)],
          run: () => sendJSON('POST', '/v1/compact', { query: { revision: to.value }, headers: once() }),
        });
        if (done) { toast(`The history begins at revision ${count(done.compact_revision)} now`); history(place, signal); }
      }));
  } catch (err) {
    if (!signal.aborted) replace(place, failure(err));
  }
}

async function build(place, signal) {
  try {
    const v = await getJSON('/version', {}, signal);
    replace(place, h('dl', { class: 'facts' }, h('dt', {}, 'kvd'), h('dd', {}, v.version), v.commit && [h('dt', {}, 'commit'), h('dd', { class: 'mono' }, v.commit)], h('dt', {}, 'Go'), h('dd', {}, v.go_version),
      live.self && [h('dt', {}, 'node'), h('dd', {}, nameOf(live.self.id)), h('dt', {}, 'engine'), h('dd', {}, live.self.engine)],
      h('dt', {}, 'interface'), h('dd', {}, h('a', { href: '../openapi.yaml' }, 'openapi.yaml'))));
  } catch { replace(place); }
}

export function open(main, _, signal) {
  const parts = { limits: h('div'), history: h('div'), log: h('div'), build: h('div') };
  main.append(h('section', { 'aria-labelledby': 's-limits' }, h('h2', { id: 's-limits' }, 'Limits of the cluster'), parts.limits),
    h('div', { class: 'cards' },
      h('section', { 'aria-labelledby': 's-history' }, h('h2', { id: 's-history' }, 'History'), parts.history),
      sees('operate') && h('section', { 'aria-labelledby': 's-log' }, h('h2', { id: 's-log' }, 'Log of this node'), parts.log),
      h('section', { 'aria-labelledby': 's-build' }, h('h2', { id: 's-build' }, 'About'), parts.build)));
  limits(parts.limits, signal);
  history(parts.history, signal);
  if (sees('operate')) logLevel(parts.log, signal);
  build(parts.build, signal);
}
