/** What the keyboard does, for the help dialog and for the handler in `App.svelte`. */

export interface Shortcut {
  keys: readonly string[];
  meaning: string;
  /** A single character: can be switched off (WCAG 2.1, 2.1.4). */
  single?: boolean;
}

export const SHORTCUTS: readonly Shortcut[] = [
  { keys: ['Enter'], meaning: 'Start the task that you have written' },
  { keys: ['Shift', 'Enter'], meaning: 'Break the line in a task' },
  { keys: ['/'], meaning: 'Write a new task', single: true },
  { keys: ['1', '2', '3', '4', '5'], meaning: 'Terminal, files, events, memory, services', single: true },
  { keys: ['Ctrl', 'S'], meaning: 'Save the open file' },
  { keys: ['←', '→'], meaning: 'Change tabs; open and close folders' },
  { keys: ['F2'], meaning: 'Rename the selected file' },
  { keys: ['Del'], meaning: 'Delete the selected file' },
  { keys: ['Shift', 'Esc'], meaning: 'Leave the terminal' },
  { keys: ['?'], meaning: 'This help', single: true },
];

/** Whether a key event is meant for a field, an editor or a terminal rather than for the page. */
export function isTyping(target: { tagName?: string; isContentEditable?: boolean } | null): boolean {
  return target !== null && (/^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName ?? '') || target.isContentEditable === true);
}
