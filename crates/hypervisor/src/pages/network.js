// What administrators see of the network: modes, and the rules of the allowlist.

import { get, post, remove } from './api.js';
import { draw, item, list, section, small } from './account.js';
import { busy, confirm, h, time, toast } from './dom.js';

const ABOUT = {
  none: 'nothing beyond its own sandbox',
  allowlist: 'the names below',
  open: 'every public address',
};

export function network() {
  const here = section(
    'network',
    'Network allowlist',
    'What commands reach that were started with the network mode allowlist. Removing a rule closes the connections that only it allowed.',
    null,
  );
  const rule = h('input', { class: 'input', id: 'network-rule', maxlength: '300', autocomplete: 'off', autocapitalize: 'off', spellcheck: 'false', required: true, placeholder: 'crates.io, *.crates.io or git.example.com:8443' });
  const note = h('input', { class: 'input', id: 'network-note', maxlength: '100', autocomplete: 'off', placeholder: 'What it is for' });
  const submit = h('button', { class: 'btn btn-primary', type: 'submit' }, 'Allow');
  const form = h(
    'form',
    { class: 'inline-form' },
    h('div', { class: 'field' }, h('label', { for: 'network-rule' }, 'Name'), rule),
    h('div', { class: 'field' }, h('label', { for: 'network-note' }, 'Note'), note),
    submit,
  );

  const refresh = () =>
    draw(here, async () => {
      const network = await get('/me/network');
      return h(
        'div',
        { class: 'stack' },
        h('p', { class: 'small muted' }, `A command that names no mode reaches ${ABOUT[network.default]}. The widest mode it may ask for is ${network.max}: ${ABOUT[network.max]}.`),
        list(network.rules.map(row), 'The allowlist is empty: a command with the mode allowlist reaches nothing yet.'),
      );
    });

  const row = (one) =>
    item(
      [h('span', { class: 'mono' }, one.rule), ' ', one.source === 'config' ? h('span', { class: 'badge' }, 'configuration') : ''],
      one.source === 'config' ? 'Stands in the configuration file.' : [one.note ? `${one.note} · ` : '', one.created_by ? `added by ${one.created_by} ` : 'added ', time(one.created_at)],
      one.id ? small('Remove', 'btn-danger', (button) => withdraw(one, button)) : null,
    );

  async function withdraw(one, button) {
    const sure = await confirm({
      title: `Remove ${one.rule}?`,
      text: 'Open connections that no other rule allows are closed at once.',
      action: 'Remove',
      danger: true,
    });
    if (!sure) return;
    busy(button, here.message, async () => {
      await remove(`/admin/network/rules/${one.id}`);
      await refresh();
    });
  }

  form.addEventListener('submit', (event) => {
    event.preventDefault();
    busy(submit, here.message, async () => {
      const made = await post('/admin/network/rules', { rule: rule.value, note: note.value });
      rule.value = '';
      note.value = '';
      toast(`${made.rule} is allowed.`);
      await refresh();
      rule.focus();
    });
  });
  here.message.after(form);
  refresh();
  return h('div', { class: 'stack' }, here.element);
}
