// What both pages share: elements, numbers as text, and charts in the page's own colours.
/* global Plotly */

/** Colours of domains and of runs; told apart by most eyes, on light and on dark. */
const PALETTE = [
  '#3f7fd9', '#e0813a', '#2fa37a', '#c9557f', '#8d6fd0', '#b39a24',
  '#2fa3b8', '#d25f55', '#7f8b99', '#6fa84a',
];

export const colour = (index) => PALETTE[index % PALETTE.length];

/** An element with attributes and children; text is always text. */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

export const byId = (id) => document.getElementById(id);

/** Writes only what is another text, so that nothing is read out anew. */
export function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export const number = (value, digits = 3) =>
  value === null || value === undefined
    ? '–'
    : value.toLocaleString('en', { maximumFractionDigits: digits, minimumFractionDigits: digits });

export const whole = (value) => (value === null || value === undefined ? '–' : Math.round(value).toLocaleString('en'));

/** Perplexities span orders of magnitude: four digits that count. */
export const perplexity = (value) => {
  if (value === null || value === undefined) return '–';
  return value >= 1000 ? whole(value) : number(value, value >= 100 ? 1 : value >= 10 ? 2 : 3);
};

export const percent = (value) => (value === null || value === undefined ? '–' : `${(100 * value).toFixed(1)} %`);

export function tokens(value) {
  for (const [unit, size] of [['T', 1e12], ['G', 1e9], ['M', 1e6], ['k', 1e3]]) {
    if (value >= size) return `${(value / size).toPrecision(3)} ${unit}`;
  }
  return whole(value);
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return '–';
  const parts = [['d', 86400], ['h', 3600], ['min', 60], ['s', 1]];
  let rest = Math.max(0, Math.round(seconds));
  const said = [];
  for (const [unit, size] of parts) {
    const count = Math.floor(rest / size);
    rest -= count * size;
    if (count > 0 || (unit === 's' && said.length === 0)) said.push(`${count} ${unit}`);
  }
  return said.slice(0, 2).join(' ');
}

export const swatch = (background) => {
  const node = element('i', { class: 'swatch' });
  node.style.background = background;
  return node;
};

/** A colour of page.css, as it is now. */
export const named = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** A line of a chart; `more` goes to plotly. */
export const line = (name, x, y, shade, more = {}) => ({
  type: 'scatter',
  mode: 'lines',
  name,
  x,
  y,
  line: { color: shade, width: 2 },
  ...more,
});

/** Draws, or changes what is drawn. Nothing can be dragged, so that a finger scrolls the page. */
export function draw(node, traces, axes = {}) {
  const grid = {
    gridcolor: named('line'),
    zerolinecolor: named('line'),
    linecolor: named('line'),
    automargin: true,
    fixedrange: true,
  };
  const layout = {
    margin: { l: 48, r: 8, t: 12, b: 36 },
    paper_bgcolor: 'rgba(0,0,0,0)',
    plot_bgcolor: 'rgba(0,0,0,0)',
    font: { family: getComputedStyle(document.body).fontFamily, color: named('soft'), size: 12 },
    hoverlabel: { bgcolor: named('card'), bordercolor: named('line'), font: { color: named('text') } },
    hovermode: 'x unified',
    dragmode: false,
    legend: { orientation: 'h', x: 0, y: -0.16, yanchor: 'top', traceorder: 'normal' },
    ...axes,
    xaxis: { ...grid, rangemode: 'tozero', ...axes.xaxis },
    yaxis: { ...grid, ...axes.yaxis },
  };
  Plotly.react(node, traces, layout, { displayModeBar: false, responsive: true });
}

/** Calls `redraw` where colours change with the system's. */
export function onTheme(redraw) {
  window.matchMedia('(prefers-color-scheme: dark)').addEventListener('change', redraw);
}
