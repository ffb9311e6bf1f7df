import { describe, expect, it } from 'vitest';
import {
  ancestors, basePath, baseName, isWithin, joinPath, parentPath, pathError, rebase, socketUrl, workspacePath,
} from './paths';

describe('workspace paths', () => {
  it('joins and splits', () => {
    expect(joinPath('', 'a')).toBe('a');
    expect(joinPath('a/b', 'c')).toBe('a/b/c');
    expect(parentPath('a/b/c')).toBe('a/b');
    expect(parentPath('a')).toBe('');
    expect(baseName('a/b.txt')).toBe('b.txt');
    expect(ancestors('a/b/c')).toEqual(['a', 'a/b']);
    expect(ancestors('a')).toEqual([]);
  });

  it('does not take a common beginning for a parent', () => {
    expect(isWithin('src/a', 'src')).toBe(true);
    expect(isWithin('src2/a', 'src')).toBe(false);
    expect(isWithin('anything', '')).toBe(true);
    expect(rebase('src/a/b', 'src', 'lib')).toBe('lib/a/b');
    expect(rebase('src2/a', 'src', 'lib')).toBe('src2/a');
  });

  it('cuts what a tool call names to the workspace', () => {
    expect(workspacePath('/workspace/a/./b')).toBe('a/b');
    expect(workspacePath('a/../b')).toBe('b');
    expect(workspacePath('/workspace')).toBe('');
    expect(workspacePath('/etc/passwd')).toBeNull();
    expect(workspacePath('../x')).toBeNull();
    expect(workspacePath('~/x')).toBeNull();
  });

  it('says what is wrong with a new name', () => {
    expect(pathError('src/main.rs')).toBeNull();
    expect(pathError(' ')).toMatch(/name/);
    expect(pathError('/a')).toMatch(/leading slash/);
    expect(pathError('a//b')).toMatch(/two slashes/);
    expect(pathError('a/../b')).toMatch(/not allowed/);
    expect(pathError('ü'.repeat(128))).toMatch(/255/);
  });
});

describe('URLs', () => {
  it('keeps the prefix under which the desktop is served', () => {
    expect(basePath('/')).toBe('/');
    expect(basePath('/dev/')).toBe('/dev/');
    expect(basePath('/dev/index.html')).toBe('/dev/');
    expect(socketUrl('http://alice.localhost:9090/dev/#run=1', 'ws')).toBe('ws://alice.localhost:9090/dev/ws');
    expect(socketUrl('https://alice.run.example.com/', 'ws/terminal/1?from=0')).toBe(
      'wss://alice.run.example.com/ws/terminal/1?from=0',
    );
  });
});
