import { get, post } from './api.js';
import { busy, byId, errorNotice, fill, h } from './dom.js';

const card = byId('card');
const title = (text) => h('h1', {}, text);
const given = new URLSearchParams(location.search).get('code') ?? '';

const SCOPES = [
  ['sandboxes', 'Start, stop, swap and read the logs of my sandboxes'],
  ['commands', 'Run commands in my sandboxes'],
  ['account', 'Read my list of passkeys, sessions and tokens'],
  ['admin', 'Everything an administrator may do, the audit log included'],
];

function showCodeForm(error) {
  const message = h('div', { 'aria-live': 'polite' }, error ? errorNotice(error) : '');
  const code = h('input', {
    class: 'input mono',
    id: 'code',
    autocomplete: 'off',
    autocapitalize: 'characters',
    spellcheck: 'false',
    maxlength: '20',
    placeholder: 'XXXX-XXXX',
    value: given,
  });
  const submit = h('button', { class: 'btn btn-primary btn-block', type: 'submit' }, 'Continue');
  const form = h(
    'form',
    { novalidate: true },
    h('div', { class: 'field' }, h('label', { for: 'code' }, 'Code'), code, h('span', { class: 'hint' }, 'As choir login shows it in your terminal.')),
    submit,
  );
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    busy(submit, message, () => look(code.value));
  });
  fill(card, title('Connect a command line'), message, form);
  code.focus();
}

async function look(code) {
  const [pairing, me] = await Promise.all([post('/auth/cli/lookup', { user_code: code }), get('/auth/me')]);
  showDecision(pairing, me);
}

function showDecision(pairing, me) {
  const message = h('div', { 'aria-live': 'polite' });
  const scopes = SCOPES.filter(([scope]) => scope !== 'admin' || me.is_admin).map(([scope, text]) =>
    h(
      'label',
      { class: 'check' },
      h('input', { type: 'checkbox', value: scope, checked: scope !== 'admin' }),
      text,
    ),
  );
  const decide = (approve) => async () => {
    const chosen = scopes.map((label) => label.querySelector('input')).filter((input) => input.checked);
    await post('/auth/cli/approve', { user_code: pairing.user_code, approve, scopes: chosen.map((input) => input.value) });
    showDone(approve);
  };
  const yes = h('button', { class: 'btn btn-primary', type: 'button', id: 'approve' }, 'Approve');
  const no = h('button', { class: 'btn', type: 'button', id: 'deny' }, 'Deny');
  yes.addEventListener('click', () => busy(yes, message, decide(true)));
  no.addEventListener('click', () => busy(no, message, decide(false)));
  fill(
    card,
    title('Connect a command line'),
    h('p', {}, h('strong', {}, pairing.client_name), ` at ${pairing.address} asks to act as you. Approve only if your terminal shows this code:`),
    h('p', { class: 'pair-code' }, pairing.user_code),
    h('fieldset', { class: 'stack' }, h('legend', {}, 'It may'), scopes),
    message,
    h('div', { class: 'row' }, yes, no),
  );
  card.tabIndex = -1;
  card.focus();
}

function showDone(approved) {
  fill(
    card,
    title(approved ? 'Connected' : 'Denied'),
    approved
      ? h('p', { class: 'notice notice-ok' }, 'Your terminal goes on by itself. You can close this page.')
      : h('p', { class: 'notice' }, 'Nothing was given away. If you did not start this yourself, there is nothing more to do.'),
    h('p', { class: 'small muted' }, 'You find and revoke the tokens of your command lines in the console, under Account.'),
  );
}

if (given) {
  look(given).catch(showCodeForm);
} else {
  showCodeForm();
}
