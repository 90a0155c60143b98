// SPDX-License-Identifier: MIT
// The share of a processor that each process uses now, from how its processor time has grown.

const WINDOW = 5;

export class Rates {
  #kept = new Map();

  /** Note the processor time of all that a status shows. */
  note(status) {
    const now = performance.now() / 1000;
    const kept = new Map();
    const add = (key, cpu) => {
      if (cpu === null || cpu === undefined) return;
      let points = this.#kept.get(key) ?? [];
      if (points.length && cpu < points[points.length - 1].cpu) points = [];
      points = [...points, { now, cpu }];
      while (points.length > 2 && points[1].now <= now - WINDOW) points.shift();
      kept.set(key, points);
    };
    for (const companion of status.companions ?? []) add(companion.name, companion.counters?.cpu);
    for (const worker of status.web?.workers ?? []) add(worker.pid, worker.cpu);
    this.#kept = kept;
  }

  /** The share of one processor, by the name of a companion or the pid of a worker; null: not known yet. */
  of(key) {
    const points = this.#kept.get(key) ?? [];
    if (points.length < 2) return null;
    const [first, last] = [points[0], points[points.length - 1]];
    return last.now - first.now < 1 ? null : (last.cpu - first.cpu) / (last.now - first.now);
  }
}
