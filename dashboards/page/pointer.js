// Shows the values of a chart under the pointer. Each chart is an SVG whose `data-panels` holds the frames and values.

const SVG = 'http://www.w3.org/2000/svg';

const short = (value) =>
  Math.abs(value) >= 1000 ? Math.round(value).toLocaleString('en') : String(Number(value.toPrecision(4)));

function tip() {
  let node = document.getElementById('tip');
  if (!node) {
    node = document.createElement('div');
    node.id = 'tip';
    document.body.append(node);
  }
  return node;
}

function hide() {
  tip().hidden = true;
  document.querySelectorAll('.cursor').forEach((line) => line.remove());
}

function row(name, color, value) {
  const node = document.createElement('p');
  const swatch = document.createElement('i');
  swatch.className = 'swatch';
  swatch.style.background = color;
  node.append(swatch, `${name} `, Object.assign(document.createElement('b'), { textContent: short(value) }));
  return node;
}

function show(svg, event) {
  const box = svg.getBoundingClientRect();
  const scale = svg.viewBox.baseVal.width / box.width;
  const [px, py] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  const inside = (panel) => px >= panel.left && px <= panel.right && py >= panel.top && py <= panel.bottom;
  const panel = JSON.parse(svg.dataset.panels).find(inside);
  hide();
  if (!panel || panel.x.length === 0) return;
  const width = panel.right - panel.left;
  const wanted = panel.from + ((px - panel.left) / width) * (panel.to - panel.from);
  const nearest = (best, x, index) => (Math.abs(x - wanted) < Math.abs(panel.x[best] - wanted) ? index : best);
  const place = panel.x.reduce(nearest, 0);
  const x = panel.x[place];
  const at = panel.left + ((x - panel.from) / (panel.to - panel.from)) * width;
  const cursor = document.createElementNS(SVG, 'line');
  const ends = { class: 'cursor', x1: at, x2: at, y1: panel.top, y2: panel.bottom };
  for (const [name, value] of Object.entries(ends)) cursor.setAttribute(name, value);
  svg.append(cursor);
  const here = panel.lines.filter(({ y }) => y[place] !== null);
  // The largest value first, as from top to bottom in the chart.
  const ranked = here.length > 6 ? here.toSorted((a, b) => b.y[place] - a.y[place]) : here;
  const rows = ranked.map(({ name, color, y }) => row(name, color, y[place]));
  const node = tip();
  // A bar lies halfway between whole numbers, so a whole number belongs to an axis and is shown.
  const said = `${panel.of ?? ''} ${short(x)}`.trim();
  const title = Number.isInteger(x) ? [Object.assign(document.createElement('p'), { textContent: said })] : [];
  node.replaceChildren(...title, ...rows);
  node.hidden = false;
  const left = event.clientX + 14;
  node.style.left = `${Math.min(left, document.documentElement.clientWidth - node.offsetWidth - 8) + scrollX}px`;
  node.style.top = `${event.clientY + 14 + scrollY}px`;
}

document.addEventListener('pointermove', (event) => {
  const svg = event.target.closest?.('svg[data-panels]');
  if (svg) show(svg, event);
  else if (document.getElementById('tip')?.hidden === false) hide();
});
for (const leaves of ['pointercancel', 'pointerleave']) document.documentElement.addEventListener(leaves, hide);
