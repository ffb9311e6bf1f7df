/** The frames of the event socket. What a newer server may add is skipped, not guessed at. */

import type { EventRecord, ServerMessage } from '../api/types';

export type Message = Exclude<ServerMessage, { type: 'event' }> | { type: 'event'; event: EventRecord };

export function parseMessage(frame: string): Message | null {
  let value: unknown;
  try {
    value = JSON.parse(frame);
  } catch {
    return null;
  }
  if (!isRecord(value)) return null;
  const { type, event, seq, run_id, call_id, text } = value;
  if (type === 'event' && isEvent(event)) return { type, event };
  if (type === 'caught_up' && typeof seq === 'number') return { type, seq };
  if (typeof run_id !== 'string' || typeof text !== 'string') return null;
  if (type === 'delta') return { type, run_id, text };
  if (type === 'output' && typeof call_id === 'string') return { type, run_id, call_id, text };
  return null;
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null;
}

function isEvent(value: unknown): value is EventRecord {
  return (
    isRecord(value) && typeof value.seq === 'number' && typeof value.kind === 'string' &&
    typeof value.ts === 'string' && isRecord(value.data)
  );
}
