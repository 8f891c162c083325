// A backup, with its progress.
import { call, getJSON, tokenOf, url } from './api.js';
import { aborted, button, bytes, count, failure, h, replace, setText } from './dom.js';

export const title = 'Backup';

const pieceBytes = 16 << 20; // collected in memory before the browser may put it on disk

const stamp = () => new Date().toISOString().slice(0, 19).replace(/[-:]/g, '').replace('T', '-');

function save(blob, name) {
  const address = URL.createObjectURL(blob);
  h('a', { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
}

// download reads a whole backup. One that breaks off throws: the node closes the
// connection in the middle, and the browser notices.
async function download(query, progress, signal) {
  const res = await call('GET', '/v1/snapshot', { query, signal });
  const reader = res.body.getReader(), blobs = [];
  let piece = [], pieceSize = 0, total = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    piece.push(value);
    pieceSize += value.length;
    progress(total += value.length);
    if (pieceSize >= pieceBytes) { blobs.push(new Blob(piece)); piece = []; pieceSize = 0; }
  }
  return new Blob([...blobs, ...piece], { type: 'application/octet-stream' });
}

export function open(main, _, signal) {
  const own = h('input', { type: 'checkbox', id: 'own-state' });
  const bar = h('progress', { 'aria-label': 'Progress of the backup' }), line = h('p', { class: 'faint', role: 'status' }), result = h('div', { role: 'status' });
  const area = h('div', { hidden: true }, bar, line);
  let running = null;
  signal.addEventListener('abort', () => running?.abort());
  const start = button('Download a backup', async () => {
    running = new AbortController();
    start.hidden = true;
    stop.hidden = area.hidden = false;
    replace(result);
    setText(line, 'The node prepares the backup…');
    const begun = performance.now();
    let spoken = 0;
    try {
      const { logical_size_bytes: size } = await getJSON('/v1/status', {}, running.signal);
      bar.removeAttribute('value');
      const blob = await download({ consistency: own.checked ? 'stale' : undefined }, (n) => {
        if (performance.now() - spoken < 250) return;
        spoken = performance.now();
        // The backup is compressed, so the size of the data is a bound, not a goal.
        bar.max = Math.max(size, n);
        bar.value = n;
        setText(line, `${bytes(n)} received, ${bytes(n / ((spoken - begun) / 1000))}/s`);
      }, running.signal);
      const name = `kvd-${stamp()}.snapshot`;
      bar.max = bar.value = 1;
      setText(line, `${bytes(blob.size)} in ${((performance.now() - begun) / 1000).toFixed(1)} s`);
      save(blob, name);
      replace(result, h('p', { class: 'note' }, 'Complete. Verify it with ', h('code', {}, `kvd snapshot verify ${name}`), '.'));
    } catch (err) {
      area.hidden = true;
      replace(result, aborted(err) ? h('p', { class: 'note warn' }, 'Canceled; nothing was saved.') : failure(err));
    }
    running = null;
    start.hidden = false;
    stop.hidden = true;
  }, { class: 'primary' });
  const stop = button('Cancel', () => running?.abort(), { hidden: true });
  const facts = h('dl', { class: 'facts' });
  main.append(h('p', {}, 'A consistent, compressed, checksummed copy of the whole state, history included. The node that serves this page takes it while the cluster keeps working.'), facts,
    h('p', { class: 'check' }, own, h('label', { for: 'own-state' }, 'This node’s own state, which needs no quorum and may be behind')),
    h('p', { class: 'row' }, start, stop, !tokenOf() && h('a', { class: 'button quiet', href: url('/v1/snapshot'), download: 'kvd.snapshot' }, 'Save straight to disk')), area, result,
    h('p', { class: 'faint' }, 'This page keeps a backup in memory until it is complete. For a larger one, ', !tokenOf() && [h('strong', {}, 'Save straight to disk'), ' hands it to the browser’s downloads, and '],
      h('code', {}, 'kvd snapshot save'), ' writes and verifies it. ', h('code', {}, 'kvd snapshot restore'), ' makes a new cluster from a backup.'));
  getJSON('/v1/status', {}, signal).then((st) => replace(facts, [['Keys', count(st.keys)], ['Live data', bytes(st.logical_size_bytes)], ['Store on disk', bytes(st.store_size_bytes)], ['Revision', count(st.revision)]].map(([k, v]) => [h('dt', {}, k), h('dd', {}, v)])), () => {});
}
