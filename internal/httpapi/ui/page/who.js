// Who uses the page, and what they may do. A login is kept in the storage of this tab
// alone, and ends with it.
import { call, getJSON, onRefused, setToken, tokenOf, writable } from './api.js';
import { ask } from './dialog.js';
import { $, button, field, h, replace } from './dom.js';

// who is the last response of /v1/auth/whoami; null before the first one, and if it failed.
export let who = null;

// open reports whether the page should offer everything: to root, while rights are disabled,
// and while they are not known, since the node checks each request anyway.
const open = () => !who || !who.enabled || who.root;

// can reports whether the page should offer actions that need a capability.
export const can = (capability) => writable && (open() || who.capabilities.includes(capability));

// sees reports whether the page should show what needs a capability.
export const sees = (capability) => open() || who.capabilities.includes(capability);

// writes reports whether somebody may write a key or a lock; without a name, whether they
// may write any.
export function writes(name, space = 'keys') {
  if (!writable) return false;
  if (open()) return true;
  const permissions = who.permissions.filter((p) => p.access !== 'read' && p.space === space);
  return name === undefined ? permissions.length > 0 : permissions.some((p) => covers(p, name));
}

const bytesOf = (p, field) => p[`${field}_base64`] !== undefined ? atob(p[`${field}_base64`]) : p[field] === undefined ? undefined : binaryOf(p[field]);
const encoder = new TextEncoder();
const binaryOf = (text) => Array.from(encoder.encode(text), (b) => String.fromCharCode(b)).join('');

// covers reports whether a permission is about a name, which is bytes.
function covers(p, name) {
  const key = bytesOf(p, 'key'), prefix = bytesOf(p, 'prefix');
  if (key !== undefined) return key === name;
  if (prefix !== undefined) return name.startsWith(prefix);
  const start = bytesOf(p, 'start') ?? '', end = bytesOf(p, 'end');
  return name >= start && (end === undefined || name < end);
}

const changed = new Set();

// onWho calls fn after each change of who uses the page.
export const onWho = (fn) => changed.add(fn);

let renewal;

// learn asks who uses the page.
export async function learn() {
  try {
    who = await getJSON('/v1/auth/whoami', { timeout: '3s' });
  } catch (err) {
    if (err.status === 401 && tokenOf()) { setToken(null); return learn(); }
    who = null;
  }
  for (const fn of changed) fn();
}

// signIn asks for credentials until they are right, or the person changes their mind.
export async function signIn(reason) {
  const user = h('input', { name: 'user', autocomplete: 'username', autocapitalize: 'none', spellcheck: 'false' });
  const password = h('input', { name: 'password', type: 'password', autocomplete: 'current-password' });
  const token = h('input', { name: 'token', type: 'password', autocomplete: 'off', class: 'mono' });
  const done = await ask({
    title: 'Log in', action: 'Log in',
    body: [reason && h('p', {}, reason), field('User', user), field('Password', password), h('details', {}, h('summary', {}, 'Use a token instead'), field('Token', token)),
      h('p', { class: 'faint' }, 'The login is stored for this tab only.')],
    run: async () => {
      if (token.value) {
        await probe(token.value.trim());
        return true;
      }
      await login(user.value, password.value);
      return true;
    },
  });
  if (done) await learn();
  return !!done;
}

// probe takes a token into use if the node knows it.
async function probe(token) {
  const before = tokenOf();
  setToken(token);
  try { await getJSON('/v1/auth/whoami'); } catch (err) { setToken(before); throw err; }
}

// login exchanges the password for a token, and again before that one ends, as long as the
// page is open. The password is nowhere but here.
async function login(user, password) {
  const res = await call('POST', '/v1/auth/login', { headers: { 'Content-Type': 'application/json' }, body: JSON.stringify({ user, password }), open: true });
  const doc = await res.json();
  setToken(doc.token);
  clearTimeout(renewal);
  const left = Math.max(30_000, (new Date(doc.expires) - Date.now()) * 0.8);
  renewal = setTimeout(() => login(user, password).catch(() => {}), left);
}

function signOut() {
  clearTimeout(renewal);
  setToken(null);
  return learn();
}

let asking = false;

// The first request that is refused for lack of credentials opens the login dialog. A user
// who cancels it can use the button.
onRefused(async () => {
  if (asking) return;
  asking = true;
  if (await signIn('You need to log in, or your login has expired.')) location.reload();
});

// badge shows who uses the page, and lets them log in and out.
export function badge() {
  const el = h('span', { class: 'who' });
  onWho(() => {
    if (!who?.enabled) return replace(el);
    replace(el, who.user ? [h('a', { href: '#/access', class: 'user' }, who.user), tokenOf() ? button('Log out', signOutAndReload, { class: 'quiet' }) : null]
      : button('Log in', async () => { if (await signIn()) location.reload(); }, { class: 'badge' }));
  });
  return el;
}

const signOutAndReload = () => signOut().then(() => location.reload());
