import { apiUrl, asApiError, getJson, send, setGeneration, socketQuery, type ApiError } from '../api/client';
import type { ClientMessage, EventRecord, Info } from '../api/types';
import { pageGeneration, reconnectDelay, swapDelay, swapNotice } from '../lib/backoff';
import { socketUrl } from '../lib/paths';
import { parseMessage } from '../lib/protocol';

export type Phase = 'connecting' | 'online' | 'offline' | 'swapped';

/** RFC 6455 §7.4.1: the service restarts, in our case behind another pointer (arch §4). */
const CLOSE_SERVICE_RESTART = 1012;
/** A connection that stays open this long counts as good: the backoff starts anew. */
const STABLE_MS = 5_000;
/** Events are handed on in batches, so that a long replay does not draw the page per event. */
const BATCH_MS = 24;

/** Where a page leaves word for the one that is loaded after a swap was taken back. */
const ROLLED_BACK = 'choir.rolled-back';

interface Listener {
  events?: (events: EventRecord[]) => void;
  delta?: (runId: string, text: string) => void;
  /** A piece of what a running command prints. */
  output?: (runId: string, callId: string, text: string) => void;
  /** Everything up to the server's present, `seq`, is here; `first` on the first connection of this page. */
  caughtUp?: (first: boolean, seq: number) => void;
  /** The store is another one than before: what came from the old one is void. */
  reset?: () => void;
}

/** The event socket: one cursor, resumed after every loss, and the identity of what answers. */
class Connection {
  phase = $state<Phase>('connecting');
  info = $state.raw<Info | null>(null);
  /** Why the sandbox cannot be reached, when it says so. */
  problem = $state.raw<ApiError | null>(null);
  /** When the next attempt is due, in milliseconds of `Date.now()`. */
  retryAt = $state<number | null>(null);

  #socket: WebSocket | null = null;
  #listeners: Listener[] = [];
  #attempt = 0;
  /** Position of the last event; null until the server has said where the log ends. */
  #cursor: number | null = null;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #batch: EventRecord[] = [];
  #batchTimer: ReturnType<typeof setTimeout> | undefined;
  #mayReload: () => boolean = () => true;

  start(mayReload: () => boolean): void {
    this.#mayReload = mayReload;
    const [page] = performance.getEntriesByType('navigation');
    const served = pageGeneration((page as PerformanceNavigationTiming | undefined)?.serverTiming ?? []);
    if (served !== null) setGeneration(served, () => void this.#swapped());
    addEventListener('online', () => this.retryNow());
    void this.#connect();
  }

  listen(listener: Listener): void {
    this.#listeners.push(listener);
  }

  retryNow(): void {
    if (this.phase !== 'offline' && this.phase !== 'connecting') return;
    if (this.#socket) return;
    clearTimeout(this.#timer);
    void this.#connect();
  }

  reload(): void {
    location.reload();
  }

  /**
   * Whether the close of any of this page's sockets, or what came before it, says that live
   * and dev were swapped: then nothing connects again, and the page is loaded anew.
   */
  movedBy(event: CloseEvent): boolean {
    if (event.code === CLOSE_SERVICE_RESTART) {
      const notice = swapNotice(event.reason);
      if (notice?.generation !== this.info?.generation) {
        if (notice?.rolledBack) sessionStorage.setItem(ROLLED_BACK, String(notice.generation));
        void this.#swapped();
      }
    }
    return this.phase === 'swapped';
  }

  /**
   * Whether this page is still of what answers it: asked of the API before a socket is tried
   * again, since a socket that is refused for its generation says no more than one that broke.
   */
  async isCurrent(): Promise<boolean> {
    if (this.phase === 'swapped') return false;
    await send('health').catch(() => undefined);
    return (this.phase as Phase) !== 'swapped';
  }

  /** Whether this page was loaded because a swap was taken back; true once. */
  tookBack(): boolean {
    const word = sessionStorage.getItem(ROLLED_BACK);
    sessionStorage.removeItem(ROLLED_BACK);
    return word !== null;
  }

  async #connect(): Promise<void> {
    this.retryAt = null;
    try {
      const info = await getJson<Info>('api/info');
      const before = this.info;
      this.info = info;
      this.problem = null;
      if (this.phase === 'swapped') return;
      if (!before) setGeneration(info.generation, () => void this.#swapped());
      if (before && (before.generation !== info.generation || before.sandbox_id !== info.sandbox_id)) {
        void this.#swapped();
        return;
      }
    } catch (error) {
      this.problem = asApiError(error);
      this.#retry();
      return;
    }
    this.#open();
  }

  #open(): void {
    const socket = new WebSocket(socketUrl(apiUrl('.'), `ws${socketQuery()}`));
    this.#socket = socket;
    let stable: ReturnType<typeof setTimeout> | undefined;
    socket.onopen = () => {
      // A cursor beyond the end is cut to it: a new page begins with the present.
      const hello: ClientMessage = { type: 'hello', since_seq: this.#cursor ?? Number.MAX_SAFE_INTEGER };
      socket.send(JSON.stringify(hello));
      stable = setTimeout(() => (this.#attempt = 0), STABLE_MS);
    };
    socket.onmessage = (message) => {
      if (typeof message.data === 'string') this.#receive(message.data);
    };
    socket.onclose = (event) => {
      clearTimeout(stable);
      if (this.#socket !== socket) return;
      this.#socket = null;
      this.#flush();
      if (!this.movedBy(event)) this.#retry();
    };
  }

  #receive(frame: string): void {
    const message = parseMessage(frame);
    if (message?.type === 'event') {
      if (message.event.seq <= (this.#cursor ?? 0)) return;
      this.#cursor = message.event.seq;
      this.#batch.push(message.event);
      this.#batchTimer ??= setTimeout(() => this.#flush(), BATCH_MS);
      return;
    }
    // In order with the events before it: what a fragment continues must be there first.
    this.#flush();
    if (message?.type === 'delta') {
      for (const listener of this.#listeners) listener.delta?.(message.run_id, message.text);
    } else if (message?.type === 'output') {
      for (const listener of this.#listeners) listener.output?.(message.run_id, message.call_id, message.text);
    } else if (message?.type === 'caught_up') this.#caughtUp(message.seq);
  }

  #caughtUp(seq: number): void {
    const other = this.#cursor !== null && seq < this.#cursor;
    const first = this.#cursor === null || other;
    this.#cursor = seq;
    this.phase = 'online';
    if (other) for (const listener of this.#listeners) listener.reset?.();
    for (const listener of this.#listeners) listener.caughtUp?.(first, seq);
  }

  #flush(): void {
    clearTimeout(this.#batchTimer);
    this.#batchTimer = undefined;
    if (this.#batch.length === 0) return;
    const batch = this.#batch;
    this.#batch = [];
    for (const listener of this.#listeners) listener.events?.(batch);
  }

  #retry(): void {
    if (this.phase === 'swapped') return;
    this.phase = 'offline';
    const delay = reconnectDelay(this.#attempt, Math.random());
    this.#attempt += 1;
    this.retryAt = Date.now() + delay;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => void this.#connect(), delay);
  }

  /** This page is of a role that another sandbox has now: load again, once that one answers. */
  async #swapped(): Promise<void> {
    if (this.phase === 'swapped') return;
    this.phase = 'swapped';
    this.retryAt = null;
    await new Promise((resolve) => setTimeout(resolve, swapDelay(Math.random())));
    for (let attempt = 0; ; attempt += 1) {
      try {
        await send('health');
        break;
      } catch {
        await new Promise((resolve) => setTimeout(resolve, reconnectDelay(attempt, Math.random())));
      }
    }
    if (this.#mayReload()) this.reload();
  }
}

export const connection = new Connection();
