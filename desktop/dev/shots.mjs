// Screenshots of every view, in both themes and both widths, against the mock guest.
//
//   npm run build && npm run shots -- DIRECTORY [name-part]
//
// Uses the Chromium of the system (CHROMIUM, /usr/bin/chromium by default).

import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { chromium } from 'playwright-core';
import { LAUNCH } from './browser.mjs';
import { startMock } from './mock.mjs';

const [directory, only = ''] = process.argv.slice(2);
if (!directory) {
  console.error('usage: npm run shots -- DIRECTORY [name-part]');
  process.exit(2);
}
mkdirSync(directory, { recursive: true });

const browser = await chromium.launch(LAUNCH);

const SIZES = { wide: { width: 1280, height: 800 }, narrow: { width: 390, height: 844 } };
let complaints = 0;

async function view(name, { hash = '', seeded = true, path = '/', size, theme, act = async () => {} }) {
  const label = `${name}-${size}-${theme}`;
  if (!label.includes(only)) return;
  const mock = await startMock({ seeded, pace: 0.3 });
  const context = await browser.newContext({
    viewport: SIZES[size], colorScheme: theme, deviceScaleFactor: size === 'narrow' ? 2 : 1, hasTouch: size === 'narrow', isMobile: size === 'narrow',
  });
  const page = await context.newPage();
  page.on('console', (message) => {
    if (['error', 'warning'].includes(message.type()) && !/status of (4|5)\d\d|WebSocket connection/.test(message.text())) {
      complaints += 1;
      console.log(`${label}: ${message.text()}`);
    }
  });
  page.on('pageerror', (error) => {
    complaints += 1;
    console.log(`${label}: ${error.stack}`);
  });
  await page.goto(`${mock.origin}${path}#${hash}`);
  await page.getByText('Connected', { exact: true }).waitFor({ state: 'attached' });
  await act(page, mock);
  await page.waitForTimeout(350);
  await page.screenshot({ path: join(directory, `${label}.png`) });
  await context.close();
  mock.close();
}

async function typed(page, ...lines) {
  await page.locator('.xterm-helper-textarea').waitFor({ state: 'attached' });
  await page.waitForTimeout(400);
  for (const line of lines) {
    await page.locator('.xterm-helper-textarea').first().focus();
    await page.keyboard.type(line);
    await page.keyboard.press('Enter');
    await page.waitForTimeout(120);
  }
}

async function ran(page, mock) {
  await mock.execute('create calc.py …\ncreate test_calc.py …\nfix the failing test with python3 -m unittest');
  await page.locator('button.run', { hasText: 'create calc.py' }).click();
  await page.getByText('Use again').waitFor();
}

for (const size of Object.keys(SIZES)) {
  for (const theme of ['light', 'dark']) {
    const common = { size, theme };
    await view('empty', { ...common, seeded: false, act: async (page) => size === 'wide' && typed(page) });
    await view('runs', { ...common, act: (page) => (size === 'wide' ? typed(page, 'ls', 'cargo test') : undefined) });
    await view('run', {
      ...common,
      hash: 'panel=files&tab=agent&file=calc.py',
      act: async (page, mock) => {
        await ran(page, mock);
        await page.locator('details.tool').filter({ hasText: 'Change' }).locator('summary').click();
        if (size === 'wide') await page.getByRole('treeitem', { name: 'calc.py', exact: true }).click();
      },
    });
    await view('terminal', { ...common, hash: 'panel=terminal', act: (page) => typed(page, 'ls', 'cargo test', 'true-colour') });
    await view('files', {
      ...common,
      hash: 'panel=files&file=src/main.rs',
      act: async (page) => {
        await page.getByLabel('Content of src/main.rs').fill('fn main() {\n    println!("changed");\n}\n');
      },
    });
    await view('tree', { ...common, hash: 'panel=files', act: async (page) => page.getByRole('treeitem', { name: 'src' }).click() });
    await view('events', { ...common, hash: 'panel=events', act: async (page) => page.getByRole('button', { name: /^The command|cargo build/ }).first().click() });
    await view('memory', { ...common, hash: 'panel=memory' });
    await view('dialog', {
      ...common,
      hash: 'panel=files',
      act: async (page) => {
        await page.getByRole('button', { name: 'New file' }).click();
        await page.getByLabel('Path in the workspace').fill('/x');
        await page.getByRole('button', { name: 'Create', exact: true }).click();
      },
    });
    await view('help', { ...common, path: '/dev/', act: async (page) => {
      await page.locator('body').click({ position: { x: 5, y: 300 } });
      await page.keyboard.press('?');
    } });
    await view('offline', {
      ...common,
      path: '/dev/',
      act: async (page, mock) => {
        await fetch(`${mock.origin}/mock/down?ms=60000`, { method: 'POST' });
        await page.getByText('not running').waitFor();
      },
    });
  }
}
await browser.close();
console.log(`${complaints} complaints of the browser`);
process.exitCode = complaints === 0 ? 0 : 1;
