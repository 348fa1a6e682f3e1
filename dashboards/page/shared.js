// What both pages share: elements, numbers as text, and charts that the server draws.

/** The color of a domain or run, by its place: those of the charts. */
export const color = (index) => `var(--series-${index % 10})`;

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

/** A color of page.css, as it is now. */
export const named = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** What the server answers; `null` if there is no such thing. */
export async function ask(path) {
  const answer = await fetch(path);
  if (answer.status === 404) return null;
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.headers.get('content-type').startsWith('image/svg') ? answer.text() : answer.json();
}

/** Puts a chart that the server has drawn into its place, as wide as that is. */
export async function chart(node, path, isWanted = () => true) {
  const text = await ask(`${path}&width=${node.clientWidth}`);
  if (text === null || !isWanted()) return;
  const svg = new DOMParser().parseFromString(text, 'image/svg+xml').documentElement;
  node.replaceChildren(document.importNode(svg, true));
}
