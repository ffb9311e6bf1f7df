import { get, post } from './api.js';
import { accountView } from './account.js';
import { adminView } from './admin.js';
import { busy, byId, errorNotice, fill, loading } from './dom.js';
import { sandboxesView } from './sandboxes.js';

const view = byId('view');
const views = { sandboxes: sandboxesView, account: accountView, admin: adminView };
let leave = null;

function open(me) {
  const wanted = location.hash.slice(1);
  const name = wanted in views && (wanted !== 'admin' || me.is_admin) ? wanted : 'sandboxes';
  for (const link of document.querySelectorAll('.tabs a')) {
    if (link.hash === `#${name}`) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  leave?.abort();
  leave = new AbortController();
  fill(view);
  views[name](view, me, leave.signal);
}

byId('sign-out').addEventListener('click', (event) =>
  busy(event.currentTarget, byId('message'), async () => {
    await post('/auth/logout');
    location.assign('/login');
  }),
);

try {
  fill(view, loading('Loading…'));
  const me = await get('/auth/me');
  byId('who').textContent = me.is_admin ? `${me.name}, administrator` : me.name;
  byId('admin-tab').hidden = !me.is_admin;
  addEventListener('hashchange', () => open(me));
  open(me);
} catch (error) {
  if (error.status === 401) location.assign('/login?next=/console');
  else fill(view, errorNotice(error));
}
