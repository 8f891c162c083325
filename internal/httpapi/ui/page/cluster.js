// The members side by side, live, and what can be done with them.
import { once, sendJSON } from './api.js';
import { ask, tell } from './dialog.js';
import { button, bytes, copier, count, drawn, duration, explain, field, goSeconds, h, plural, replace, setText, toast } from './dom.js';
import { live, nameOf, onLive, refresh } from './live.js';
import { can } from './who.js';

export const title = 'Cluster';

const majority = (n) => Math.floor(n / 2) + 1;
const voters = () => live.members.filter((m) => !m.learner).length;

// strength says what a number of voters can lose.
const strength = (n) => `${plural(n, 'voter')}, of which ${majority(n)} must be up; ${plural(n - majority(n), 'failure')} tolerated`;

async function handOver(m) {
  await ask({
    title: `Hand leadership over to ${nameOf(m.id)}?`, action: 'Hand over',
    body: h('p', {}, `${nameOf(live.cluster.leader)} stops leading once ${nameOf(m.id)} has its whole log. Requests wait meanwhile, usually for some milliseconds; none is lost.`),
    run: () => sendJSON('POST', '/v1/leader', { query: { to: m.id } }).then(() => toast(`${nameOf(m.id)} leads now`)),
  });
  refresh();
}

async function promote(m) {
  const n = voters();
  await ask({
    title: `Promote ${nameOf(m.id)} to voter?`, action: 'Promote',
    body: [h('p', {}, 'It votes from now on and counts for every quorum. It is refused while the member has not caught up.'),
      h('dl', { class: 'facts' }, h('dt', {}, 'now'), h('dd', {}, strength(n)), h('dt', {}, 'then'), h('dd', {}, strength(n + 1)))],
    run: () => sendJSON('POST', `/v1/members/${m.id}/promote`, { headers: once() }).then(() => toast(`${nameOf(m.id)} is a voter now`)),
  });
  refresh();
}

async function remove(m) {
  const n = voters();
  await ask({
    title: `Remove ${nameOf(m.id)} from the cluster?`, action: `Remove ${nameOf(m.id)}`, danger: true,
    body: [
      h('p', {}, `Its process ends, and ID ${m.id} never returns: to bring the machine back, add it as a new member with an empty data directory.`),
      m.id === live.cluster.leader && h('p', {}, 'It leads at the moment, and hands leadership over first.'),
      !m.learner && h('dl', { class: 'facts' }, h('dt', {}, 'now'), h('dd', {}, strength(n)), h('dt', {}, 'then'), h('dd', {}, n > 1 ? strength(n - 1) : 'nobody; this is refused')),
    ],
    run: () => sendJSON('DELETE', `/v1/members/${m.id}`, { headers: once() }).then(() => toast(`Member ${m.id} was removed`)),
  });
  refresh();
}

async function add() {
  const urls = h('input', { name: 'urls', required: true, placeholder: 'http://10.0.0.4:12379', autocomplete: 'off', spellcheck: 'false', inputmode: 'url' });
  const name = h('input', { name: 'name', autocomplete: 'off', spellcheck: 'false' });
  const learner = h('input', { type: 'checkbox', id: 'stay-learner' });
  const added = await ask({
    title: 'Add a member', action: 'Add member',
    body: [
      h('p', {}, 'The member is added as a learner: it receives the data and does not vote. Once it has caught up, the leader promotes it. You start its process afterwards, with the command that comes next.'),
      field('Peer URL', urls, 'where the other members reach it; several with commas'), field('Name', name, 'optional'),
      h('p', { class: 'check' }, learner, h('label', { for: 'stay-learner' }, 'Keep it a learner, which never votes')),
    ],
    run: () => sendJSON('POST', '/v1/members', { headers: once(), doc: {
      peer_urls: urls.value.split(',').map((u) => u.trim()).filter(Boolean), learner: learner.checked, ...(name.value && { name: name.value }),
    } }),
  });
  refresh();
  if (added) {
    tell(`Member ${added.id} was added`, h('p', {}, 'Start it with this command, after replacing HOST:PORT by the address for its clients:'), h('pre', { class: 'command', tabindex: 0 }, added.command),
      h('p', {}, copier(() => added.command, 'command')));
  }
}

// catchingUp says what the leader does for a member that lags too far for its log.
function catchingUp(m, top) {
  const d = top?.kept_log?.deliveries?.find((d) => d.to === m.id);
  if (!d) return null;
  const words = { waiting: 'waits for a snapshot', sending: `gets a snapshot, ${bytes(d.body_bytes)}`, paused: 'snapshot paused', catching_up: `catches up, ${bytes(d.behind_bytes)} behind` };
  return (words[d.state] ?? d.state) + (d.reason ? ` (${d.reason})` : '');
}

// awaited reports whether a member was added and has never been up: it tells its client URLs
// when it starts.
const awaited = (m) => m.learner && !m.client_urls?.length;

// columns of the table: what each shows of a member, its status, and the leader's.
const columns = [
  ['Role', ({ m, s, c }) => m.id === c.leader ? 'leader' : m.learner ? 'learner' : s?.role ?? m.role],
  ['Health', ({ m, s, e, top }) => catchingUp(m, top) ?? (awaited(m) && e ? 'not started yet' : e ? 'unreachable' : s.alarms?.length ? plural(s.alarms.length, 'alarm') : m.reachable || m.id === live.self?.id ? 'ok' : 'no connection')],
  ['Lag', ({ m, s, top }) => { const n = m.behind ?? (s && top ? Math.max(0, top.commit - s.applied) : undefined); return n === undefined ? '–' : count(n); }],
  ['Applied', ({ s }) => s ? count(s.applied) : '–'],
  ['State hash', ({ s }) => s?.state_hash ?? '–'],
  ['Revision', ({ s }) => s ? count(s.revision) : '–'],
  ['Store', ({ s }) => s ? bytes(s.store_size_bytes) : '–'],
  ['Log', ({ s }) => s ? bytes(s.log_size_bytes) : '–'],
  ['Version', ({ s }) => s?.version ?? '–'],
  ['Up', ({ s }) => s ? duration(goSeconds(s.uptime)) : '–'],
];
const numeric = new Set(['Lag', 'Applied', 'Revision', 'Store', 'Log', 'Up']);

// newRow makes the row of a member. Live updates change texts only: buttons keep the
// focus.
function newRow(id) {
  const name = h('th', { scope: 'row' }, h('span', {}), h('small', {}), h('small', { class: 'mono' }));
  const cells = columns.map(([label]) => h('td', { 'data-label': label, class: numeric.has(label) ? 'num' : label === 'State hash' ? 'mono' : '' }));
  const find = () => live.members.find((m) => m.id === id);
  const buttons = {
    over: button('Hand over', () => handOver(find()), { class: 'quiet' }),
    promote: button('Promote', () => promote(find()), { class: 'quiet' }),
    remove: button('Remove', () => remove(find()), { class: 'quiet' }),
  };
  const actions = h('td', { class: 'actions' }, Object.values(buttons));
  const row = h('tr', { 'data-id': id }, name, cells, can('members') && actions);
  row.show = (view) => {
    const { m, c } = view;
    const leads = m.id === c.leader;
    setText(name.firstChild, m.name || `member ${m.id}`);
    setText(name.children[1], `ID ${m.id}${m.id === live.self?.id ? ' · this node' : ''}`);
    setText(name.lastChild, m.peer_urls.join(', '));
    columns.forEach(([, text], i) => setText(cells[i], text(view)));
    row.dataset.state = view.e ? awaited(m) ? 'warn' : 'bad' : view.s.alarms?.length ? 'warn' : 'ok';
    row.classList.toggle('leads', leads);
    buttons.over.hidden = leads || m.learner || !!view.e || !c.leader;
    buttons.promote.hidden = !m.learner;
    for (const [what, b] of Object.entries(buttons)) b.setAttribute('aria-label', `${what === 'over' ? 'Hand leadership over to' : what === 'promote' ? 'Promote' : 'Remove'} ${nameOf(m.id)}`);
  };
  return row;
}

function tile(label) {
  const value = h('dd', {}), note = h('small', {});
  const el = h('div', { class: 'tile' }, h('dt', {}, label), value, note);
  el.show = (text, more = '', state = '') => { setText(value, text); setText(note, more); el.dataset.state = state; };
  return el;
}

function showTiles(t, { cluster: c, members }) {
  const top = c.members.find((m) => m.id === c.leader)?.status ?? c.members.find((m) => m.status)?.status;
  const n = voters();
  const up = members.filter((m) => !m.learner && !c.members.find((x) => x.id === m.id)?.error).length;
  t.health.show(c.healthy ? 'healthy' : 'not healthy', `${up} of ${plural(n, 'voter')} up, ${majority(n)} needed`, c.healthy ? 'ok' : 'bad');
  t.leader.show(c.leader ? nameOf(c.leader) : 'none', top ? `term ${count(top.term)}` : '', c.leader ? '' : 'bad');
  const [hashes, note] = c.hashes_agree === true ? ['agree', plural(c.hashes_compared, 'comparison')] : c.hashes_agree === false ? ['differ', 'at the same log position']
    : ['–', members.length < 2 ? 'one member, nothing to compare' : 'no log position in common yet'];
  t.hashes.show(hashes, note, c.hashes_agree === false ? 'bad' : '');
  if (!top) return;
  t.revision.show(count(top.revision), `readable from ${count(top.compact_revision)}`);
  t.keys.show(count(top.keys), `${bytes(top.logical_size_bytes)} of ${top.quota_bytes ? bytes(top.quota_bytes) : 'no quota'}`);
}

function showAlarms(list, { cluster: c, members }) {
  const expected = new Set(members.filter(awaited).map((m) => m.id));
  const alarms = c.members.flatMap((m) => (m.status?.alarms ?? []).map((text) => `${nameOf(m.id)}: ${text}`).concat(m.error && !expected.has(m.id) ? [`${nameOf(m.id)}: ${m.error}`] : []));
  if (c.hashes_agree === false) alarms.unshift('The members have different states at the same log position. Stop writing, and compare them with kvd doctor.');
  const text = alarms.join('\n');
  if (list.dataset.text === text) return;
  list.dataset.text = text;
  list.hidden = alarms.length === 0;
  replace(list, alarms.map((a) => h('li', {}, a)));
}

export function open(main, _, signal) {
  const tiles = { health: tile('Health'), leader: tile('Leader'), revision: tile('Revision'), keys: tile('Keys'), hashes: tile('State hashes') };
  const alarms = h('ul', { class: 'note bad list', 'aria-label': 'Alarms', role: 'alert', hidden: true });
  const body = h('tbody');
  const stale = h('p', { class: 'note bad', hidden: true, role: 'alert' });
  const identity = h('p', { class: 'faint' });
  main.append(stale, h('dl', { class: 'tiles' }, Object.values(tiles)), alarms,
    h('div', { class: 'scroll' }, h('table', { class: 'members' }, h('caption', { class: 'unseen' }, 'Members'),
      h('thead', {}, h('tr', {}, h('th', { scope: 'col' }, 'Member'), columns.map(([c]) => h('th', { scope: 'col', class: numeric.has(c) ? 'num' : '' }, c)),
        can('members') && h('th', { scope: 'col' }, h('span', { class: 'unseen' }, 'Actions')))), body)),
    h('p', { class: 'row' }, can('members') && button('Add member…', add, { class: 'primary' }), identity));
  onLive((state) => {
    stale.hidden = !state.error;
    if (state.error) setText(stale, `${explain(state.error)}${state.cluster ? ' What you see is older.' : ''}`);
    if (!state.cluster || !state.members) return;
    if (!body.firstChild) drawn();
    showMembers(body, state);
    showTiles(tiles, state);
    showAlarms(alarms, state);
    setText(identity, `cluster ${state.cluster.cluster_id}${live.self ? `, shown by ${nameOf(live.self.id)}` : ''}`);
  }, signal);
}

function showMembers(body, { cluster: c, members }) {
  const top = c.members.find((m) => m.id === c.leader)?.status;
  const seen = new Set();
  members.forEach((m, i) => {
    const id = String(m.id);
    seen.add(id);
    let row = [...body.rows].find((r) => r.dataset.id === id);
    if (!row) row = newRow(m.id);
    if (body.rows[i] !== row) body.insertBefore(row, body.rows[i] ?? null);
    const entry = c.members.find((x) => x.id === m.id);
    row.show({ m, c, top, s: entry?.status, e: entry ? entry.error || (entry.status ? '' : 'no status') : 'no status' });
  });
  for (const row of [...body.rows]) if (!seen.has(row.dataset.id)) row.remove();
}
