// Small building blocks of the pages. Text always goes in as text, never as markup.

/** Makes an element: attributes, `on…` listeners, and children (texts, elements, null). */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (name === 'value') element.value = value;
    else element.setAttribute(name, value === true ? '' : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export const byId = (id) => document.getElementById(id);

/** Replaces what an element holds. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined));
}

export const loading = (text) =>
  h('p', { class: 'loading', role: 'status' }, h('span', { class: 'spinner', 'aria-hidden': 'true' }), text);

export const empty = (text) => h('p', { class: 'empty' }, text);

/** What went wrong, why, and what to do next. */
export function errorNotice(error) {
  const hint = error.hint ?? (error.status ? null : 'Check your connection and try again.');
  return h(
    'div',
    { class: 'notice notice-error', role: 'alert' },
    h('p', {}, sentence(error.message)),
    hint ? h('p', { class: 'small muted' }, sentence(hint)) : null,
    error.requestId && error.status >= 500 ? h('p', { class: 'small muted' }, `Request ${error.requestId}`) : null,
  );
}

function sentence(text) {
  const first = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?:]$/.test(first) ? first : `${first}.`;
}

/** Runs something behind a button: busy meanwhile, and its error shown in `place`. */
export async function busy(button, place, work) {
  if (button.getAttribute('aria-disabled') === 'true') return;
  button.setAttribute('aria-disabled', 'true');
  const spinner = h('span', { class: 'spinner', 'aria-hidden': 'true' });
  button.prepend(spinner);
  if (place) fill(place);
  try {
    await work();
  } catch (error) {
    if (place) fill(place, errorNotice(error));
    else toast(sentence(error.message), 'alert');
  } finally {
    spinner.remove();
    button.removeAttribute('aria-disabled');
  }
}

/** A short message that goes away by itself. */
export function toast(text, role = 'status') {
  let place = document.querySelector('.toasts');
  if (!place) {
    place = h('div', { class: 'toasts' });
    document.body.append(place);
  }
  const message = h('div', { role }, text);
  place.append(message);
  setTimeout(() => message.remove(), 6000);
}

/** Asks before something that cannot be undone or that others notice. Resolves to a boolean. */
export function confirm({ title, text, action, danger = false }) {
  return new Promise((resolve) => {
    const heading = h('h2', { id: 'confirm-title' }, title);
    const dialog = h(
      'dialog',
      { 'aria-labelledby': 'confirm-title', 'aria-describedby': 'confirm-text' },
      heading,
      h('div', { id: 'confirm-text' }, typeof text === 'string' ? h('p', {}, text) : text),
      h(
        'div',
        { class: 'actions' },
        h('button', { class: 'btn', type: 'button', onclick: () => dialog.close('no') }, 'Cancel'),
        h(
          'button',
          { class: `btn ${danger ? 'btn-danger' : 'btn-primary'}`, type: 'button', onclick: () => dialog.close('yes') },
          action,
        ),
      ),
    );
    dialog.addEventListener('close', () => {
      dialog.remove();
      resolve(dialog.returnValue === 'yes');
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** Shows something in a dialog with a close button. */
export function show(title, ...content) {
  const dialog = h(
    'dialog',
    { class: 'wide', 'aria-labelledby': 'show-title' },
    h('h2', { id: 'show-title' }, title),
    ...content,
    h('div', { class: 'actions' }, h('button', { class: 'btn', type: 'button', onclick: () => dialog.close() }, 'Close')),
  );
  dialog.addEventListener('close', () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast('Copied.');
  } catch {
    toast('The browser did not allow copying. Select the text and copy it by hand.', 'alert');
  }
}

/** A secret that is shown once, with a button that copies it. */
export const secret = (text, label) =>
  h(
    'div',
    { class: 'secret' },
    h('code', { 'aria-label': label }, text),
    h('button', { class: 'btn', type: 'button', onclick: () => copy(text) }, 'Copy'),
  );

const units = [
  ['day', 86400],
  ['hour', 3600],
  ['minute', 60],
];
const relative = new Intl.RelativeTimeFormat('en', { numeric: 'auto' });

/** A time as people say it, with the exact one on hover. */
export function time(rfc3339) {
  if (!rfc3339) return document.createTextNode('never');
  const at = new Date(rfc3339);
  const seconds = (at.getTime() - Date.now()) / 1000;
  const [unit, size] = units.find(([, size]) => Math.abs(seconds) >= size) ?? ['minute', 60];
  const text = Math.abs(seconds) < 60 ? 'just now' : relative.format(Math.round(seconds / size), unit);
  return h('time', { datetime: rfc3339, title: at.toLocaleString() }, text);
}

/** Turns "Mozilla/5.0 (…)" into "Chrome on Linux". */
export function browser(userAgent) {
  const program =
    [
      ['Firefox/', 'Firefox'],
      ['Edg/', 'Edge'],
      ['OPR/', 'Opera'],
      ['Chrome/', 'Chrome'],
      ['Safari/', 'Safari'],
      ['curl/', 'curl'],
    ].find(([part]) => userAgent.includes(part))?.[1] ?? 'Unknown browser';
  const system = [
    ['Android', 'Android'],
    ['iPhone', 'iPhone'],
    ['iPad', 'iPad'],
    ['Windows', 'Windows'],
    ['Mac OS X', 'macOS'],
    ['Linux', 'Linux'],
  ].find(([part]) => userAgent.includes(part))?.[1];
  return system ? `${program} on ${system}` : program;
}
