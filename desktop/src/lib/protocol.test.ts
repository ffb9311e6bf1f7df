import { describe, expect, it } from 'vitest';
import { parseMessage } from './protocol';

describe('parseMessage', () => {
  it('reads every frame of the contract', () => {
    const event = { seq: 3, ts: '2026-01-01T00:00:00Z', kind: 'run.step', run_id: 'r', data: { step: 1 } };
    for (const message of [
      { type: 'event', event },
      { type: 'caught_up', seq: 0 },
      { type: 'delta', run_id: 'r', text: 'a' },
      { type: 'output', run_id: 'r', call_id: 'c', text: 'a' },
    ]) {
      expect(parseMessage(JSON.stringify(message))).toEqual(message);
    }
  });

  it('skips what it does not know and what is malformed', () => {
    for (const frame of [
      '', 'null', '[]', '{"type":"news"}', '{"type":"caught_up"}', '{"type":"event","event":{"seq":"1"}}',
      '{"type":"delta","run_id":"r"}', '{"type":"output","run_id":"r","text":"a"}',
    ]) {
      expect(parseMessage(frame)).toBeNull();
    }
  });
});
