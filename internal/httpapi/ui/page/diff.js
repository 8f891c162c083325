// What changed between two texts, line by line (E. W. Myers, "An O(ND) Difference
// Algorithm and Its Variations", 1986), and how that looks.
import { h, plural } from './dom.js';

const maxDistance = 800; // beyond it, the texts have little in common anyway
const context = 3;       // unchanged lines around a change
const maxLines = 20000;

// walk goes back along the path that reached the end, and yields its steps.
function walk(trace, a, b) {
  const steps = [];
  let x = a.length, y = b.length;
  for (let d = trace.length - 1; d >= 0; d--) {
    const v = trace[d], k = x - y;
    const down = k === -d || (k !== d && v.get(k - 1) < v.get(k + 1));
    const fromX = d === 0 ? 0 : v.get(down ? k + 1 : k - 1), fromY = d === 0 ? 0 : fromX - (down ? k + 1 : k - 1);
    while (x > fromX && y > fromY) steps.push(['=', a[--x], b[--y]]);
    if (d === 0) break;
    if (down) steps.push(['+', null, b[--y]]);
    else steps.push(['-', a[--x], null]);
  }
  return steps.reverse();
}

function shortest(a, b) {
  let v = new Map([[1, 0]]);
  const trace = [];
  for (let d = 0; d <= Math.min(a.length + b.length, maxDistance); d++) {
    trace.push(new Map(v));
    for (let k = -d; k <= d; k += 2) {
      let x = k === -d || (k !== d && (v.get(k - 1) ?? -1) < (v.get(k + 1) ?? -1)) ? v.get(k + 1) : v.get(k - 1) + 1;
      while (x < a.length && x - k < b.length && a[x] === b[x - k]) x++;
      v.set(k, x);
      if (x >= a.length && x - k >= b.length) return walk(trace, a, b);
    }
  }
  return [...a.map((line) => ['-', line, null]), ...b.map((line) => ['+', null, line])];
}

// compare returns the steps from one list of lines to another: [sign, old, new].
export function compare(a, b) {
  let head = 0, tail = 0;
  while (head < a.length && head < b.length && a[head] === b[head]) head++;
  while (tail < a.length - head && tail < b.length - head && a[a.length - 1 - tail] === b[b.length - 1 - tail]) tail++;
  const same = (line) => ['=', line, line];
  return [...a.slice(0, head).map(same), ...shortest(a.slice(head, a.length - tail), b.slice(head, b.length - tail)), ...a.slice(a.length - tail).map(same)];
}

// pairs puts what was removed beside what came in its place.
function pairs(steps) {
  const rows = [];
  let removed = [];
  const flush = () => { for (const line of removed) rows.push(['-', line, null]); removed = []; };
  for (const [sign, old, now] of steps) {
    if (sign === '-') removed.push(old);
    else if (sign === '+') rows.push(removed.length ? ['±', removed.shift(), now] : ['+', null, now]);
    else { flush(); rows.push(['=', old, now]); }
  }
  flush();
  return rows;
}

const cell = (text, cls) => h('div', { class: text === null ? 'none' : cls }, text ?? '');

function rowOf([sign, old, now]) {
  if (sign === '=') return h('div', { class: 'pair same' }, cell(old, ''), cell(now, ''));
  return h('div', { class: 'pair' }, cell(old, 'old'), cell(now, 'new'));
}

// diffView shows two texts side by side, or one below the other on a narrow screen.
export function diffView(old, now, oldLabel, nowLabel) {
  const all = [old.split('\n'), now.split('\n')], [a, b] = all.map((lines) => lines.slice(0, maxLines));
  const rows = pairs(compare(a, b));
  const out = [h('div', { class: 'pair head' }, h('div', {}, oldLabel), h('div', {}, nowLabel))];
  const near = rows.map((_, i) => rows.slice(Math.max(0, i - context), i + context + 1).some(([sign]) => sign !== '='));
  for (let i = 0; i < rows.length; i++) {
    if (near[i]) { out.push(rowOf(rows[i])); continue; }
    let end = i;
    while (end < rows.length && !near[end]) end++;
    out.push(h('div', { class: 'skip-lines' }, rows.some(([sign]) => sign !== '=') ? plural(end - i, 'unchanged line') : 'The values are the same.'));
    i = end - 1;
  }
  if (all.some((lines) => lines.length > maxLines)) out.push(h('div', { class: 'skip-lines' }, `Only the first ${plural(maxLines, 'line')} are compared.`));
  const changed = rows.filter(([sign]) => sign !== '=').length;
  return h('div', { class: 'diff', role: 'group', tabindex: 0, 'aria-label': `${plural(changed, 'line')} changed between ${oldLabel} and ${nowLabel}` }, out);
}
