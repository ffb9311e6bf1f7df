import { describe, expect, it } from 'vitest';
import { ago, bytes, count, duration, plainText, plural, sentence } from './format';

describe('format', () => {
  it('speaks of durations', () => {
    expect(duration(12)).toBe('12 ms');
    expect(duration(1234)).toBe('1.2 s');
    expect(duration(61_000)).toBe('1 min 1 s');
    expect(duration(3_660_000)).toBe('1 h 1 min');
    expect(duration(NaN)).toBe('');
  });

  it('speaks of moments', () => {
    const now = Date.parse('2026-01-02T00:00:00Z');
    expect(ago('2026-01-01T23:59:58Z', now)).toBe('just now');
    expect(ago('2026-01-01T23:58:00Z', now)).toBe('2 min ago');
    expect(ago('2026-01-01T00:00:00Z', now)).toBe('1 d ago');
    expect(ago('nonsense', now)).toBe('');
  });

  it('speaks of sizes and counts', () => {
    expect(bytes(12)).toBe('12 B');
    expect(bytes(1536)).toBe('1.5 KiB');
    expect(bytes(16 * 1024 * 1024)).toBe('16 MiB');
    expect(count(999)).toBe('999');
    expect(count(1234)).toBe('1.2k');
    expect(plural(1, 'step')).toBe('1 step');
    expect(plural(2, 'step')).toBe('2 steps');
  });

  it('makes sentences of clauses', () => {
    expect(sentence('the path is not valid: it is too long')).toBe('The path is not valid: it is too long.');
    expect(sentence('Already one. ')).toBe('Already one.');
    expect(sentence('')).toBe('');
  });

  it('drops terminal escapes', () => {
    expect(plainText('\x1b[1;31mred\x1b[0m\r\n\x1b]0;title\x07done')).toBe('red\ndone');
  });
});
