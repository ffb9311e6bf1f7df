import { asApiError, getJson, sendJson, type ApiError } from '../api/client';
import type { Memories as MemoryPage, Memory, NewMemory } from '../api/types';
import { connection } from './connection.svelte';

const LIMIT = 100;

class Memories {
  list = $state.raw<Memory[]>([]);
  loaded = $state(false);
  error = $state.raw<ApiError | null>(null);
  query = $state('');
  tag = $state('');
  #latest = 0;

  constructor() {
    connection.listen({
      events: (events) => {
        if (this.loaded && events.some((event) => event.kind.startsWith('memory.'))) void this.refresh();
      },
      caughtUp: () => {
        if (this.loaded) void this.refresh();
      },
    });
  }

  async refresh(): Promise<void> {
    const mine = ++this.#latest;
    try {
      const { memories } = await getJson<MemoryPage>('api/memory', {
        q: this.query.trim() || undefined,
        tag: this.tag || undefined,
        limit: LIMIT,
      });
      // An answer to an older question does not overwrite a newer one.
      if (mine !== this.#latest) return;
      this.list = memories;
      this.error = null;
    } catch (error) {
      if (mine === this.#latest) this.error = asApiError(error);
    } finally {
      this.loaded = true;
    }
  }

  async add(text: string, tags: string[]): Promise<void> {
    await sendJson('POST', 'api/memory', { text, tags } satisfies NewMemory);
    await this.refresh();
  }

  async forget(memory: Memory): Promise<void> {
    await sendJson('DELETE', `api/memory/${encodeURIComponent(memory.id)}`);
    await this.refresh();
  }
}

export const memories = new Memories();
