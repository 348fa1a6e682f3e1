// Charts that the server draws: their legends, their smoothing, and what stands in place of an empty one.
import { ask, element, swatch } from '/shared.js';

/** The factors of smoothing that a page offers. 0 is off. */
const FACTORS = [0, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99];
const KEY = 'ddk-smoothing';

/** Puts a chart into `node`, at the width of `node`. `path` has a query. */
export async function chart(node, path, isWanted = () => true) {
  const text = await ask(`${path}&legend=none&width=${node.clientWidth}`);
  if (text === null || !isWanted()) return;
  const svg = document.importNode(new DOMParser().parseFromString(text, 'image/svg+xml').documentElement, true);
  const old = node.querySelector('svg');
  if (old) old.replaceWith(svg);
  else node.append(svg);
  showLegend(node, svg);
}

const isEmpty = (svg) => svg.dataset.panels === '[]';

/** Says in an empty chart what it waits for. A chart that has points has no text of its own. */
export function explain(node, text) {
  const svg = node.querySelector('svg');
  if (!svg || !isEmpty(svg)) return;
  const shown = svg.querySelector('text');
  shown.dataset.plain ??= shown.textContent;
  const said = text ?? shown.dataset.plain;
  if (shown.textContent !== said) shown.textContent = said;
}

/** Shows the names of a chart above it. Each is a button that shows its line or area alone. */
function showLegend(node, svg) {
  const panels = JSON.parse(svg.dataset.panels);
  const series = panels[0]?.lines ?? [];
  const level = panels[0]?.level;
  const names = series.map(({ name, color }) => `${color} ${name}`).join('\n');
  let list = node.querySelector('ul');
  if (series.length + (level ? 1 : 0) < 2) {
    list?.remove();
    return;
  }
  if (!list) {
    list = element('ul', { class: 'legend series' });
    node.prepend(list);
  }
  // It is kept while the names are the same, so that it stays scrolled and a button stays focused.
  if (list.dataset.names !== names) {
    list.dataset.names = names;
    const items = series.map(({ name, color }) => {
      const button = element('button', { type: 'button', 'aria-pressed': 'false' }, swatch(color), name);
      button.addEventListener('click', () => {
        button.setAttribute('aria-pressed', button.getAttribute('aria-pressed') === 'false');
        dim(node);
      });
      return element('li', {}, button);
    });
    if (level) items.push(element('li', {}, element('i', { class: 'swatch level' }), level));
    list.replaceChildren(...items);
  }
  dim(node);
}

/** Dims what is not selected in the legend. Nothing selected: dims nothing. */
function dim(node) {
  const svg = node.querySelector('svg');
  const buttons = [...node.querySelectorAll('.series button')];
  const isPressed = (button) => button.getAttribute('aria-pressed') === 'true';
  const series = JSON.parse(svg.dataset.panels)[0]?.lines ?? [];
  const others = buttons.some(isPressed) ? buttons.map((button) => !isPressed(button)) : [];
  const faint = new Set(series.filter((_, index) => others[index]).map(({ color }) => color.toLowerCase()));
  for (const shape of svg.querySelectorAll('polyline, polygon, circle')) {
    const colors = [shape.getAttribute('stroke'), shape.getAttribute('fill')];
    shape.classList.toggle('dim', colors.some((color) => color && faint.has(color.toLowerCase())));
  }
}

function stored() {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null;
  }
}

/** Sets up the slider `input` with its `output`. Returns a function that returns the factor. */
export function smoothing(input, output, changed) {
  const factor = () => FACTORS[Number(input.value)] ?? 0;
  const show = () => {
    const text = factor() ? String(factor()) : 'off';
    output.textContent = text;
    input.setAttribute('aria-valuetext', text);
  };
  input.max = FACTORS.length - 1;
  input.value = stored() ?? 2;
  show();
  input.addEventListener('input', () => {
    try {
      localStorage.setItem(KEY, input.value);
    } catch {
      // A browser that stores nothing forgets the choice.
    }
    show();
    changed();
  });
  return factor;
}
