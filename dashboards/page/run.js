// The page of one run: requests the status every second, and the other parts when they have changed.
import {
  ask, byId, chart, color, duration, element, named, number, percent, perplexity, swatch, tokens, whole, write,
} from '/shared.js';
import '/pointer.js';

const EVERY = 1000;
const LANE_SAMPLES = 300;
/** The name of this page as a watcher. A run that ends waits until it has told each watcher. */
const WATCHER = crypto.getRandomValues(new Uint32Array(2)).join('-');
const ENDED = new Set(['finished', 'stopped', 'failed']);
/** The charts on the page, by the part of the run that they show. */
const CHARTS = {
  steps: ['loss', 'learning_rate', 'grad_norm', 'tokens_per_second', 'weights'],
  mixture: ['gap', 'perplexity', 'weights'],
};

const BUTTONS = ['pause', 'checkpoint', 'evaluate'];

const run = {
  takesCommands: false,
  isAsking: false,
  status: null,
  seen: {},
  lanes: { from: 0, workers: [], samples: [] },
  pause: 0,
  busy: null,
};

/** Returns an API address for this run. */
function address(path, more = {}) {
  const query = new URLSearchParams(location.search);
  for (const [key, value] of Object.entries(more)) query.set(key, value);
  return `${path}?${query}`;
}

function showStatus() {
  const status = run.status;
  const done = status.step_limit ? `${Math.floor((100 * status.step) / status.step_limit)} % · ` : '';
  document.title = `${done}${status.name} - DDK`;
  write(byId('name'), status.name);
  showState(status.state, status.state);
  showCommands(status.state);
  const limit = status.step_limit;
  const share = limit ? status.step / limit : status.token_limit ? status.tokens / status.token_limit : 0;
  byId('progress').value = Math.min(1, share);
  write(byId('done'), `step ${whole(status.step)}${limit ? ` of ${whole(limit)}` : ''}`);
  write(byId('left'), timeLeft(status));
  showActivity(status);
  showStages(status.stages);
  notice(status.problems.join('; '));
  showTiles(status);
  showDomains(status);
  showPhases(status);
  showWorkers(status);
  showRanks(status);
}

/** An estimate in whole seconds. It is never 0, because what is not done needs time. */
const rough = (seconds) => duration(Math.max(1, Math.round(seconds)));

function timeLeft(status) {
  if (status.stop_reason) return `reached ${status.stop_reason}, whole run ${duration(status.seconds)}`;
  return typeof status.seconds_left === 'number' ? `about ${rough(status.seconds_left)} left` : '';
}

/** Shows what the process is doing: the phase, its count, the time that has passed, and the time that is left. */
function showActivity({ activity }) {
  byId('activity').hidden = !activity;
  if (!activity) return;
  const { phase, unit, done, total, seconds, seconds_left: left } = activity;
  const share = total > 0 ? `, ${Math.min(100, Math.floor((100 * done) / total))} %` : '';
  const all = total > 0 ? ` of ${whole(total)}` : '';
  const count = unit ? `: ${whole(done)}${all} ${unit}${share}` : '';
  const rest = typeof left === 'number' ? `, about ${rough(left)} left` : '';
  write(byId('activity'), `${phase}${count}, ${duration(Math.floor(seconds))} elapsed${rest}`);
}

function showState(text, kind) {
  write(byId('state'), text);
  byId('state').className = `pill ${kind}`;
}

/** Shows the preliminary runs. */
function showStages(stages) {
  byId('stages').hidden = stages.length === 0;
  byId('stages').replaceChildren(
    ...stages.map(({ name, state, step, step_limit: limit }) =>
      element('li', {}, element('b', {}, name), ` ${state}, step ${whole(step)}${limit ? ` of ${whole(limit)}` : ''}`),
    ),
  );
}

/** Shows the commands that the run accepts now. */
function showCommands(state) {
  const trains = state === 'running' || state === 'paused';
  byId('commands').hidden = !run.takesCommands || ENDED.has(state);
  write(byId('pause'), state === 'paused' ? 'Resume' : 'Pause');
  for (const id of BUTTONS) byId(id).disabled = !trains || run.isAsking;
}

/** Sends a command to the run and shows the answer. */
async function tell(command) {
  run.isAsking = true;
  write(byId('answer'), `${command}: waiting for the step to end`);
  showCommands(run.status.state);
  try {
    const answer = await fetch(address('/api/control'), { method: 'POST', body: JSON.stringify({ command }) });
    const isJson = answer.headers.get('content-type')?.startsWith('application/json');
    write(byId('answer'), isJson ? (await answer.json()).message : await answer.text());
  } catch {
    write(byId('answer'), `${command}: no answer`);
  }
  run.isAsking = false;
  await look().catch(() => {});
}

function notice(text) {
  byId('notice').hidden = text === '';
  write(byId('notice'), text);
}

function showTiles(status) {
  const { scalars } = status;
  const worst = status.domains.find((domain) => domain.name === status.worst_domain);
  const incidents = Object.entries(status.incidents);
  const happened = incidents.reduce((sum, [, count]) => sum + count, 0);
  const tiles = [
    [
      'mean gap',
      number(status.mean_gap),
      status.mean_gap_at_start === null ? '' : `${number(status.mean_gap_at_start)} at start`,
    ],
    ['worst domain', number(worst?.gap), worst?.name ?? ''],
    ['loss', number(scalars.loss), `CE ${number(scalars.ce_loss)}, KL ${number(scalars.kd_loss)}`],
    [
      'tokens',
      tokens(status.tokens),
      scalars.tokens_per_second === undefined ? '' : `${tokens(scalars.tokens_per_second)} per second`,
    ],
    [
      'learning rate',
      scalars.learning_rate === undefined ? '–' : scalars.learning_rate.toExponential(1),
      `gradient norm ${number(scalars.grad_norm, 2)}`,
    ],
    [
      'last checkpoint',
      status.saved ? `step ${whole(status.saved.step)}` : '–',
      status.saved ? new Date(1000 * status.saved.time).toLocaleTimeString() : '',
    ],
    [
      'incidents',
      whole(happened),
      incidents.map(([kind, count]) => `${count} ${kind.replaceAll('_', ' ')}`).join(', ') || 'none',
    ],
  ];
  byId('tiles').replaceChildren(
    ...tiles.map(([name, value, note]) =>
      element(
        'div',
        {},
        element('dt', {}, name),
        element('dd', {}, value),
        element('dd', { class: 'note' }, note),
      ),
    ),
  );
}

function showDomains(status) {
  const rows = status.domains.map((domain, index) => {
    const fill = element('i');
    fill.style.width = `${100 * (domain.weight ?? 0)}%`;
    fill.style.background = color(index);
    const cells = [
      number(domain.gap),
      number(domain.gap_at_start),
      perplexity(domain.student_perplexity),
      perplexity(domain.teacher_perplexity),
      number(domain.ratio),
    ];
    return element(
      'tr', {},
      element('th', { scope: 'row' }, swatch(color(index)), domain.name),
      ...cells.map((text) => element('td', {}, text)),
      element('td', {}, element('span', { class: 'meter', 'aria-hidden': 'true' }, fill), percent(domain.weight)),
      element('td', {}, percent(domain.token_share)),
      element('td', {}, number(domain.epochs, 2)),
    );
  });
  byId('domain-rows').replaceChildren(...rows);
}

function showPhases(status) {
  const phases = Object.entries(status.phases);
  const sum = phases.reduce((all, [, seconds]) => all + seconds, 0);
  byId('phases-figure').hidden = sum === 0;
  write(byId('phases-text'), `The student takes ${number(sum, 3)} s per step, averaged over the last 50 steps.`);
  byId('phases').replaceChildren(...phases.map(([, seconds], index) => {
    const part = element('i');
    part.style.width = `${(100 * seconds) / sum}%`;
    part.style.background = color(index);
    return part;
  }));
  byId('phases-legend').replaceChildren(
    ...phases.map(([phase, seconds], index) =>
      element('li', {}, swatch(color(index)), `${phase.replaceAll('_', ' ')} ${percent(seconds / sum)}`),
    ),
  );
}

function showWorkers(status) {
  byId('workers-pair').hidden = status.workers.length === 0;
  byId('worker-rows').replaceChildren(...status.workers.map((worker) => {
    const all = worker.busy_seconds + worker.input_wait_seconds + worker.output_wait_seconds;
    const { phase, done, total, unit } = worker.progress ?? {};
    const cells = [
      phase ? `${phase}: ${whole(done)} of ${whole(total)} ${unit}` : worker.state.replaceAll('_', ' '),
      all > 0 ? percent(worker.busy_seconds / all) : '–',
      whole(worker.restarts),
    ];
    return element(
      'tr',
      {},
      element('th', { scope: 'row' }, worker.name),
      ...cells.map((text) => element('td', {}, text)),
    );
  }));
  byId('queues').replaceChildren(...status.queues.map((queue) => {
    const slots = Array.from({ length: queue.capacity }, (_, index) =>
      element('i', { class: index < queue.length ? 'full' : null }),
    );
    return element(
      'li',
      {},
      queue.name,
      element('span', { class: 'slots' }, ...slots, ` ${queue.length} of ${queue.capacity}`),
    );
  }));
}

// Only a run on several processes has ranks.
function showRanks(status) {
  const ranks = status.ranks ?? [];
  byId('ranks').hidden = ranks.length < 2;
  byId('rank-rows').replaceChildren(...ranks.map(({ rank, busy, waiting, exchange }) => element(
    'tr',
    {},
    element('th', { scope: 'row' }, whole(rank)),
    ...[busy, waiting, exchange].map((seconds) => element('td', {}, `${number(seconds)} s`)),
  )));
}

function showLanes() {
  const { workers, samples } = run.lanes;
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
    write(share, `${busy} %`);
    canvas.setAttribute('aria-label', `${name}: busy ${busy} % of the last minute`);
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

function showEvents(events) {
  const rows = events.reverse().map((event) => {
    const time = new Date(1000 * event.time);
    return element(
      'li',
      { class: event.is_incident ? 'bad' : null },
      element(
        'time',
        { datetime: time.toISOString() },
        time.toLocaleString(undefined, { dateStyle: 'short', timeStyle: 'medium' }),
      ),
      element('b', {}, event.kind.replaceAll('_', ' ')),
      element('span', {}, `step ${whole(event.step)}: ${event.message}`),
    );
  });
  byId('event-rows').replaceChildren(...rows);
}

function takeLanes(news) {
  // A new process starts counting from 0 again.
  const follows = news.from === run.lanes.from + run.lanes.samples.length;
  const samples = follows ? [...run.lanes.samples, ...news.samples] : news.samples;
  const kept = samples.slice(-LANE_SAMPLES);
  run.lanes = { from: news.from + news.samples.length - kept.length, workers: news.workers, samples: kept };
}

/** Updates the parts that have changed since they were last shown. */
async function update({ revisions }) {
  const isNew = (part) => run.seen[part] !== revisions[part];
  const charts = new Set(Object.keys(CHARTS).filter(isNew).flatMap((part) => CHARTS[part]));
  const draw = (name) => chart(byId(`${name}-chart`), address(`/api/chart/${name}.svg`));
  const drawn = await Promise.allSettled([...charts].map(draw));
  if (isNew('events')) showEvents(await ask(address('/api/events')));
  // If a chart could not be drawn, request the parts again.
  if (drawn.every(({ status }) => status === 'fulfilled')) run.seen = revisions;
}

/** Shows the worker timeline and the charts. On a slow machine, charts update less often, so the page stays usable. */
async function showRest(status) {
  const { from, samples } = run.lanes;
  takeLanes(await ask(address('/api/workers', { from: from + samples.length })));
  showLanes();
  const began = performance.now();
  if (began < run.pause) return;
  try {
    await update(status);
  } finally {
    run.pause = performance.now() + Math.min(20000, 4 * (performance.now() - began));
  }
}

/** Shows the status without waiting for charts, because a run that ends tells only watchers that ask in time. */
async function look() {
  const status = await ask(address('/api/status', { watcher: WATCHER }));
  if (status === null) {
    showState('no such run', 'lost');
    notice('There is no such run here. The name in the address may be wrong, or the folder is gone.');
    return;
  }
  run.status = status;
  showStatus();
  run.busy ??= showRest(status).catch(() => {}).finally(() => { run.busy = null; });
}

/** Shows that nobody answers. A process that had made its last step and was ending has ended. */
function lost() {
  const { state, step, step_limit: limit } = run.status ?? {};
  byId('activity').hidden = true;
  if (state === 'ending' && limit && step >= limit) {
    showState('finished', 'finished');
    write(byId('left'), 'its process has ended');
    return;
  }
  showState('no connection', 'lost');
  write(byId('left'), '');
  notice('The process that served this page has ended or cannot be reached. “ddk serve RUNS_DIR” shows its run.');
}

/** Polls the server, one request at a time. A hidden page requests nothing. */
async function watch() {
  if (!document.hidden) {
    try {
      await look();
    } catch {
      // A process that ends reports its final state before its server shuts down. A killed process reports nothing.
      if (!ENDED.has(run.status?.state)) lost();
    }
  }
  setTimeout(watch, EVERY);
}

for (const id of ['api-status', 'api-steps', 'api-mixture', 'api-events']) byId(id).search = location.search;
window.matchMedia('(prefers-color-scheme: dark)').addEventListener('change', showLanes);
for (const id of BUTTONS) {
  byId(id).addEventListener('click', () => tell(id === 'pause' && run.status.state === 'paused' ? 'resume' : id));
}
window.addEventListener('load', async () => {
  const commands = await ask(address('/api/control')).catch(() => null);
  run.takesCommands = commands?.length > 0;
  watch();
});
