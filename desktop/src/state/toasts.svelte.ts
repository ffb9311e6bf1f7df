import { asApiError } from '../api/client';

export interface Toast {
  id: number;
  kind: 'info' | 'error';
  text: string;
  hint: string | null;
}

/** Most messages shown at once; the oldest give way. */
const MAX = 4;
const INFO_MS = 5_000;
const ERROR_MS = 15_000;

class Toasts {
  list = $state.raw<Toast[]>([]);
  #next = 1;

  info(text: string): void {
    this.#add('info', text, null, INFO_MS);
  }

  /** Says that `what` did not work, in the words of the problem document. */
  error(what: string, error: unknown): void {
    const problem = asApiError(error);
    this.#add('error', `${what}: ${problem.message}`, problem.hint, ERROR_MS);
  }

  dismiss(id: number): void {
    this.list = this.list.filter((toast) => toast.id !== id);
  }

  #add(kind: Toast['kind'], text: string, hint: string | null, ms: number): void {
    const id = this.#next++;
    this.list = [...this.list, { id, kind, text, hint }].slice(-MAX);
    setTimeout(() => this.dismiss(id), ms);
  }
}

export const toasts = new Toasts();
