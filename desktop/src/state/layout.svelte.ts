import { store, stored } from './theme.svelte';

export const PANELS = ['terminal', 'files', 'events', 'memory', 'services'] as const;
export type Panel = (typeof PANELS)[number];
/** On a narrow screen the agent is one more panel. */
export type Tab = Panel | 'agent';

export const PANEL_NAMES: Record<Tab, string> = {
  agent: 'Agent',
  terminal: 'Terminal',
  files: 'Files',
  events: 'Events',
  memory: 'Memory',
  services: 'Services',
};

/** Below this width one panel is shown at a time. */
export const NARROW = '(max-width: 899px)';
const SPLIT_KEY = 'choir.split';
const KEYS_KEY = 'choir.single-keys';
/** Bounds of the agent column, in percent of the window. */
export const SPLIT_MIN = 26;
export const SPLIT_MAX = 62;

/** What is in view. It lives in the URL's fragment, so that a reload (after a swap) comes back to it. */
class Layout {
  tab = $state<Tab>('agent');
  panel = $state<Panel>('terminal');
  run = $state<string | null>(null);
  file = $state<string | null>(null);
  narrow = $state(false);
  split = $state(38);
  singleKeys = $state(stored(KEYS_KEY) !== 'off');

  constructor() {
    const query = matchMedia(NARROW);
    this.narrow = query.matches;
    query.addEventListener('change', (event) => (this.narrow = event.matches));
    const split = Number(stored(SPLIT_KEY));
    if (split >= SPLIT_MIN && split <= SPLIT_MAX) this.split = split;
    this.#read();
    addEventListener('hashchange', () => this.#read());
  }

  show(tab: Tab): void {
    this.tab = tab;
    if (tab !== 'agent') this.panel = tab;
    this.#write();
  }

  showRun(id: string | null): void {
    this.run = id;
    this.tab = 'agent';
    this.#write();
  }

  showFile(path: string | null): void {
    this.file = path;
    if (path !== null) {
      this.tab = 'files';
      this.panel = 'files';
    }
    this.#write();
  }

  /** Whether a panel can be seen now. */
  visible(tab: Tab): boolean {
    return this.narrow ? this.tab === tab : tab === 'agent' || this.panel === tab;
  }

  setSplit(percent: number): void {
    this.split = Math.round(Math.max(SPLIT_MIN, Math.min(SPLIT_MAX, percent)));
    store(SPLIT_KEY, String(this.split));
  }

  setSingleKeys(on: boolean): void {
    this.singleKeys = on;
    store(KEYS_KEY, on ? null : 'off');
  }

  #read(): void {
    const params = new URLSearchParams(location.hash.slice(1));
    const panel = PANELS.find((name) => name === params.get('panel'));
    if (panel) this.panel = panel;
    this.tab = params.get('tab') === 'agent' || !panel ? 'agent' : panel;
    this.run = params.get('run');
    this.file = params.get('file');
  }

  #write(): void {
    const params = new URLSearchParams();
    params.set('panel', this.panel);
    if (this.tab === 'agent') params.set('tab', 'agent');
    if (this.run !== null) params.set('run', this.run);
    if (this.file !== null) params.set('file', this.file);
    history.replaceState(null, '', `#${params}`);
  }
}

export const layout = new Layout();
