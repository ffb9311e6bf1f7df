/**
 * A document for xterm.js under `style-src 'self'`. The terminal writes its rules into
 * `<style>` elements and colours cells through `style` attributes; a strict policy blocks
 * both, but neither a constructed style sheet nor the CSSOM. So this document hands out
 * stand-ins for the former that use the latter.
 */
export function cspDocument(real: Document): Document {
  return new Proxy(real, {
    get(target, property) {
      if (property === 'createElement') {
        return (tag: string, options?: ElementCreationOptions) => {
          if (tag === 'style') return styleStandIn(target);
          const element = target.createElement(tag, options);
          if (tag === 'span') styleThroughCssom(element);
          return element;
        };
      }
      const value: unknown = Reflect.get(target, property, target);
      return typeof value === 'function' ? (value as (...args: unknown[]) => unknown).bind(target) : value;
    },
    set: (target, property, value) => Reflect.set(target, property, value, target),
  });
}

function styleStandIn(real: Document): HTMLElement {
  const sheet = new CSSStyleSheet();
  const element = real.createElement('span');
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

function styleThroughCssom(element: HTMLElement): void {
  const plain = element.setAttribute.bind(element);
  element.setAttribute = (name: string, value: string) => {
    if (name === 'style') element.style.cssText = value;
    else plain(name, value);
  };
}
