/**
 * Paths of the workspace: relative, `/` between the parts, no leading or trailing slash;
 * the workspace itself is the empty string.
 */

/** Longest file name, in bytes of UTF-8 (what Linux file systems take). */
const MAX_NAME_BYTES = 255;

export function joinPath(parent: string, name: string): string {
  return parent === '' ? name : `${parent}/${name}`;
}

export function parentPath(path: string): string {
  const cut = path.lastIndexOf('/');
  return cut < 0 ? '' : path.slice(0, cut);
}

export function baseName(path: string): string {
  return path.slice(path.lastIndexOf('/') + 1);
}

/** Every directory above `path`, outermost first, the workspace itself left out. */
export function ancestors(path: string): string[] {
  const parts = path.split('/').slice(0, -1);
  return parts.map((_, index) => parts.slice(0, index + 1).join('/'));
}

/** Whether `path` is `parent` or lies beneath it. */
export function isWithin(path: string, parent: string): boolean {
  return parent === '' || path === parent || path.startsWith(`${parent}/`);
}

/** `path` after `from` was renamed to `to`. */
export function rebase(path: string, from: string, to: string): string {
  return isWithin(path, from) ? to + path.slice(from.length) : path;
}

/**
 * A workspace path from what somebody typed or what a tool call holds: absolute paths of
 * the sandbox are cut to the workspace, `.` and `..` are resolved. Null when it points
 * outside or to nothing.
 */
export function workspacePath(text: string): string | null {
  let rest = text.trim();
  if (rest === '/workspace') return '';
  if (rest.startsWith('/workspace/')) rest = rest.slice('/workspace/'.length);
  else if (rest.startsWith('/') || rest.startsWith('~')) return null;
  const parts: string[] = [];
  for (const part of rest.split('/')) {
    if (part === '' || part === '.') continue;
    if (part === '..') {
      if (parts.pop() === undefined) return null;
    } else parts.push(part);
  }
  return parts.join('/');
}

/** Why `text` cannot be the path of a new file or folder; null when it can. */
export function pathError(text: string): string | null {
  const path = text.trim();
  if (path === '') return 'Give it a name.';
  if (path.startsWith('/')) return 'Paths are relative to the workspace: leave out the leading slash.';
  if (path.endsWith('/')) return 'Leave out the trailing slash.';
  for (const part of path.split('/')) {
    if (part === '') return 'There are two slashes in a row.';
    if (part === '.' || part === '..') return 'Parts named “.” and “..” are not allowed.';
    if (part.includes('\0')) return 'A name cannot contain a null character.';
    if (new TextEncoder().encode(part).length > MAX_NAME_BYTES) return 'A name has at most 255 bytes.';
  }
  return null;
}

/** The base under which this desktop is served: `/`, or `/dev/` on the shared origin. */
export function basePath(pathname: string): string {
  return pathname.slice(0, pathname.lastIndexOf('/') + 1) || '/';
}

/** The WebSocket URL of `path` next to the page at `page`. */
export function socketUrl(page: string, path: string): string {
  const url = new URL(path, page);
  url.protocol = url.protocol === 'https:' ? 'wss:' : 'ws:';
  url.hash = '';
  return url.href;
}
