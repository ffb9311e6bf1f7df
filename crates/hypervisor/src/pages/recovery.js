import { create, deviceName, get, post } from './api.js';
import { busy, byId, errorNotice, fill, h, time } from './dom.js';

const card = byId('card');
const title = (text) => h('h1', {}, text);

function showCodeForm() {
  const message = h('div', { 'aria-live': 'polite' });
  const name = h('input', {
    class: 'input',
    id: 'name',
    autocomplete: 'username',
    autocapitalize: 'none',
    spellcheck: 'false',
    maxlength: '51',
    required: true,
  });
  const code = h('input', {
    class: 'input mono',
    id: 'code',
    autocomplete: 'one-time-code',
    autocapitalize: 'characters',
    spellcheck: 'false',
    maxlength: '40',
    placeholder: 'XXXX-XXXX-XXXX-XXXX',
    required: true,
    'aria-describedby': 'code-hint',
  });
  const submit = h('button', { class: 'btn btn-primary btn-block', type: 'submit' }, 'Use this code');
  const form = h(
    'form',
    { novalidate: true },
    h('div', { class: 'field' }, h('label', { for: 'name' }, 'User name'), name),
    h(
      'div',
      { class: 'field' },
      h('label', { for: 'code' }, 'Recovery code'),
      code,
      h('span', { class: 'hint', id: 'code-hint' }, 'One of the ten codes that you saved when you registered. Each works once.'),
    ),
    submit,
  );
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    const missing = [name, code].find((input) => !input.value.trim());
    if (missing) {
      fill(message, errorNotice(new Error('give your user name and one of your recovery codes')));
      missing.focus();
      return;
    }
    busy(submit, message, async () => {
      showDecision(await post('/auth/recovery', { name: name.value, code: code.value }));
    });
  });
  fill(
    card,
    title('Recover your account'),
    h(
      'p',
      { class: 'notice notice-warn' },
      'Using a code signs you out everywhere, revokes your API tokens, and lets you register a new passkey.',
    ),
    message,
    form,
  );
  name.focus();
}

function decision(passkey) {
  const choice = (value, text) =>
    h(
      'label',
      { class: 'check' },
      h('input', { type: 'radio', name: `decide-${passkey.id}`, value, required: true }),
      text,
    );
  return h(
    'fieldset',
    { 'data-passkey': passkey.id },
    h('legend', {}, passkey.name),
    h('p', { class: 'small muted' }, 'Last used: ', time(passkey.last_used_at), ' · registered ', time(passkey.created_at)),
    choice('revoke', 'Revoke it: it is lost, or somebody else may have it'),
    choice('keep', 'Keep it: I still have it'),
  );
}

function showDecision({ name, passkeys, codes_left: codesLeft }) {
  const message = h('div', { 'aria-live': 'polite' });
  const choices = h('div', { class: 'stack' }, passkeys.map(decision));
  const device = h('input', { class: 'input', id: 'device', maxlength: '60', value: deviceName(), autocomplete: 'off' });
  const submit = h('button', { class: 'btn btn-primary btn-block', type: 'submit' }, 'Register a new passkey');
  const form = h(
    'form',
    { class: 'stack', novalidate: true },
    choices,
    h('div', { class: 'field' }, h('label', { for: 'device' }, 'Name of the new passkey'), device),
    submit,
  );
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    const undecided = [...choices.children].find((one) => !one.querySelector('input:checked'));
    if (undecided) {
      fill(message, errorNotice(new Error('decide about each of your old passkeys')));
      undecided.querySelector('input').focus();
      return;
    }
    const revoke = [...choices.children]
      .filter((one) => one.querySelector('input:checked').value === 'revoke')
      .map((one) => one.dataset.passkey);
    busy(submit, message, async () => {
      const { ceremony, options } = await post('/auth/recovery/start');
      const credential = await create(options);
      await post('/auth/recovery/finish', { ceremony, credential, passkey_name: device.value, revoke });
      showDone(codesLeft);
    });
  });
  fill(
    card,
    title(`Welcome back, ${name}`),
    h(
      'p',
      {},
      passkeys.length > 0
        ? 'All your sessions and API tokens have ended. Decide about your old passkeys, then register a new one.'
        : 'All your sessions and API tokens have ended. Register a new passkey.',
    ),
    message,
    form,
  );
  card.tabIndex = -1;
  card.focus();
}

function showDone(codesLeft) {
  fill(
    card,
    title('You are back in'),
    h('p', { class: 'notice notice-ok' }, 'Your new passkey is registered, and you are signed in.'),
    h('p', {}, `You have ${codesLeft} recovery ${codesLeft === 1 ? 'code' : 'codes'} left. You can make a new set in the console.`),
    h('div', { class: 'row' }, h('a', { class: 'btn btn-primary', href: '/' }, 'Open my sandbox'), h('a', { class: 'btn', href: '/console#account' }, 'Open the console')),
  );
  document.querySelector('.page-foot').hidden = true;
}

async function begin() {
  try {
    showDecision(await get('/auth/recovery/pending'));
  } catch {
    // No recovery under way: begin with the code.
    showCodeForm();
  }
}

begin();
