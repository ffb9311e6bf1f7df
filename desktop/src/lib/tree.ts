/** The file tree as a flat list of rows: what the eye sees and the arrow keys walk through. */

import type { FileEntry } from '../api/types';
import { joinPath } from './paths';

export interface Row {
  path: string;
  name: string;
  type: FileEntry['type'];
  size: number;
  level: number;
  expanded: boolean;
  /** Position among its siblings, from 1, and their number, for assistive technology. */
  position: number;
  siblings: number;
}

/** Directories first, then by name as people sort (`a2` before `a10`). */
export function sortEntries(entries: readonly FileEntry[]): FileEntry[] {
  const order = new Intl.Collator(undefined, { numeric: true, sensitivity: 'base' });
  const rank = (entry: FileEntry) => (entry.type === 'dir' ? 0 : 1);
  return [...entries].sort((a, b) => rank(a) - rank(b) || order.compare(a.name, b.name));
}

export function visibleRows(
  listing: ReadonlyMap<string, readonly FileEntry[]>,
  expanded: ReadonlySet<string>,
  parent = '',
  level = 1,
): Row[] {
  const entries = listing.get(parent) ?? [];
  return entries.flatMap((entry, index) => {
    const path = joinPath(parent, entry.name);
    const open = entry.type === 'dir' && expanded.has(path);
    const row: Row = {
      path, name: entry.name, type: entry.type, size: entry.size, level, expanded: open,
      position: index + 1, siblings: entries.length,
    };
    return open ? [row, ...visibleRows(listing, expanded, path, level + 1)] : [row];
  });
}

/** Where a key moves the focus; null when the key means nothing to a tree. */
export function treeKey(
  rows: readonly Row[],
  at: number,
  key: string,
): { focus: number } | { toggle: string } | null {
  const row = rows[at];
  if (!row) return null;
  const clamp = (index: number) => ({ focus: Math.max(0, Math.min(rows.length - 1, index)) });
  switch (key) {
    case 'ArrowDown': return clamp(at + 1);
    case 'ArrowUp': return clamp(at - 1);
    case 'Home': return clamp(0);
    case 'End': return clamp(rows.length - 1);
    case 'ArrowRight':
      if (row.type !== 'dir') return null;
      if (!row.expanded) return { toggle: row.path };
      return (rows[at + 1]?.level ?? 0) > row.level ? { focus: at + 1 } : null;
    case 'ArrowLeft': {
      if (row.expanded) return { toggle: row.path };
      const parent = rows.findLastIndex((other, index) => index < at && other.level < row.level);
      return parent < 0 ? null : { focus: parent };
    }
    default: return null;
  }
}
