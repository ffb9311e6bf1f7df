// Recovery codes: shown once, to be copied, downloaded or written down.

import { copy, h } from './dom.js';

/** The codes, and a button that opens only after "I saved them". */
export function codesView(codes, account, whenSaved, action = 'Continue') {
  const warn = (event) => event.preventDefault();
  addEventListener('beforeunload', warn);
  const lines = codes.join('\n');
  const file = `ChoirOS recovery codes of ${account}\n${location.origin}\n\n${lines}\n\nEach code works once.\n`;
  const next = h('button', { class: 'btn btn-primary btn-block', type: 'button', disabled: true }, action);
  next.addEventListener('click', () => {
    removeEventListener('beforeunload', warn);
    whenSaved();
  });
  const saved = h('input', {
    type: 'checkbox',
    id: 'codes-saved',
    onchange: (event) => {
      next.disabled = !event.target.checked;
    },
  });
  return [
    h('p', {}, 'If you lose your passkeys, one of these codes lets you back in. Each works once. They are shown only now.'),
    h('ul', { class: 'codes', 'aria-label': 'Recovery codes' }, codes.map((code) => h('li', {}, code))),
    h(
      'div',
      { class: 'row' },
      h('button', { class: 'btn', type: 'button', onclick: () => copy(lines) }, 'Copy'),
      h(
        'a',
        {
          class: 'btn',
          download: `choir-recovery-codes-${account}.txt`,
          href: `data:text/plain;charset=utf-8,${encodeURIComponent(file)}`,
        },
        'Download',
      ),
    ),
    h('label', { class: 'check', for: 'codes-saved' }, saved, 'I saved these codes where I will find them without this device.'),
    next,
  ];
}
