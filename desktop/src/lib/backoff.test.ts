import { describe, expect, it } from 'vitest';
import { MAX_MS, pageGeneration, reconnectDelay, swapDelay, SWAP_SPREAD_MS, swapNotice } from './backoff';

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
    expect(swapNotice('{"generation":4}')).toEqual({ generation: 4, rolledBack: false });
    expect(swapNotice('{"generation":5,"rolled_back":true}')).toEqual({ generation: 5, rolledBack: true });
    expect(swapNotice('')).toBeNull();
    expect(swapNotice('service restart')).toBeNull();
    expect(swapNotice('{"generation":"4"}')).toBeNull();
    expect(swapNotice('null')).toBeNull();
  });

  it('finds the generation that the page was served with', () => {
    const timing = (name: string, description: string) => ({ name, description });
    expect(pageGeneration([timing('db', ''), timing('choir', 'generation=12')])).toBe(12);
    expect(pageGeneration([timing('choir', 'generation=x')])).toBeNull();
    expect(pageGeneration([])).toBeNull();
  });
});
