// The worker timeline: what each worker did, second by second.
import { byId, element, named, write } from '/shared.js';

const LANE_SAMPLES = 300;

let taken = { from: 0, workers: [], samples: [] };

/** The number of the first sample that is missing. */
export const nextSample = () => taken.from + taken.samples.length;

/** Adds samples from `/api/workers`. */
export function takeLanes(news) {
  // A new process starts counting from 0 again.
  const follows = news.from === taken.from + taken.samples.length;
  const samples = follows ? [...taken.samples, ...news.samples] : news.samples;
  const kept = samples.slice(-LANE_SAMPLES);
  taken = { from: news.from + news.samples.length - kept.length, workers: news.workers, samples: kept };
}

/** Draws a lane for each worker. */
export function showLanes() {
  const { workers, samples } = taken;
  const lanes = byId('lanes');
  byId('lanes-figure').hidden = samples.length === 0;
  const order = workers.map((name, index) => ({ name, index })).sort((a, b) => rank(a.name) - rank(b.name));
  if (lanes.dataset.workers !== workers.join()) {
    lanes.dataset.workers = workers.join();
    lanes.replaceChildren(
      ...order.flatMap(({ name }) => [
        element('span', {}, name),
        element('canvas', { role: 'img' }),
        element('span', { class: 'share' }),
      ]),
    );
  }
  order.forEach(({ name, index }, row) => {
    const [, canvas, share] = [0, 1, 2].map((column) => lanes.children[3 * row + column]);
    const minute = samples.slice(-60).map((sample) => sample[index]?.[0] ?? 0);
    const busy = Math.round(minute.reduce((sum, value) => sum + value, 0) / Math.max(1, minute.length));
    write(share, `${busy}%`);
    canvas.setAttribute('aria-label', `${name}: busy ${busy}% of the last minute`);
    // A waiting checkpointer is idle and slows nothing down, so its waits have no color.
    const shades = name === 'checkpointer' ? ['saving', 'page', 'page'] : ['busy', 'output-wait', 'input-wait'];
    paint(canvas, samples.map((sample) => sample[index]), shades.map(named));
  });
}

const rank = (name) =>
  ['teacher', 'student', 'checkpointer', 'batcher', 'loader'].findIndex((kind) => name.startsWith(kind));

/** Paints one column per second, the latest at the right. Each has busy at the bottom, and the waits above. */
function paint(canvas, samples, shades) {
  const height = 22;
  canvas.width = LANE_SAMPLES;
  canvas.height = height;
  const brush = canvas.getContext('2d');
  brush.fillStyle = named('page');
  brush.fillRect(0, 0, LANE_SAMPLES, height);
  samples.forEach((sample, index) => {
    if (!sample) return;
    const [working, waitingIn, waitingOut] = sample;
    let y = height;
    [working, waitingOut, waitingIn].forEach((share, part) => {
      const size = (share / 100) * height;
      y -= size;
      brush.fillStyle = shades[part];
      brush.fillRect(LANE_SAMPLES - samples.length + index, y, 1, size);
    });
  });
}
