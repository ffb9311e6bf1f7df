import { nextPath, passkeysWork, post, use } from './api.js';
import { busy, byId, errorNotice, fill, h } from './dom.js';

const message = byId('message');

async function signIn(name) {
  const { ceremony, options } = await post('/auth/login/start', name ? { name } : {});
  await post('/auth/login/finish', { ceremony, credential: await use(options) });
  fill(message, h('p', { class: 'notice notice-ok' }, 'You are signed in. One moment…'));
  location.assign(nextPath());
}

byId('sign-in').addEventListener('click', (event) => busy(event.currentTarget, message, () => signIn(null)));

byId('named').addEventListener('submit', (event) => {
  event.preventDefault();
  const input = byId('name');
  const name = input.value.trim().toLowerCase();
  input.setAttribute('aria-invalid', String(!name));
  if (!name) {
    fill(message, errorNotice(new Error('give your user name')));
    input.focus();
    return;
  }
  busy(event.submitter ?? event.target.querySelector('button'), message, () => signIn(name));
});

if (!passkeysWork()) {
  const error = new Error('this browser does not support passkeys');
  error.hint = 'Use a current browser, and open this page over https or on localhost.';
  fill(message, errorNotice(error));
  byId('sign-in').disabled = true;
}
