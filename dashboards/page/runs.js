// The list of runs, and the chosen ones side by side. The choice is in the address, so that it can be kept and sent.
import { byId, colour, draw, duration, element, line, number, onTheme, swatch, tokens, whole, write } from '/charts.js';

const EVERY = 5000;
const page = {
  runs: [], rows: new Map(), data: new Map(),
  chosen: new Set(location.hash.slice(1).split('&').filter(Boolean).map(decodeURIComponent)),
};

const query = (name) => `?name=${encodeURIComponent(name)}`;

async function ask(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

/** The row of a run, made once: whoever is at its box, or in the middle of a press, is not disturbed by news. */
function rowOf(name) {
  if (!page.rows.has(name)) {
    const box = element('input', { type: 'checkbox', name, 'aria-label': `compare ${name}` });
    box.addEventListener('change', () => choose(name, box.checked));
    const mark = element('span');
    const cells = Array.from({ length: 7 }, () => element('td'));
    const link = element('a', { href: `/run${query(name)}` }, name);
    const row = element(
      'tr',
      {},
      element('td', {}, box),
      element('th', { scope: 'row', class: 'text' }, mark, link),
      ...cells,
    );
    page.rows.set(name, { row, box, mark, cells });
  }
  return page.rows.get(name);
}

function showList() {
  const names = [...page.chosen];
  const rows = page.runs.map(({ name, status }) => {
    const { row, box, mark, cells } = rowOf(name);
    box.checked = page.chosen.has(name);
    mark.replaceChildren(...(box.checked ? [swatch(colour(names.indexOf(name)))] : []));
    const texts = [
      status.state,
      `${whole(status.step)}${status.step_limit ? ` of ${whole(status.step_limit)}` : ''}`,
      number(status.losses.loss),
      number(status.ratio),
      number(status.ratio_at_start),
      tokens(status.tokens),
      duration(status.seconds),
    ];
    texts.forEach((text, index) => write(cells[index], text));
    return row;
  });
  const shown = [...byId('run-rows').children];
  if (rows.length !== shown.length || rows.some((row, index) => row !== shown[index])) {
    const focused = document.activeElement;
    byId('run-rows').replaceChildren(...rows);
    if (byId('run-rows').contains(focused)) focused.focus();
  }
  write(byId('state'), `${page.runs.length} ${page.runs.length === 1 ? 'run' : 'runs'}`);
}

function choose(name, isChosen) {
  if (isChosen) page.chosen.add(name);
  else page.chosen.delete(name);
  history.replaceState(null, '', `#${[...page.chosen].map(encodeURIComponent).join('&')}`);
  showList();
  compare().catch(failed);
}

/** The mean ratio of a run by step, and its last evaluation where it is done. */
function meanRatios({ step, domains, after }) {
  const mean = (values) => {
    const numbers = values.filter((value) => value !== null && value !== undefined);
    return numbers.length > 0 ? numbers.reduce((sum, value) => sum + value, 0) / numbers.length : null;
  };
  const means = step.map((_, index) => mean(Object.values(domains).map((domain) => domain.ratio[index])));
  return after ? [[...step, after.step], [...means, mean(Object.values(after.ratio))]] : [step, means];
}

/** Of the chosen runs, those that still change are asked again. */
async function compare() {
  const states = new Map(page.runs.map(({ name, status }) => [name, status.state]));
  const names = [...page.chosen].filter((name) => states.has(name));
  await Promise.all(names.map(async (name) => {
    const known = page.data.get(name);
    if (known && known.state === states.get(name) && ['finished', 'stopped', 'failed'].includes(known.state)) return;
    const [run, mixture] = await Promise.all([ask(`/api/run${query(name)}`), ask(`/api/mixture${query(name)}`)]);
    page.data.set(name, { state: run.status.state, steps: run.steps, mixture });
  }));
  showCharts();
}

/** What is chosen now and known: an answer that comes late never shows an earlier choice. */
function showCharts() {
  const names = [...page.chosen].filter((name) => page.data.has(name));
  byId('compare').hidden = names.length === 0;
  byId('hint').hidden = names.length > 0;
  if (names.length === 0) return;
  const index = (name) => [...page.chosen].indexOf(name);
  const dots = { mode: 'lines+markers', marker: { size: 5 } };
  draw(
    byId('ratio-chart'),
    names.map((name) =>
      line(name, ...meanRatios(page.data.get(name).mixture), colour(index(name)), {
        ...dots,
        showlegend: true,
      }),
    ),
  );
  draw(
    byId('loss-chart'),
    names.map((name) =>
      line(name, page.data.get(name).steps.step, page.data.get(name).steps.loss, colour(index(name)), {
        showlegend: true,
      }),
    ),
  );
}

function failed(error) {
  byId('notice').hidden = false;
  write(byId('notice'), `no answer: ${error.message}`);
}

async function refresh() {
  try {
    page.runs = await ask('/api/runs');
    byId('notice').hidden = true;
    showList();
    await compare();
  } catch (error) {
    failed(error);
  }
}

onTheme(showCharts);
window.addEventListener('load', () => {
  refresh();
  setInterval(() => { if (!document.hidden) refresh(); }, EVERY);
});
