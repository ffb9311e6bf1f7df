import { ApiError, asApiError, getJson, sendJson } from '../api/client';
import type { CommandExit, NewTerminal, Opened, Terminals as TerminalPage } from '../api/types';
import { connection } from './connection.svelte';

/** One terminal of the list; `components/TerminalView.svelte` attaches to it. */
export class TerminalSession {
  title = $state('');
  link = $state<'connecting' | 'attached' | 'lost' | 'exited'>('connecting');
  exit = $state.raw<CommandExit | null>(null);

  constructor(readonly id: string, readonly name: string) {}
}

/** Terminals per sandbox; the server has its own bound. */
export const MAX_TERMINALS = 8;

class Terminals {
  list = $state.raw<TerminalSession[]>([]);
  active = $state<string | null>(null);
  loaded = $state(false);
  opening = $state(false);
  error = $state.raw<ApiError | null>(null);
  /** The last known size, so that a new shell starts with the right one. */
  size: NewTerminal = { cols: 80, rows: 24 };
  #counter = 0;
  /** Closed here; the server may list them as running until their shells are gone. */
  #closed = new Set<string>();

  constructor() {
    connection.listen({
      events: (events) => {
        if (this.loaded && events.some((event) => event.kind.startsWith('terminal.'))) void this.refresh();
      },
      caughtUp: (first) => {
        if (this.loaded && !first) void this.refresh();
      },
    });
  }

  get current(): TerminalSession | null {
    return this.list.find((terminal) => terminal.id === this.active) ?? null;
  }

  async refresh(): Promise<void> {
    try {
      const { terminals } = await getJson<TerminalPage>('api/terminals');
      const known = new Map(this.list.map((terminal) => [terminal.id, terminal]));
      const next: TerminalSession[] = [];
      for (const view of terminals) {
        const have = known.get(view.id);
        // A shell that had ended before this page came has nothing to offer.
        if (this.#closed.has(view.id)) continue;
        if (have) next.push(have);
        else if (view.state === 'running') next.push(this.#session(view.id));
      }
      // One that ended stays in view until it is closed, so that its last words can be read.
      for (const terminal of this.list) {
        if (terminal.link === 'exited' && !next.includes(terminal)) next.push(terminal);
      }
      next.sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
      this.list = next;
      if (!next.some((terminal) => terminal.id === this.active)) this.active = next.at(-1)?.id ?? null;
      this.error = null;
    } catch (error) {
      this.error = asApiError(error);
    } finally {
      this.loaded = true;
    }
  }

  async create(): Promise<void> {
    if (this.opening) return;
    this.opening = true;
    try {
      const { id } = await sendJson<Opened>('POST', 'api/terminals', this.size);
      if (!this.list.some((terminal) => terminal.id === id)) this.list = [...this.list, this.#session(id)];
      this.active = id;
      this.error = null;
    } catch (error) {
      this.error = asApiError(error);
    } finally {
      this.opening = false;
    }
  }

  async close(terminal: TerminalSession): Promise<void> {
    this.#closed.add(terminal.id);
    const at = this.list.indexOf(terminal);
    this.list = this.list.filter((other) => other !== terminal);
    if (this.active === terminal.id) this.active = (this.list[at] ?? this.list[at - 1])?.id ?? null;
    try {
      await sendJson('DELETE', `api/terminals/${encodeURIComponent(terminal.id)}`);
    } catch (error) {
      // Gone already is what was asked for.
      if (!(error instanceof ApiError && error.status === 404)) throw error;
    }
  }

  /** A fresh shell in the place of one that ended. */
  async restart(terminal: TerminalSession): Promise<void> {
    await this.close(terminal).catch(() => undefined);
    await this.create();
  }

  #session(id: string): TerminalSession {
    this.#counter += 1;
    return new TerminalSession(id, `Terminal ${this.#counter}`);
  }
}

export const terminals = new Terminals();
