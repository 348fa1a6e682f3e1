// The list of runs, and the selected ones side by side. The selection is in the URL, so that it can be bookmarked.
import { ask, byId, color, duration, element, moment, number, swatch, tokens, whole, write } from '/shared.js';
import { chart } from '/chart.js';
import { sortable } from '/table.js';
import '/pointer.js';

const EVERY = 5000;
const showRows = sortable(byId('run-rows'));
const page = {
  runs: [], rows: new Map(), shown: '',
  chosen: new Set(location.hash.slice(1).split('&').filter(Boolean).map(decodeURIComponent)),
};

const query = (name) => `?name=${encodeURIComponent(name)}`;

/** Returns the row of a run. It is created once, so that updates do not disturb a focused checkbox or a click. */
function rowOf(name) {
  if (!page.rows.has(name)) {
    const box = element('input', { type: 'checkbox', name, 'aria-label': `compare ${name}` });
    box.addEventListener('change', () => choose(name, box.checked));
    const mark = element('span');
    const cells = Array.from({ length: 8 }, () => element('td'));
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
  const known = new Set(page.runs.map(({ name }) => name));
  const names = [...page.chosen].filter((name) => known.has(name));
  const shown = page.runs.filter(isWanted);
  const rows = shown.map(({ name, status }) => {
    const { row, box, mark, cells } = rowOf(name);
    box.checked = page.chosen.has(name);
    mark.replaceChildren(...(box.checked ? [swatch(color(names.indexOf(name)))] : []));
    const values = [
      [status.state, status.state],
      [`${whole(status.step)}${status.step_limit ? ` of ${whole(status.step_limit)}` : ''}`, status.step],
      [number(status.scalars.loss), status.scalars.loss],
      [number(status.mean_gap), status.mean_gap],
      [number(status.mean_gap_at_start), status.mean_gap_at_start],
      [tokens(status.tokens), status.tokens],
      [duration(status.seconds), status.seconds],
      [moment(status.started), status.started],
    ];
    values.forEach(([text, value], index) => {
      write(cells[index], text);
      cells[index].dataset.value = value ?? '';
    });
    row.children[1].dataset.value = name;
    return row;
  });
  showRows(rows);
  const all = `${page.runs.length} ${page.runs.length === 1 ? 'run' : 'runs'}`;
  write(byId('state'), shown.length === page.runs.length ? all : `${shown.length} of ${all}`);
}

/** Whether a run has each word of the filter in its name, its state, its models or its method. */
function isWanted({ name, status }) {
  const texts = [name, status.state, ...status.about.map(({ value }) => value)].join('\n').toLowerCase();
  return byId('filter').value.toLowerCase().split(/\s+/).every((word) => texts.includes(word));
}

function choose(name, isChosen) {
  if (isChosen) page.chosen.add(name);
  else page.chosen.delete(name);
  history.replaceState(null, '', `#${[...page.chosen].map(encodeURIComponent).join('&')}`);
  showList();
  compare().catch(failed);
}

/** Draws the selected runs side by side if the selection or a selected run has changed. */
async function compare() {
  const known = new Map(page.runs.map(({ name, status }) => [name, status]));
  const names = [...page.chosen].filter((name) => known.has(name));
  byId('compare').hidden = names.length === 0;
  byId('hint').hidden = names.length > 0;
  const state = JSON.stringify(names.map((name) => [name, known.get(name).revisions]));
  if (names.length === 0 || state === page.shown) return;
  page.shown = state;
  const query = new URLSearchParams([['side_by_side', ''], ...names.map((name) => ['name', name])]);
  // A late answer must not show an earlier selection.
  const isLatest = () => page.shown === state;
  const draw = (name) => chart(byId(`${name}-chart`), `/api/chart/${name}.svg?${query}`, isLatest);
  try {
    await Promise.all(['gap', 'loss'].map(draw));
  } catch (error) {
    page.shown = '';
    throw error;
  }
}

function failed(error) {
  byId('notice').hidden = false;
  write(byId('notice'), `request failed: ${error.message}`);
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

byId('filter').addEventListener('input', showList);
window.addEventListener('load', () => {
  refresh();
  setInterval(() => { if (!document.hidden) refresh(); }, EVERY);
});
