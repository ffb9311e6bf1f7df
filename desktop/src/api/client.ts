import { sentence } from '../lib/format';
import type { Problem } from './types';

/** An answer that is not a success, or none at all (`status` 0). */
export class ApiError extends Error {
  override readonly name = 'ApiError';

  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
    readonly hint: string | null = null,
    readonly requestId: string | null = null,
  ) {
    super(message);
  }
}

/** The header by which page and proxy tell each other of which generation they are. */
const GENERATION = 'x-choir-generation';

let loadedWith: number | null = null;
let onOther: (generation: number) => void = () => {};

/** This page is of that generation from now on; `other` hears of an answer of another one. */
export function setGeneration(generation: number, other: (generation: number) => void): void {
  loadedWith = generation;
  onOther = other;
}

/** The query by which a WebSocket, which has no headers of its own, says the generation. */
export function socketQuery(query: Record<string, string | number> = {}): string {
  const all = loadedWith === null ? query : { ...query, choir_generation: loadedWith };
  const text = new URLSearchParams(Object.entries(all).map(([name, value]) => [name, String(value)])).toString();
  return text === '' ? '' : `?${text}`;
}

/** The URL of a path of ours, relative to where this desktop is served. */
export function apiUrl(path: string, query?: Record<string, string | number | undefined>): string {
  const url = new URL(path, new URL('.', document.baseURI));
  for (const [name, value] of Object.entries(query ?? {})) {
    if (value !== undefined) url.searchParams.set(name, String(value));
  }
  return url.href;
}

/** Sends a request; throws `ApiError` for anything but a success. */
export async function send(path: string, init: RequestInit = {}, query?: Parameters<typeof apiUrl>[1]): Promise<Response> {
  let response: Response;
  const headers = new Headers(init.headers);
  if (loadedWith !== null) headers.set(GENERATION, String(loadedWith));
  try {
    response = await fetch(apiUrl(path, query), { cache: 'no-store', ...init, headers });
  } catch (error) {
    if (error instanceof DOMException && error.name === 'AbortError') throw error;
    throw new ApiError(0, 'unreachable', 'The sandbox cannot be reached.', 'The desktop keeps trying to reconnect.');
  }
  const generation = Number(response.headers.get(GENERATION) ?? Number.NaN);
  if (loadedWith !== null && Number.isInteger(generation) && generation !== loadedWith) onOther(generation);
  if (!response.ok) throw await problem(response);
  return response;
}

export async function getJson<T>(path: string, query?: Parameters<typeof apiUrl>[1], signal?: AbortSignal): Promise<T> {
  const response = await send(path, { headers: { Accept: 'application/json' }, signal: signal ?? null }, query);
  return (await response.json()) as T;
}

export async function sendJson<T>(method: string, path: string, body?: unknown): Promise<T> {
  const response = await send(path, {
    method,
    headers: { Accept: 'application/json', ...(body === undefined ? {} : { 'Content-Type': 'application/json' }) },
    body: body === undefined ? null : JSON.stringify(body),
  });
  const text = await response.text();
  return (text === '' ? undefined : JSON.parse(text)) as T;
}

async function problem(response: Response): Promise<ApiError> {
  const fallback = `The sandbox answered ${response.status}${response.statusText ? ` ${response.statusText}` : ''}.`;
  try {
    const body = (await response.json()) as Partial<Problem>;
    return new ApiError(
      response.status,
      body.code ?? 'unknown',
      sentence(body.detail ?? body.title ?? fallback),
      body.hint ? sentence(body.hint) : null,
      body.request_id ?? response.headers.get('x-request-id'),
    );
  } catch {
    return new ApiError(response.status, 'unknown', fallback);
  }
}

export function asApiError(error: unknown): ApiError {
  if (error instanceof ApiError) return error;
  return new ApiError(0, 'unexpected', error instanceof Error ? error.message : String(error));
}
