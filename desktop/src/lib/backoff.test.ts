import { describe, expect, it } from 'vitest';
import { MAX_MS, reconnectDelay, swapDelay, SWAP_SPREAD_MS, swapGeneration } from './backoff';

describe('reconnectDelay', () => {
  it('grows, keeps its jitter and never passes the cap', () => {
    expect(reconnectDelay(0, 0)).toBe(250);
    expect(reconnectDelay(0, 1)).toBe(500);
    expect(reconnectDelay(3, 0)).toBe(2000);
    for (let attempt = 0; attempt < 100; attempt += 1) {
      expect(reconnectDelay(attempt, 0.999)).toBeLessThanOrEqual(MAX_MS);
      expect(reconnectDelay(attempt, 0)).toBeGreaterThan(0);
    }
  });
});

describe('swap', () => {
  it('spreads the reloads', () => {
    expect(swapDelay(0)).toBe(0);
    expect(swapDelay(1)).toBe(SWAP_SPREAD_MS);
  });

  it('reads the generation and tolerates any other reason', () => {
    expect(swapGeneration('{"generation":4}')).toBe(4);
    expect(swapGeneration('')).toBeNull();
    expect(swapGeneration('service restart')).toBeNull();
    expect(swapGeneration('{"generation":"4"}')).toBeNull();
    expect(swapGeneration('null')).toBeNull();
  });
});
