// What became of the last swap.

import { fill, h, time } from './dom.js';

const recent = (rfc3339) => Date.now() - new Date(rfc3339).getTime() < 24 * 3600 * 1000;

/** A line that shows a swap's trial with the time that is left, and how it ended. */
export function swapLine(signal) {
  const element = h('div', { class: 'swap-line', role: 'status', 'aria-live': 'polite' });
  let timer = null;
  let shown = '';

  const stop = () => {
    clearInterval(timer);
    timer = null;
  };
  signal.addEventListener('abort', stop);

  const trial = (left) => {
    const ends = Date.now() + left;
    const seconds = h('strong', {});
    const tick = () => {
      seconds.textContent = `${Math.max(0, Math.ceil((ends - Date.now()) / 1000))} s`;
      if (Date.now() >= ends) stop();
    };
    // The seconds are not read out one by one.
    const line = h('div', { class: 'notice' }, h('p', {}, 'The new live is on trial for another ', h('span', { 'aria-hidden': 'true' }, seconds), '. If it fails, the swap is taken back by itself.'));
    stop();
    tick();
    timer = setInterval(tick, 250);
    fill(element, line);
  };

  const ended = (title, swap) =>
    fill(element, h('div', { class: 'notice notice-error' }, h('p', {}, h('strong', {}, title), ' ', swap.reason ?? ''), h('p', { class: 'small muted' }, time(swap.swapped_at))));

  return {
    element,
    show(swap) {
      const now = swap ? `${swap.generation} ${swap.outcome}` : '';
      if (now === shown) return;
      shown = now;
      stop();
      if (swap?.outcome === 'on_trial') trial(swap.grace_left_ms ?? 0);
      else if (swap?.outcome === 'rolled_back' && recent(swap.swapped_at)) ended('The swap was taken back:', swap);
      else if (swap?.outcome === 'stayed' && recent(swap.swapped_at)) ended('The new live failed and the swap was not taken back:', swap);
      else fill(element);
    },
  };
}
