import { SvelteMap, SvelteSet } from 'svelte/reactivity';
import { ApiError, apiUrl, asApiError, getJson, send, sendJson } from '../api/client';
import type { EventRecord, FileEntry, Listing } from '../api/types';
import { ancestors, isWithin, parentPath, rebase } from '../lib/paths';
import { sortEntries, visibleRows } from '../lib/tree';
import { connection } from './connection.svelte';
import { layout } from './layout.svelte';

/** Larger files are offered for download and not edited here, in bytes. */
export const MAX_EDIT_BYTES = 1024 * 1024;
/** Images by their names. SVG is text that can be edited, so it is none of them. */
const IMAGE_TYPES: Record<string, string> = {
  png: 'image/png', jpg: 'image/jpeg', jpeg: 'image/jpeg', gif: 'image/gif', webp: 'image/webp', avif: 'image/avif', ico: 'image/x-icon',
};
/** Larger images are offered for download, in bytes. */
const MAX_IMAGE_BYTES = 8 * 1024 * 1024;
/** What a command changed is not announced: look again this long after it ended, in milliseconds. */
const SETTLE_MS = 400;

export type Content =
  | { kind: 'loading' }
  | { kind: 'error'; error: ApiError }
  | { kind: 'text' }
  | { kind: 'image'; url: string }
  | { kind: 'binary'; size: number }
  | { kind: 'large'; size: number };

class Files {
  listing = new SvelteMap<string, FileEntry[]>();
  expanded = new SvelteSet<string>();
  error = $state.raw<ApiError | null>(null);
  /** The file or folder that the toolbar acts on. */
  selected = $state<string | null>(null);
  rows = $derived(visibleRows(this.listing, this.expanded));

  /** The open file. */
  path = $state<string | null>(null);
  content = $state.raw<Content>({ kind: 'loading' });
  saved = $state('');
  draft = $state('');
  saving = $state(false);
  /** The open file changed on disk while it has unsaved edits. */
  conflict = $state(false);
  /** The open file is gone from the disk. */
  gone = $state(false);
  dirty = $derived(this.content.kind === 'text' && this.draft !== this.saved);
  /** Folders with more entries than the server lists. */
  truncated = new SvelteSet<string>();
  #etag: string | null = null;
  #settle: ReturnType<typeof setTimeout> | undefined;

  constructor() {
    connection.listen({
      events: (events) => this.#receive(events),
      caughtUp: (first) => {
        if (!first && this.listing.size > 0) void this.refresh();
      },
    });
  }

  contentUrl(path: string): string {
    return apiUrl('api/files/content', { path });
  }

  async list(path: string): Promise<void> {
    try {
      const { entries, truncated } = await getJson<Listing>('api/files', { path });
      this.listing.set(path, sortEntries(entries));
      if (truncated) this.truncated.add(path);
      else this.truncated.delete(path);
      if (path === '') this.error = null;
    } catch (error) {
      const problem = asApiError(error);
      if (path === '') this.error = problem;
      else {
        this.listing.delete(path);
        this.expanded.delete(path);
        if (problem.status !== 404) throw problem;
      }
    }
  }

  /** Lists again what is shown. */
  async refresh(): Promise<void> {
    await Promise.allSettled(['', ...this.expanded].map((path) => this.list(path)));
    if (this.path !== null) await this.#reload();
  }

  async toggle(path: string): Promise<void> {
    if (this.expanded.delete(path)) return;
    this.expanded.add(path);
    if (!this.listing.has(path)) await this.list(path);
  }

  async open(path: string): Promise<void> {
    this.path = path;
    this.selected = path;
    this.#show({ kind: 'loading' });
    this.saved = this.draft = '';
    this.conflict = this.gone = false;
    layout.showFile(path);
    for (const parent of ancestors(path)) {
      if (!this.expanded.has(parent)) await this.toggle(parent).catch(() => undefined);
    }
    await this.#load();
  }

  close(): void {
    this.path = null;
    layout.showFile(null);
  }

  async save(force = false): Promise<void> {
    const { path } = this;
    if (path === null || this.saving) return;
    this.saving = true;
    const body = this.draft;
    try {
      const headers: Record<string, string> = { 'Content-Type': 'application/octet-stream' };
      if (this.#etag !== null && !force) headers['If-Match'] = this.#etag;
      const response = await send('api/files/content', { method: 'PUT', headers, body }, { path });
      if (this.path !== path) return;
      this.#etag = response.headers.get('etag');
      this.saved = body;
      this.conflict = this.gone = false;
      if (this.#etag === null) await this.#reload();
    } catch (error) {
      if (error instanceof ApiError && error.code !== 'stale_generation' && (error.status === 412 || error.status === 409)) this.conflict = true;
      else throw error;
    } finally {
      this.saving = false;
    }
  }

  /** Drops the edits and shows what is on the disk. */
  async revert(): Promise<void> {
    this.conflict = false;
    await this.#load();
  }

  async createFile(path: string): Promise<void> {
    await this.#makeParent(path);
    // `If-None-Match: *`: never in the place of a file that is there.
    await send(
      'api/files/content',
      { method: 'PUT', headers: { 'If-None-Match': '*', 'Content-Type': 'application/octet-stream' }, body: '' },
      { path },
    );
    await this.#listAround(path);
    await this.open(path);
  }

  async createFolder(path: string): Promise<void> {
    await sendJson('POST', 'api/files/dir', { path });
    await this.#listAround(path);
    this.selected = path;
  }

  async move(from: string, to: string): Promise<void> {
    await this.#makeParent(to);
    await sendJson('POST', 'api/files/move', { from, to });
    this.#forget(from);
    await this.list(parentPath(from)).catch(() => undefined);
    await this.#listAround(to);
    this.selected = to;
    if (this.path !== null && isWithin(this.path, from)) {
      this.path = rebase(this.path, from, to);
      layout.showFile(this.path);
    }
  }

  async remove(path: string): Promise<void> {
    await send('api/files', { method: 'DELETE' }, { path });
    this.#forget(path);
    if (this.selected !== null && isWithin(this.selected, path)) this.selected = null;
    if (this.path !== null && isWithin(this.path, path)) this.close();
    await this.list(parentPath(path)).catch(() => undefined);
  }

  async #makeParent(path: string): Promise<void> {
    const parent = parentPath(path);
    if (parent === '' || this.listing.has(parent)) return;
    try {
      await sendJson('POST', 'api/files/dir', { path: parent });
    } catch (error) {
      // It is there already.
      if (!(error instanceof ApiError && error.status === 409)) throw error;
    }
  }

  #forget(path: string): void {
    for (const known of [...this.listing.keys()]) if (known !== '' && isWithin(known, path)) this.listing.delete(known);
    for (const known of [...this.expanded]) if (isWithin(known, path)) this.expanded.delete(known);
  }

  async #listAround(path: string): Promise<void> {
    await this.list('');
    for (const parent of ancestors(path)) {
      this.expanded.add(parent);
      await this.list(parent);
    }
  }

  async #fetch(path: string): Promise<{ content: Content; text: string; etag: string | null }> {
    const response = await send('api/files/content', {}, { path });
    const etag = response.headers.get('etag');
    const size = Number(response.headers.get('content-length') ?? 0);
    const type = IMAGE_TYPES[path.slice(path.lastIndexOf('.') + 1).toLowerCase()];
    if (size > (type === undefined ? MAX_EDIT_BYTES : MAX_IMAGE_BYTES)) {
      await response.body?.cancel();
      return { content: { kind: 'large', size }, text: '', etag };
    }
    const data = new Uint8Array(await response.arrayBuffer());
    if (type !== undefined) {
      // The server sends every file as a download, so that none becomes a page of this origin.
      return { content: { kind: 'image', url: URL.createObjectURL(new Blob([data], { type })) }, text: '', etag };
    }
    if (data.length > MAX_EDIT_BYTES) return { content: { kind: 'large', size: data.length }, text: '', etag };
    try {
      const text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(data);
      if (!text.includes('\0')) return { content: { kind: 'text' }, text, etag };
    } catch {
      // Not UTF-8.
    }
    return { content: { kind: 'binary', size: data.length }, text: '', etag };
  }

  async #load(): Promise<void> {
    const { path } = this;
    if (path === null) return;
    try {
      const { content, text, etag } = await this.#fetch(path);
      if (this.path !== path) return;
      this.saved = this.draft = text;
      this.#etag = etag;
      this.#show(content);
      this.gone = false;
    } catch (error) {
      if (this.path === path) this.content = { kind: 'error', error: asApiError(error) };
    }
  }

  /** Shows a content; the one before may hold an image in memory. */
  #show(content: Content): void {
    if (this.content.kind === 'image') URL.revokeObjectURL(this.content.url);
    this.content = content;
  }

  /** The open file may have changed on the disk: take it, unless that would lose edits. */
  async #reload(): Promise<void> {
    const { path } = this;
    if (path === null) return;
    try {
      const { content, text, etag } = await this.#fetch(path);
      if (this.path !== path || this.saving) return;
      this.gone = false;
      if (content.kind === 'image' && etag !== null && etag === this.#etag) {
        URL.revokeObjectURL(content.url);
        return;
      }
      if (content.kind === 'text' && this.content.kind === 'text') {
        if (etag === this.#etag && text === this.saved) return;
        if (this.draft === text) this.conflict = false;
        else if (this.dirty) {
          this.conflict = text !== this.saved;
          if (this.conflict) return;
        } else this.draft = text;
        this.saved = text;
      } else if (this.dirty) {
        this.conflict = true;
        return;
      }
      this.#etag = etag;
      this.#show(content);
    } catch (error) {
      const problem = asApiError(error);
      if (problem.status !== 404 || this.path !== path) return;
      this.gone = true;
      this.#etag = null;
    }
  }

  #receive(events: EventRecord[]): void {
    if (this.listing.size === 0) return;
    if (events.some(({ kind, data }) => kind === 'run.tool_result' && data.name === 'run_command')) {
      clearTimeout(this.#settle);
      this.#settle = setTimeout(() => void this.refresh(), SETTLE_MS);
    }
    const changed = new Set<string>();
    for (const { kind, data } of events) {
      if (kind !== 'file.changed') continue;
      for (const path of [data.path, data.from, data.to]) if (typeof path === 'string') changed.add(path);
    }
    if (changed.size === 0) return;
    const parents = new Set([...changed].map(parentPath));
    // A new folder may have come with the file.
    parents.add('');
    for (const parent of parents) {
      if (this.listing.has(parent)) void this.list(parent).catch(() => undefined);
      else {
        const known = ancestors(parent).findLast((path) => this.listing.has(path));
        if (known) void this.list(known).catch(() => undefined);
      }
    }
    if (this.path !== null && [...changed].some((path) => this.path !== null && isWithin(this.path, path))) void this.#reload();
  }
}

export const files = new Files();
