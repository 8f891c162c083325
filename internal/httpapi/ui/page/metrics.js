// Rates and latencies of the node that serves the page, as small charts. The node keeps
// no past, so the charts begin when the page is opened.
import { url } from './api.js';
import { bytes, count, duration, every, explain, h, s, setText } from './dom.js';
import { live, nameOf } from './live.js';

export const title = 'Metrics';

const interval = 2000, points = 150;
const reads = [['GET', '/v1/kv/{key}'], ['GET', '/{key}'], ['GET', '/v1/kv'], ['HEAD', '/v1/kv/{key}'], ['HEAD', '/{key}']];
const isRead = (l) => reads.some(([m, r]) => l.method === m && l.route === r);
const isWrite = (l) => ['PUT', 'POST', 'DELETE'].includes(l.method) && /^\/(v1\/(kv|txn|batch|leases|locks)|\{key\})/.test(l.route);

// parse reads Prometheus' text format into samples by name.
function parse(text) {
  const all = new Map();
  for (const [, name, labels, value] of text.matchAll(/^([a-z_:]\w*)(?:\{(.*)\})? (\S+)/gim)) {
    const l = {};
    for (const [, k, v] of (labels ?? '').matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) l[k] = v;
    if (!all.has(name)) all.set(name, []);
    all.get(name).push({ labels: l, value: Number(value) });
  }
  return all;
}

const sum = (m, name, keep = () => true) => (m.get(name) ?? []).reduce((n, x) => keep(x.labels) ? n + x.value : n, 0);
const gauge = (name) => (now) => now.has(name) ? sum(now, name) : null;
const rate = (name, keep) => (now, old, seconds) => (sum(now, name, keep) - sum(old, name, keep)) / seconds;

// quantile returns one of what a histogram has seen between two scrapes, in the unit of
// its bounds, or null if it has seen nothing.
const quantile = (name, q, keep = () => true) => (now, old) => {
  const add = (m) => { const b = new Map(); for (const x of m.get(`${name}_bucket`) ?? []) if (keep(x.labels)) b.set(x.labels.le, (b.get(x.labels.le) ?? 0) + x.value); return b; };
  const a = add(now), b = add(old);
  const buckets = [...a].map(([le, n]) => [le === '+Inf' ? Infinity : Number(le), n - (b.get(le) ?? 0)]).sort((x, y) => x[0] - y[0]);
  const total = buckets.at(-1)?.[1] ?? 0;
  if (total <= 0) return null;
  let low = 0, below = 0;
  for (const [le, n] of buckets) {
    if (n >= q * total) return le === Infinity ? low : low + (le - low) * (n > below ? (q * total - below) / (n - below) : 1);
    [low, below] = [le, n];
  }
  return low;
};

const time = (v) => v < 0.001 ? `${(v * 1e6).toFixed(0)} µs` : v < 1 ? `${(v * 1000).toFixed(v < 0.01 ? 2 : 1)} ms` : duration(v);
const perSecond = (v) => `${v < 10 ? v.toFixed(1) : count(Math.round(v))}/s`;
const http = 'kvd_http_request_duration_seconds';

const charts = [
  ['Requests', perSecond, ['reads', rate('kvd_http_requests_total', isRead)], ['writes', rate('kvd_http_requests_total', isWrite)]],
  ['Latency of reads', time, ['median', quantile(http, 0.5, isRead)], ['99%', quantile(http, 0.99, isRead)]],
  ['Latency of writes', time, ['median', quantile(http, 0.5, isWrite)], ['99%', quantile(http, 0.99, isWrite)]],
  ['Commands applied', perSecond, ['commands', rate('kvd_apply_commands_total')], ['log entries', rate('kvd_apply_entries_total')]],
  ['Sync of the log', time, ['median', quantile('etcd_disk_wal_fsync_duration_seconds', 0.5)], ['99%', quantile('etcd_disk_wal_fsync_duration_seconds', 0.99)]],
  ['Refused requests', perSecond, ['refused', rate('kvd_rejected_total')]],
  ['Requests in progress', count, ['requests', gauge('kvd_http_inflight_requests')]],
  ['Waiting in raft', count, ['proposals', (m) => sum(m, 'kvd_raft_proposals_waiting') + sum(m, 'kvd_raft_proposals_inflight')], ['not yet applied', gauge('kvd_apply_lag_entries')]],
  ['Size on disk', bytes, ['store', gauge('kvd_store_disk_bytes')], ['raft log', gauge('kvd_raft_log_bytes')]],
  ['Memory of the process', bytes, ['resident', gauge('process_resident_memory_bytes')], ['Go heap', gauge('go_memstats_heap_inuse_bytes')]],
  ['Processor', (v) => `${(v * 100).toFixed(0)}%`, ['of one core', rate('process_cpu_seconds_total')]],
  ['Leader changes', count, ['since the start', gauge('kvd_raft_leader_changes_total')]],
];

// Chart keeps the newest points of its lines.
class Chart {
  constructor([name, format, ...series]) {
    this.format = format;
    this.series = series.map(([label, of], i) => ({ of, data: [], path: s('path', { class: i ? 'second' : '' }), value: h('b', {}, '–'), label }));
    this.top = h('span', {});
    this.svg = s('svg', { viewBox: `0 0 ${points - 1} 100`, preserveAspectRatio: 'none', role: 'img' },
      s('line', { x1: 0, x2: points - 1, y1: 100, y2: 100 }), s('line', { x1: 0, x2: points - 1, y1: 0, y2: 0 }), this.series.map((x) => x.path));
    this.name = name;
    this.el = h('figure', { class: 'chart' }, h('figcaption', {}, h('div', { class: 'title' }, h('strong', {}, name), this.top),
      this.series.map((x, i) => h('span', {}, h('i', { class: i ? 'second' : '' }), `${x.label} `, x.value))), this.svg);
  }

  add(now, old, seconds) {
    for (const x of this.series) {
      const v = x.of(now, old, seconds);
      x.data.push(v);
      if (x.data.length > points) x.data.shift();
      setText(x.value, v === null ? '–' : this.format(v));
    }
    this.draw();
  }

  draw() {
    const most = Math.max(...this.series.flatMap((x) => x.data.filter((v) => v !== null)), 0), max = most || 1;
    setText(this.top, most ? `peak ${this.format(most)}` : '');
    for (const { data, path } of this.series) {
      let d = '', gap = true;
      data.forEach((v, i) => {
        if (v !== null) d += `${gap ? 'M' : 'L'}${points - data.length + i} ${(100 - 97 * v / max).toFixed(1)}`;
        gap = v === null;
      });
      path.setAttribute('d', d);
    }
    this.svg.setAttribute('aria-label', `${this.name}: ${this.series.map((x) => `${x.label} ${x.value.textContent}`).join(', ')}`);
  }
}

export function open(main, _, signal) {
  const all = charts.map((c) => new Chart(c));
  const trouble = h('p', { class: 'note bad', role: 'alert', hidden: true });
  const who = h('p', { class: 'faint' });
  main.append(trouble, who, h('div', { class: 'charts' }, all.map((c) => c.el)),
    h('p', { class: 'faint' }, 'The last five minutes at most, from ', h('a', { href: url('/metrics') }, '/metrics'), ', which Prometheus can scrape. Each member shows its own figures at its own /ui/.'));
  let old = null, at = 0;
  every(interval, async () => {
    try {
      const res = await fetch(url('/metrics'), { signal, cache: 'no-store' });
      if (!res.ok) throw new Error(`The metrics are not available (status ${res.status}).`);
      const now = parse(await res.text()), t = performance.now();
      trouble.hidden = true;
      setText(who, live.self ? `${nameOf(live.self.id)}, which serves this page` : '');
      if (old) for (const c of all) c.add(now, old, (t - at) / 1000);
      [old, at] = [now, t];
    } catch (err) {
      if (err.name === 'AbortError') return;
      trouble.hidden = false;
      setText(trouble, explain(err));
    }
  }, signal);
}
