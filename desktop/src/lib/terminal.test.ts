import { describe, expect, it } from 'vitest';
import { controlCharacter, exitText, isTerminalReport, parseControl, resizeFrame } from './terminal';

describe('control frames', () => {
  it('reads the two it knows and ignores the rest', () => {
    expect(parseControl('{"type":"attached","offset":12}')).toEqual({ type: 'attached', offset: 12 });
    expect(parseControl('{"type":"exited","code":3}')).toMatchObject({ type: 'exited', code: 3 });
    expect(parseControl('{"type":"attached"}')).toBeNull();
    expect(parseControl('nonsense')).toBeNull();
    expect(parseControl('{"type":"news"}')).toBeNull();
  });

  it('keeps sizes in the bounds of the contract', () => {
    expect(JSON.parse(resizeFrame(0, 5000))).toEqual({ type: 'resize', cols: 1, rows: 1000 });
  });
});

describe('input', () => {
  it('tells answers of the terminal from what somebody typed', () => {
    for (const report of ['\x1b[?1;2c', '\x1b[>0;276;0c', '\x1b[24;80R', '\x1b[0n', '\x1b]11;rgb:1a/1c/22\x1b\\', '\x1b[?2026;2$y']) {
      expect(isTerminalReport(report)).toBe(true);
    }
    for (const typed of ['ls', '\x1b[A', '\x1b', '\x03', '\x1bOP', '\x1b[200~c\x1b[201~', 'c']) {
      expect(isTerminalReport(typed)).toBe(false);
    }
  });

  it('makes control characters', () => {
    expect(controlCharacter('c')).toBe('\x03');
    expect(controlCharacter('[')).toBe('\x1b');
    expect(controlCharacter('1')).toBeNull();
  });
});

describe('exitText', () => {
  it('says how it ended', () => {
    expect(exitText({ code: 0 })).toBe('The shell ended.');
    expect(exitText({ code: 2 })).toMatch(/code 2/);
    expect(exitText({ signal: 9 })).toMatch(/signal 9/);
    expect(exitText({ timed_out: true, signal: 9 })).toMatch(/time ran out/);
  });
});
