import type { EventRecord } from '../api/types';
import { connection } from './connection.svelte';

/** Events kept for the log; older ones are in `/logs/events.jsonl`. */
export const LOG_SIZE = 500;

class Log {
  events = $state.raw<EventRecord[]>([]);
  paused = $state(false);
  #held: EventRecord[] = [];

  constructor() {
    connection.listen({ events: (events) => this.#receive(events) });
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
