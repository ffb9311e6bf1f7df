/** How a tool call is shown. It goes by the shape of the arguments before the tool's name, so that new tools look right too. */

import { text, type ToolCall } from './transcript';
import { workspacePath } from './paths';

export type IconName = 'terminal' | 'file' | 'pencil' | 'plus' | 'search' | 'memory' | 'folder' | 'tool';

export interface DiffLine {
  sign: '+' | '-' | ' ' | '@';
  text: string;
}

export interface ToolView {
  icon: IconName;
  verb: string;
  target: string;
  /** A file of the workspace that the call is about. */
  path: string | null;
  diff: DiffLine[] | null;
  /** Arguments that neither `target` nor `diff` shows. */
  rest: Record<string, unknown>;
}

/** Lines of a diff that are shown; the file itself has the rest. */
export const MAX_DIFF_LINES = 400;

function pick(args: Record<string, unknown>, names: readonly string[]): unknown {
  for (const name of names) {
    const value = args[name];
    if (value !== undefined && value !== null) return value;
  }
  return undefined;
}

const OLD = ['old', 'old_text', 'old_string', 'old_str', 'search'] as const;
const NEW = ['new', 'new_text', 'new_string', 'new_str', 'replace'] as const;

export function toolView(call: Pick<ToolCall, 'name' | 'arguments'>): ToolView {
  const args = call.arguments;
  const command = pick(args, ['command', 'cmd', 'argv', 'script']);
  const pathText = pick(args, ['path', 'file', 'file_path', 'dir']);
  const path = typeof pathText === 'string' ? workspacePath(pathText) : null;
  const base = { path, diff: null, rest: without(args, ['path', 'file', 'file_path', 'dir']) };
  const name = call.name.toLowerCase();

  if (command !== undefined) {
    const target = Array.isArray(command) ? command.map((part) => shellWord(String(part))).join(' ') : text(command);
    return { icon: 'terminal', verb: 'Run', target, path: null, diff: null, rest: without(args, ['command', 'cmd', 'argv', 'script']) };
  }
  const patch = pick(args, ['patch', 'diff']);
  const before = pick(args, OLD);
  const after = pick(args, NEW);
  if (typeof pathText === 'string') {
    if (typeof patch === 'string') {
      return { ...base, icon: 'pencil', verb: 'Change', target: pathText, diff: unified(patch), rest: without(base.rest, ['patch', 'diff']) };
    }
    if (before !== undefined && after !== undefined) {
      const diff = [...lines(text(before), '-'), ...lines(text(after), '+')];
      return { ...base, icon: 'pencil', verb: 'Change', target: pathText, diff: bounded(diff), rest: without(base.rest, [...OLD, ...NEW]) };
    }
    const content = pick(args, ['content', 'contents', 'text']);
    if (content !== undefined) {
      return {
        ...base, icon: 'plus', verb: 'Write', target: pathText,
        diff: bounded(lines(text(content), '+')), rest: without(base.rest, ['content', 'contents', 'text']),
      };
    }
    if (/list|dir|tree/.test(name)) return { ...base, icon: 'folder', verb: 'List', target: pathText || '.' };
    if (/delete|remove/.test(name)) return { ...base, icon: 'file', verb: 'Delete', target: pathText };
  }
  const query = pick(args, ['query', 'pattern', 'words', 'q']);
  if (/recall/.test(name)) return { ...base, icon: 'memory', verb: 'Recall', target: text(query), rest: without(args, ['query', 'words', 'q']) };
  if (/remember/.test(name)) return { ...base, icon: 'memory', verb: 'Remember', target: text(args.text), rest: without(args, ['text']) };
  if (/forget/.test(name)) return { ...base, icon: 'memory', verb: 'Forget', target: text(args.id), rest: without(args, ['id']) };
  if (query !== undefined) return { ...base, icon: 'search', verb: 'Search', target: text(query), rest: without(args, ['query', 'pattern', 'words', 'q']) };
  if (typeof pathText === 'string') return { ...base, icon: 'file', verb: /read|view|open/.test(name) ? 'Read' : title(call.name), target: pathText };
  if (/list/.test(name)) return { ...base, icon: 'folder', verb: 'List', target: '.', path: '' };
  return { ...base, icon: 'tool', verb: title(call.name), target: '', rest: args };
}

function title(name: string): string {
  const words = name.replace(/[_-]+/g, ' ').trim();
  return words === '' ? 'Tool' : words.charAt(0).toUpperCase() + words.slice(1);
}

function without(args: Record<string, unknown>, names: readonly string[]): Record<string, unknown> {
  return Object.fromEntries(Object.entries(args).filter(([name, value]) => !names.includes(name) && value !== null));
}

function shellWord(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
}

function lines(body: string, sign: DiffLine['sign']): DiffLine[] {
  if (body === '') return [];
  return body.replace(/\n$/, '').split('\n').map((line) => ({ sign, text: line }));
}

function unified(patch: string): DiffLine[] {
  return bounded(
    patch.replace(/\n$/, '').split('\n').map((line): DiffLine => {
      if (/^(@@|---|\+\+\+|\*\*\*|diff )/.test(line)) return { sign: '@', text: line };
      const sign = line.charAt(0);
      return sign === '+' || sign === '-' ? { sign, text: line.slice(1) } : { sign: ' ', text: line.replace(/^ /, '') };
    }),
  );
}

function bounded(diff: DiffLine[]): DiffLine[] {
  if (diff.length <= MAX_DIFF_LINES) return diff;
  return [...diff.slice(0, MAX_DIFF_LINES), { sign: '@', text: `… ${diff.length - MAX_DIFF_LINES} more lines` }];
}
