import { SvelteMap } from 'svelte/reactivity';
import { asApiError, getJson, sendJson, type ApiError } from '../api/client';
import type { EventRecord, ExecuteRequest, Run, RunDetail, Runs as RunPage, Started } from '../api/types';
import { applyEvent, mergeEvents, text } from '../lib/transcript';
import { connection } from './connection.svelte';
import { layout } from './layout.svelte';

/** Runs fetched at once. */
const PAGE = 30;
/** Longest streamed text that is kept while its event is not there yet, in characters. */
const MAX_DELTA = 64_000;

/** Longest output of a running command that is kept, in characters; its result has the rest. */
const MAX_OUTPUT = 16_000;

/** Call ids are unique within a run only. */
export function outputKey(runId: string, callId: string): string {
  return `${runId} ${callId}`;
}

class Runs {
  list = $state.raw<Run[]>([]);
  loaded = $state(false);
  more = $state(false);
  error = $state.raw<ApiError | null>(null);
  /** Events of the runs that were opened on this page. */
  events = new SvelteMap<string, EventRecord[]>();
  /** Assistant text that streams in, by run. */
  pending = new SvelteMap<string, string>();
  /** What running commands have printed so far, by tool call. */
  output = new SvelteMap<string, string>();
  /** Events that came in while an answer was under way, which may not hold them. */
  #early = new Map<string, EventRecord[]>();
  #duringRefresh: EventRecord[] | null = null;
  runError = $state.raw<ApiError | null>(null);

  current = $derived(layout.run === null ? null : (this.list.find((run) => run.id === layout.run) ?? null));

  constructor() {
    connection.listen({
      events: (events) => this.#receive(events),
      delta: (id, piece) => this.pending.set(id, ((this.pending.get(id) ?? '') + piece).slice(-MAX_DELTA)),
      output: (id, call, piece) => {
        const key = outputKey(id, call);
        this.output.set(key, ((this.output.get(key) ?? '') + piece).slice(-MAX_OUTPUT));
      },
      caughtUp: () => void this.refresh(),
      reset: () => {
        this.list = [];
        this.loaded = false;
        this.events.clear();
      },
    });
  }

  async refresh(): Promise<void> {
    const meanwhile: EventRecord[] = [];
    this.#duringRefresh = meanwhile;
    try {
      const { runs } = await getJson<RunPage>('conductor/runs', { limit: PAGE });
      const older = this.list.filter((run) => !runs.some((fresh) => fresh.id === run.id));
      const oldest = runs.at(-1)?.started_at ?? '';
      this.list = [...runs, ...older.filter((run) => run.started_at < oldest)];
      this.more = runs.length === PAGE;
      this.error = null;
      for (const event of meanwhile) this.#apply(event);
    } catch (error) {
      this.error = asApiError(error);
    } finally {
      this.loaded = true;
      if (this.#duringRefresh === meanwhile) this.#duringRefresh = null;
    }
    if (layout.run !== null) await this.open(layout.run);
  }

  async loadMore(): Promise<void> {
    const last = this.list.at(-1);
    if (!last) return;
    const { runs } = await getJson<RunPage>('conductor/runs', { limit: PAGE, before: last.id });
    this.list = [...this.list, ...runs.filter((run) => !this.list.some((known) => known.id === run.id))];
    this.more = runs.length === PAGE;
  }

  /** Fetches a run with its events; live ones are added as they come. */
  async open(id: string): Promise<void> {
    this.runError = null;
    if (!this.#early.has(id)) this.#early.set(id, []);
    try {
      const { run, events } = await getJson<RunDetail>(`conductor/runs/${encodeURIComponent(id)}`);
      const end = events.at(-1)?.seq ?? 0;
      const all = mergeEvents(mergeEvents(this.events.get(id) ?? [], events), this.#early.get(id) ?? []);
      this.events.set(id, all);
      this.#put(all.filter((event) => event.seq > end).reduce((known, event) => applyEvent(known, event) ?? known, run));
    } catch (error) {
      if (layout.run === id) this.runError = asApiError(error);
    } finally {
      this.#early.delete(id);
    }
  }

  async execute(request: ExecuteRequest): Promise<void> {
    const { run_id: id } = await sendJson<Started>('POST', 'conductor/execute', request);
    if (!this.list.some((run) => run.id === id)) {
      this.#put({
        id,
        prompt: request.prompt,
        status: 'running',
        model: request.model ?? '',
        started_at: new Date().toISOString(),
        steps: 0,
        input_tokens: 0,
        output_tokens: 0,
      });
    }
    layout.showRun(id);
    await this.open(id);
  }

  async cancel(id: string): Promise<void> {
    await sendJson('POST', `conductor/runs/${encodeURIComponent(id)}/cancel`);
  }

  #put(run: Run): void {
    const at = this.list.findIndex((known) => known.id === run.id);
    if (at >= 0) this.list = this.list.with(at, run);
    else this.list = [run, ...this.list].sort((a, b) => b.started_at.localeCompare(a.started_at));
  }

  #receive(events: EventRecord[]): void {
    const byRun = new Map<string, EventRecord[]>();
    for (const event of events) {
      const id = event.run_id;
      if (!id) continue;
      byRun.set(id, [...(byRun.get(id) ?? []), event]);
      if (['run.text', 'run.tool_call', 'run.finished', 'run.step', 'run.retry', 'run.resumed'].includes(event.kind)) this.pending.delete(id);
      if (event.kind === 'run.tool_result') this.output.delete(outputKey(id, text(event.data.call_id)));
      this.#apply(event);
      // Tokens are added up, so they would count twice; the rest is safe to apply again.
      if (event.kind !== 'run.usage') this.#duringRefresh?.push(event);
    }
    for (const [id, more] of byRun) {
      const known = this.events.get(id);
      if (known) this.events.set(id, mergeEvents(known, more));
      const early = this.#early.get(id);
      if (early) this.#early.set(id, mergeEvents(early, more));
    }
  }

  #apply(event: EventRecord): void {
    const known = this.list.find((run) => run.id === event.run_id);
    const next = known?.ended_at ? known : applyEvent(known, event);
    if (next && next !== known) this.#put(next);
  }
}

export const runs = new Runs();
