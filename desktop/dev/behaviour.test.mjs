// What the desktop does in a browser, against the mock guest. Needs a build and Chromium.

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { after, before, test } from 'node:test';
import { chromium } from 'playwright-core';
import { LAUNCH } from './browser.mjs';
import { startMock } from './mock.mjs';

const WIDE = { width: 1280, height: 800 };
const NARROW = { width: 390, height: 844 };
let browser;

before(async () => (browser = await chromium.launch(LAUNCH)));
after(() => browser.close());

/** Opens the desktop on a fresh mock; everything ends with the test. */
async function desktop(t, hash = '', { seeded = true, pace = 0.2, path = '/', viewport = WIDE, ...context } = {}) {
  const mock = await startMock({ seeded, pace });
  const page = await (await browser.newContext({ viewport, ...context })).newPage();
  const complaints = [];
  page.on('pageerror', (error) => complaints.push(error.message));
  page.on('console', (message) => /Content Security Policy/.test(message.text()) && complaints.push(message.text()));
  t.after(async () => {
    await page.context().close();
    mock.close();
    assert.deepEqual(complaints, []);
  });
  await page.goto(`${mock.origin}${path}#${hash}`);
  await page.getByText('Connected', { exact: true }).waitFor({ state: 'attached' });
  const focused = (predicate, argument) => page.waitForFunction(predicate, argument);
  return { page, mock, focused, control: (action) => fetch(`${mock.origin}/mock/${action}`, { method: 'POST' }) };
}

const focusIs = (id) => document.activeElement?.id === id;
const terminalShows = (text) => document.querySelector('.slot:not([hidden]) .xterm-rows')?.innerText.includes(text);

test('an example becomes a run that is watched, kept over a reload, and can be cancelled', async (t) => {
  const { page, focused } = await desktop(t, '', { seeded: false });
  await page.getByText('Make a failing test pass').click();
  await focused(focusIs, 'prompt');
  assert.match(await page.inputValue('#prompt'), /fix the failing test with/);
  await page.keyboard.press('Enter');
  await page.getByText('Use again').waitFor();
  assert.equal(await page.locator('details.tool').count(), 6);
  assert.equal(await page.locator('.markdown li').count(), 1);
  assert.equal(await page.inputValue('#prompt'), '');
  await page.reload();
  await page.getByText('Use again').waitFor();
  assert.equal(await page.locator('details.tool').count(), 6);

  await page.fill('#prompt', 'run: slow');
  await page.keyboard.press('Control+Enter');
  await page.getByRole('button', { name: 'Cancel' }).click();
  await page.getByText('The task was cancelled.').first().waitFor();
});

test('text of the model never becomes markup', async (t) => {
  const { page, mock } = await desktop(t, '', { seeded: false });
  const id = mock.execute('slow');
  await page.locator('button.run').click();
  mock.emit('run.text', { text: '<img src=x onerror="window.owned=1"> [x](javascript:window.owned=1) <b>bold</b>' }, id);
  await page.getByText('<b>bold</b>').waitFor();
  assert.equal(await page.locator('.markdown img, .markdown b, .markdown a').count(), 0);
  assert.equal(await page.evaluate(() => window.owned), undefined);
});

test('a swap reloads the page into the view that it was in', async (t) => {
  const { page, control } = await desktop(t, 'panel=memory');
  await page.evaluate(() => (window.before = true));
  await control('swap');
  // The banner in between stays for a random while that may be too short to be seen here.
  await page.waitForFunction(() => window.before === undefined);
  await page.getByRole('tab', { name: 'Memory', selected: true }).waitFor();
});

test('a swap does not take unsaved changes away', async (t) => {
  const { page, control } = await desktop(t, 'panel=files&file=src/main.rs');
  await page.getByLabel('Content of src/main.rs').fill('mine');
  await control('swap');
  await page.getByText('Copy your unsaved changes').waitFor();
  assert.equal(await page.getByLabel('Content of src/main.rs').inputValue(), 'mine');
});

test('what happened while the sandbox was away arrives once', async (t) => {
  const { page, mock, control } = await desktop(t, 'panel=events');
  await page.locator('tbody tr').first().waitFor();
  const before = await page.locator('tbody tr').count();
  await control('down?ms=1200');
  mock.file('while-away.txt', '1');
  await page.getByText('not running').waitFor();
  await page.getByText('Connected', { exact: true }).waitFor();
  await page.getByText('while-away.txt').waitFor();
  assert.equal(await page.locator('tbody tr').count(), before + 1);
});

test('a terminal survives a lost connection and a reload, and can be left and restarted', async (t) => {
  const { page, control } = await desktop(t, 'panel=terminal');
  const type = async (line) => {
    await page.locator('.slot:not([hidden]) .xterm-helper-textarea').focus();
    await page.keyboard.type(line);
    await page.keyboard.press('Enter');
  };
  await page.waitForFunction(terminalShows, '$');
  await type('ls');
  await page.waitForFunction(terminalShows, 'Cargo.toml');
  await control('drop');
  await page.getByText('Reconnecting to the shell').waitFor();
  await page.getByText('Reconnecting to the shell').waitFor({ state: 'detached' });
  await type('true-colour');
  await page.waitForFunction(terminalShows, 'orange');
  const shown = await page.locator('.xterm-rows').innerText();
  assert.equal(shown.split('Cargo.toml').length, 2, 'output came twice');
  await page.reload();
  await page.waitForFunction(terminalShows, 'orange');
  assert.equal(await page.getByRole('tab', { name: /^Terminal \d/ }).count(), 1);

  await page.getByRole('button', { name: 'New terminal' }).click();
  await page.getByRole('tab', { name: 'Terminal 2', selected: true }).waitFor();
  await page.waitForFunction(terminalShows, '$');
  await page.locator('.slot:not([hidden]) .xterm-helper-textarea').focus();
  await page.keyboard.press('Shift+Escape');
  await page.waitForFunction(() => document.activeElement?.getAttribute('role') === 'tab');
  await page.keyboard.press('ArrowLeft');
  await page.getByRole('tab', { name: 'Terminal 1', selected: true }).waitFor();
  await type('exit');
  await page.getByText('The shell ended.').waitFor();
  await page.getByRole('button', { name: 'New shell' }).click();
  await page.getByRole('tab', { name: 'Terminal 3' }).waitFor();
});

test('files are opened, changed, created, renamed and deleted with the keyboard', async (t) => {
  const { page, mock } = await desktop(t, 'panel=files');
  const focusedItem = (name) => page.waitForFunction((text) => document.activeElement?.innerText.trim() === text, name);
  await page.getByRole('treeitem', { name: 'notes' }).focus();
  await page.keyboard.press('ArrowDown');
  await focusedItem('src');
  await page.keyboard.press('ArrowRight');
  await page.getByRole('treeitem', { name: 'main.rs' }).waitFor();
  await page.keyboard.press('End');
  await focusedItem('README.md');
  await page.getByRole('treeitem', { name: 'main.rs' }).focus();
  await page.keyboard.press('Enter');
  const text = page.getByLabel('Content of src/main.rs');
  await text.fill('saved\n');
  await page.keyboard.press('Control+s');
  await page.getByText('Not saved', { exact: true }).waitFor({ state: 'detached' });
  assert.equal(mock.state.files.get('src/main.rs').toString(), 'saved\n');

  await page.getByRole('button', { name: 'New file' }).click();
  await page.getByLabel('Path in the workspace').fill('deep/er/new.txt');
  await page.keyboard.press('Enter');
  await page.getByLabel('Content of deep/er/new.txt').waitFor();
  await page.getByRole('treeitem', { name: 'new.txt' }).focus();
  await page.keyboard.press('F2');
  await page.waitForFunction(() => document.activeElement?.selectionStart === 'deep/er/'.length);
  await page.keyboard.type('renamed');
  await page.keyboard.press('Enter');
  await page.getByLabel('Content of deep/er/renamed.txt').waitFor();
  await page.getByRole('treeitem', { name: 'renamed.txt' }).focus();
  await page.keyboard.press('Delete');
  await page.getByRole('dialog').getByRole('button', { name: 'Delete' }).click();
  await page.getByText('No file is open').waitFor();
  assert.equal(mock.state.files.has('deep/er/renamed.txt'), false);
});

test('a file that changes on the disk is followed, unless that would lose edits', async (t) => {
  const { page, mock } = await desktop(t, 'panel=files&file=src/main.rs');
  const text = page.getByLabel('Content of src/main.rs');
  const shows = (value) =>
    page.waitForFunction((wanted) => document.querySelector('textarea[aria-label^="Content"]')?.value === wanted, value);
  await text.waitFor();
  mock.file('src/main.rs', 'theirs\n');
  await shows('theirs\n');
  await text.fill('mine\n');
  mock.file('src/main.rs', 'theirs again\n');
  await page.getByText('The file changed on the disk').waitFor();
  assert.equal(await text.inputValue(), 'mine\n');
  await page.getByRole('button', { name: 'Take the version on the disk' }).click();
  await shows('theirs again\n');
});

test('what is not text is offered for download', async (t) => {
  const { page } = await desktop(t, 'panel=files');
  await page.getByRole('treeitem', { name: 'data.bin' }).click();
  await page.getByText('This file is not text').waitFor();
  await page.getByRole('treeitem', { name: 'big.log' }).click();
  await page.getByText('can be edited here').waitFor();
});

test('memories are added, searched and forgotten', async (t) => {
  const { page, mock } = await desktop(t, 'panel=memory');
  await page.getByLabel('What to remember').fill('tea at five');
  await page.getByLabel('Tags').fill('#Tea, drinks');
  await page.keyboard.press('Enter');
  await page.getByText('tea at five').waitFor();
  assert.deepEqual(mock.state.memories.at(-1).tags, ['tea', 'drinks']);
  await page.getByLabel('Search the memory').fill('cargo');
  await page.getByText('tea at five').waitFor({ state: 'detached' });
  await page.getByRole('button', { name: /^Forget: Tests/ }).click();
  await page.getByRole('dialog').getByRole('button', { name: 'Forget' }).click();
  await page.getByText('Nothing found').waitFor();
});

test('a service is started, followed and stopped', async (t) => {
  const { page, mock } = await desktop(t, 'panel=services');
  await page.getByText('No services').waitFor();
  await page.getByLabel('Command').fill('python3 -m http.server 3000');
  await page.getByLabel('Name', { exact: true }).fill('files');
  await page.keyboard.press('Enter');
  await page.getByText('serving on port 3000').waitFor();
  assert.equal(await page.getByRole('link', { name: 'Port 3000' }).getAttribute('href'), 'http://3000--alice.localhost:9090/');
  await page.getByRole('button', { name: 'Close the output' }).click();
  await page.getByText('serving on port 3000').waitFor({ state: 'detached' });
  await page.getByRole('button', { name: 'Stop files' }).click();
  await page.getByText('ended by signal 15').waitFor();
  assert.equal([...mock.state.services.values()][0].state, 'exited');
  await page.getByRole('button', { name: 'Stop files' }).waitFor({ state: 'detached' });
});

test('services are not asked for while nobody is at the page', async (t) => {
  const { page } = await desktop(t);
  await page.clock.install();
  let asked = 0;
  page.on('request', (request) => (asked += request.url().endsWith('/api/services')));
  const asks = async (act) => {
    const answer = page.waitForResponse(/api\/services$/);
    await act();
    await answer;
  };
  await asks(() => page.getByRole('tab', { name: 'Services' }).click());
  await asks(() => page.clock.runFor(3000));
  await page.clock.runFor(120_000);
  asked = 0;
  await page.clock.runFor(600_000);
  assert.equal(asked, 0);
  await asks(() => page.mouse.move(200, 200));
  await asks(() => page.clock.runFor(3000));
});

test('the page is worked with the keyboard alone, below /dev/ too', async (t) => {
  const { page, focused } = await desktop(t, 'panel=memory', { path: '/dev/' });
  assert.equal(await page.locator('.badge-dev').count(), 1);
  await page.keyboard.press('Tab');
  await focused(() => document.activeElement?.innerText.includes('Skip'));
  await page.keyboard.press('Enter');
  await focused(focusIs, 'prompt');
  await page.evaluate(() => document.activeElement?.blur());
  await page.keyboard.press('3');
  await focused(focusIs, 'tab-events');
  await page.keyboard.press('ArrowLeft');
  await page.getByRole('tab', { name: 'Files', selected: true }).waitFor();
  await page.keyboard.press('?');
  await page.getByRole('dialog').getByText('Keyboard shortcuts').waitFor();
  await page.keyboard.press('Escape');
  await page.locator('dialog[open]').waitFor({ state: 'detached' });
  await page.getByRole('separator').focus();
  const width = await page.getByRole('separator').getAttribute('aria-valuenow');
  await page.keyboard.press('ArrowRight');
  assert.notEqual(await page.getByRole('separator').getAttribute('aria-valuenow'), width);
});

test('a chosen theme is there before the first paint after a reload', async (t) => {
  const { page } = await desktop(t);
  const button = page.getByRole('button', { name: /^Theme/ });
  await button.click();
  await button.click();
  await page.reload({ waitUntil: 'commit' });
  await page.waitForFunction(() => document.documentElement?.dataset.theme === 'dark');
});

for (const colorScheme of ['light', 'dark']) {
  for (const [size, viewport] of [['wide', WIDE], ['narrow', NARROW]]) {
    test(`axe finds no fault in any panel, ${size} and ${colorScheme}`, async (t) => {
      const axe = await readFile(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
      for (const hash of ['panel=terminal', 'panel=files&file=src/main.rs', 'panel=events', 'panel=memory', 'panel=services', 'panel=files&tab=agent']) {
        // axe is brought in as an inline script, which the policy of the page refuses.
        const { page } = await desktop(t, hash, { viewport, colorScheme, bypassCSP: true });
        await page.locator('.spinner:visible').first().waitFor({ state: 'detached' });
        await page.evaluate(axe);
        const { violations } = await page.evaluate(() => window.axe.run(document));
        assert.deepEqual(violations.map(({ id, nodes }) => `${id}: ${nodes[0].html}`), [], hash);
      }
    });
  }
}
