// The HTTP interface of the node that served the page. Keys and values are any bytes;
// here they are "binary strings", with one character from 0 to 255 for each byte, whose
// order is the order of keys.

// writable is false if the node takes no changes from web pages (--ui=read).
export const writable = document.documentElement.dataset.ui === 'on';

const root = new URL('../', document.baseURI).pathname.replace(/\/$/, '');
const encoder = new TextEncoder();
const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

// Problem is an error document of the node.
export class Problem extends Error {
  constructor(status, doc) {
    super(doc.detail ?? doc.title ?? `The node answered with status ${status}.`);
    this.status = status;
    this.code = doc.code ?? 'unknown';
    this.doc = doc;
  }
}

export function binary(array) {
  let out = '';
  for (let i = 0; i < array.length; i += 8192) out += String.fromCharCode(...array.subarray(i, i + 8192));
  return out;
}

export function toBytes(bin) {
  const out = new Uint8Array(bin.length);
  for (let i = 0; i < bin.length; i++) out[i] = bin.charCodeAt(i);
  return out;
}

export const fromText = (text) => binary(encoder.encode(text));

// textOf returns the text that the bytes encode, or null if they are not UTF-8.
export function textOf(bin) {
  try { return decoder.decode(toBytes(bin)); } catch { return null; }
}

// Characters that would hide or reorder what is shown.
const hidden = /[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

// show returns bytes in one line that shows each of them.
export function show(bin) {
  const text = textOf(bin);
  if (text === null) return bin.replace(/[^\x20-\x7e]/g, (c) => `\\x${c.charCodeAt(0).toString(16).padStart(2, '0')}`);
  return text.replace(hidden, (c) => c === '\n' ? '\\n' : c === '\t' ? '\\t' : `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`);
}

// escape percent-encodes every byte that could mean something in a URL.
export const escape = (bin) => String(bin).replace(/[^A-Za-z0-9_~-]/g, (c) => `%${c.charCodeAt(0).toString(16).padStart(2, '0').toUpperCase()}`);

export const unescape = (text) => text.replace(/%([0-9a-fA-F]{2})/g, (_, hex) => String.fromCharCode(parseInt(hex, 16)));

// bytesIn returns a field that a document has as text or in base64.
export function bytesIn(doc, name) {
  const base64 = doc[`${name}_base64`];
  return base64 === undefined ? fromText(doc[name] ?? '') : atob(base64);
}

// url returns the address of a path with a query. Of the values, true means the name
// alone, and undefined that there is none.
export function url(path, query = {}) {
  const parts = Object.entries(query).filter(([, v]) => v !== undefined && v !== false && v !== null)
    .map(([k, v]) => v === true ? k : `${k}=${escape(v)}`);
  return `${root}${path}${parts.length ? '?' : ''}${parts.join('&')}`;
}

// placeOf returns the address of a view of the page, with parameters.
export function placeOf(view, params = {}) {
  const query = Object.entries(params).filter(([, v]) => v !== undefined && v !== null && v !== '').map(([k, v]) => `${k}=${escape(v)}`).join('&');
  return `#/${view}${query && '?'}${query}`;
}

export const keyPath = (key) => `/v1/kv/${escape(key)}`;

// The token of a login is kept for this tab alone.
const stored = `kvd token ${root}`;

export const tokenOf = () => sessionStorage.getItem(stored);

export function setToken(token) {
  if (token) sessionStorage.setItem(stored, token);
  else sessionStorage.removeItem(stored);
}

let refused = () => {};

// onRefused sets what happens when a request lacks credentials.
export const onRefused = (fn) => { refused = fn; };

// call sends a request and returns the Response, or throws a Problem. An open request
// needs no credentials, and brings its own.
export async function call(method, path, { query, headers, body, signal, open } = {}) {
  const token = !open && tokenOf();
  // What the browser has loaded ahead knows no token. Another mode keeps it from being taken
  // for the answer: headers do not count in that.
  const res = await fetch(url(path, query), {
    mode: token ? 'same-origin' : 'cors', method, headers: token ? { ...headers, Authorization: `Bearer ${token}` } : headers, body, signal, cache: 'no-store', credentials: 'same-origin', redirect: 'error',
  });
  if (res.ok || res.status === 304) return res;
  let doc = {};
  try { doc = await res.json(); } catch { /* what a proxy answers is not a problem document */ }
  if (res.status === 401 && !open && path !== '/v1/auth/whoami') refused();
  throw new Problem(res.status, doc);
}

export const getJSON = async (path, query, signal) => (await call('GET', path, { query, signal })).json();

// sendJSON changes something. The key makes a repeat by the browser harmless.
export async function sendJSON(method, path, { query, headers, doc, signal } = {}) {
  const res = await call(method, path, {
    query, signal, headers: { ...headers, ...(doc && { 'Content-Type': 'application/json' }) }, body: doc && JSON.stringify(doc),
  });
  return res.status === 204 ? null : res.json();
}

// once is a header for changes of which it matters that they happen once.
export const once = () => {
  const random = crypto.getRandomValues(new Uint8Array(16));
  return { 'Idempotency-Key': `ui-${Array.from(random, (b) => b.toString(16).padStart(2, '0')).join('')}` };
};

// lines yields the documents of an answer with one per line.
export async function* lines(path, query, signal) {
  const res = await call('GET', path, { query, signal, headers: { Accept: 'application/x-ndjson' } });
  const reader = res.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + value).split('\n');
      rest = parts.pop();
      for (const line of parts) if (line) yield JSON.parse(line);
    }
  } finally {
    reader.cancel().catch(() => {}); // a reader that has seen enough ends the stream
  }
}

// pairOf turns the JSON of a pair into one whose key and value are bytes.
export function pairOf(doc) {
  const hasValue = doc.value !== undefined || doc.value_base64 !== undefined;
  return {
    key: bytesIn(doc, 'key'), value: hasValue ? bytesIn(doc, 'value') : undefined,
    created: doc.create_revision, modified: doc.mod_revision, version: doc.version, lease: doc.lease || 0, ttl: doc.ttl,
  };
}
