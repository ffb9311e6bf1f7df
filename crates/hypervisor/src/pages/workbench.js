// What runs beside a sandbox: services with what they write, and the ports they listen on.

import { get, pieces, post } from './api.js';
import { busy, empty, errorNotice, fill, h, loading, show, time } from './dom.js';

/** How often the list is asked for while it is open. */
const REFRESH_MS = 3000;

/** Characters of a service's output that the page keeps. */
const KEPT = 200_000;

const name = (command) => command.label ?? command.argv.join(' ');

function ended(exit) {
  if (!exit) return 'running';
  if (exit.timed_out) return 'timed out';
  return exit.code === null ? `ended by signal ${exit.signal}` : `exited with ${exit.code}`;
}

function followLog(role, command) {
  const log = h('pre', { class: 'log', tabindex: '0', 'aria-label': `Output of ${name(command)}` }, '');
  const state = h('p', { class: 'small muted', role: 'status' }, 'Following…');
  const dialog = show(`Output of ${name(command)}`, log, state);
  const closed = new AbortController();
  dialog.addEventListener('close', () => closed.abort());
  const add = (text) => {
    const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 8;
    log.textContent = (log.textContent + text).slice(-KEPT);
    if (atEnd) log.scrollTop = log.scrollHeight;
  };
  pieces(`/me/sandboxes/${role}/commands/${command.id}/output?follow=true`, add, closed.signal).then(
    () => fill(state, log.textContent ? 'It has ended.' : 'It has ended and wrote nothing.'),
    (error) => {
      if (!closed.signal.aborted) fill(state, errorNotice(error));
    },
  );
}

function serviceItem(role, command, ports, message, refresh) {
  const running = command.state === 'running';
  const stop = h('button', { class: 'btn btn-small btn-danger', type: 'button', disabled: !running }, 'Stop');
  stop.addEventListener('click', () =>
    busy(stop, message, async () => {
      await post(`/me/sandboxes/${role}/commands/${command.id}/signal`, { signal: 'term' });
      await refresh();
    }),
  );
  return h(
    'li',
    {},
    h(
      'div',
      { class: 'about' },
      h('span', { class: 'title' }, name(command)),
      h('span', { class: 'small' }, h('code', {}, command.argv.join(' '))),
      h('span', { class: 'small muted' }, `${ended(command.exit)}, started `, time(command.started_at)),
      ports.length > 0
        ? h(
            'span',
            { class: 'small' },
            'Port ',
            ports.flatMap((port, index) => [index > 0 ? ', ' : '', port.url ? h('a', { href: port.url }, String(port.port)) : String(port.port)]),
          )
        : null,
    ),
    h(
      'div',
      { class: 'row' },
      h('button', { class: 'btn btn-small', type: 'button', onclick: () => followLog(role, command) }, 'Output'),
      stop,
    ),
  );
}

/** Shows the services and ports of a role in a dialog that keeps itself up to date. */
export async function showWorkbench(role) {
  const message = h('div', { 'aria-live': 'polite' });
  const services = h('div', {}, loading('Looking at what runs…'));
  const others = h('div', {});
  const dialog = show(`Services of ${role}`, message, services, h('h3', {}, 'Ports'), others);
  let drawn = '';
  const refresh = async () => {
    const [{ commands }, listed] = await Promise.all([
      get(`/me/sandboxes/${role}/commands`),
      get(`/me/sandboxes/${role}/ports`),
    ]);
    const now = JSON.stringify([commands, listed]);
    // Redrawing would take the focus away, so only when something changed.
    if (!dialog.isConnected || now === drawn) return;
    drawn = now;
    const list = commands.filter((command) => command.detach && !command.terminal);
    const of = (command) => listed.ports.filter((port) => port.command_id === command.id);
    fill(
      services,
      list.length > 0
        ? h('ul', { class: 'list' }, list.map((command) => serviceItem(role, command, of(command), message, refresh)))
        : empty(`No services. Start one with: choir service start --role ${role} -- CMD`),
    );
    fill(
      others,
      listed.no_preview ? h('p', { class: 'small muted' }, listed.no_preview) : null,
      listed.ports.length > 0
        ? h(
            'ul',
            { class: 'list' },
            listed.ports.map((port) =>
              h(
                'li',
                {},
                h('div', { class: 'about' }, h('span', { class: 'title' }, `${port.port}`), h('span', { class: 'small muted' }, `${port.address}, ${port.command ?? 'a command'}`)),
                port.url ? h('a', { class: 'btn btn-small', href: port.url }, 'Open') : null,
              ),
            ),
          )
        : empty('Nothing listens.'),
    );
  };
  const again = async () => {
    await refresh().catch((error) => {
      if (!drawn) fill(services, errorNotice(error));
    });
    if (dialog.isConnected) setTimeout(again, REFRESH_MS);
  };
  again();
}
