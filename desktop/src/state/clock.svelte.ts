const TICK_MS = 1_000;

/** The present moment for texts such as "2 min ago"; it ticks only while somebody looks. */
class Clock {
  now = $state(Date.now());

  constructor() {
    setInterval(() => {
      if (!document.hidden) this.now = Date.now();
    }, TICK_MS);
  }
}

export const clock = new Clock();
