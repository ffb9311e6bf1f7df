export type Theme = 'auto' | 'light' | 'dark';

/** Also read by `public/theme.js`, before the first paint. */
const KEY = 'choir.theme';

export function stored(key: string): string | null {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}

export function store(key: string, value: string | null): void {
  try {
    if (value === null) localStorage.removeItem(key);
    else localStorage.setItem(key, value);
  } catch {
    // Storage is blocked or full: the choice lasts as long as the page.
  }
}

class ThemeChoice {
  choice = $state<Theme>('auto');
  #systemDark = $state(false);
  dark = $derived(this.choice === 'auto' ? this.#systemDark : this.choice === 'dark');

  constructor() {
    const saved = stored(KEY);
    if (saved === 'light' || saved === 'dark') this.choice = saved;
    const query = matchMedia('(prefers-color-scheme: dark)');
    this.#systemDark = query.matches;
    query.addEventListener('change', (event) => (this.#systemDark = event.matches));
  }

  set(choice: Theme): void {
    this.choice = choice;
    if (choice === 'auto') delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = choice;
    store(KEY, choice === 'auto' ? null : choice);
  }
}

export const theme = new ThemeChoice();
