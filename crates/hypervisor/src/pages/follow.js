// Follows the caller's sandboxes: events while they come, questions now and then while they do not.

import { get } from './api.js';

/** How often states are asked for while no events come. */
const ASK_MS = 3000;

/**
 * Calls `draw` with what there is to show, at once and after each change, until `signal` is
 * aborted. Returns what asks at once. Only pages in sight follow: a browser has few
 * connections for one host, and a forgotten tab must not keep one.
 */
export function follow(draw, signal, failed) {
  let source = null;
  let open = false;

  const ask = async () => {
    const [{ sandboxes }, { swap }] = await Promise.all([get('/me/sandboxes'), get('/me/sandboxes/swap')]);
    draw({ sandboxes, swap, notices: null });
  };

  const listen = () => {
    if (source || document.hidden || signal.aborted) return;
    source = new EventSource('/me/events');
    source.addEventListener('open', () => (open = true));
    source.addEventListener('state', (event) => draw(JSON.parse(event.data)));
    source.addEventListener('error', () => {
      open = false;
      // A refusal ends it for good; begin anew with the next question.
      if (source?.readyState === EventSource.CLOSED) source = null;
    });
  };

  const leave = () => {
    source?.close();
    source = null;
    open = false;
  };

  const sight = () => (document.hidden ? leave() : listen());
  document.addEventListener('visibilitychange', sight);
  signal.addEventListener('abort', () => {
    document.removeEventListener('visibilitychange', sight);
    leave();
  });

  const again = async () => {
    if (signal.aborted) return;
    if (!document.hidden && !open) {
      listen();
      await ask().catch(failed);
    }
    setTimeout(again, ASK_MS);
  };
  listen();
  again();
  return () => (open ? Promise.resolve() : ask());
}
