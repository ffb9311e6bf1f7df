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

/** What a close frame of code 1012 announces, when its reason says so. */
export interface SwapNotice {
  generation: number;
  /** The swap before was taken back by itself. */
  rolledBack: boolean;
}

/** Reads the reason of a close frame of code 1012; null when it is somebody else's. */
export function swapNotice(reason: string): SwapNotice | null {
  try {
    const value: unknown = JSON.parse(reason);
    if (typeof value === 'object' && value !== null && 'generation' in value && typeof value.generation === 'number') {
      return { generation: value.generation, rolledBack: 'rolled_back' in value && value.rolled_back === true };
    }
  } catch {
    // Not JSON: a 1012 of somebody else, for instance a restart.
  }
  return null;
}

/**
 * The generation that this very page was served with: what the proxy wrote beside it, which is
 * the one part of its own answer that a page can read.
 */
export function pageGeneration(timings: readonly { name: string; description: string }[]): number | null {
  const found = timings.find((timing) => timing.name === 'choir')?.description.match(/^generation=(\d+)$/);
  return found ? Number(found[1]) : null;
}
