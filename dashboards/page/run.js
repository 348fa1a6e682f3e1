// The page of one run: requests the status every second, and the other parts when they have changed.
import {
  ask, byId, cell, color, duration, element, moment, number, percent, perplexity, swatch, tokens, whole, write,
} from '/shared.js';
import { nextSample, showLanes, takeLanes } from '/lanes.js';
import { chart, explain, smoothing } from '/chart.js';
import { sortable } from '/table.js';
import '/pointer.js';

const EVERY = 1000;
/** The name of this page as a watcher. A run that ends waits until it has told each watcher. */
const WATCHER = crypto.getRandomValues(new Uint32Array(2)).join('-');
const ENDED = new Set(['finished', 'stopped', 'failed']);
/** The charts on the page, by the part of the run that they show. */
const CHARTS = {
  steps: ['loss', 'learning_rate', 'grad_norm', 'tokens_per_second', 'weights'],
  mixture: ['gap', 'perplexity', 'weights'],
};

/** The charts that change when the smoothing does. */
const NOISY = ['loss', 'grad_norm', 'tokens_per_second'];
/** The charts that are empty until the first evaluation. */
const EVALUATED = ['gap', 'perplexity', 'weights'];

const BUTTONS = ['pause', 'checkpoint', 'evaluate'];

/** The tables that sort, each as a function that shows its rows. */
const show = {
  domains: sortable(byId('domain-rows')),
  workers: sortable(byId('worker-rows')),
  ranks: sortable(byId('rank-rows')),
};

const run = {
  takesCommands: false,
  isAsking: false,
  status: null,
  seen: {},
  pause: 0,
  busy: null,
  filesOf: null,
};

/** Returns an API address for this run. */
function address(path, more = {}) {
  const query = new URLSearchParams(location.search);
  for (const [key, value] of Object.entries(more)) query.set(key, value);
  return `${path}?${query}`;
}

function showStatus() {
  const status = run.status;
  const done = status.step_limit ? `${Math.floor((100 * status.step) / status.step_limit)}% · ` : '';
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
  showClock(status);
  showAbout(status.about);
  showStages(status.stages);
  notice(status.problems.join('; '));
  showTiles(status);
  showDomains(status);
  showPhases(status);
  showWorkers(status);
  showRanks(status);
  explainCharts(status);
}

/** Shows the time so far, and when the run ends or has ended. */
function showClock({ state, started, ended, seconds, seconds_left: left }) {
  write(byId('elapsed'), seconds === null ? '' : `${duration(seconds)} since the start at ${moment(started)}`);
  const now = Date.now() / 1000;
  const end = ENDED.has(state) ? ended && `${state} at ${moment(ended)}` : left && `ends about ${moment(now + left)}`;
  write(byId('end'), end || '');
}

/** Shows the models and the method. They change only with another run. */
function showAbout(facts) {
  const text = JSON.stringify(facts);
  if (byId('about').dataset.facts === text) return;
  byId('about').dataset.facts = text;
  const pair = ({ name, value }) => element('div', {}, element('dt', {}, name), element('dd', {}, value));
  byId('about').replaceChildren(...facts.map(pair));
}

/** Says in charts that wait for the first evaluation how far it is. */
function explainCharts({ workers, activity }) {
  const phases = [activity, ...workers.map((worker) => worker.progress)];
  const progress = phases.find((one) => one?.phase.includes('evaluation'));
  const count = progress && `: ${whole(progress.done)} of ${whole(progress.total)} ${progress.unit}`;
  const text = progress && `The first evaluation is being made${count}.`;
  for (const name of EVALUATED) explain(byId(`${name}-chart`), text);
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
  const share = total > 0 ? `, ${Math.min(100, Math.floor((100 * done) / total))}%` : '';
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
  const over = status.averaged_steps > 1 ? `mean of ${status.averaged_steps} steps` : '';
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
    ['loss', number(scalars.loss), `CE ${number(scalars.ce_loss)}, KL ${number(scalars.kd_loss)}`, over],
    [
      'tokens',
      tokens(status.tokens),
      scalars.tokens_per_second === undefined ? '' : `${tokens(scalars.tokens_per_second)} per second`,
      over,
    ],
    [
      'learning rate',
      scalars.learning_rate === undefined ? '–' : scalars.learning_rate.toExponential(1),
      `gradient norm ${number(scalars.grad_norm, 2)}`,
      over,
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
    ...tiles.map(([name, value, ...notes]) =>
      element(
        'div',
        {},
        element('dt', {}, name),
        element('dd', {}, value),
        ...notes.filter(Boolean).map((note) => element('dd', { class: 'note' }, note)),
      ),
    ),
  );
}

function showDomains(status) {
  const rows = status.domains.map((domain, index) => {
    const fill = element('i');
    fill.style.width = `${100 * (domain.weight ?? 0)}%`;
    fill.style.background = color(index);
    const { gap, gap_at_start: start, student_perplexity: student, teacher_perplexity: teacher } = domain;
    const meter = element('span', { class: 'meter', 'aria-hidden': 'true' }, fill);
    return element(
      'tr', {},
      element('th', { scope: 'row' }, swatch(color(index)), domain.name),
      cell(number(gap), gap),
      cell(number(start), start),
      cell(perplexity(student), student),
      cell(perplexity(teacher), teacher),
      cell(number(domain.ratio), domain.ratio),
      element('td', { 'data-value': domain.weight }, meter, percent(domain.weight)),
      cell(percent(domain.token_share), domain.token_share),
      cell(number(domain.epochs, 2), domain.epochs),
    );
  });
  show.domains(rows);
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
  show.workers(status.workers.map((worker) => {
    const all = worker.busy_seconds + worker.input_wait_seconds + worker.output_wait_seconds;
    const { phase, done, total, unit } = worker.progress ?? {};
    const busy = all > 0 ? worker.busy_seconds / all : null;
    return element(
      'tr',
      {},
      element('th', { scope: 'row' }, worker.name),
      element(
        'td',
        {},
        phase ? `${phase}: ${whole(done)} of ${whole(total)} ${unit}` : worker.state.replaceAll('_', ' '),
      ),
      cell(percent(busy), busy),
      cell(whole(worker.restarts), worker.restarts),
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
  show.ranks(ranks.map(({ rank, busy, waiting, exchange }) => element(
    'tr',
    {},
    element('th', { scope: 'row' }, whole(rank)),
    ...[busy, waiting, exchange].map((seconds) => cell(`${number(seconds)} s`, seconds)),
  )));
}

/** Shows what the models write: the teacher, the student before the first step, and the student now. */
function showTexts({ teacher, student }) {
  const first = student[0];
  const last = student.at(-1);
  const writers = [
    ['teacher', teacher],
    [`student, step ${whole(first?.step)}`, first],
    [`student, step ${whole(last?.step)}`, last === first ? null : last],
  ].filter(([, line]) => line);
  for (const id of ['samples', 'to-samples']) byId(id).hidden = writers.length === 0;
  const prompts = (last ?? teacher)?.texts.map(({ prompt }) => prompt) ?? [];
  const written = (line, prompt) => line.texts.find((text) => text.prompt === prompt)?.text ?? '–';
  const pair = (prompt) => ([name, line]) =>
    element('div', {}, element('dt', {}, name), element('dd', {}, element('q', {}, written(line, prompt))));
  byId('texts').replaceChildren(...prompts.map((prompt) => element(
    'figure',
    {},
    element('figcaption', {}, element('b', {}, prompt)),
    element('dl', { class: 'texts' }, ...writers.map(pair(prompt))),
  )));
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

const factor = smoothing(byId('smoothing'), byId('smoothing-value'), () => {
  for (const name of NOISY) draw(name).catch(() => {});
});

/** Draws a chart. If the smoothing has changed by the time that it arrives, another one is on its way. */
function draw(name) {
  const asked = factor();
  const more = NOISY.includes(name) ? { smoothing: asked } : {};
  return chart(byId(`${name}-chart`), address(`/api/chart/${name}.svg`, more), () => factor() === asked);
}

/** Lists the run's files, and says what the report covers. */
async function showFiles(state) {
  if (run.filesOf === state) return;
  const files = await ask(address('/api/files'));
  run.filesOf = state;
  write(byId('report-note'), ENDED.has(state) ? '' : '(so far)');
  const link = ({ name, bytes }) =>
    element('a', { href: address(`/api/file/${name}`), title: `${whole(bytes)} bytes` }, name);
  const links = (files ?? []).flatMap((file, index) => [index ? ', ' : '', link(file)]);
  byId('files').hidden = links.length === 0;
  byId('files').replaceChildren('Files of the run: ', ...links, '.');
}

/** Updates the parts that have changed since they were last shown. */
async function update({ revisions }) {
  const isNew = (part) => run.seen[part] !== revisions[part];
  const charts = new Set(Object.keys(CHARTS).filter(isNew).flatMap((part) => CHARTS[part]));
  const drawn = await Promise.allSettled([...charts].map(draw));
  explainCharts(run.status);
  if (isNew('texts')) showTexts(await ask(address('/api/texts')));
  if (isNew('events')) showEvents(await ask(address('/api/events')));
  // If a chart could not be drawn, request the parts again.
  if (drawn.every(({ status }) => status === 'fulfilled')) run.seen = revisions;
}

/** Shows the worker timeline and the charts. On a slow machine, charts update less often, so the page stays usable. */
async function showRest(status) {
  await showFiles(status.state);
  takeLanes(await ask(address('/api/workers', { from: nextSample() })));
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

for (const id of ['report', 'api-status', 'api-steps', 'api-mixture', 'api-events']) byId(id).search = location.search;
window.matchMedia('(prefers-color-scheme: dark)').addEventListener('change', showLanes);
for (const id of BUTTONS) {
  byId(id).addEventListener('click', () => tell(id === 'pause' && run.status.state === 'paused' ? 'resume' : id));
}
window.addEventListener('load', async () => {
  const commands = await ask(address('/api/control')).catch(() => null);
  run.takesCommands = commands?.length > 0;
  watch();
});
