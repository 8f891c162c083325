// What the cluster looks like now, asked for once for everybody who shows it.
import { getJSON } from './api.js';
import { every } from './dom.js';

const interval = 2000;
const watchers = new Set();

// live has the newest answers. An answer that failed leaves the one before in place,
// beside the error.
export const live = { self: null, cluster: null, members: null, error: null };

// onLive calls fn with live, now if there is something and after each change.
export function onLive(fn, signal) {
  watchers.add(fn);
  signal?.addEventListener('abort', () => watchers.delete(fn));
  if (live.cluster || live.error) fn(live);
}

async function poll() {
  const [cluster, members, self] = await Promise.allSettled([
    getJSON('/v1/cluster', { timeout: '3s' }), getJSON('/v1/members', { timeout: '3s' }), live.self ?? getJSON('/v1/status'),
  ]);
  live.error = cluster.reason ?? null;
  if (cluster.value) live.cluster = cluster.value;
  if (members.value) live.members = members.value.members;
  if (self.value) live.self = self.value;
  for (const fn of watchers) fn(live);
}

// refresh asks again at once, after a change.
export const refresh = every(interval, poll);

// nameOf returns what to call a member.
export function nameOf(id) {
  const m = live.members?.find((m) => m.id === id);
  return m?.name ? `${m.name} (${id})` : `member ${id}`;
}
