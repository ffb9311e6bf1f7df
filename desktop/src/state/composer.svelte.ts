import { store, stored } from './theme.svelte';

const DRAFT_KEY = 'choir.draft';
const MODEL_KEY = 'choir.model';

/** The task that is being written. A reload, for instance after a swap, keeps it. */
class Composer {
  prompt = $state(stored(DRAFT_KEY) ?? '');
  /** `provider/model`; empty for the default. */
  model = $state(stored(MODEL_KEY) ?? '');
  maxSteps = $state<number | null>(null);
  maxMinutes = $state<number | null>(null);
  element: HTMLTextAreaElement | null = null;

  set(prompt: string): void {
    this.prompt = prompt;
    store(DRAFT_KEY, prompt === '' ? null : prompt);
  }

  setModel(model: string): void {
    this.model = model;
    store(MODEL_KEY, model === '' ? null : model);
  }

  focus(): void {
    this.element?.focus();
  }

  /** Puts a prompt into the field for a last look before it is sent. */
  fill(prompt: string): void {
    this.set(prompt);
    this.focus();
  }
}

export const composer = new Composer();
