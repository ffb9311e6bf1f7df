import { create, deviceName, passkeysWork, post } from './api.js';
import { codesView } from './codes.js';
import { busy, byId, errorNotice, fill, h, loading } from './dom.js';

const card = byId('card');
const parameters = new URLSearchParams(location.search);
const entitlement = {};
for (const kind of ['setup', 'invite']) {
  const token = parameters.get(kind);
  if (token) entitlement[kind] = token;
}
// The link is a secret as long as it is unused: it should not stay in the address bar.
history.replaceState(null, '', '/register');

const title = (text) => h('h1', {}, text);

function showInvalid() {
  const came = Object.keys(entitlement).length > 0;
  fill(
    card,
    title(came ? 'This link does not work any more' : 'You need an invitation'),
    h(
      'p',
      {},
      came
        ? 'It was used already, withdrawn, or has expired.'
        : 'Registration is by invitation here: the link that you get contains it.',
    ),
    h(
      'p',
      { class: 'muted' },
      'setup' in entitlement
        ? 'If nobody has registered yet, restart the hypervisor: it prints a new set-up link at each start until there is an administrator.'
        : 'Ask an administrator of this installation for a new link.',
    ),
  );
}

function showForm(makesAdmin) {
  const message = h('div', { 'aria-live': 'polite' });
  const name = h('input', {
    class: 'input',
    id: 'name',
    name: 'name',
    autocomplete: 'username',
    autocapitalize: 'none',
    spellcheck: 'false',
    maxlength: '51',
    required: true,
    'aria-describedby': 'name-hint',
  });
  const device = h('input', {
    class: 'input',
    id: 'device',
    maxlength: '60',
    value: deviceName(),
    autocomplete: 'off',
    'aria-describedby': 'device-hint',
  });
  const submit = h('button', { class: 'btn btn-primary btn-block', type: 'submit' }, 'Create account with a passkey');
  const form = h(
    'form',
    { novalidate: true },
    h(
      'div',
      { class: 'field' },
      h('label', { for: 'name' }, 'User name'),
      name,
      h('span', { class: 'hint', id: 'name-hint' }, 'Letters a–z, digits and hyphens. It becomes part of the address of your sandbox.'),
    ),
    h(
      'div',
      { class: 'field' },
      h('label', { for: 'device' }, 'Name of this passkey'),
      device,
      h('span', { class: 'hint', id: 'device-hint' }, 'So that you recognise it later. You can add more passkeys in the console.'),
    ),
    submit,
  );
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    const wanted = name.value.trim().toLowerCase();
    busy(submit, message, async () => {
      try {
        const { ceremony, options } = await post('/auth/register/start', { name: wanted, ...entitlement });
        name.removeAttribute('aria-invalid');
        const credential = await create(options);
        const made = await post('/auth/register/finish', { ceremony, credential, passkey_name: device.value });
        showCodes(made);
      } catch (error) {
        if (error.status === 400 || error.status === 409) {
          name.setAttribute('aria-invalid', 'true');
          name.focus();
        }
        throw error;
      }
    });
  });
  fill(
    card,
    title('Create your account'),
    makesAdmin
      ? h('p', { class: 'notice' }, 'This link makes an administrator of this installation. It works once.')
      : h('p', { class: 'muted' }, 'You sign in with a passkey: your device’s screen lock or a security key. There is no password.'),
    message,
    form,
  );
  name.focus();
}

function showCodes(made) {
  const account = made.user.name;
  document.title = 'Recovery codes · ChoirOS';
  fill(
    card,
    title('Save your recovery codes'),
    codesView(made.recovery_codes, account, () => location.assign('/'), 'Open my sandbox'),
  );
  card.tabIndex = -1;
  card.focus();
  document.querySelector('.page-foot').hidden = true;
}

async function begin() {
  if (!passkeysWork()) {
    const error = new Error('this browser does not support passkeys');
    error.hint = 'Use a current browser, and open this page over https or on localhost.';
    fill(card, title('Create your account'), errorNotice(error));
    return;
  }
  try {
    const { valid, makes_admin: makesAdmin } = await post('/auth/register/check', entitlement);
    if (valid) showForm(makesAdmin);
    else showInvalid();
  } catch (error) {
    const again = h('button', { class: 'btn', type: 'button' }, 'Try again');
    again.addEventListener('click', () => {
      fill(card, title('Create your account'), loading('Checking your link…'));
      begin();
    });
    fill(card, title('Create your account'), errorNotice(error), again);
  }
}

begin();
