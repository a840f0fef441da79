// On a telephone the first screen shows what a row is and its AP; the other columns follow to the right.
if (matchMedia('(max-width: 600px)').matches) {
  for (const box of document.querySelectorAll('.sortable')) {
    const ranks = [...box.querySelectorAll('th')].map((head, at) => at && (/\bAP[rcf]?\b/.test(head.textContent) ? 1 : 2));
    for (const row of box.querySelectorAll('tr')) {
      row.append(...[...row.cells].map((cell, at) => [ranks[at], cell]).sort((a, b) => a[0] - b[0]).map(pair => pair[1]));
    }
  }
}
// Cells carry what they sort by; missing values stay last in either order.
for (const box of document.querySelectorAll('.sortable')) {
  const body = box.querySelector('tbody'), heads = [...box.querySelectorAll('th')];
  const search = box.querySelector('input'), choice = box.querySelector('select'), count = box.querySelector('.count');
  const key = (row, at) => row.cells[at].dataset.by ?? row.cells[at].textContent;
  heads.forEach((head, at) => head.querySelector('button').addEventListener('click', () => {
    const number = head.matches('.number, .by_number');
    const last = head.getAttribute('aria-sort');
    const up = last ? last !== 'ascending' : !number;
    heads.forEach(other => other.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [key(a, at), key(b, at)];
      if (x === '' || y === '') return (x === '') - (y === '');
      const order = number ? x - y : x.localeCompare(y);
      return up ? order : -order;
    });
    body.append(...rows);
  }));
  const filter = () => {
    const words = search.value.toLowerCase(), group = choice ? choice.value : '';
    let shown = 0;
    for (const row of body.rows) {
      const fits = row.textContent.toLowerCase().includes(words) && (!group || row.querySelector(`td.${group}`) !== null);
      row.hidden = !fits;
      shown += fits;
    }
    count.textContent = shown + ' of ' + body.rows.length;
  };
  search.addEventListener('input', filter);
  if (choice) choice.addEventListener('change', filter);
  filter();
}
