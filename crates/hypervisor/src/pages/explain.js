// What a sandbox may and may not do, in plain words, and why something was denied.

import { get } from './api.js';
import { h, show } from './dom.js';
import { noticeList } from './notices.js';

const WORDS = { may: 'May ', may_not: 'May not ', fact: '', warning: '' };

const sentence = (point) => {
  const text = `${WORDS[point.verdict] ?? ''}${point.text}`;
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;
};

/** Shows the explanation of a role in a dialog. */
export async function showExplanation(role) {
  const explanation = await get(`/me/sandboxes/${role}/explain`);
  show(
    `What ${role} may do`,
    ...explanation.topics.map((topic) =>
      h(
        'section',
        { class: 'topic' },
        h('h3', {}, topic.title),
        h(
          'ul',
          {},
          topic.points.map((point) => h('li', { class: point.verdict === 'warning' ? 'notice' : '' }, sentence(point))),
        ),
      ),
    ),
    h('section', { class: 'topic' }, h('h3', {}, 'What was denied lately'), noticeList(explanation.denied)),
  );
}
