// A stand-in for the guest runtime, for work on the desktop without a sandbox: it serves
// `dist` under the strict policy of the real one and answers the same API from memory.
// Nothing here is shipped.
//
//   npm run build && npm run dev:mock          http://127.0.0.1:5199/ and …/dev/
//   npm run dev:mock & npm run dev             the same API behind Vite
//
// Control: POST /mock/swap, /mock/drop (closes the sockets), /mock/down?ms=…

import { createHash, randomUUID } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { extname, join, normalize } from 'node:path';
import { fileURLToPath } from 'node:url';
import { WebSocketServer } from 'ws';

const DIST = fileURLToPath(new URL('../dist', import.meta.url));
const TYPES = { '.html': 'text/html; charset=utf-8', '.js': 'text/javascript', '.css': 'text/css', '.svg': 'image/svg+xml' };
const POLICY = "default-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; base-uri 'none'; object-src 'none'";
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export function startMock({ port = 0, seeded = true, pace = 1 } = {}) {
  const state = {
    generation: 3,
    downUntil: 0,
    events: [],
    runs: new Map(),
    memories: [],
    terminals: new Map(),
    services: new Map(),
    files: new Map(),
    sockets: new Set(),
    cancelled: new Set(),
  };

  function emit(kind, data, run_id = null, ts = new Date().toISOString()) {
    const event = { seq: state.events.length + 1, ts, kind, run_id, data };
    state.events.push(event);
    relay({ type: 'event', event });
    return event;
  }

  function relay(message) {
    for (const socket of state.sockets) if (socket.ready) socket.send(JSON.stringify(message));
  }

  const file = (path, content, op = 'write') => {
    state.files.set(path, Buffer.from(content));
    emit('file.changed', { path, op });
  };
  const etag = (content) => `"${createHash('sha256').update(content).digest('hex').slice(0, 16)}"`;

  async function play(run, steps) {
    emit('run.started', { prompt: run.prompt, model: run.model }, run.id);
    for (const [index, step] of steps.entries()) {
      if (state.cancelled.has(run.id)) break;
      run.steps = index + 1;
      emit('run.step', { step: run.steps }, run.id);
      if (step.text) {
        for (const word of step.text.split(/(?<= )/)) {
          relay({ type: 'delta', run_id: run.id, text: word });
          await sleep(18 * pace);
        }
        emit('run.text', { text: step.text }, run.id);
      }
      if (step.tool) {
        const call_id = `call_${run.steps}`;
        emit('run.tool_call', { call_id, name: step.tool, arguments: step.arguments }, run.id);
        await sleep((step.ms ?? 300) * pace);
        step.effect?.();
        emit('run.tool_result', { call_id, name: step.tool, ok: step.ok ?? true, output: step.output ?? '', truncated: false }, run.id);
      }
      run.input_tokens += 412;
      run.output_tokens += 58;
      emit('run.usage', { input_tokens: 412, output_tokens: 58 }, run.id);
    }
    run.status = state.cancelled.has(run.id) ? 'cancelled' : (steps.status ?? 'done');
    run.ended_at = new Date().toISOString();
    run.answer = run.status === 'done' ? steps.at(-1).text : null;
    run.error = steps.error ?? null;
    emit('run.finished', { status: run.status, answer: run.answer, error: run.error }, run.id);
  }

  function execute(prompt, model = 'demo/choir-demo') {
    const run = {
      id: randomUUID(), prompt, status: 'running', model, started_at: new Date().toISOString(),
      ended_at: null, steps: 0, input_tokens: 0, output_tokens: 0, answer: null, error: null,
    };
    state.runs.set(run.id, run);
    void play(run, scenario(prompt));
    return run.id;
  }

  function scenario(prompt) {
    if (/slow/.test(prompt)) {
      return [
        { text: 'Demo provider (no language model): I run the command.', tool: 'run_command', arguments: { command: 'sleep 60' }, ms: 60_000 },
        { text: 'Done.' },
      ];
    }
    if (/fail(?!ing)/.test(prompt)) {
      return Object.assign(
        [{ text: 'Demo provider (no language model): I run `cargo build`.', tool: 'run_command', arguments: { command: 'cargo build' }, ok: false, output: '\x1b[31merror\x1b[0m: could not find `Cargo.toml` in `/workspace`\n[exit code 101]' }],
        { status: 'failed', error: 'The command exited with code 101, so the rest was left out.' },
      );
    }
    const calc = 'def add(a, b):\n    return a - b\n';
    const test = 'import unittest\nfrom calc import add\n\n\nclass AddTest(unittest.TestCase):\n    def test_add(self):\n        self.assertEqual(add(2, 3), 5)\n';
    return [
      { text: 'Demo provider (no language model): I write calc.py.', tool: 'write_file', arguments: { path: 'calc.py', content: calc }, effect: () => file('calc.py', calc), output: 'wrote 32 bytes' },
      { tool: 'write_file', arguments: { path: 'test_calc.py', content: test }, effect: () => file('test_calc.py', test), output: 'wrote 152 bytes' },
      { text: 'I run the test: `python3 -m unittest`.', tool: 'run_command', arguments: { command: 'python3 -m unittest' }, ok: false, ms: 700, output: 'F\n======================================================================\nFAIL: test_add (test_calc.AddTest.test_add)\n----------------------------------------------------------------------\nTraceback (most recent call last):\n  File "/workspace/test_calc.py", line 7, in test_add\n    self.assertEqual(add(2, 3), 5)\nAssertionError: -1 != 5\n\nRan 1 test in 0.000s\n\nFAILED (failures=1)\n[exit code 1]' },
      { text: '`add(2, 3)` yields -1 and the test expects 5. I look at the function.', tool: 'read_file', arguments: { path: 'calc.py' }, output: calc },
      { tool: 'patch_file', arguments: { path: 'calc.py', old: '    return a - b', new: '    return a + b' }, effect: () => file('calc.py', calc.replace('-', '+')), output: 'replaced 1 occurrence' },
      { tool: 'run_command', arguments: { command: 'python3 -m unittest' }, ms: 600, output: '.\n----------------------------------------------------------------------\nRan 1 test in 0.000s\n\nOK' },
      { text: 'Demo provider (no language model): `python3 -m unittest` passes now. What I changed:\n\n- `calc.py`: `return a - b` became `return a + b`\n\nThe test in `test_calc.py` was left as it was.' },
    ];
  }

  function seed() {
    const at = (minutes) => new Date(Date.now() - minutes * 60_000).toISOString();
    emit('runtime.started', { version: '0.1.0' }, null, at(64));
    for (const [path, content] of Object.entries({
      'README.md': '# Notes\n\nA small workspace to try the desktop on.\n\n- `src/` has a program\n- `notes/` has plans\n',
      'src/main.rs': 'use std::env;\n\nfn main() {\n    let name = env::args().nth(1).unwrap_or_else(|| "world".into());\n    println!("Hello, {name}!");\n}\n',
      'src/greeting.rs': '//! How to greet.\n\npub fn greeting(name: &str) -> String {\n    format!("Hello, {name}!")\n}\n',
      'notes/plan.md': 'Status: final\n',
      'notes/2026/january.md': '# January\n',
      'Cargo.toml': '[package]\nname = "hello"\nversion = "0.1.0"\nedition = "2024"\n',
    })) {
      file(path, content, 'create');
    }
    state.files.set('data.bin', Buffer.from([0, 1, 2, 255, 254]));
    state.files.set('big.log', Buffer.alloc(3 * 1024 * 1024, 'x'));
    for (const [text, tags, minutes] of [
      ['The release is on Thursday', ['release'], 50],
      ['Tests of this project run with `cargo test -q`', ['project', 'tests'], 30],
      ['Alice prefers short answers and British spelling', ['style'], 4000],
    ]) {
      const memory = { id: randomUUID(), text, tags, created_at: at(minutes), score: 0 };
      state.memories.push(memory);
      emit('memory.remembered', { id: memory.id, tags }, null, at(minutes));
    }
    for (const [prompt, status, minutes, steps] of [
      ['create notes/plan.md: Status: draft\nchange "draft" to "final" in notes/plan.md', 'done', 42, 3],
      ['run: cargo build', 'failed', 25, 1],
      ['Read the whole of src and tell me what it does', 'bounded', 12, 40],
    ]) {
      const id = randomUUID();
      const run = {
        id, prompt, status, model: 'demo/choir-demo', started_at: at(minutes), ended_at: at(minutes - 0.1), steps,
        input_tokens: steps * 400, output_tokens: steps * 60,
        answer: status === 'done' ? 'Changed `notes/plan.md`.' : null,
        error: status === 'failed' ? 'The command exited with code 101.' : status === 'bounded' ? 'It took 40 steps; the limit is 40.' : null,
      };
      state.runs.set(id, run);
      emit('run.started', { prompt, model: run.model }, id, at(minutes));
      emit('run.finished', { status, answer: run.answer, error: run.error }, id, at(minutes - 0.1));
    }
  }

  // A pretended shell: a prompt, an echo, a few answers.
  function terminal(cols) {
    const id = randomUUID();
    const shell = { id, output: Buffer.alloc(0), watchers: new Set(), line: '', exit: null, cols };
    shell.write = (text) => {
      const bytes = Buffer.from(text);
      shell.output = Buffer.concat([shell.output, bytes]);
      for (const watcher of shell.watchers) watcher.send(bytes);
    };
    shell.prompt = () => shell.write('\x1b[1;32mchoir@sandbox\x1b[0m:\x1b[1;34m/workspace\x1b[0m$ ');
    shell.run = (line) => {
      if (line === 'ls') shell.write('Cargo.toml  README.md  big.log  data.bin  \x1b[1;34mnotes\x1b[0m  \x1b[1;34msrc\x1b[0m\r\n');
      else if (line === 'cargo test') {
        shell.write('\x1b[1;32m   Compiling\x1b[0m hello v0.1.0 (/workspace)\r\n\x1b[1;32m    Finished\x1b[0m `test` profile in 0.42s\r\n\r\nrunning 2 tests\r\ntest greets_by_name ... \x1b[32mok\x1b[0m\r\ntest greets_the_world ... \x1b[32mok\x1b[0m\r\n\r\ntest result: \x1b[32mok\x1b[0m. 2 passed; 0 failed\r\n');
      } else if (line === 'true-colour') shell.write('\x1b[38;2;255;100;0morange\x1b[0m\r\n');
      else if (line === 'exit') {
        shell.exit = { code: 0, signal: null, timed_out: false, dropped_bytes: 0, wall_ms: 1000 };
        for (const watcher of shell.watchers) {
          watcher.send(JSON.stringify({ type: 'exited', ...shell.exit }));
          watcher.close(1000);
        }
        return;
      } else if (line !== '') shell.write(`sh: ${line.split(' ')[0]}: not found\r\n`);
      shell.prompt();
    };
    shell.input = (text) => {
      for (const char of text) {
        if (char === '\r') {
          shell.write('\r\n');
          const line = shell.line.trim();
          shell.line = '';
          shell.run(line);
        } else if (char === '\x7f') {
          if (shell.line) {
            shell.line = shell.line.slice(0, -1);
            shell.write('\b \b');
          }
        } else if (char === '\x03') {
          shell.line = '';
          shell.write('^C\r\n');
          shell.prompt();
        } else if (char >= ' ') {
          shell.line += char;
          shell.write(char);
        }
      }
    };
    shell.prompt();
    state.terminals.set(id, shell);
    emit('terminal.opened', { id });
    return id;
  }

  const json = (response, status, body) => {
    response.writeHead(status, { 'Content-Type': status >= 400 ? 'application/problem+json' : 'application/json' });
    response.end(JSON.stringify(body));
  };
  const problem = (response, status, code, detail, hint) =>
    json(response, status, { type: 'about:blank', title: code, status, code, detail, hint, request_id: randomUUID() });
  const body = async (request) => {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    return Buffer.concat(chunks);
  };

  function listing(path) {
    const prefix = path === '' ? '' : `${path}/`;
    const entries = new Map();
    for (const [name, content] of state.files) {
      if (!name.startsWith(prefix)) continue;
      const [head, ...rest] = name.slice(prefix.length).split('/');
      const dir = rest.length > 0;
      if (head) entries.set(head, { name: head, type: dir ? 'dir' : 'file', size: dir ? 0 : content.length, modified: new Date().toISOString() });
    }
    return [...entries.values()];
  }

  async function api(request, response, url, role) {
    const { pathname, searchParams: query } = url;
    const route = `${request.method} ${pathname}`;
    const origin = `http://${request.headers.host}`;
    if (Date.now() < state.downUntil) {
      return problem(response, 503, 'sandbox_not_running', 'Your live sandbox is not running.', 'Start it from the console.');
    }
    if (route === 'GET /health') return json(response, 200, { status: 'ok', version: '0.1.0', sandbox_id: 'mock', uptime_seconds: 1 });
    if (route === 'GET /api/info') {
      return json(response, 200, {
        user: 'alice', role, sandbox_id: '0199f7a2-5b1c-7c3e-9d40-6f2f0c8f5a11', generation: state.generation,
        control_origin: 'http://localhost:9090', live_origin: origin, dev_origin: `${origin}/dev/`, version: '0.1.0',
        models: { providers: [{ name: 'demo', kind: 'openai', models: ['choir-demo'], demo: true }], default: { provider: 'demo', model: 'choir-demo' } },
      });
    }
    if (route === 'GET /logs/events.jsonl') {
      response.writeHead(200, { 'Content-Type': 'application/x-ndjson' });
      return response.end(state.events.map((event) => JSON.stringify(event)).join('\n'));
    }
    if (route === 'GET /logs/events') {
      const since = Number(query.get('since_seq') ?? 0);
      const events = state.events.slice(since, since + Number(query.get('limit') ?? 200));
      return json(response, 200, { events, next_seq: events.at(-1)?.seq ?? since });
    }
    if (route === 'POST /conductor/execute') {
      const { prompt, model } = JSON.parse(await body(request));
      return json(response, 202, { run_id: execute(prompt, model) });
    }
    if (route === 'GET /conductor/runs') {
      const all = [...state.runs.values()].sort((a, b) => b.started_at.localeCompare(a.started_at));
      return json(response, 200, { runs: all.slice(0, Number(query.get('limit') ?? 50)) });
    }
    const run = /^\/conductor\/runs\/([^/]+)(\/cancel)?$/.exec(pathname);
    if (run) {
      const found = state.runs.get(run[1]);
      if (!found) return problem(response, 404, 'not_found', 'There is no such run.');
      if (run[2]) {
        state.cancelled.add(found.id);
        if (found.status === 'running') {
          found.status = 'cancelled';
          found.ended_at = new Date().toISOString();
          emit('run.finished', { status: 'cancelled' }, found.id);
        }
        return json(response, 202, {});
      }
      return json(response, 200, { run: found, events: state.events.filter((event) => event.run_id === found.id) });
    }
    const path = query.get('path') ?? '';
    if (route === 'GET /api/files') return json(response, 200, { path, entries: listing(path) });
    if (route === 'GET /api/files/content') {
      const content = state.files.get(path);
      if (!content) return problem(response, 404, 'not_found', `There is no file ${path}.`);
      response.writeHead(200, { 'Content-Type': 'application/octet-stream', ETag: etag(content), 'Content-Length': content.length });
      return response.end(content);
    }
    if (route === 'PUT /api/files/content') {
      const known = state.files.get(path);
      const match = request.headers['if-match'];
      if (match && (!known || etag(known) !== match)) return problem(response, 412, 'conflict', 'The file has changed since it was read.');
      if (request.headers['if-none-match'] === '*' && known) return problem(response, 412, 'conflict', 'A file of that name is there already.');
      const content = await body(request);
      state.files.set(path, content);
      emit('file.changed', { path, op: 'write' });
      response.setHeader('ETag', etag(content));
      return json(response, 200, { etag: etag(content) });
    }
    if (route === 'POST /api/files/dir') {
      const { path: dir } = JSON.parse(await body(request));
      state.files.set(`${dir}/`, Buffer.alloc(0));
      return json(response, 201, {});
    }
    if (route === 'POST /api/files/move') {
      const { from, to } = JSON.parse(await body(request));
      for (const [name, content] of [...state.files]) {
        if (name !== from && !name.startsWith(`${from}/`)) continue;
        state.files.delete(name);
        state.files.set(to + name.slice(from.length), content);
      }
      emit('file.changed', { path: to, op: 'move', from });
      return json(response, 200, {});
    }
    if (route === 'DELETE /api/files') {
      for (const name of [...state.files.keys()]) if (name === path || name.startsWith(`${path}/`)) state.files.delete(name);
      emit('file.changed', { path, op: 'delete' });
      response.writeHead(204);
      return response.end();
    }
    if (route === 'GET /api/services') {
      const ports = [...state.services.values()].filter((service) => service.state === 'running').map(({ id, name, port }) => ({
        port, address: '127.0.0.1', command_id: id, command: name, url: `http://${port}--alice.localhost:9090/`,
      }));
      return json(response, 200, { services: [...state.services.values()], ports, no_preview: null });
    }
    if (route === 'POST /api/services') {
      const { command, name } = JSON.parse(await body(request));
      const id = randomUUID();
      state.services.set(id, {
        id, name: name ?? command.split(' ')[0], argv: ['/bin/bash', '-c', command], state: 'running', exit: null,
        started_at: new Date().toISOString(), port: 3000 + state.services.size,
      });
      return json(response, 201, { id });
    }
    if (pathname.startsWith('/api/services/')) {
      const service = state.services.get(pathname.split('/')[3]);
      if (!service) return problem(response, 404, 'not_found', 'there is no such service');
      Object.assign(service, { state: 'exited', exit: { code: null, signal: request.method === 'DELETE' ? 9 : 15, error: null } });
      response.writeHead(204);
      return response.end();
    }
    if (route === 'POST /api/terminals') return json(response, 201, { id: terminal(JSON.parse(await body(request)).cols) });
    if (route === 'GET /api/terminals') {
      return json(response, 200, {
        terminals: [...state.terminals.values()].map(({ id, exit }) => ({ id, argv: ['sh'], label: 'terminal', terminal: true, detach: true, state: exit ? 'exited' : 'running', exit })),
      });
    }
    if (request.method === 'DELETE' && pathname.startsWith('/api/terminals/')) {
      const id = pathname.split('/').at(-1);
      for (const watcher of state.terminals.get(id)?.watchers ?? []) watcher.close(1000);
      state.terminals.delete(id);
      emit('terminal.closed', { id });
      response.writeHead(204);
      return response.end();
    }
    if (route === 'GET /api/memory') {
      const q = (query.get('q') ?? '').toLowerCase();
      const tag = query.get('tag');
      return json(response, 200, {
        memories: state.memories.filter((memory) => memory.text.toLowerCase().includes(q) && (!tag || memory.tags.includes(tag))).reverse(),
      });
    }
    if (route === 'POST /api/memory') {
      const { text, tags } = JSON.parse(await body(request));
      const memory = { id: randomUUID(), text, tags, created_at: new Date().toISOString(), score: 0 };
      state.memories.push(memory);
      emit('memory.remembered', { id: memory.id, tags });
      return json(response, 201, memory);
    }
    if (request.method === 'DELETE' && pathname.startsWith('/api/memory/')) {
      const id = pathname.split('/').at(-1);
      state.memories = state.memories.filter((memory) => memory.id !== id);
      emit('memory.forgotten', { id });
      response.writeHead(204);
      return response.end();
    }
    return problem(response, 404, 'not_found', `There is nothing at ${pathname}.`);
  }

  async function asset(response, pathname) {
    const name = normalize(pathname === '/' ? '/index.html' : pathname);
    try {
      const content = await readFile(join(DIST, name));
      response.writeHead(200, { 'Content-Type': TYPES[extname(name)] ?? 'application/octet-stream', 'Content-Security-Policy': POLICY, 'X-Content-Type-Options': 'nosniff' });
      response.end(content);
    } catch {
      problem(response, 404, 'not_found', `There is nothing at ${pathname}.`);
    }
  }

  function control(action, query, response) {
    if (action === 'swap') {
      state.generation += 1;
      for (const socket of state.sockets) socket.close(1012, JSON.stringify({ generation: state.generation }));
    } else {
      if (action === 'down') state.downUntil = Date.now() + Number(query.get('ms') ?? 5000);
      for (const socket of state.sockets) socket.terminate();
      for (const shell of state.terminals.values()) for (const watcher of shell.watchers) watcher.terminate();
    }
    json(response, 200, {});
  }

  const split = (raw) => {
    const url = new URL(raw, 'http://mock');
    const dev = url.pathname.startsWith('/dev/');
    if (dev) url.pathname = url.pathname.slice('/dev'.length);
    return { url, role: dev ? 'dev' : 'live' };
  };

  const server = createServer((request, response) => {
    const { url, role } = split(request.url);
    const handled = url.pathname.startsWith('/mock/')
      ? control(url.pathname.slice('/mock/'.length), url.searchParams, response)
      : /^\/(api|conductor|logs|health)(\/|$|\.)/.test(url.pathname)
        ? api(request, response, url, role)
        : asset(response, url.pathname);
    Promise.resolve(handled).catch((error) => problem(response, 500, 'internal', String(error)));
  });

  const wss = new WebSocketServer({ noServer: true });
  server.on('upgrade', (request, socket, head) => {
    const { url } = split(request.url);
    if (Date.now() < state.downUntil) return socket.end('HTTP/1.1 503 Service Unavailable\r\n\r\n');
    wss.handleUpgrade(request, socket, head, (ws) => {
      const shell = state.terminals.get(/^\/ws\/terminal\/([^/]+)$/.exec(url.pathname)?.[1]);
      if (shell) {
        const from = Number(url.searchParams.get('from') ?? 0);
        ws.send(JSON.stringify({ type: 'attached', offset: from }));
        ws.send(shell.output.subarray(from));
        shell.watchers.add(ws);
        ws.on('close', () => shell.watchers.delete(ws));
        ws.on('message', (data, binary) => binary && shell.input(data.toString()));
      } else if (state.services.has(url.pathname.split('/').at(-1))) {
        ws.send(JSON.stringify({ type: 'attached', offset: 0 }));
        ws.send(Buffer.from('serving on port 3000\n'));
      } else if (url.pathname === '/ws') {
        state.sockets.add(ws);
        ws.on('close', () => state.sockets.delete(ws));
        ws.on('message', (data) => {
          const since = Math.min(JSON.parse(data).since_seq, state.events.length);
          for (const event of state.events.slice(since)) ws.send(JSON.stringify({ type: 'event', event }));
          ws.send(JSON.stringify({ type: 'caught_up', seq: state.events.length }));
          ws.ready = true;
        });
      } else ws.close(1008);
    });
  });

  if (seeded) seed();
  return new Promise((resolve) => {
    server.listen(port, '127.0.0.1', () => {
      resolve({
        origin: `http://127.0.0.1:${server.address().port}`,
        state,
        emit,
        execute,
        file,
        close: () => {
          wss.clients.forEach((client) => client.terminate());
          server.closeAllConnections();
          server.close();
        },
      });
    });
  });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { origin } = await startMock({ port: Number(process.env.PORT ?? 5199), seeded: process.argv[2] !== '--empty' });
  console.log(`the mock guest answers at ${origin}/`);
}
