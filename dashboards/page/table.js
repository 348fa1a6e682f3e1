// Tables that sort by a click on a header.

/** The value of a cell to sort by: `data-value`, otherwise its text. Numbers are numbers. */
function valueOf(row, column) {
  const cell = row.children[column];
  const text = cell?.dataset.value ?? cell?.textContent ?? '';
  const number = Number(text);
  return text.trim() !== '' && Number.isFinite(number) ? number : text;
}

const isUnknown = (value) => value === '' || value === '–';

function compare(a, b) {
  if (typeof a === 'number' && typeof b === 'number') return a - b;
  return String(a).localeCompare(String(b), 'en', { numeric: true });
}

/**
 * Makes the headers of a table sort it. The first click sorts numbers from the largest and words from A; the next one
 * turns the order around; the third restores the order of the rows as given. Returns a function that shows rows.
 */
export function sortable(body) {
  const table = body.closest('table');
  const headers = [...table.tHead.rows[0].cells];
  const order = { column: -1, direction: 'none' };
  let given = [];

  const sorted = () => {
    if (order.direction === 'none') return given;
    const sign = order.direction === 'ascending' ? 1 : -1;
    const keyed = given.map((row) => ({ row, value: valueOf(row, order.column) }));
    keyed.sort((a, b) => {
      // What is unknown comes last in both orders.
      const unknown = isUnknown(a.value) - isUnknown(b.value);
      return unknown || sign * compare(a.value, b.value);
    });
    return keyed.map(({ row }) => row);
  };

  const show = (rows) => {
    given = rows;
    const next = sorted();
    const shown = [...body.children];
    if (next.length === shown.length && next.every((row, index) => row === shown[index])) return;
    const focused = document.activeElement;
    body.replaceChildren(...next);
    if (focused !== document.activeElement && body.contains(focused)) focused.focus();
  };

  const turn = (column) => {
    const isText = given.some((row) => {
      const value = valueOf(row, column);
      return typeof value === 'string' && !isUnknown(value);
    });
    const turns = isText ? ['ascending', 'descending', 'none'] : ['descending', 'ascending', 'none'];
    const now = order.column === column ? turns.indexOf(order.direction) : 2;
    order.column = column;
    order.direction = turns[(now + 1) % turns.length];
    headers.forEach((header, index) => {
      if (index === column && order.direction !== 'none') header.setAttribute('aria-sort', order.direction);
      else header.removeAttribute('aria-sort');
    });
    show(given);
  };

  headers.forEach((header, column) => {
    if (header.hasAttribute('data-unsorted')) return;
    const button = document.createElement('button');
    button.type = 'button';
    button.append(...header.childNodes);
    button.addEventListener('click', () => turn(column));
    header.append(button);
  });
  return show;
}
