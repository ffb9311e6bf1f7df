/**
 * A small Markdown: what models write in answers. It parses to a tree that components
 * render as text nodes, so untrusted text never becomes markup.
 */

export type Inline =
  | { kind: 'text'; text: string }
  | { kind: 'code'; text: string }
  | { kind: 'strong'; children: Inline[] }
  | { kind: 'em'; children: Inline[] }
  | { kind: 'del'; children: Inline[] }
  | { kind: 'link'; href: string; children: Inline[] };

export type Block =
  | { kind: 'heading'; level: number; children: Inline[] }
  | { kind: 'paragraph'; children: Inline[] }
  | { kind: 'code'; language: string; text: string }
  | { kind: 'list'; ordered: boolean; start: number; items: Block[][] }
  | { kind: 'quote'; blocks: Block[] }
  | { kind: 'table'; header: Inline[][]; rows: Inline[][][] }
  | { kind: 'rule' };

/** Deepest nesting of quotes and lists; deeper text is shown flat. */
const MAX_DEPTH = 6;
/** Deepest nesting of emphasis and links. */
const MAX_INLINE_DEPTH = 6;

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^\s`]*)/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const ITEM = /^( {0,5})([-*+]|\d{1,9}[.)])(\s+|$)/;
const QUOTE = /^ {0,3}> ?/;
const DIVIDER = /^ {0,3}\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

export function parseMarkdown(source: string): Block[] {
  return parseBlocks(source.replace(/\r\n?/g, '\n').split('\n'), 0);
}

function parseBlocks(lines: string[], depth: number): Block[] {
  const blocks: Block[] = [];
  let paragraph: string[] = [];
  let at = 0;
  const flush = () => {
    if (paragraph.length > 0) blocks.push({ kind: 'paragraph', children: parseInline(paragraph.join('\n')) });
    paragraph = [];
  };
  while (at < lines.length) {
    const line = lines[at] ?? '';
    const fence = FENCE.exec(line);
    const heading = HEADING.exec(line);
    const item = depth < MAX_DEPTH ? ITEM.exec(line) : null;
    if (line.trim() === '') {
      flush();
      at += 1;
    } else if (fence?.[1]) {
      flush();
      const mark = fence[1];
      const body: string[] = [];
      at += 1;
      while (at < lines.length && !closesFence(lines[at] ?? '', mark)) {
        body.push(lines[at] ?? '');
        at += 1;
      }
      at += 1;
      blocks.push({ kind: 'code', language: fence[2] ?? '', text: body.join('\n') });
    } else if (heading?.[1] !== undefined) {
      flush();
      blocks.push({ kind: 'heading', level: heading[1].length, children: parseInline(heading[2] ?? '') });
      at += 1;
    } else if (RULE.test(line)) {
      flush();
      blocks.push({ kind: 'rule' });
      at += 1;
    } else if (depth < MAX_DEPTH && QUOTE.test(line)) {
      flush();
      const body: string[] = [];
      while (at < lines.length && QUOTE.test(lines[at] ?? '')) {
        body.push((lines[at] ?? '').replace(QUOTE, ''));
        at += 1;
      }
      blocks.push({ kind: 'quote', blocks: parseBlocks(body, depth + 1) });
    } else if (item && (paragraph.length === 0 || item[3] !== '')) {
      flush();
      const list = parseList(lines, at, depth);
      blocks.push(list.block);
      at = list.next;
    } else if (line.includes('|') && DIVIDER.test(lines[at + 1] ?? '') && (lines[at + 1] ?? '').includes('-')) {
      flush();
      const header = cells(line);
      const rows: Inline[][][] = [];
      at += 2;
      while (at < lines.length && (lines[at] ?? '').includes('|')) {
        const row = cells(lines[at] ?? '');
        rows.push(header.map((_, index) => row[index] ?? []));
        at += 1;
      }
      blocks.push({ kind: 'table', header, rows });
    } else {
      paragraph.push(line.trim());
      at += 1;
    }
  }
  flush();
  return blocks;
}

function closesFence(line: string, mark: string): boolean {
  const text = line.trim();
  return text.length >= mark.length && text === mark.charAt(0).repeat(text.length);
}

function parseList(lines: string[], from: number, depth: number): { block: Block; next: number } {
  const first = ITEM.exec(lines[from] ?? '');
  const marker = first?.[2] ?? '-';
  const ordered = /\d/.test(marker);
  const items: Block[][] = [];
  let at = from;
  while (at < lines.length) {
    const match = ITEM.exec(lines[at] ?? '');
    if (!match || /\d/.test(match[2] ?? '') !== ordered || RULE.test(lines[at] ?? '')) break;
    const indent = (match[1] ?? '').length + (match[2] ?? '').length + 1;
    const body = [(lines[at] ?? '').slice(match[0].length)];
    at += 1;
    while (at < lines.length) {
      const line = lines[at] ?? '';
      const lead = line.length - line.trimStart().length;
      if (line.trim() === '') {
        const following = lines[at + 1] ?? '';
        const followingLead = following.length - following.trimStart().length;
        if (following.trim() === '' || followingLead < 2) break;
        body.push('');
      } else if (lead >= 2) body.push(line.slice(Math.min(lead, indent)));
      else if (ITEM.test(line) || FENCE.test(line) || HEADING.test(line) || QUOTE.test(line)) break;
      else body.push(line);
      at += 1;
    }
    items.push(parseBlocks(body, depth + 1));
    // One blank line between two items keeps them one list.
    if ((lines[at] ?? '').trim() === '' && ITEM.test(lines[at + 1] ?? '')) at += 1;
  }
  return { block: { kind: 'list', ordered, start: ordered ? parseInt(marker, 10) : 1, items }, next: at };
}

function cells(line: string): Inline[][] {
  const text = line.trim().replace(/^\|/, '').replace(/\|$/, '');
  return text.split(/(?<!\\)\|/).map((cell) => parseInline(cell.replace(/\\\|/g, '|').trim()));
}

/** Links lead to web pages and mail only; `javascript:`, `data:` and relative ones stay text. */
export function safeHref(href: string): string | null {
  try {
    const url = new URL(href);
    return ['http:', 'https:', 'mailto:'].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

export function parseInline(text: string, depth = 0): Inline[] {
  const out: Inline[] = [];
  const pushText = (piece: string) => {
    const last = out.at(-1);
    if (last?.kind === 'text') last.text += piece;
    else if (piece !== '') out.push({ kind: 'text', text: piece });
  };
  let at = 0;
  while (at < text.length) {
    const rest = text.slice(at);
    const piece = depth < MAX_INLINE_DEPTH ? special(rest, text[at - 1], depth) : null;
    if (piece) {
      out.push(piece.node);
      at += piece.length;
    } else if (/^\\[\\`*_{}[\]()#+\-.!|~<>]/.test(rest)) {
      pushText(rest.charAt(1));
      at += 2;
    } else {
      const plain = /^[^\\`*_[~h]+/.exec(rest)?.[0] ?? rest.charAt(0);
      pushText(plain);
      at += plain.length;
    }
  }
  return out;
}

function special(rest: string, before: string | undefined, depth: number): { node: Inline; length: number } | null {
  const ticks = /^`+/.exec(rest)?.[0];
  if (ticks) {
    const end = rest.indexOf(ticks, ticks.length);
    if (end < 0) return null;
    const code = rest.slice(ticks.length, end);
    const padded = code.length > 2 && code.startsWith(' ') && code.endsWith(' ') && code.trim() !== '';
    return { node: { kind: 'code', text: padded ? code.slice(1, -1) : code }, length: end + ticks.length };
  }
  const link = /^\[([^\][]{1,500})\]\(\s*<?([^\s()<>]{1,2000}(?:\([^\s()<>]*\))?)>?(?:\s+"[^"]*")?\s*\)/.exec(rest);
  if (link?.[1] !== undefined && link[2] !== undefined) {
    const href = safeHref(link[2]);
    const children = parseInline(link[1], depth + 1);
    return href === null ? null : { node: { kind: 'link', href, children }, length: link[0].length };
  }
  if (before === undefined || !/\w/.test(before)) {
    const bare = /^https?:\/\/[^\s<>"'`]{2,2000}/.exec(rest)?.[0].replace(/[.,;:!?)\]}*_~]+$/, '');
    const href = bare === undefined ? null : safeHref(bare);
    if (bare !== undefined && href !== null) {
      return { node: { kind: 'link', href, children: [{ kind: 'text', text: bare }] }, length: bare.length };
    }
  }
  const marks = [
    ['strong', /^\*\*(?=\S)([\s\S]{0,4000}?\S)\*\*/],
    ['del', /^~~(?=\S)([\s\S]{1,4000}?)~~/],
    ['em', /^\*(?=[^\s*])([\s\S]{0,4000}?[^\s*])\*(?!\*)/],
  ] as const;
  for (const [kind, pattern] of marks) {
    const match = pattern.exec(rest);
    if (match?.[1] !== undefined) {
      return { node: { kind, children: parseInline(match[1], depth + 1) }, length: match[0].length };
    }
  }
  // Underscores only between words: `snake_case` is no emphasis.
  if (before === undefined || !/\w/.test(before)) {
    const strong = /^__(?=\S)([\s\S]{0,4000}?\S)__(?!\w)/.exec(rest);
    if (strong?.[1] !== undefined) {
      return { node: { kind: 'strong', children: parseInline(strong[1], depth + 1) }, length: strong[0].length };
    }
    const em = /^_(?=[^\s_])([\s\S]{0,4000}?[^\s_])_(?!\w)/.exec(rest);
    if (em?.[1] !== undefined) {
      return { node: { kind: 'em', children: parseInline(em[1], depth + 1) }, length: em[0].length };
    }
  }
  return null;
}
