// Questions before something is done. <dialog> keeps the focus inside, closes with
// Escape, and gives the focus back.
import { button, explain, h, replace } from './dom.js';

// ask shows a dialog with a form, and carries the action out when it is confirmed. A
// failure is shown where the person is, who can correct the input and try again. It
// returns what run returned, or undefined if the person changed their mind.
export function ask({ title, body, action, danger = false, run }) {
  return new Promise((resolve) => {
    const trouble = h('div', { role: 'alert' });
    const go = h('button', { type: 'submit', class: danger ? 'danger' : 'primary' }, action);
    const form = h('form', { method: 'dialog', class: 'sheet' },
      h('h2', { id: 'dialog-title' }, title), body, trouble,
      h('p', { class: 'row end' }, button('Cancel', () => box.close()), go));
    const box = h('dialog', { 'aria-labelledby': 'dialog-title', onclose: () => { box.remove(); resolve(result); } }, form);
    let result;
    form.addEventListener('submit', async (event) => {
      event.preventDefault();
      go.disabled = true;
      replace(trouble);
      try {
        result = await run(form) ?? null;
        box.close();
      } catch (err) {
        replace(trouble, h('p', { class: 'note bad' }, explain(err)));
        go.disabled = false;
      }
    });
    document.body.append(box);
    box.showModal();
    // The safe choice has the focus, unless there is something to fill in.
    (form.querySelector('input, textarea, select') ?? form.querySelector('button')).focus();
  });
}

// tell shows something that has to be read.
export function tell(title, ...body) {
  const box = h('dialog', { 'aria-labelledby': 'dialog-title', onclose: () => box.remove() },
    h('div', { class: 'sheet' }, h('h2', { id: 'dialog-title' }, title), body,
      h('p', { class: 'row end' }, button('Close', () => box.close(), { class: 'primary' }))));
  document.body.append(box);
  box.showModal();
}
