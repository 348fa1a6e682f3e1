// The page of one run: /api/stream brings everything at first, then what is new.
import {
  byId, colour, draw, duration, element, line, named, number, onTheme, percent, perplexity, swatch, tokens, whole,
  write,
} from '/charts.js';

const LANE_SAMPLES = 300;
const QUIET = new Set(['extended', 'resumed', 'saved', 'started', 'started_over', 'stopped', 'other']);
const ENDED = new Set(['finished', 'stopped', 'failed']);
const COLUMNS = ['step', 'loss', 'ce', 'kl', 'gradient_norm', 'learning_rate', 'tokens_per_second'];
const PHASES = ['data', 'teacher_wait', 'forward', 'head', 'backward', 'optimizer'];

const run = { status: null, steps: null, mixture: null, events: [], lanes: { from: 0, workers: [], samples: [] } };

function showStatus() {
  const status = run.status;
  const done = status.step_limit ? `${Math.floor((100 * status.step) / status.step_limit)} % · ` : '';
  document.title = `${done}${status.name} - DDK`;
  write(byId('name'), status.name);
  showState(status.state, status.state);
  const limit = status.step_limit;
  const share = limit ? status.step / limit : status.token_limit ? status.tokens / status.token_limit : 0;
  byId('progress').value = Math.min(1, share);
  write(byId('done'), `step ${whole(status.step)}${limit ? ` of ${whole(limit)}` : ''}`);
  const left = status.stop_reason
    ? `done by ${status.stop_reason}, took ${duration(status.seconds)}`
    : status.seconds_left === null
      ? ''
      : `about ${duration(status.seconds_left)} left`;
  write(byId('left'), left);
  notice(status.problems.join('; '));
  showTiles(status);
  showDomains(status);
  showPhases(status);
  showWorkers(status);
}

function showState(text, kind) {
  write(byId('state'), text);
  byId('state').className = `pill ${kind}`;
}

function notice(text) {
  byId('notice').hidden = text === '';
  write(byId('notice'), text);
}

function showTiles(status) {
  const { losses } = status;
  const incidents = Object.entries(status.events).filter(([kind]) => !QUIET.has(kind));
  const happened = incidents.reduce((sum, [, count]) => sum + count, 0);
  const tiles = [
    [
      'mean ratio',
      number(status.ratio),
      status.ratio_at_start === null ? '' : `${number(status.ratio_at_start)} at the start`,
    ],
    ['loss', number(losses.loss), `CE ${number(losses.ce)}, KL ${number(losses.kl)}`],
    [
      'tokens',
      tokens(status.tokens),
      status.tokens_per_second === null ? '' : `${tokens(status.tokens_per_second)} a second`,
    ],
    [
      'learning rate',
      losses.learning_rate === null ? '–' : losses.learning_rate.toExponential(1),
      `gradient norm ${number(losses.gradient_norm, 2)}`,
    ],
    [
      'last save',
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

const shades = () => new Map((run.status?.domains ?? []).map((domain, index) => [domain.name, colour(index)]));

function showDomains(status) {
  const colours = shades();
  const rows = status.domains.map((domain) => {
    const fill = element('i');
    fill.style.width = `${100 * (domain.weight ?? 0)}%`;
    fill.style.background = colours.get(domain.name);
    const cells = [
      perplexity(domain.student_perplexity),
      perplexity(domain.teacher_perplexity),
      number(domain.ratio),
      number(domain.ratio_at_start),
    ];
    return element(
      'tr', {},
      element('th', { scope: 'row' }, swatch(colours.get(domain.name)), domain.name),
      ...cells.map((text) => element('td', {}, text)),
      element('td', {}, element('span', { class: 'meter', 'aria-hidden': 'true' }, fill), percent(domain.weight)),
      element('td', {}, percent(domain.token_share)),
      element('td', {}, number(domain.passes, 2)),
    );
  });
  byId('domain-rows').replaceChildren(...rows);
}

function showPhases(status) {
  const order = (phase) => (PHASES.indexOf(phase) + PHASES.length + 1) % (PHASES.length + 1);
  const phases = Object.entries(status.phases).sort(([a], [b]) => order(a) - order(b));
  const sum = phases.reduce((all, [, seconds]) => all + seconds, 0);
  byId('phases-figure').hidden = sum === 0;
  write(byId('phases-text'), `Takes the student ${number(sum, 3)} s, in the mean of the last 50.`);
  byId('phases').replaceChildren(...phases.map(([, seconds], index) => {
    const part = element('i');
    part.style.width = `${(100 * seconds) / sum}%`;
    part.style.background = colour(index);
    return part;
  }));
  byId('phases-legend').replaceChildren(
    ...phases.map(([phase, seconds], index) =>
      element('li', {}, swatch(colour(index)), `${phase.replaceAll('_', ' ')} ${percent(seconds / sum)}`),
    ),
  );
}

function showWorkers(status) {
  byId('workers-pair').hidden = status.workers.length === 0;
  byId('worker-rows').replaceChildren(...status.workers.map((worker) => {
    const all = worker.busy_seconds + worker.starved_seconds + worker.blocked_seconds;
    const cells = [
      worker.state.replaceAll('_', ' '),
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

function showSteps() {
  const { step, loss, ce, kl } = run.steps;
  draw(
    byId('loss-chart'),
    [
      line('loss', step, loss, colour(0)),
      line('cross-entropy', step, ce, colour(1)),
      line('KL', step, kl, colour(2)),
    ],
    { yaxis: { rangemode: 'tozero' } },
  );
}

/** A domain's values by step, with the last evaluation of a finished run. */
function evaluations(name, column) {
  const { step, domains, after } = run.mixture;
  const values = after?.[column]?.[name];
  return values === undefined
    ? [step, domains[name][column]]
    : [
        [...step, after.step],
        [...domains[name][column], values],
      ];
}

function showMixture() {
  const names = Object.keys(run.mixture.domains);
  const dots = { mode: 'lines+markers', marker: { size: 5 } };
  const ratios = names.map((name, index) => line(name, ...evaluations(name, 'ratio'), colour(index), dots));
  const last = Math.max(1, run.status?.step ?? 1, run.mixture.after?.step ?? 1);
  const caughtUp = line('caught up', [0, last], [1, 1], named('soft'), {
    hoverinfo: 'skip',
    line: { color: named('soft'), width: 1.5, dash: 'dash' },
  });
  draw(byId('ratio-chart'), [...ratios, caughtUp]);
  const students = names.map((name, index) =>
    line(name, ...evaluations(name, 'student_perplexity'), colour(index), dots),
  );
  const teachers = names.map((name, index) => {
    const values = run.mixture.domains[name].teacher_perplexity;
    return line(`${name}, teacher`, [0, last], Array(2).fill(values.at(-1)), colour(index), {
      showlegend: false,
      hoverinfo: 'skip',
      line: { color: colour(index), width: 1.5, dash: 'dot' },
    });
  });
  const ticks = decades([...students, ...teachers].flatMap((trace) => trace.y));
  draw(byId('perplexity-chart'), [...students, ...teachers], {
    yaxis: { type: 'log', tickvals: ticks, ticktext: ticks.map(whole) },
  });
}

/** 1, 2, 5, 10, … as far as these values go. */
function decades(values) {
  const [low, high] = [Math.min(...values.filter(Boolean)), Math.max(...values.filter(Boolean))];
  const ticks = [];
  for (let power = 1; power < high * 2; power *= 10) ticks.push(...[1, 2, 5].map((digit) => digit * power));
  return ticks.filter((tick) => tick > low / 3 && tick < high * 3);
}

/** A mixture holds until the next one, or until now. */
function showWeights() {
  if (!run.mixture) return;
  const { step, domains } = run.mixture;
  const now = Math.max(run.status?.step ?? 0, step.at(-1) ?? 0);
  const areas = Object.keys(domains).map((name, index) => {
    const weights = domains[name].weight;
    const shade = {
      stackgroup: 'weights',
      line: { color: colour(index), width: 0.5, shape: 'hv' },
      fillcolor: `${colour(index)}cc`,
      hovertemplate: '%{y:.1%}',
    };
    return line(name, [...step, now], [...weights, weights.at(-1)], colour(index), shade);
  });
  draw(byId('mixture-chart'), areas, { yaxis: { range: [0, 1], tickformat: '.0%' } });
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
    // The checkpointer that waits is idle, and nobody's loss.
    const shades = name === 'checkpointer' ? ['saving', 'page', 'page'] : ['busy', 'blocked', 'starved'];
    paint(canvas, samples.map((sample) => sample[index]), shades.map(named));
  });
}

const rank = (name) =>
  ['teacher', 'student', 'checkpointer', 'batcher', 'loader'].findIndex((kind) => name.startsWith(kind));

/** A column a second, from the right: busy from below, then what it waited for. */
function paint(canvas, samples, shades) {
  const height = 22;
  canvas.width = LANE_SAMPLES;
  canvas.height = height;
  const brush = canvas.getContext('2d');
  brush.fillStyle = named('page');
  brush.fillRect(0, 0, LANE_SAMPLES, height);
  samples.forEach((sample, index) => {
    if (!sample) return;
    const [working, starved, blocked] = sample;
    let y = height;
    [working, blocked, starved].forEach((share, part) => {
      const size = (share / 100) * height;
      y -= size;
      brush.fillStyle = shades[part];
      brush.fillRect(LANE_SAMPLES - samples.length + index, y, 1, size);
    });
  });
}

function showEvents() {
  const rows = run.events.slice().reverse().map((event) => {
    const time = new Date(1000 * event.time);
    return element(
      'li',
      { class: QUIET.has(event.kind) ? null : 'bad' },
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

/** Points from `from` on take the place of those that were there. */
function takeSteps(news) {
  const old = news.from === 0 ? null : run.steps;
  run.steps = Object.fromEntries(
    COLUMNS.map((name) => [name, old ? [...old[name].slice(0, news.from), ...news[name]] : news[name]]),
  );
}

function takeLanes(news) {
  // Another process counts from 0 again.
  const follows = news.from === run.lanes.from + run.lanes.samples.length;
  const samples = follows ? [...run.lanes.samples, ...news.samples] : news.samples;
  const kept = samples.slice(-LANE_SAMPLES);
  run.lanes = { from: news.from + news.samples.length - kept.length, workers: news.workers, samples: kept };
}

const due = { charts: new Set(), timer: null, pause: 0 };

/** Draws soon, each chart once, and on a slow machine less often: most of its time has to stay with whoever reads. */
function soon(...charts) {
  charts.forEach((chart) => due.charts.add(chart));
  due.timer ??= setTimeout(() => {
    const began = performance.now();
    const now = [...due.charts];
    due.charts.clear();
    due.timer = null;
    now.forEach((chart) => chart());
    due.pause = Math.min(20000, 4 * (performance.now() - began));
  }, due.pause);
}

const TAKE = {
  status: (news) => { run.status = news; showStatus(); },
  steps: (news) => { takeSteps(news); soon(showSteps, showWeights); },
  mixture: (news) => { run.mixture = news; soon(showMixture, showWeights); },
  events: (news) => { run.events = news.events; showEvents(); },
  lanes: (news) => { takeLanes(news); soon(showLanes); },
};

let source = null;

function connect() {
  source = new EventSource(`/api/stream${location.search}`);
  for (const [name, take] of Object.entries(TAKE))
    source.addEventListener(name, (event) => take(JSON.parse(event.data)));
  source.addEventListener('error', () => {
    // A process that ends says how before its server goes; one that was killed says nothing.
    if (!ENDED.has(run.status?.state)) showState('no connection', 'lost');
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 5000);
  });
}

function redraw() {
  if (run.steps) showSteps();
  if (run.mixture) soon(showMixture, showWeights);
  if (run.lanes.samples.length > 0) showLanes();
}

// A page that nobody sees asks for nothing; a browser has only six connections to a server.
document.addEventListener('visibilitychange', () => {
  if (document.hidden) source?.close();
  else if (source?.readyState !== EventSource.OPEN) connect();
});
for (const id of ['api-run', 'api-mixture', 'api-events']) byId(id).search = location.search;
onTheme(redraw);
window.addEventListener('load', connect);
