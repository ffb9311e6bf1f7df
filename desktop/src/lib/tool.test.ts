import { describe, expect, it } from 'vitest';
import { MAX_DIFF_LINES, toolView } from './tool';

const view = (name: string, args: Record<string, unknown>) => toolView({ name, arguments: args });

describe('toolView', () => {
  it('shows a command as a shell would take it', () => {
    expect(view('run_command', { command: 'ls -la' })).toMatchObject({ verb: 'Run', target: 'ls -la' });
    expect(view('exec', { argv: ['sh', '-c', 'echo "it\'s"'] }).target).toBe(`sh -c 'echo "it'\\''s"'`);
  });

  it('shows writes and changes as a diff', () => {
    expect(view('write_file', { path: 'a.txt', content: 'x\ny\n' }).diff).toEqual([
      { sign: '+', text: 'x' },
      { sign: '+', text: 'y' },
    ]);
    expect(view('edit_file', { path: '/workspace/a', old: '1', new: '2' })).toMatchObject({
      path: 'a',
      diff: [{ sign: '-', text: '1' }, { sign: '+', text: '2' }],
    });
    expect(view('patch_file', { path: 'a', patch: '@@ -1 +1 @@\n-a\n+b\n c' }).diff?.map((line) => line.sign)).toEqual(['@', '-', '+', ' ']);
  });

  it('bounds what it shows', () => {
    const content = 'x\n'.repeat(MAX_DIFF_LINES + 10);
    expect(view('write_file', { path: 'a', content }).diff).toHaveLength(MAX_DIFF_LINES + 1);
  });

  it('does something sensible with a tool it never heard of', () => {
    expect(view('order_pizza', { size: 'L' })).toMatchObject({ verb: 'Order pizza', target: '', rest: { size: 'L' } });
    expect(view('', {}).verb).toBe('Tool');
    expect(view('recall', { query: 'deploy day' })).toMatchObject({ icon: 'memory', target: 'deploy day' });
  });
});
