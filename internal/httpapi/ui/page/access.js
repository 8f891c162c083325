// Users, roles, and tokens, for those who may see them, and what the caller may do.
import { bytesIn, call, getJSON, once, sendJSON, show, writable } from './api.js';
import { ask, tell } from './dialog.js';
import { button, copier, drawn, failure, field, h, plural, replace, toast } from './dom.js';
import { can, sees, signIn, who } from './who.js';

export const title = 'Access';

const enc = encodeURIComponent;

// describe puts a permission into words.
function describe(p) {
  const what = p.space === 'locks' ? 'locks' : 'keys';
  const has = (name) => p[name] !== undefined || p[`${name}_base64`] !== undefined;
  const bytes = (name) => show(bytesIn(p, name));
  let names = `from ${bytes('start')}${has('end') ? ` to before ${bytes('end')}` : ' on'}`;
  if (has('key')) names = bytes('key');
  else if (has('prefix')) names = bytesIn(p, 'prefix') === '' ? 'all' : `${bytes('prefix')}…`;
  return h('li', {}, h('span', { class: 'faint' }, `${p.access === 'readwrite' ? 'read and write' : p.access} ${what} `), h('code', {}, names));
}

const rightsList = (doc) => h('ul', { class: 'rights' }, doc.permissions.map(describe), doc.capabilities.map((c) => h('li', {}, h('span', { class: 'faint' }, 'may use '), h('code', {}, c))),
  !doc.permissions.length && !doc.capabilities.length && h('li', { class: 'faint' }, 'nothing'));

// all reads every page of a list.
async function all(path, name, signal) {
  const items = [];
  for (let cursor; ;) {
    const doc = await getJSON(path, { cursor }, signal);
    items.push(...doc[name]);
    if (!doc.next) return items;
    cursor = doc.next;
  }
}

// tagged reads an entry and the condition for changing it, so that a change made meanwhile
// is not undone.
async function tagged(path) {
  const res = await call('GET', path);
  return [await res.json(), { 'If-Match': res.headers.get('ETag') }];
}

const table = (caption, columns, rows) => h('div', { class: 'scroll' }, h('table', { class: 'stack' }, h('caption', { class: 'unseen' }, caption),
  h('thead', {}, h('tr', {}, columns.map((c) => h('th', { scope: 'col' }, c === 'Actions' ? h('span', { class: 'unseen' }, c) : c)))), h('tbody', {}, rows)));

async function editUser(name, roles, again) {
  const [user, match] = name ? await tagged(`/v1/users/${enc(name)}`) : [{ roles: [] }, { 'If-None-Match': '*' }];
  const input = h('input', { required: true, autocomplete: 'off', spellcheck: 'false', value: name ?? '', disabled: !!name });
  const password = h('input', { type: 'password', autocomplete: 'new-password' });
  const boxes = [...new Set([...roles.map((r) => r.name), 'root', ...user.roles])].filter((r) => r !== 'anonymous')
    .map((r, i) => [r, h('input', { type: 'checkbox', id: `role${i}`, checked: user.roles.includes(r) })]);
  const saved = await ask({
    title: name ? `User ${name}` : 'Add a user', action: name ? 'Save' : 'Add user',
    body: [field('Name', input), field(name ? 'New password' : 'Password', password, name ? 'leave it empty to keep the current one' : 'optional; without one, the user needs a token or a certificate'),
      h('fieldset', {}, h('legend', {}, 'Roles'), boxes.map(([r, box]) => h('p', { class: 'check' }, box, h('label', { for: box.id }, r))))],
    run: () => sendJSON('PUT', `/v1/users/${enc(input.value)}`, { headers: { ...match, ...once() }, doc: {
      roles: boxes.filter(([, box]) => box.checked).map(([r]) => r), ...(password.value && { password: password.value }) } }),
  });
  if (saved) { toast(`User ${saved.name} is saved`); again(); }
}

// permissionRow is the form of one permission.
function permissionRow(p = { access: 'read', space: 'keys', prefix: '' }) {
  const select = (label, options, value) => { const el = h('select', { 'aria-label': label }, options.map(([v, t]) => h('option', { value: v }, t))); el.value = value; return el; };
  const kind = ['key', 'prefix', 'start'].find((k) => p[k] !== undefined);
  if (!kind || p.end_base64 !== undefined) return { el: h('p', { class: 'check' }, rightsList({ permissions: [p], capabilities: [] })), doc: () => p }; // bytes that a form cannot show
  const access = select('Access', [['read', 'read'], ['write', 'write'], ['readwrite', 'read and write']], p.access);
  const space = select('Of what', [['keys', 'keys'], ['locks', 'locks']], p.space);
  const how = select('Which', [['prefix', 'that begin with'], ['key', 'named'], ['start', 'in the range']], kind);
  const name = h('input', { 'aria-label': 'Key or lock', value: p[kind], autocomplete: 'off', spellcheck: 'false', class: 'mono' });
  const end = h('input', { 'aria-label': 'End', value: p.end ?? '', placeholder: 'end', autocomplete: 'off', spellcheck: 'false', class: 'mono' });
  const shape = () => { end.hidden = how.value !== 'start'; };
  how.addEventListener('change', shape);
  shape();
  const el = h('div', { class: 'row permission' }, access, space, how, name, end, button('Remove', () => el.remove(), { class: 'quiet' }));
  return { el, doc: () => ({ access: access.value, space: space.value, [how.value]: name.value, ...(how.value === 'start' && end.value && { end: end.value }) }) };
}

async function editRole(name, again) {
  const [role, match] = name ? await tagged(`/v1/roles/${enc(name)}`) : [{ permissions: [], capabilities: [] }, { 'If-None-Match': '*' }];
  const input = h('input', { required: true, autocomplete: 'off', spellcheck: 'false', value: name ?? '', disabled: !!name });
  const rows = new Map(), list = h('div', {});
  const add = (p) => { const row = permissionRow(p); rows.set(row.el, row.doc); list.append(row.el); };
  role.permissions.forEach(add);
  const boxes = ['members', 'settings', 'backup', 'operate', 'auth'].map((c) => [c, h('input', { type: 'checkbox', id: `cap-${c}`, checked: role.capabilities.includes(c) })]);
  const saved = await ask({
    title: name ? `Role ${name}` : 'Add a role', action: name ? 'Save' : 'Add role',
    body: [field('Name', input, name ? null : 'requests without credentials have the rights of the role anonymous'),
      h('fieldset', {}, h('legend', {}, 'Permissions'), list, button('Add a permission', () => add(), { class: 'quiet' })),
      h('fieldset', {}, h('legend', {}, 'Capabilities'), boxes.map(([c, box]) => h('p', { class: 'check' }, box, h('label', { for: box.id }, c))))],
    run: () => sendJSON('PUT', `/v1/roles/${enc(input.value)}`, { headers: { ...match, ...once() }, doc: {
      permissions: [...rows].filter(([el]) => el.isConnected).map(([, doc]) => doc()), capabilities: boxes.filter(([, box]) => box.checked).map(([c]) => c) } }),
  });
  if (saved) { toast(`Role ${saved.name} is saved`); again(); }
}

async function remove(what, name, path, text, again) {
  await ask({ title: `Delete ${what} ${name}?`, action: 'Delete', danger: true, body: h('p', {}, text),
    run: () => sendJSON('DELETE', path, { headers: once() }).then(() => toast(`Deleted ${what} ${name}`)) });
  again();
}

async function createToken(user, again) {
  const label = h('input', { autocomplete: 'off' }), ttl = h('input', { value: '720h', autocomplete: 'off', class: 'mono' });
  const name = h('input', { value: user, required: true, autocomplete: 'off', spellcheck: 'false', disabled: !can('auth') });
  const made = await ask({
    title: 'Create a token', action: 'Create',
    body: [h('p', {}, 'A token lets a program act as the user, without its password.'), field('User', name), field('Label', label, 'what it is for'), field('Expires after', ttl, 'empty means never')],
    run: () => sendJSON('POST', '/v1/tokens', { doc: { user: name.value, label: label.value, ...(ttl.value.trim() && { ttl: ttl.value.trim() }) } }),
  });
  if (made) tell('The token', h('p', {}, 'Copy it now: it cannot be shown again.'), h('pre', { class: 'command', tabindex: 0 }, made.secret), h('p', {}, copier(() => made.secret, 'token')));
  again();
}

async function passwordOf(user) {
  const one = h('input', { type: 'password', required: true, autocomplete: 'new-password' }), two = h('input', { type: 'password', required: true, autocomplete: 'new-password' });
  const saved = await ask({ title: 'Change your password', action: 'Change', body: [h('p', {}, 'Logins with the old password end; tokens stay valid.'), field('New password', one), field('Repeat the password', two)],
    run: () => {
      if (one.value !== two.value) throw new Error('The passwords differ.');
      return sendJSON('PUT', `/v1/users/${enc(user)}`, { doc: { password: one.value } });
    } });
  if (saved && await signIn('Your password has changed. Log in with the new one.')) location.reload();
}

// enable makes the user root and enables rights in one step.
async function enable() {
  const one = h('input', { type: 'password', required: true, autocomplete: 'new-password' });
  const done = await ask({ title: 'Enable rights', action: 'Enable', danger: true,
    body: [h('p', {}, 'From then on, requests need credentials. The user root may do everything.'), field('Password of root', one)],
    run: () => sendJSON('PUT', '/v1/auth', { headers: once(), doc: { enabled: true, root_password: one.value } }) });
  if (done) { await signIn('Rights are enabled. Log in as root.'); location.reload(); }
}

// A token or JSON Web Token gives no right to make others.
const lasting = () => ['token', 'jwt'].includes(who?.proof);
const when = (text) => text ? new Date(text).toLocaleString() : 'never';

async function fill(parts, signal) {
  const again = () => fill(parts, signal);
  const edit = can('auth');
  try {
    const [users, roles, tokens] = await Promise.all([
      sees('auth') ? all('/v1/users', 'users', signal) : [], sees('auth') ? all('/v1/roles', 'roles', signal) : [], all('/v1/tokens', 'tokens', signal)]);
    const actions = (...bs) => h('td', { class: 'actions' }, bs);
    const last = (shown) => shown ? ['Actions'] : [];
    if (sees('auth')) {
      replace(parts.users, table('Users', ['User', 'Roles', 'Password', ...last(edit)], users.map((u) => h('tr', { 'data-user': u.name }, h('th', { scope: 'row' }, u.name),
        h('td', { 'data-label': 'Roles' }, u.roles.join(', ') || '–'), h('td', { 'data-label': 'Password' }, u.has_password ? 'yes' : 'no'),
        edit && actions(button('Edit…', () => editUser(u.name, roles, again).catch((e) => toast(e.message, true)), { class: 'quiet', 'aria-label': `Edit user ${u.name}` }),
          button('Delete…', () => remove('user', u.name, `/v1/users/${enc(u.name)}`, 'Its tokens end with it.', again), { class: 'quiet', 'aria-label': `Delete user ${u.name}` }))))),
      h('p', { class: 'row' }, h('span', { class: 'faint' }, plural(users.length, 'user')), edit && button('Add a user…', () => editUser(null, roles, again))));
      replace(parts.roles, table('Roles', ['Role', 'Permits', ...last(edit)], roles.map((r) => h('tr', { 'data-role': r.name }, h('th', { scope: 'row' }, r.name), h('td', { 'data-label': 'Permits' }, rightsList(r)),
        edit && actions(button('Edit…', () => editRole(r.name, again).catch((e) => toast(e.message, true)), { class: 'quiet', 'aria-label': `Edit role ${r.name}` }),
          button('Delete…', () => remove('role', r.name, `/v1/roles/${enc(r.name)}`, 'Its users lose it.', again), { class: 'quiet', 'aria-label': `Delete role ${r.name}` }))))),
      h('p', { class: 'row' }, h('span', { class: 'faint' }, plural(roles.length, 'role')), edit && button('Add a role…', () => editRole(null, again))));
    }
    const own = writable && (edit || !lasting());
    replace(parts.tokens, table('Tokens', ['Token', 'User', 'Label', 'Created', 'Expires', 'Last used', ...last(own)], tokens.map((t) => h('tr', {}, h('th', { scope: 'row', class: 'mono' }, t.id), h('td', { 'data-label': 'User' }, t.user),
      h('td', { 'data-label': 'Label' }, t.label || '–'), h('td', { 'data-label': 'Created' }, when(t.created)), h('td', { 'data-label': 'Expires' }, when(t.expires)),
      h('td', { 'data-label': 'Last used', title: 'as the node that this page talks to has seen since it started' }, t.last_used ? when(t.last_used) : '–'),
      own && actions(button('Revoke…', () => remove('token', t.id, `/v1/tokens/${t.id}`, 'Programs that use it are refused from now on.', again), { class: 'quiet', 'aria-label': `Revoke token ${t.id}` }))))),
    h('p', { class: 'row' }, h('span', { class: 'faint' }, plural(tokens.length, 'token')), own && button('Create a token…', () => createToken(who?.user ?? '', again))));
  } catch (err) {
    if (!signal.aborted) replace(parts.tokens, failure(err, button('Try again', again)));
  }
}

export function open(main, _, signal) {
  const you = h('div');
  const parts = { users: h('div'), roles: h('div'), tokens: h('div') };
  if (who && !who.enabled) {
    replace(you, h('p', {}, 'Rights are disabled: every client may do everything.'), writable && h('p', {}, button('Enable rights…', enable)));
  } else if (who && !who.user) {
    replace(you, h('p', {}, 'You are not logged in.'), h('p', {}, button('Log in', async () => { if (await signIn()) location.reload(); }, { class: 'primary' })),
      who.permissions.length + who.capabilities.length > 0 && [h('p', {}, 'Without that, you may:'), rightsList(who)]);
  } else if (who) {
    replace(you, h('p', {}, 'You are ', h('strong', {}, who.user), who.roles.length ? ` with ${plural(who.roles.length, 'role')}: ${who.roles.join(', ')}` : ', who has no roles', '.'),
      who.root ? h('p', {}, 'You may do everything.') : rightsList(who),
      writable && !lasting() && h('p', {}, button('Change your password…', () => passwordOf(who.user))));
  }
  drawn();
  main.append(h('section', { 'aria-labelledby': 'a-you' }, h('h2', { id: 'a-you' }, 'You'), you));
  if (!who || who.enabled && !who.user) return undefined;
  if (sees('auth')) {
    main.append(h('section', { 'aria-labelledby': 'a-users' }, h('h2', { id: 'a-users' }, 'Users'), parts.users),
      h('section', { 'aria-labelledby': 'a-roles' }, h('h2', { id: 'a-roles' }, 'Roles'), parts.roles));
  }
  main.append(h('section', { 'aria-labelledby': 'a-tokens' }, h('h2', { id: 'a-tokens' }, 'Tokens'), parts.tokens));
  fill(parts, signal);
  return undefined;
}
