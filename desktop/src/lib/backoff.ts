/** First wait before a reconnect, in milliseconds. */
const BASE_MS = 500;
/** Longest wait before a reconnect, in milliseconds. */
export const MAX_MS = 15_000;
/** After a swap, clients come back spread over this many milliseconds (arch §4). */
export const SWAP_SPREAD_MS = 3_000;

/**
 * The wait before reconnect number `attempt` (0 is the first): exponential, capped, with
 * equal jitter, so that many desktops do not come back in step and none at once.
 */
export function reconnectDelay(attempt: number, random: number): number {
  const ceiling = Math.min(MAX_MS, BASE_MS * 2 ** Math.min(attempt, 16));
  return Math.round(ceiling / 2 + (ceiling / 2) * random);
}

/** The wait before a reload after a swap. */
export function swapDelay(random: number): number {
  return Math.round(SWAP_SPREAD_MS * random);
}

/** The generation that a close frame of code 1012 announces, when its reason says so. */
export function swapGeneration(reason: string): number | null {
  try {
    const value: unknown = JSON.parse(reason);
    if (typeof value === 'object' && value !== null && 'generation' in value) {
      const { generation } = value;
      return typeof generation === 'number' ? generation : null;
    }
  } catch {
    // Not JSON: a 1012 of somebody else, for instance a restart.
  }
  return null;
}
