/** Most tags of a memory, and the longest one in characters; the server checks again. */
const MAX_TAGS = 16;
const MAX_TAG = 64;

/** Tags from what somebody typed: split at blanks and commas, `#` cut off, lower case, each once. */
export function parseTags(text: string): string[] {
  const tags = text
    .split(/[\s,]+/)
    .map((tag) => tag.replace(/^#+/, '').toLowerCase().slice(0, MAX_TAG))
    .filter((tag) => tag !== '');
  return [...new Set(tags)].slice(0, MAX_TAGS);
}
