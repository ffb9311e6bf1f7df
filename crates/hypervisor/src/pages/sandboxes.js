// The caller's two sandboxes.

import { get, post, text } from './api.js';
import { busy, confirm, errorNotice, fill, h, loading, show, time, toast } from './dom.js';
import { showExplanation } from './explain.js';
import { follow } from './follow.js';
import { noticeLine, showNotices } from './notices.js';
import { swapLine } from './swap.js';
import { cloneLive, restoreKnownGood, showSnapshots } from './snapshots.js';
import { showWorkbench } from './workbench.js';

const ABOUT = {
  live: 'Stable: what you and your agents rely on.',
  dev: 'Experimental: try changes here, then swap.',
};

export function sandboxCard(sandbox, act, notice) {
  const { role, state } = sandbox;
  const button = (name, label, enabled, style = '') => {
    const element = h('button', { class: `btn btn-small ${style}`, type: 'button', disabled: !enabled }, label);
    element.addEventListener('click', () => act(name, role, element));
    return element;
  };
  const idle = state === 'stopped' || state === 'failed';
  return h(
    'article',
    { class: 'sandbox', 'aria-labelledby': `sandbox-${role}` },
    h(
      'div',
      { class: 'row' },
      h('h3', { id: `sandbox-${role}` }, h('span', { class: `badge badge-${role}` }, role)),
      h('span', { class: `state state-${state}` }, state),
    ),
    h('p', { class: 'small muted' }, ABOUT[role]),
    sandbox.reason
      ? h(
          'div',
          { class: state === 'failed' ? 'notice notice-error' : 'notice' },
          h('p', {}, sandbox.reason),
          sandbox.hint ? h('p', { class: 'small' }, sandbox.hint) : null,
          sandbox.log?.length
            ? h('details', {}, h('summary', {}, 'The end of its log'), h('pre', { class: 'log', tabindex: '0' }, sandbox.log.join('\n')))
            : null,
        )
      : null,
    notice ? noticeLine(notice) : null,
    h(
      'dl',
      {},
      h('dt', {}, 'Address'),
      h('dd', {}, h('a', { href: sandbox.url }, sandbox.url)),
      h('dt', {}, 'Network'),
      h('dd', { title: 'The widest network mode of the commands that run in it: they share it.' }, sandbox.network),
      sandbox.started_at ? [h('dt', {}, 'Started'), h('dd', {}, time(sandbox.started_at))] : null,
    ),
    h(
      'div',
      { class: 'row' },
      h('a', { class: 'btn btn-small btn-primary', href: sandbox.url }, 'Open'),
      button('start', 'Start', idle),
      button('stop', 'Stop', state === 'running' || state === 'starting'),
      button('restart', 'Restart', state === 'running'),
      button('logs', 'Log', state === 'running' || state === 'starting', 'btn-quiet'),
      button('snapshots', 'Snapshots', true, 'btn-quiet'),
      button('known-good', 'Restore last known good', true, 'btn-quiet'),
      button('services', 'Services', state === 'running', 'btn-quiet'),
      button('notices', 'Notices', true, 'btn-quiet'),
      button('explain', 'What it may do', true, 'btn-quiet'),
    ),
  );
}

export async function showLog(role) {
  const log = await text(`/me/sandboxes/${role}/logs`);
  show(`Log of ${role}`, h('pre', { class: 'log', tabindex: '0' }, log || 'Nothing was written yet.'));
}

export function sandboxesView(view, _me, signal) {
  const message = h('div', { 'aria-live': 'polite' });
  const cards = h('div', { class: 'pair' });
  const swap = h('button', { class: 'btn', type: 'button' }, 'Swap live and dev');
  const clone = h('button', { class: 'btn', type: 'button' }, 'Clone live to dev');
  const progress = h('div', {});
  clone.addEventListener('click', async () => {
    await cloneLive(clone, message, progress);
    await refresh().catch(() => {});
  });
  const place = h('div', {}, loading('Looking at your sandboxes…'));
  const outcome = swapLine(signal);
  fill(
    view,
    h(
      'section',
      { 'aria-labelledby': 'sandboxes-title' },
      h(
        'div',
        { class: 'section-head' },
        h('h2', { id: 'sandboxes-title' }, 'My sandboxes'),
        h('div', { class: 'row' }, clone, swap),
        h('p', {}, 'You have two complete runtimes. A swap exchanges them at once; swapping again takes it back.'),
      ),
      message,
      outcome.element,
      progress,
      place,
    ),
  );

  let drawn = '';
  const draw = ({ sandboxes, swap: last, notices }) => {
    outcome.show(last);
    const now = JSON.stringify([sandboxes, notices]);
    // Redrawing would take the focus away, so only when something changed.
    if (signal.aborted || now === drawn) return;
    drawn = now;
    const latest = (role) => (notices ?? []).find((notice) => notice.role === role);
    fill(cards, sandboxes.map((sandbox) => sandboxCard(sandbox, act, latest(sandbox.role))));
    if (!cards.isConnected) fill(place, cards);
  };
  const refresh = follow(draw, signal, (error) => {
    if (!drawn) fill(place, errorNotice(error));
  });

  async function act(name, role, button) {
    if (name === 'logs') return busy(button, message, () => showLog(role));
    if (name === 'snapshots') return showSnapshots(role);
    if (name === 'known-good') return restoreKnownGood(role, button, message, progress);
    if (name === 'services') return busy(button, message, () => showWorkbench(role));
    if (name === 'explain') return busy(button, message, () => showExplanation(role));
    if (name === 'notices') return busy(button, message, () => showNotices(role));
    if (name !== 'start') {
      const sure = await confirm({
        title: `${name === 'stop' ? 'Stop' : 'Restart'} ${role}?`,
        text: 'Agents, commands and terminals that run in it are ended. Files stay.',
        action: name === 'stop' ? 'Stop' : 'Restart',
        danger: true,
      });
      if (!sure) return undefined;
    }
    return busy(button, message, async () => {
      await post(`/me/sandboxes/${role}/${name}`);
      await refresh();
    });
  }

  swap.addEventListener('click', async () => {
    const sure = await confirm({
      title: 'Swap live and dev?',
      text: 'What is dev now is served as live, and the other way round. Open pages reload. It is refused unless the other sandbox is healthy, and taken back by itself if the new live fails soon after.',
      action: 'Swap',
    });
    if (!sure) return;
    busy(swap, message, async () => {
      const done = await post('/me/sandboxes/swap');
      toast(`Swapped in ${done.took_ms} ms.`);
      await refresh();
    });
  });
}
