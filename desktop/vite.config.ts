import { svelte } from '@sveltejs/vite-plugin-svelte';
import { defineConfig } from 'vitest/config';

export default defineConfig({
  // The same build is served at `/` and below `/dev/`, so every URL is relative.
  base: './',
  plugins: [svelte()],
  build: {
    target: ['chrome123', 'firefox128', 'safari17.5'],
    // A `data:` URL would need a wider Content-Security-Policy than `default-src 'self'`.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    reportCompressedSize: true,
  },
  server: {
    proxy: Object.fromEntries(
      ['/api', '/conductor', '/logs', '/health', '/ws'].map((path) => [
        path,
        { target: process.env.CHOIR_DESKTOP_BACKEND ?? 'http://127.0.0.1:5199', ws: path === '/ws' },
      ]),
    ),
  },
  test: { include: ['src/**/*.test.ts'], environment: 'node' },
});
