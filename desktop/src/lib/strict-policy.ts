/**
 * xterm.js under `style-src 'self'`. Its renderer writes rules into `<style>` elements and
 * colours single cells through `style` attributes. A strict Content-Security-Policy blocks
 * both, but neither constructed style sheets nor the CSSOM; here the former become the latter.
 */

/** Runs `open`, during which the terminal makes its style elements, with stand-ins for them. */
export function openUnderStrictPolicy(real: Document, open: () => void): void {
  styleSpansThroughCssom();
  const plain = Document.prototype.createElement.bind(real) as Document['createElement'];
  real.createElement = ((tag: string, options?: ElementCreationOptions) =>
    tag === 'style' ? styleStandIn(real, plain('span')) : plain(tag, options)) as Document['createElement'];
  try {
    open();
  } finally {
    // The own property goes, the prototype's method is back.
    delete (real as { createElement?: unknown }).createElement;
  }
}

function styleStandIn(real: Document, element: HTMLElement): HTMLElement {
  const sheet = new CSSStyleSheet();
  element.hidden = true;
  let rules = '';
  Object.defineProperty(element, 'textContent', {
    get: () => rules,
    set: (value: string) => {
      rules = value;
      sheet.replaceSync(value);
    },
  });
  const remove = element.remove.bind(element);
  element.remove = () => {
    real.adoptedStyleSheets = real.adoptedStyleSheets.filter((other) => other !== sheet);
    remove();
  };
  real.adoptedStyleSheets = [...real.adoptedStyleSheets, sheet];
  return element;
}

let styled = false;

/** `setAttribute('style', …)` of a span, which the policy blocks, does what `style.cssText` does. */
function styleSpansThroughCssom(): void {
  if (styled) return;
  styled = true;
  HTMLSpanElement.prototype.setAttribute = function setAttribute(this: HTMLSpanElement, name: string, value: string) {
    if (name === 'style') this.style.cssText = value;
    else Element.prototype.setAttribute.call(this, name, value);
  };
}
