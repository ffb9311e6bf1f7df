// What a user should know about a sandbox: denials, limits, storms, crashes.

import { get } from './api.js';
import { empty, h, show, time } from './dom.js';

const TITLES = {
  syscall_denied: 'System call denied',
  quota: 'Limit reached',
  network_denied: 'Connection denied',
  reconnect_storm: 'Reconnect storm',
  mismatched_runtime: 'Mismatched runtime',
  crash: 'Crash',
  rolled_back: 'Swap taken back',
  other: 'Notice',
};

/** The latest notice of a sandbox, in a line. */
export const noticeLine = (notice) =>
  h(
    'p',
    { class: 'small' },
    h('strong', {}, `${TITLES[notice.kind] ?? notice.kind}: `),
    `${notice.message} `,
    h('span', { class: 'muted' }, time(notice.last_at)),
  );

/** A list of notices, each with what to do. */
export const noticeList = (notices) =>
  notices.length > 0
    ? h(
        'ul',
        { class: 'list' },
        notices.map((notice) =>
          h(
            'li',
            {},
            h(
              'div',
              { class: 'about' },
              h('span', { class: 'title' }, `${TITLES[notice.kind] ?? notice.kind}${notice.count > 1 ? ` (${notice.count} times)` : ''}`),
              h('span', {}, notice.message),
              notice.hint ? h('span', { class: 'small' }, notice.hint) : null,
              h('span', { class: 'small muted' }, time(notice.last_at)),
            ),
          ),
        ),
      )
    : empty('Nothing was denied, and no limit was reached.');

/** Shows the notices of a role in a dialog. */
export async function showNotices(role) {
  const { notices } = await get(`/me/sandboxes/${role}/notices`);
  show(`Notices of ${role}`, noticeList(notices));
}
