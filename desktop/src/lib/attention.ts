/** After how long without a sign of anybody a page counts as left alone. */
const AWAY_MS = 2 * 60_000;
const SIGNS = ['pointerdown', 'pointermove', 'keydown', 'wheel', 'focus'] as const;

/**
 * Looks again and again while somebody is at the page, and at once when they come back. Each look
 * is a request, which keeps the sandbox awake; a page that was left open is not to do that.
 * Returns what ends it.
 */
export function lookWhileAttended(look: () => void, everyMs: number): () => void {
  let lastSign = Date.now();
  const attended = () => Date.now() - lastSign < AWAY_MS;
  const sign = () => {
    const back = !attended();
    lastSign = Date.now();
    if (back) look();
  };
  const timer = setInterval(() => {
    if (attended() && !document.hidden) look();
  }, everyMs);
  const options = { capture: true, passive: true };
  for (const name of SIGNS) window.addEventListener(name, sign, options);
  return () => {
    clearInterval(timer);
    for (const name of SIGNS) window.removeEventListener(name, sign, options);
  };
}
