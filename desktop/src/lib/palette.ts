/** Terminal colours for both themes, each readable on its background. */

import type { ITheme } from '@xterm/xterm';

const LIGHT: ITheme = {
  background: '#ffffff', foreground: '#1d1f23', cursor: '#3b4fd8', cursorAccent: '#ffffff',
  selectionBackground: '#cfd6fb', selectionInactiveBackground: '#e3e6f3',
  black: '#1d1f23', red: '#b3261e', green: '#17683c', yellow: '#8a4b00',
  blue: '#3b4fd8', magenta: '#8b2fa8', cyan: '#0b6a80', white: '#5f6570',
  brightBlack: '#5f6570', brightRed: '#c9352c', brightGreen: '#1d7f4a', brightYellow: '#9a5a06',
  brightBlue: '#5164e6', brightMagenta: '#a043be', brightCyan: '#107c95', brightWhite: '#3a3d45',
};

const DARK: ITheme = {
  background: '#1a1c22', foreground: '#e8e9ed', cursor: '#8b9bff', cursorAccent: '#1a1c22',
  selectionBackground: '#3a4270', selectionInactiveBackground: '#2e3342',
  black: '#2c3039', red: '#ff8079', green: '#62d49b', yellow: '#f2b45c',
  blue: '#8b9bff', magenta: '#d79bf0', cyan: '#6fcfe0', white: '#d5d7de',
  brightBlack: '#8a90a0', brightRed: '#ff9f99', brightGreen: '#8ae6b8', brightYellow: '#ffcc85',
  brightBlue: '#aab6ff', brightMagenta: '#e6b8f7', brightCyan: '#98e2ef', brightWhite: '#ffffff',
};

export function terminalTheme(dark: boolean): ITheme {
  return dark ? DARK : LIGHT;
}
