// The caller's passkeys, sessions, tokens and recovery codes.

import { create, deviceName, get, patch, post, remove } from './api.js';
import { codesView } from './codes.js';
import { browser, busy, confirm, empty, errorNotice, fill, h, loading, secret, time, toast } from './dom.js';

/** A section with a heading, an action, a place for messages and a place for its list. */
export function section(id, title, about, action) {
  const message = h('div', { 'aria-live': 'polite' });
  const body = h('div', {}, loading('Loading…'));
  const element = h(
    'section',
    { 'aria-labelledby': id },
    h('div', { class: 'section-head' }, h('h2', { id }, title), action, about ? h('p', {}, about) : null),
    message,
    body,
  );
  return { element, message, body };
}

/** Fills a section's body with what `load` makes, or with what went wrong. */
export async function draw({ body }, load) {
  try {
    fill(body, await load());
  } catch (error) {
    fill(body, errorNotice(error));
  }
}

export const item = (title, details, ...actions) =>
  h('li', {}, h('div', { class: 'about' }, h('span', { class: 'title' }, title), h('span', { class: 'small muted' }, details)), h('div', { class: 'row' }, actions));

export const list = (items, none) => (items.length > 0 ? h('ul', { class: 'list' }, items) : empty(none));

export function small(label, style, work) {
  const button = h('button', { class: `btn btn-small ${style}`, type: 'button' }, label);
  button.addEventListener('click', () => work(button));
  return button;
}

function passkeys() {
  const add = h('button', { class: 'btn', type: 'button' }, 'Add a passkey');
  const here = section('passkeys', 'Passkeys', 'Have at least two, on different devices.', add);

  const refresh = () =>
    draw(here, async () => {
      const { passkeys } = await get('/me/passkeys');
      return list(
        passkeys.map((passkey) =>
          item(
            passkey.name,
            ['Registered ', time(passkey.created_at), ' · last used ', time(passkey.last_used_at)],
            small('Rename', '', (button) => rename(passkey, button)),
            small('Revoke', 'btn-danger', (button) => revoke(passkey, button)),
          ),
        ),
        'There is no passkey.',
      );
    });

  function rename(passkey, button) {
    const input = h('input', { class: 'input', value: passkey.name, maxlength: '60', 'aria-label': 'New name' });
    const form = h('form', { class: 'row about' }, input, h('button', { class: 'btn btn-small btn-primary', type: 'submit' }, 'Save'));
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      busy(event.submitter, here.message, async () => {
        await patch(`/me/passkeys/${passkey.id}`, { name: input.value });
        await refresh();
      });
    });
    button.closest('li').querySelector('.about').replaceWith(form);
    button.remove();
    input.select();
  }

  async function revoke(passkey, button) {
    const sure = await confirm({
      title: `Revoke ${passkey.name}?`,
      text: 'It can never be used again to sign in here. Sessions that it opened go on; end them under Sessions.',
      action: 'Revoke',
      danger: true,
    });
    if (!sure) return;
    busy(button, here.message, async () => {
      await remove(`/me/passkeys/${passkey.id}`);
      await refresh();
    });
  }

  add.addEventListener('click', () =>
    busy(add, here.message, async () => {
      const { ceremony, options } = await post('/me/passkeys/start');
      const credential = await create(options);
      await post('/me/passkeys/finish', { ceremony, credential, passkey_name: deviceName() });
      toast('The passkey was added.');
      await refresh();
    }),
  );
  refresh();
  return here.element;
}

function sessions() {
  const others = h('button', { class: 'btn', type: 'button' }, 'End all others');
  const here = section('sessions', 'Sessions', 'Where you are signed in. Sessions of a runtime open your sandboxes and nothing else.', others);

  const refresh = () =>
    draw(here, async () => {
      const { sessions } = await get('/me/sessions');
      return list(
        sessions.map((session) =>
          item(
            [browser(session.user_agent), ' ', session.current ? h('span', { class: 'badge badge-accent' }, 'this one') : '', session.kind === 'runtime' ? h('span', { class: 'badge' }, 'runtime') : ''],
            [`${session.host} · ${session.address} · last seen `, time(session.last_seen_at)],
            session.current
              ? null
              : small('End', 'btn-danger', (button) =>
                  busy(button, here.message, async () => {
                    await remove(`/me/sessions/${session.id}`);
                    await refresh();
                  }),
                ),
          ),
        ),
        'There is no session.',
      );
    });

  others.addEventListener('click', async () => {
    const sure = await confirm({
      title: 'End all other sessions?',
      text: 'Every other browser is signed out, and open desktops in them are cut off.',
      action: 'End them',
      danger: true,
    });
    if (!sure) return;
    busy(others, here.message, async () => {
      const { ended } = await remove('/me/sessions');
      toast(ended === 1 ? 'One session was ended.' : `${ended} sessions were ended.`);
      await refresh();
    });
  });
  refresh();
  return here.element;
}

const SCOPES = [
  ['sandboxes', 'Sandboxes'],
  ['commands', 'Commands'],
  ['account', 'Read account'],
  ['admin', 'Administration'],
];

function tokens(me) {
  const here = section('tokens', 'API tokens', 'For scripts and the choir command. A token is shown once.', null);
  const result = h('div', { 'aria-live': 'polite' });
  const name = h('input', { class: 'input', id: 'token-name', maxlength: '60', required: true, autocomplete: 'off' });
  const days = h('input', { class: 'input', id: 'token-days', type: 'number', min: '1', max: '365', value: '30' });
  const scopes = SCOPES.filter(([scope]) => scope !== 'admin' || me.is_admin).map(([scope, label]) =>
    h('label', { class: 'check' }, h('input', { type: 'checkbox', value: scope, checked: scope === 'sandboxes' }), label),
  );
  const submit = h('button', { class: 'btn', type: 'submit' }, 'Create token');
  const form = h(
    'form',
    { class: 'stack', novalidate: true },
    h(
      'div',
      { class: 'inline-form' },
      h('div', { class: 'field' }, h('label', { for: 'token-name' }, 'What it is for'), name),
      h('div', { class: 'field' }, h('label', { for: 'token-days' }, 'Days until it ends'), days),
    ),
    h('fieldset', { class: 'row' }, h('legend', {}, 'It may use'), scopes),
    h('div', { class: 'row' }, submit),
  );

  const refresh = () =>
    draw(here, async () => {
      const { tokens } = await get('/me/tokens');
      return list(
        tokens.map((token) =>
          item(
            [token.name, ' ', token.expired ? h('span', { class: 'badge badge-danger' }, 'ended') : ''],
            [`${token.scopes.join(', ')} · ends `, time(token.expires_at), ' · last used ', time(token.last_used_at)],
            small('Revoke', 'btn-danger', (button) =>
              busy(button, here.message, async () => {
                await remove(`/me/tokens/${token.id}`);
                await refresh();
              }),
            ),
          ),
        ),
        'No tokens yet. choir login makes one for you.',
      );
    });

  form.addEventListener('submit', (event) => {
    event.preventDefault();
    const chosen = scopes.map((label) => label.querySelector('input')).filter((input) => input.checked);
    busy(submit, here.message, async () => {
      const made = await post('/me/tokens', {
        name: name.value,
        scopes: chosen.map((input) => input.value),
        expires_in_days: Number(days.value),
      });
      name.value = '';
      fill(
        result,
        h('div', { class: 'notice notice-ok stack' }, h('p', {}, `Copy the token ${made.info.name} now: it is not shown again.`), secret(made.token, 'API token')),
      );
      await refresh();
    });
  });
  here.element.append(h('details', {}, h('summary', {}, 'Create a token'), form), result);
  refresh();
  return here.element;
}

function recoveryCodes(me) {
  const make = h('button', { class: 'btn', type: 'button' }, 'Make a new set');
  const here = section('codes', 'Recovery codes', 'They let you back in when every passkey is lost.', make);

  const refresh = () =>
    draw(here, async () => {
      const { remaining } = await get('/me/recovery-codes');
      const text = `${remaining} of 10 codes are unused.`;
      return h('p', { class: remaining > 3 ? 'notice' : 'notice notice-warn' }, remaining > 3 ? text : `${text} Make a new set soon.`);
    });

  make.addEventListener('click', async () => {
    const sure = await confirm({
      title: 'Make a new set of recovery codes?',
      text: 'The codes that you have now stop working at once.',
      action: 'Make new codes',
      danger: true,
    });
    if (!sure) return;
    busy(make, here.message, async () => {
      const { recovery_codes: codes } = await post('/me/recovery-codes');
      make.hidden = true;
      const done = () => {
        make.hidden = false;
        refresh();
      };
      fill(here.body, h('div', { class: 'card stack' }, codesView(codes, me.name, done, 'Done')));
    });
  });
  refresh();
  return here.element;
}

export function accountView(view, me) {
  fill(view, h('div', { class: 'page-sections' }, passkeys(), sessions(), tokens(me), recoveryCodes(me)));
}
