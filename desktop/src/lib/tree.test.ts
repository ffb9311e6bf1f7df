import { describe, expect, it } from 'vitest';
import type { FileEntry } from '../api/types';
import { sortEntries, treeKey, visibleRows } from './tree';

const dir = (name: string): FileEntry => ({ name, type: 'dir', size: 0, modified: '' });
const file = (name: string): FileEntry => ({ name, type: 'file', size: 1, modified: '' });
const listing = new Map([
  ['', [dir('src'), file('a')]],
  ['src', [file('main.rs')]],
]);

describe('the tree', () => {
  it('sorts directories first and numbers as people do', () => {
    expect(sortEntries([file('a10'), file('a2'), dir('z')]).map((entry) => entry.name)).toEqual(['z', 'a2', 'a10']);
  });

  it('shows what is expanded', () => {
    expect(visibleRows(listing, new Set()).map((row) => row.path)).toEqual(['src', 'a']);
    expect(visibleRows(listing, new Set(['src'])).map((row) => [row.path, row.level])).toEqual([
      ['src', 1], ['src/main.rs', 2], ['a', 1],
    ]);
  });

  it('walks with the arrow keys', () => {
    const open = visibleRows(listing, new Set(['src']));
    expect(treeKey(open, 0, 'ArrowDown')).toEqual({ focus: 1 });
    expect(treeKey(open, 2, 'ArrowDown')).toEqual({ focus: 2 });
    expect(treeKey(open, 1, 'ArrowLeft')).toEqual({ focus: 0 });
    expect(treeKey(open, 0, 'ArrowLeft')).toEqual({ toggle: 'src' });
    expect(treeKey(open, 0, 'ArrowRight')).toEqual({ focus: 1 });
    expect(treeKey(open, 2, 'ArrowRight')).toBeNull();
    expect(treeKey(open, 2, 'x')).toBeNull();
  });
});
