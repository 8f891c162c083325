// The frame of the page: which view is shown, and how the cluster is.
import { writable, unescape } from './api.js';
import { tell } from './dialog.js';
import { $, button, failure, h, replace, setText } from './dom.js';
import { nameOf, onLive } from './live.js';
import { badge, learn, sees, onWho } from './who.js';
import * as cluster from './cluster.js';

// together loads a view and the modules that it needs at once, not one after another.
const together = (...modules) => Promise.all(modules).then(([view]) => view);

// Views other than the first are loaded when somebody goes there, or has seen the first.
const views = {
  cluster: ['Cluster', async () => cluster],
  keys: ['Keys', () => together(import('./keys.js'), import('./value.js'), import('./history.js'), import('./diff.js'))],
  watch: ['Watch', () => together(import('./watch.js'), import('./value.js'), import('./history.js'), import('./diff.js'))],
  leases: ['Leases', () => import('./leases.js')],
  metrics: ['Metrics', () => import('./metrics.js')],
  settings: ['Settings', () => import('./settings.js')],
  backup: ['Backup', () => import('./backup.js')],
  access: ['Access', () => import('./access.js')],
};

const main = $('#main');
let current = { name: null, end: new AbortController(), update: null };

// place reads the address: #/keys?prefix=a%2F is the view keys with a parameter.
function place() {
  const [path, query = ''] = location.hash.replace(/^#\/?/, '').split('?');
  const params = {};
  for (const part of query.split('&')) {
    const [name, value = ''] = part.split('=');
    if (name) params[name] = unescape(value);
  }
  return { name: path in views ? path : 'cluster', params };
}

async function navigate(moved) {
  const { name, params } = place();
  for (const a of document.querySelectorAll('#nav a')) {
    if (a.dataset.view === name) { a.setAttribute('aria-current', 'page'); a.scrollIntoView({ block: 'nearest', inline: 'center' }); }
    else a.removeAttribute('aria-current');
  }
  if (name === current.name && current.update) {
    current.update(params);
    return;
  }
  current.end.abort();
  current = { name, end: new AbortController(), update: null };
  const mine = current;
  document.title = `${views[name][0]} – kvd`;
  main.dataset.view = name;
  try {
    const [view] = await Promise.all([views[name][1](), known]); // what is offered depends on who asks
    if (mine !== current) return;
    const heading = h('h1', { tabindex: -1 }, view.title);
    replace(main, heading);
    mine.update = view.open(main, params, mine.end.signal);
    if (moved) heading.focus({ preventScroll: true });
  } catch (err) {
    replace(main, failure(err));
  }
}

// troubles are the errors that say nothing about the health of the cluster.
const troubles = { unauthenticated: ['', 'not logged in'], permission_denied: ['', 'you may not see the cluster'] };

function pulse({ cluster: c, error }) {
  const el = $('#pulse');
  let state = 'ok', text = '';
  if (error) [state, text] = troubles[error.code] ?? ['bad', error.code?.replaceAll('_', ' ') ?? 'no answer'];
  else if (!c.healthy) [state, text] = ['warn', 'not healthy'];
  else text = 'healthy';
  if (c?.hashes_agree === false) [state, text] = ['bad', 'replicas differ'];
  el.dataset.state = state;
  setText(el.lastElementChild, c && !error ? `${text} · ${c.leader ? `leader ${nameOf(c.leader)}` : 'no leader'}` : text);
}

replace($('#nav'), Object.entries(views).map(([name, [title]]) => h('li', {}, h('a', { href: `#/${name}`, 'data-view': name }, title))));
if (!writable) $('.brand').after(button('read only', () => tell('Read only', h('p', {}, 'This node takes no changes from web pages. It was started with --ui=read, or serves addresses beyond this machine and was not told otherwise.'),
    h('p', {}, 'Use curl or the kvd command, or start the node with --ui=on.')), { class: 'badge' }));
window.addEventListener('hashchange', () => navigate(true));
$('.skip').addEventListener('click', (event) => { event.preventDefault(); main.focus(); });
$('#pulse').after(badge());
// What somebody may not do at all is not offered.
onWho(() => { for (const a of document.querySelectorAll('#nav a')) a.parentElement.hidden = a.dataset.view === 'backup' && !sees('backup'); });
const known = learn();
onLive(pulse);
navigate(false);
setTimeout(() => { for (const [, load] of Object.values(views)) load().catch(() => {}); }, 3000);
