// Theme, menu, anchors, copy buttons and the mark in the table of contents. The pages read well without it.
const root = document.documentElement, all = (query, at = document) => [...at.querySelectorAll(query)];

document.getElementById('theme').addEventListener('click', () => {
  const dark = root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
  root.dataset.theme = dark ? 'light' : 'dark';
  try { localStorage.setItem('theme', root.dataset.theme); } catch (e) { /* private mode: kept for this page only */ }
});

const menu = document.getElementById('menu'), side = document.getElementById('side');
const open = yes => { side.classList.toggle('open', yes); menu.setAttribute('aria-expanded', yes); };
menu.addEventListener('click', () => open(!side.classList.contains('open')));
addEventListener('keydown', e => { if (e.key === 'Escape') { open(false); menu.focus(); } });
const here = side.querySelector('[aria-current]');
if (here && here.offsetTop > side.clientHeight) side.scrollTop = here.offsetTop - side.clientHeight/2;

const headings = all('article :is(h2, h3, h4)[id]');
for (const h of headings) {
  const a = Object.assign(document.createElement('a'), {href: '#' + h.id, className: 'anchor', textContent: '#'});
  a.setAttribute('aria-label', 'Link to this section');
  h.append(a);
}

if (navigator.clipboard) for (const box of all('div.sourceCode')) {
  const button = Object.assign(document.createElement('button'), {className: 'copy', textContent: 'Copy'});
  button.addEventListener('click', async () => {
    await navigator.clipboard.writeText(box.querySelector('code').textContent);
    button.textContent = 'Copied';
    setTimeout(() => button.textContent = 'Copy', 1500);
  });
  box.append(button);
}

for (const table of all('table.dataframe')) {   // columns of words read better from the left
  const rows = [...table.rows], columns = rows[0] ? [...rows[0].cells].map((_, j) => rows.map(r => r.cells[j])) : [];
  if (rows.some(r => r.cells.length !== columns.length)) continue;
  for (const cells of columns) {
    const values = cells.filter(c => c.tagName === 'TD').map(c => c.textContent.trim());
    if (!values.length || values.some(v => /^[-+−]?[.\d]|^(NaN|None|inf|)$/.test(v))) continue;
    const long = values.some(v => v.length > 30);
    cells.forEach(c => c.classList.add('text', ...(long ? ['long'] : [])));
  }
}

const marks = new Map(all('aside.toc a').map(a => [decodeURIComponent(a.hash.slice(1)), a]));
const mark = () => {
  const above = headings.filter(h => marks.has(h.id) && h.getBoundingClientRect().top < 120).pop();
  for (const [id, a] of marks) a.classList.toggle('here', !!above && id === above.id);
};
addEventListener('scroll', mark, {passive: true});
mark();
