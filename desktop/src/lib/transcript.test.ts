import { describe, expect, it } from 'vitest';
import type { EventRecord } from '../api/types';
import { applyEvent, kindGroup, mergeEvents, summary, transcript } from './transcript';

let seq = 0;
function event(kind: string, data: Record<string, unknown>, at = (seq += 1)): EventRecord {
  return { seq: at, ts: '2026-01-01T00:00:00Z', kind, run_id: 'r1', data };
}

describe('mergeEvents', () => {
  it('appends in order and drops what it has', () => {
    const [a, b, c] = [event('x', {}, 1), event('x', {}, 2), event('x', {}, 3)];
    expect(mergeEvents([a], [b, c]).map((e) => e.seq)).toEqual([1, 2, 3]);
    expect(mergeEvents([a, b], [b, c]).map((e) => e.seq)).toEqual([1, 2, 3]);
    expect(mergeEvents([b, c], [a]).map((e) => e.seq)).toEqual([1, 2, 3]);
    expect(mergeEvents([], [c, a]).map((e) => e.seq)).toEqual([1, 3]);
  });
});

describe('transcript', () => {
  it('pairs results with their calls and reads arguments in both encodings', () => {
    const items = transcript([
      event('run.started', { prompt: 'p' }),
      event('run.tool_call', { call_id: 'a', name: 'run_command', arguments: { command: 'ls' } }),
      event('run.tool_call', { call_id: 'b', name: 'read_file', arguments: '{"path":"x"}' }),
      event('run.tool_result', { call_id: 'b', ok: false, output: 'no such file' }),
      event('run.tool_result', { call_id: 'a', ok: true, output: 'x', truncated: true }),
    ]);
    expect(items).toHaveLength(2);
    expect(items[0]).toMatchObject({ kind: 'tool', call: { result: { ok: true, truncated: true } } });
    expect(items[1]).toMatchObject({ kind: 'tool', call: { arguments: { path: 'x' }, result: { ok: false } } });
  });

  it('does not say the answer twice', () => {
    const once = transcript([event('run.text', { text: 'Done.' }), event('run.finished', { status: 'done', answer: 'Done.\n' })]);
    expect(once[1]).toMatchObject({ kind: 'finished', answer: null });
    const other = transcript([event('run.text', { text: 'Hm.' }), event('run.finished', { status: 'done', answer: 'Done.' })]);
    expect(other[1]).toMatchObject({ answer: 'Done.' });
  });

  it('notes memories and retries', () => {
    const notes = transcript([
      event('run.recalled', { memories: ['a', 'b'] }),
      event('run.retry', { attempt: 1, wait_ms: 1500, reason: 'status 529' }),
    ]);
    expect(notes.map((note) => note.kind === 'note' && note.text)).toEqual([
      'Begins with 2 memories of earlier tasks.',
      'The model did not answer (status 529). Tried again after 1.5 s.',
    ]);
  });

  it('says that a run was cut off and goes on', () => {
    const notes = transcript([
      event('run.reply', { step: 1, reply: {} }),
      event('run.resumed', { attempt: 1, step: 0 }),
      event('run.resumed', { attempt: 2, step: 4 }),
      event('run.resumed', { attempt: 12, step: 5 }),
    ]);
    expect(notes.map((note) => note.kind === 'note' && note.text)).toEqual([
      'Was cut off and goes on from step 1. What was finished is not done again.',
      'Was cut off and goes on from step 4 (for the 2nd time). What was finished is not done again.',
      'Was cut off and goes on from step 5 (for the 12th time). What was finished is not done again.',
    ]);
  });

  it('survives events it does not know and results without a call', () => {
    expect(transcript([event('run.dream', {}), event('run.tool_result', { call_id: 'zz', output: 'x' })])).toEqual([]);
  });
});

describe('applyEvent', () => {
  it('follows a run from start to end', () => {
    let run = applyEvent(undefined, event('run.started', { prompt: 'p', model: 'demo/choir-demo' }));
    run = applyEvent(run, event('run.step', { step: 2 }));
    run = applyEvent(run, event('run.usage', { input_tokens: 10, output_tokens: 3 }));
    run = applyEvent(run, event('run.usage', { input_tokens: 5, output_tokens: 2 }));
    expect(run).toMatchObject({ status: 'running', steps: 2, input_tokens: 15, output_tokens: 5 });
    run = applyEvent(run, event('run.finished', { status: 'failed', error: 'no' }));
    expect(run).toMatchObject({ status: 'failed', error: 'no' });
  });

  it('ignores events of runs whose start it has not seen', () => {
    expect(applyEvent(undefined, event('run.step', { step: 1 }))).toBeUndefined();
  });
});

describe('the log', () => {
  it('groups and sums up', () => {
    expect(kindGroup('run.tool_call')).toBe('run');
    expect(summary(event('file.changed', { path: 'a', op: 'write' }))).toBe('write a');
    expect(summary(event('runtime.started', { version: '1' }))).toBe('version 1');
    expect(summary(event('news.made', { a: 1 }))).toBe('{"a":1}');
  });
});
