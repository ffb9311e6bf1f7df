/** From the events of a run to what its view shows. Pure folds over committed events. */

import type { EventRecord, Run, RunStatus } from '../api/types';

export interface ToolCall {
  callId: string;
  name: string;
  arguments: Record<string, unknown>;
  startedAt: string;
  result: { ok: boolean; output: string; truncated: boolean; endedAt: string } | null;
}

export type Item =
  | { kind: 'text'; seq: number; text: string }
  | { kind: 'tool'; seq: number; call: ToolCall }
  | { kind: 'note'; seq: number; text: string }
  | { kind: 'finished'; seq: number; status: RunStatus; answer: string | null; error: string | null };

export function text(value: unknown): string {
  return typeof value === 'string' ? value : value === undefined || value === null ? '' : JSON.stringify(value);
}

function number(value: unknown): number {
  return typeof value === 'number' && Number.isFinite(value) ? value : 0;
}

function record(value: unknown): Record<string, unknown> {
  if (typeof value === 'string') {
    try {
      return record(JSON.parse(value));
    } catch {
      return { input: value };
    }
  }
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Record<string, unknown>) : {};
}

const STATUSES: readonly string[] = ['running', 'done', 'failed', 'cancelled', 'bounded'];

export function runStatus(value: unknown): RunStatus {
  return typeof value === 'string' && STATUSES.includes(value) ? (value as RunStatus) : 'failed';
}

/** Adds events to a list that is ordered by `seq`; what is there already is not added again. */
export function mergeEvents(known: readonly EventRecord[], more: readonly EventRecord[]): EventRecord[] {
  const last = known.at(-1)?.seq ?? 0;
  const inOrder = more.every((event, index) => event.seq > (more[index - 1]?.seq ?? last));
  if (inOrder) return [...known, ...more];
  const bySeq = new Map(known.map((event) => [event.seq, event]));
  for (const event of more) bySeq.set(event.seq, event);
  return [...bySeq.values()].sort((a, b) => a.seq - b.seq);
}

/** The items of a run's view, from its events in order. */
export function transcript(events: readonly EventRecord[]): Item[] {
  const items: Item[] = [];
  const calls = new Map<string, ToolCall>();
  for (const { seq, ts, kind, data } of events) {
    if (kind === 'run.text') {
      const body = text(data.text);
      if (body.trim() !== '') items.push({ kind: 'text', seq, text: body });
    } else if (kind === 'run.tool_call') {
      const call: ToolCall = {
        callId: text(data.call_id),
        name: text(data.name),
        arguments: record(data.arguments),
        startedAt: ts,
        result: null,
      };
      calls.set(call.callId, call);
      items.push({ kind: 'tool', seq, call });
    } else if (kind === 'run.tool_result') {
      const call = calls.get(text(data.call_id));
      if (call) {
        call.result = {
          ok: data.ok !== false,
          output: text(data.output),
          truncated: data.truncated === true,
          endedAt: ts,
        };
      }
    } else if (kind === 'run.recalled' && Array.isArray(data.memories)) {
      const found = data.memories.length;
      items.push({ kind: 'note', seq, text: `Begins with ${found === 1 ? 'one memory' : `${found} memories`} of earlier tasks.` });
    } else if (kind === 'run.retry') {
      items.push({ kind: 'note', seq, text: `The model did not answer (${text(data.reason)}). Tried again after ${(number(data.wait_ms) / 1000).toFixed(1)} s.` });
    } else if (kind === 'run.resumed') {
      const times = number(data.attempt);
      items.push({ kind: 'note', seq, text: `Was cut off and goes on from step ${Math.max(1, number(data.step))}${times > 1 ? ` (for the ${ordinal(times)} time)` : ''}. What was finished is not done again.` });
    } else if (kind === 'run.finished') {
      const last = items.findLast((item) => item.kind === 'text');
      const answer = text(data.answer);
      items.push({
        kind: 'finished',
        seq,
        status: runStatus(data.status),
        // The answer is usually the last text once more.
        answer: answer.trim() === '' || (last?.kind === 'text' && last.text.trim() === answer.trim()) ? null : answer,
        error: text(data.error) || null,
      });
    }
  }
  return items;
}

function ordinal(count: number): string {
  const tail = count % 100 >= 11 && count % 100 <= 13 ? 0 : count % 10;
  return `${count}${['th', 'st', 'nd', 'rd'][tail] ?? 'th'}`;
}

/** A run after one more of its events. A run that is not known yet begins with `run.started`. */
export function applyEvent(run: Run | undefined, event: EventRecord): Run | undefined {
  const { kind, data, run_id: id } = event;
  if (!id) return run;
  if (kind === 'run.started') {
    return run ?? {
      id,
      prompt: text(data.prompt),
      status: 'running',
      model: text(data.model),
      started_at: event.ts,
      steps: 0,
      input_tokens: 0,
      output_tokens: 0,
    };
  }
  if (!run) return undefined;
  if (kind === 'run.step') return { ...run, steps: Math.max(run.steps, number(data.step)) };
  if (kind === 'run.usage') {
    return {
      ...run,
      input_tokens: run.input_tokens + number(data.input_tokens),
      output_tokens: run.output_tokens + number(data.output_tokens),
    };
  }
  if (kind === 'run.finished') {
    return {
      ...run,
      status: runStatus(data.status),
      ended_at: event.ts,
      answer: text(data.answer) || null,
      error: text(data.error) || null,
    };
  }
  return run;
}

/** One line about an event, for the log. */
export function summary(event: EventRecord): string {
  const { kind, data } = event;
  switch (kind) {
    case 'run.started': return text(data.prompt);
    case 'run.step': return `Step ${text(data.step)}`;
    case 'run.text': return text(data.text);
    case 'run.tool_call': return `${text(data.name)} ${JSON.stringify(record(data.arguments))}`;
    case 'run.tool_result': return `${data.ok === false ? 'failed' : 'ok'}: ${text(data.output)}`;
    case 'run.usage': return `${number(data.input_tokens)} tokens in, ${number(data.output_tokens)} out`;
    case 'run.finished': return [text(data.status), text(data.error) || text(data.answer)].filter(Boolean).join(': ');
    case 'file.changed': return `${text(data.op).replaceAll('_', ' ')} ${text(data.path)}`;
    case 'runtime.started': return `version ${text(data.version)}`;
    case 'run.retry': return text(data.reason);
    case 'run.reply': return `The model's reply of step ${text(data.step)}`;
    case 'run.resumed': return `Goes on from step ${text(data.step)} after it was cut off`;
    case 'terminal.opened':
    case 'terminal.closed': return text(data.id);
    case 'memory.remembered':
    case 'memory.forgotten': return text(data.text) || text(data.id);
    default: {
      const json = JSON.stringify(data ?? {});
      return json === '{}' ? '' : json;
    }
  }
}

/** The part of a kind before the dot, by which the log is filtered. */
export function kindGroup(kind: string): string {
  const dot = kind.indexOf('.');
  return dot < 0 ? kind : kind.slice(0, dot);
}
