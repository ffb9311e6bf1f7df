import { asApiError, getJson, type ApiError } from '../api/client';
import type { EventRecord } from '../api/types';
import { mergeEvents } from '../lib/transcript';
import { connection } from './connection.svelte';

/** Events kept for the log; older ones are in `/logs/events.jsonl`. */
export const LOG_SIZE = 500;

class Log {
  events = $state.raw<EventRecord[]>([]);
  /** Whether what happened before this page was fetched. */
  loaded = $state(false);
  error = $state.raw<ApiError | null>(null);
  paused = $state(false);
  #held: EventRecord[] = [];
  #end = 0;

  constructor() {
    connection.listen({
      events: (events) => this.#receive(events),
      caughtUp: (first, seq) => {
        if (first || !this.loaded) void this.load(seq);
      },
      reset: () => {
        this.events = this.#held = [];
        this.loaded = false;
      },
    });
  }

  /** Fetches the events up to `end`, as many as the log keeps. */
  async load(end: number): Promise<void> {
    this.#end = end;
    try {
      const { events } = await getJson<{ events: EventRecord[] }>('logs/events', {
        since_seq: Math.max(0, end - LOG_SIZE),
        limit: LOG_SIZE,
      });
      this.events = mergeEvents(events, this.events).slice(-LOG_SIZE);
      this.loaded = true;
      this.error = null;
    } catch (error) {
      this.error = asApiError(error);
    }
  }

  retry(): void {
    void this.load(this.#end);
  }

  pause(): void {
    this.paused = true;
  }

  resume(): void {
    this.paused = false;
    const held = this.#held;
    this.#held = [];
    this.#receive(held);
  }

  #receive(events: EventRecord[]): void {
    if (this.paused) this.#held = [...this.#held, ...events].slice(-LOG_SIZE);
    else this.events = [...this.events, ...events].slice(-LOG_SIZE);
  }
}

export const log = new Log();
