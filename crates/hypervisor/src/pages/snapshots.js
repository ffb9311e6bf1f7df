// A sandbox's snapshots: take, mark, restore, delete; and making dev a copy of live.

import { get, patch, post, postAndFollow, remove } from './api.js';
import { busy, confirm, empty, errorNotice, fill, h, loading, show, time, toast } from './dom.js';

/** How often the list is asked for while something is copied by somebody else. */
const REFRESH_MS = 1000;

const REASONS = {
  manual: 'Snapshot',
  before_restore: 'Before a restore',
  before_clone: 'Before a clone',
};

const PHASES = {
  counting: () => 'Counting files…',
  copying: ({ bytes, total_bytes: total }) => `Copying ${size(bytes)} of ${size(Math.max(total, bytes))}…`,
  frozen: () => 'Copying the last changes while the sandbox stands still…',
  syncing: () => 'Waiting for the disk…',
  replacing: () => 'Putting the files in place…',
  starting: () => 'Starting the sandbox…',
};

const phase = (progress) => PHASES[progress.phase]?.(progress) ?? progress.phase;

/** A size for people, in powers of 1024. */
export function size(bytes) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  let value = bytes;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? value : value.toFixed(1)} ${units[unit]}`;
}

const seconds = (ms) => `${(ms / 1000).toFixed(1)} s`;

/** Shows copying as it goes, with a button that cancels it; resolves to what came of it. */
async function copying(path, body, role, place) {
  const text = h('span', {}, 'Beginning…');
  const bar = h('progress', { 'aria-label': 'Progress', max: '1' });
  const cancel = h('button', { class: 'btn btn-small', type: 'button' }, 'Cancel');
  cancel.addEventListener('click', () => busy(cancel, null, () => post(`/me/sandboxes/${role}/snapshots/cancel`)));
  fill(place, h('div', { class: 'row', role: 'status' }, bar, text, cancel));
  try {
    return await postAndFollow(path, body, (progress) => {
      text.textContent = phase(progress);
      cancel.hidden = progress.phase === 'replacing' || progress.phase === 'starting';
      if (progress.total_bytes > 0) bar.value = Math.min(1, progress.bytes / progress.total_bytes);
    });
  } finally {
    fill(place);
  }
}

/** Makes dev a copy of live, after asking. `place` shows progress, `message` what went wrong. */
export async function cloneLive(button, message, place) {
  const sure = await confirm({
    title: 'Make dev a copy of live?',
    text: 'Files, home and history of dev are replaced by those of live, which goes on meanwhile. What dev is now is kept as a snapshot.',
    action: 'Clone',
  });
  if (!sure) return;
  await busy(button, message, async () => {
    const done = await copying('/me/sandboxes/clone', {}, 'dev', place);
    toast(`dev is a copy of live, after ${seconds(done.took_ms)}.`);
  });
}

/**
 * Puts the latest snapshot that is marked as known good back in place, after asking. `place` shows
 * progress, `message` what went wrong.
 */
export async function restoreKnownGood(role, button, message, place) {
  let good;
  await busy(button, message, async () => {
    const { snapshots } = await get(`/me/sandboxes/${role}/snapshots`);
    good = snapshots.find((snapshot) => snapshot.known_good) ?? null;
  });
  if (good === undefined) return;
  if (good === null) {
    show(
      `Nothing to go back to yet`,
      h('p', {}, `No snapshot of ${role} is marked as known good. Under Snapshots, take one while ${role} works as it should, and mark it.`),
    );
    return;
  }
  const title = good.name ?? REASONS[good.reason] ?? good.reason;
  const sure = await confirm({
    title: `Restore the last known good ${role}?`,
    text: [
      h('span', {}, `${role} becomes what it was in “${title}”, taken `, time(good.created_at), '.'),
      h(
        'ul',
        {},
        h('li', {}, `Lost from ${role}: what changed in its files, home and history since then, and commands and terminals that run in it. Open pages reload.`),
        h('li', {}, 'Kept: what it is now becomes a snapshot of its own, so this can be taken back. The other sandbox, secrets and settings stay as they are.'),
      ),
    ],
    action: 'Restore',
    danger: true,
  });
  if (!sure) return;
  await busy(button, message, async () => {
    const done = await copying(`/me/sandboxes/${role}/snapshots/${good.id}/restore`, {}, role, place);
    toast(`${role} is what it was in “${title}”, after ${seconds(done.took_ms)}.`);
  });
}

/** Shows the snapshots of a role in a dialog. */
export function showSnapshots(role) {
  const base = `/me/sandboxes/${role}/snapshots`;
  const message = h('div', { 'aria-live': 'polite' });
  const progress = h('div', {});
  const list = h('div', {}, loading('Looking for snapshots…'));
  const name = h('input', {
    class: 'input',
    maxlength: '80',
    autocomplete: 'off',
    placeholder: 'Name (optional)',
    'aria-label': 'Name of the snapshot (optional)',
  });
  const take = h('button', { class: 'btn btn-primary', type: 'submit' }, 'Take a snapshot');
  const form = h('form', { class: 'row' }, name, take);
  const dialog = h(
    'dialog',
    { class: 'wide', 'aria-labelledby': 'snapshots-title' },
    h('h2', { id: 'snapshots-title' }, `Snapshots of ${role}`),
    h('p', { class: 'small muted' }, 'Files, home and history as they were. Agents go on while one is taken.'),
    form,
    message,
    progress,
    list,
    h('div', { class: 'actions' }, h('button', { class: 'btn', type: 'button', onclick: () => dialog.close() }, 'Close')),
  );

  let elsewhere = false;
  const refresh = async () => {
    const listed = await get(base);
    const limits = `${listed.snapshots.length} of ${listed.max_count} snapshots, ${size(listed.used_bytes)} of ${size(listed.max_bytes)}.`;
    fill(
      list,
      listed.snapshots.length > 0
        ? h('ul', { class: 'list' }, listed.snapshots.map(row))
        : empty('No snapshots yet. Take one before you try something.'),
      h('p', { class: 'small muted' }, limits),
    );
    if (progress.hasChildNodes()) return;
    // Begun elsewhere: by a command, or in another window.
    if (listed.under_way) {
      elsewhere = true;
      fill(message, h('p', { class: 'small' }, phase(listed.under_way)));
      if (dialog.open) setTimeout(() => refresh().catch(() => {}), REFRESH_MS);
    } else if (elsewhere) {
      elsewhere = false;
      fill(message);
    }
  };

  function row(snapshot) {
    const title = snapshot.name ?? REASONS[snapshot.reason] ?? snapshot.reason;
    const restore = h(
      'button',
      { class: 'btn btn-small btn-primary', type: 'button', 'aria-label': `Restore ${title}` },
      'Restore',
    );
    restore.addEventListener('click', async () => {
      const sure = await confirm({
        title: `Restore ${role}?`,
        text: `${role} becomes what it was in “${title}”. What it is now is kept as a snapshot. If it runs it stops for a moment; open pages reload.`,
        action: 'Restore',
        danger: true,
      });
      if (!sure) return;
      await busy(restore, message, async () => {
        const done = await copying(`${base}/${snapshot.id}/restore`, {}, role, progress);
        toast(`Restored in ${seconds(done.took_ms)}; ${role} was down for ${seconds(done.down_ms)}.`);
        await refresh();
      });
    });
    const mark = h(
      'button',
      {
        class: 'btn btn-small',
        type: 'button',
        'aria-pressed': String(snapshot.known_good),
        'aria-label': `Known good: ${title}`,
      },
      snapshot.known_good ? 'Unmark' : 'Mark known good',
    );
    mark.addEventListener('click', () =>
      busy(mark, message, async () => {
        await patch(`${base}/${snapshot.id}`, { known_good: !snapshot.known_good });
        await refresh();
      }),
    );
    const drop = h('button', { class: 'btn btn-small btn-quiet', type: 'button', 'aria-label': `Delete ${title}` }, 'Delete');
    drop.addEventListener('click', async () => {
      const sure = await confirm({
        title: 'Delete this snapshot?',
        text: `“${title}” is gone for good then.`,
        action: 'Delete',
        danger: true,
      });
      if (!sure) return;
      await busy(drop, message, async () => {
        await remove(`${base}/${snapshot.id}`);
        await refresh();
      });
    });
    return h(
      'li',
      {},
      h(
        'div',
        { class: 'about' },
        h('span', { class: 'title' }, title, snapshot.known_good ? [' ', h('span', { class: 'badge badge-live' }, 'known good')] : null),
        h('span', { class: 'small muted' }, time(snapshot.created_at), ` · ${size(snapshot.bytes)} · ${snapshot.files} files`),
      ),
      h('div', { class: 'row' }, restore, mark, drop),
    );
  }

  form.addEventListener('submit', (event) => {
    event.preventDefault();
    busy(take, message, async () => {
      const asked = name.value.trim() ? { name: name.value.trim() } : {};
      const done = await copying(base, asked, role, progress);
      name.value = '';
      const still = done.frozen_ms > 0 ? `; ${role} stood still for ${done.frozen_ms} ms` : '';
      toast(`Took a snapshot in ${seconds(done.took_ms)}${still}.`);
      await refresh();
    });
  });
  dialog.addEventListener('close', () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  refresh().catch((error) => fill(list, errorNotice(error)));
}
