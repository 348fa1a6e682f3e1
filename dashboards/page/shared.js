// What both pages share: elements, and numbers as text.

/** The color of a domain or run by its index, as in the charts. */
export const color = (index) => `var(--series-${index % Number(named('series-count'))})`;

/** Creates an element with attributes and children. Strings become text, never HTML. */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

export const byId = (id) => document.getElementById(id);

/** Writes text only if it has changed, so that screen readers do not repeat it. */
export function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export const number = (value, digits = 3) =>
  value === null || value === undefined
    ? '–'
    : value.toLocaleString('en', { maximumFractionDigits: digits, minimumFractionDigits: digits });

export const whole = (value) => (value === null || value === undefined ? '–' : Math.round(value).toLocaleString('en'));

/** Perplexities span orders of magnitude, so show four significant digits. */
export const perplexity = (value) => {
  if (value === null || value === undefined) return '–';
  return value >= 1000 ? whole(value) : number(value, value >= 100 ? 1 : value >= 10 ? 2 : 3);
};

export const percent = (value) => (value === null || value === undefined ? '–' : `${(100 * value).toFixed(1)}%`);

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

/** The current value of a color in page.css. */
export const named = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** A date and a time of day, without the seconds. */
export const moment = (seconds) =>
  seconds === null || seconds === undefined
    ? '–'
    : new Date(1000 * seconds).toLocaleString(undefined, { dateStyle: 'short', timeStyle: 'short' });

/** A table cell with the value to sort by, which the text may round. */
export const cell = (text, value) => element('td', { 'data-value': value ?? '' }, text);

/** Requests `path` and returns the answer; `null` if it does not exist. */
export async function ask(path) {
  const answer = await fetch(path);
  if (answer.status === 404) return null;
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.headers.get('content-type').startsWith('image/svg') ? answer.text() : answer.json();
}
