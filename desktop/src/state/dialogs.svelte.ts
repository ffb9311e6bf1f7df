/** Questions to the user, asked one at a time. `components/Dialogs.svelte` shows them. */

interface Base {
  title: string;
  body?: string;
  action: string;
  danger?: boolean;
}

export interface Confirmation extends Base {
  kind: 'confirm';
  resolve: (yes: boolean) => void;
}

export interface Question extends Base {
  kind: 'ask';
  label: string;
  value: string;
  /** Why the value will not do; null when it will. */
  validate: (value: string) => string | null;
  resolve: (value: string | null) => void;
}

class Dialogs {
  current = $state.raw<Confirmation | Question | null>(null);
  help = $state(false);

  confirm(options: Base): Promise<boolean> {
    this.#dismiss();
    return new Promise((resolve) => (this.current = { kind: 'confirm', ...options, resolve }));
  }

  ask(options: Base & Pick<Question, 'label' | 'value' | 'validate'>): Promise<string | null> {
    this.#dismiss();
    return new Promise((resolve) => (this.current = { kind: 'ask', ...options, resolve }));
  }

  settle(answer: boolean | string | null): void {
    const { current } = this;
    this.current = null;
    if (current?.kind === 'confirm') current.resolve(answer === true);
    else current?.resolve(typeof answer === 'string' ? answer : null);
  }

  #dismiss(): void {
    if (this.current) this.settle(null);
  }
}

export const dialogs = new Dialogs();
