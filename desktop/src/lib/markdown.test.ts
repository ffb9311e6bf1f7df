import { describe, expect, it } from 'vitest';
import { parseInline, parseMarkdown, safeHref } from './markdown';

describe('blocks', () => {
  it('reads what models write', () => {
    const blocks = parseMarkdown(
      '# Done\n\nFixed **it**.\n\n- one\n- two\n  1. inner\n\n```rust\nfn main() {}\n```\n\n> said\n\n---\n\n| a | b |\n|---|---|\n| 1 | 2 |',
    );
    expect(blocks.map((block) => block.kind)).toEqual([
      'heading', 'paragraph', 'list', 'code', 'quote', 'rule', 'table',
    ]);
    const list = blocks[2];
    expect(list?.kind === 'list' && list.items.length).toBe(2);
    expect(list?.kind === 'list' && list.items[1]?.[1]?.kind).toBe('list');
  });

  it('keeps markup characters in code as they are', () => {
    const [code] = parseMarkdown('```\n<script>alert(1)</script>\n**x**\n```');
    expect(code).toEqual({ kind: 'code', language: '', text: '<script>alert(1)</script>\n**x**' });
  });

  it('shows an unfinished fence while it streams in', () => {
    expect(parseMarkdown('text\n```sh\nls')).toEqual([
      { kind: 'paragraph', children: [{ kind: 'text', text: 'text' }] },
      { kind: 'code', language: 'sh', text: 'ls' },
    ]);
  });

  it('ends on any input, however nested', () => {
    for (const evil of ['> '.repeat(3000), '- '.repeat(3000), '*'.repeat(3000), '['.repeat(3000), '_a'.repeat(2000)]) {
      expect(Array.isArray(parseMarkdown(evil))).toBe(true);
    }
  });
});

describe('inline', () => {
  it('reads emphasis, code and links', () => {
    expect(parseInline('a `b*c*` **d** _e_ [f](https://x.test/)').map((node) => node.kind)).toEqual([
      'text', 'code', 'text', 'strong', 'text', 'em', 'text', 'link',
    ]);
  });

  it('leaves snake_case and lone marks alone', () => {
    expect(parseInline('read_file and 2 * 3 * 4')).toEqual([{ kind: 'text', text: 'read_file and 2 * 3 * 4' }]);
  });

  it('finds a bare address without its full stop', () => {
    expect(parseInline('see https://x.test/a.')[1]).toMatchObject({ kind: 'link', href: 'https://x.test/a' });
  });

  it('makes no link that could run code', () => {
    expect(safeHref('javascript:alert(1)')).toBeNull();
    expect(safeHref('data:text/html,x')).toBeNull();
    expect(safeHref('/me/secrets')).toBeNull();
    expect(parseInline('[x](javascript:alert(1))').some((node) => node.kind === 'link')).toBe(false);
  });
});
