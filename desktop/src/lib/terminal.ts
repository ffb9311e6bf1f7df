/** The terminal's wire protocol and keys, without the terminal. */

import type { CommandExit } from '../api/types';

export type Control =
  | { type: 'attached'; offset: number }
  | ({ type: 'exited' } & CommandExit);

export function parseControl(frame: string): Control | null {
  try {
    const value = JSON.parse(frame) as Partial<Control> & { offset?: unknown };
    if (value.type === 'attached' && typeof value.offset === 'number') return { type: 'attached', offset: value.offset };
    if (value.type === 'exited') return value as Control;
  } catch {
    // Not ours; a newer server may say more than this client knows.
  }
  return null;
}

export function resizeFrame(cols: number, rows: number): string {
  return JSON.stringify({ type: 'resize', cols: Math.max(1, Math.min(1000, cols)), rows: Math.max(1, Math.min(1000, rows)) });
}

/**
 * Whether `data` is the terminal's own answer to a query (device attributes, cursor
 * position, colours). When scroll-back is replayed, old queries are read again, and their
 * answers would be typed into the shell.
 */
export function isTerminalReport(data: string): boolean {
  return /^(?:\x1b\[[?>=]?[\d;]*(?:[cRn]|\$y)|\x1b\][\d;]+[^\x07\x1b]*(?:\x07|\x1b\\)|\x1bP[^\x1b]*\x1b\\)+$/.test(data);
}

export function exitText(exit: CommandExit | null | undefined): string {
  if (!exit) return 'The shell ended.';
  if (exit.error) return `The shell could not run: ${exit.error}`;
  if (exit.timed_out) return 'The shell was ended because its time ran out.';
  if (typeof exit.signal === 'number') return `The shell was ended by signal ${exit.signal}.`;
  if (typeof exit.code === 'number' && exit.code !== 0) return `The shell ended with code ${exit.code}.`;
  return 'The shell ended.';
}

/** The control character that a key makes together with Ctrl; null when there is none. */
export function controlCharacter(key: string): string | null {
  const upper = key.toUpperCase();
  if (/^[A-Z[\\\]^_@]$/.test(upper)) return String.fromCharCode(upper.charCodeAt(0) & 0x1f);
  return key === ' ' ? '\0' : null;
}
