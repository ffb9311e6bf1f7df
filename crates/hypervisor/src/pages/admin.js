// What administrators see: invitations, accounts and their sandboxes, the audit log.

import { get, post, remove, text } from './api.js';
import { draw, item, list, section, small } from './account.js';
import { network } from './network.js';
import { busy, confirm, empty, fill, h, secret, time, toast } from './dom.js';

/** Records of the audit log that are shown. */
const TAIL = 100;

function invites() {
  const here = section('invites', 'Invitations', 'Whoever opens the link can make one account.', null);
  const result = h('div', { 'aria-live': 'polite' });
  const note = h('input', { class: 'input', id: 'invite-note', maxlength: '100', autocomplete: 'off', placeholder: 'Whom it is for' });
  const admin = h('input', { type: 'checkbox' });
  const submit = h('button', { class: 'btn btn-primary', type: 'submit' }, 'Invite');
  const form = h(
    'form',
    { class: 'inline-form' },
    h('div', { class: 'field' }, h('label', { for: 'invite-note' }, 'Note'), note),
    h('label', { class: 'check' }, admin, 'as administrator'),
    submit,
  );

  const refresh = () =>
    draw(here, async () => {
      const { invites } = await get('/admin/invites');
      return list(
        invites.map((invite) =>
          item(
            [invite.note || 'Invitation', ' ', h('span', { class: `badge ${invite.state === 'open' ? 'badge-accent' : ''}` }, invite.state), ' ', invite.makes_admin ? h('span', { class: 'badge badge-danger' }, 'administrator') : ''],
            invite.used_by ? [`Used by ${invite.used_by} `, time(invite.used_at)] : ['Made ', time(invite.created_at), ' · ends ', time(invite.expires_at)],
            invite.state === 'used'
              ? null
              : small('Withdraw', 'btn-danger', (button) =>
                  busy(button, here.message, async () => {
                    await remove(`/admin/invites/${invite.id}`);
                    await refresh();
                  }),
                ),
          ),
        ),
        'No invitations yet.',
      );
    });

  form.addEventListener('submit', (event) => {
    event.preventDefault();
    busy(submit, here.message, async () => {
      const made = await post('/admin/invites', { note: note.value, makes_admin: admin.checked });
      note.value = '';
      admin.checked = false;
      fill(result, h('div', { class: 'notice notice-ok stack' }, h('p', {}, 'Send this link now: it is not shown again.'), secret(made.url, 'Invitation link')));
      await refresh();
    });
  });
  here.message.after(form, result);
  refresh();
  return h('div', { class: 'stack' }, here.element);
}

function users(me) {
  const here = section('users', 'Accounts', 'Everybody with an account, and their sandboxes.', null);

  const refresh = () =>
    draw(here, async () => {
      const [{ users }, { sandboxes }] = await Promise.all([
        get('/admin/users'),
        get('/admin/sandboxes').catch(() => ({ sandboxes: [] })),
      ]);
      return list(users.map((user) => account(user, sandboxes.filter((one) => one.user === user.name))), 'There is no account.');
    });

  function account(user, sandboxes) {
    const rows = sandboxes.map((sandbox) =>
      h(
        'div',
        { class: 'row' },
        h('span', { class: `badge badge-${sandbox.role}` }, sandbox.role),
        h('span', { class: `state state-${sandbox.state}` }, sandbox.state),
        small(sandbox.state === 'running' ? 'Stop' : 'Start', 'btn-quiet', (button) => act(user, sandbox, button)),
      ),
    );
    const badges = [user.is_admin ? h('span', { class: 'badge badge-accent' }, 'administrator') : '', ' ', user.disabled ? h('span', { class: 'badge badge-danger' }, 'disabled') : ''];
    const about = user.disabled ? ['Disabled ', time(user.disabled.at), user.disabled.note && `: ${user.disabled.note}`] : ['Since ', time(user.created_at)];
    const toggle = user.disabled ? small('Enable', 'btn-quiet', (button) => enable(user, button)) : small('Disable', 'btn-danger', (button) => disable(user, button));
    return item([user.name, ' ', ...badges], about, ...(user.disabled ? [] : rows), user.name === me.name ? null : toggle);
  }

  async function disable(user, button) {
    const sure = await confirm({
      title: `Disable ${user.name}?`,
      text: 'They are signed out everywhere, their API tokens and open invitations are revoked, and their sandboxes stop at once. Files and passkeys stay.',
      action: 'Disable',
      danger: true,
    });
    if (sure) await enable(user, button, 'disable');
  }

  function enable(user, button, action = 'enable') {
    return busy(button, here.message, async () => {
      await post(`/admin/users/${user.name}/${action}`, {});
      await refresh();
    });
  }

  async function act(user, sandbox, button) {
    const stop = sandbox.state === 'running';
    const sure =
      !stop ||
      (await confirm({
        title: `Stop ${sandbox.role} of ${user.name}?`,
        text: 'Agents, commands and terminals that run in it are ended. Files stay.',
        action: 'Stop',
        danger: true,
      }));
    if (!sure) return;
    busy(button, here.message, async () => {
      await post(`/admin/sandboxes/${user.name}/${sandbox.role}/${stop ? 'stop' : 'start'}`);
      await refresh();
    });
  }
  refresh();
  return here.element;
}

function actor(record) {
  const who = record.actor ?? {};
  const name = who.name ?? who.kind ?? '';
  const subject = record.subject?.name;
  return subject && subject !== name ? `${name} (for ${subject})` : name;
}

function audit() {
  const check = h('button', { class: 'btn', type: 'button' }, 'Verify');
  const here = section('audit', 'Audit log', 'The last records. What is not here did not happen: a record comes before its act.', check);

  draw(here, async () => {
    const lines = (await text(`/admin/audit?tail=${TAIL}`)).split('\n').filter(Boolean);
    const records = lines.map((line) => JSON.parse(line)).reverse();
    if (records.length === 0) return empty('There is no record yet.');
    const rows = records.map((record) =>
      h(
        'tr',
        {},
        h('td', { class: 'mono small' }, String(record.seq)),
        h('td', {}, time(record.at)),
        h('td', {}, actor(record)),
        h('td', { class: 'mono small' }, record.action),
        h('td', { class: 'small' }, [record.target ?? '', record.reason ? ` (${record.reason})` : ''].join('')),
        h('td', {}, h('span', { class: `badge ${record.outcome === 'denied' || record.outcome === 'failed' ? 'badge-danger' : ''}` }, record.outcome)),
      ),
    );
    const titles = ['No.', 'When', 'Who', 'What', 'To what', 'Outcome'];
    return h(
      'div',
      { class: 'table-scroll list', tabindex: '0', role: 'region', 'aria-label': 'Audit records' },
      h('table', { class: 'table' }, h('thead', {}, h('tr', {}, titles.map((title) => h('th', { scope: 'col' }, title)))), h('tbody', {}, rows)),
    );
  });

  check.addEventListener('click', () =>
    busy(check, here.message, async () => {
      const report = await get('/admin/audit/verify');
      if (report.ok) toast(`${report.records} records verified.`);
      else fill(here.message, h('div', { class: 'notice notice-error', role: 'alert' }, h('p', {}, `The log is not whole: record ${report.fault.seq} is the first that is not as it was written (${report.fault.kind}).`)));
    }),
  );
  return here.element;
}

export function adminView(view, me) {
  fill(view, h('div', { class: 'page-sections' }, invites(), users(me), network(), audit()));
}
