// The page: totals, theme, search, keys.

function total(title, [before, after]) {
  return element('div', { class: 'total' },
    element('div', {}, element('span', { class: 'soft' }, `${title} `), element('b', { class: 'number' }, change(short(before), short(after))), element('span', { class: 'soft number' }, `  ${percent(after, before)}`)),
    element('div', { class: 'meter', role: 'img', 'aria-label': `${title}: ${percent(after, before)} left` }, element('i', { style: `width:${Math.min(100, (100 * after) / Math.max(before, 1))}%` })));
}

function legend() {
  const entry = (color, text) => element('span', {}, element('i', { style: `background:var(--${color})` }), text);
  byId('legend').append(
    element('span', {}, element('i', { class: 'scale' }), 'line: how much of the tensor went'),
    entry('barrier', 'barrier'), entry('repair', 'repaired'), entry('held', 'masked, but held'),
    entry('kept', 'kept'), entry('carrier', 'carrier'), entry('folded', 'folded constant'), entry('zero', 'constant 0'),
    entry('unused', 'not read'), entry('masked', 'masked'));
}

function setTheme(dark) {
  document.documentElement.setAttribute('data-theme', dark ? 'dark' : 'light');
  byId('theme').textContent = dark ? '☀' : '☾';
}

function start() {
  buildTree();
  for (const item of items.values()) item.totals = totalsOf(item);
  view.edges = edgesByBox();
  lists.rows = layerRows();
  byId('title').textContent = data.title;
  byId('totals').append(total('Parameters', data.parameters), total('MACs', data.macs));
  legend();
  const query = window.matchMedia('(prefers-color-scheme: dark)');
  setTheme(query.matches);
  query.addEventListener('change', () => setTheme(query.matches));
  byId('theme').addEventListener('click', () => setTheme(document.documentElement.getAttribute('data-theme') !== 'dark'));
  showReasons();
  showLayers();
  openTab(data.reasons.length ? 'reasons' : 'layers');
  for (const name of ['reasons', 'layers']) {
    byId(`tab-${name}`).addEventListener('click', () => openTab(name));
    byId(`tab-${name}`).addEventListener('keydown', (event) => {
      if (event.key === 'ArrowLeft' || event.key === 'ArrowRight') openTab(name === 'reasons' ? 'layers' : 'reasons', true);
    });
  }
  byId('open-all').addEventListener('click', () => setAll(true));
  byId('close-all').addEventListener('click', () => setAll(false) || (root.open = true) && draw());
  byId('smaller').addEventListener('click', () => zoom(1 / 1.25));
  byId('larger').addEventListener('click', () => zoom(1.25));
  byId('fit').addEventListener('click', fit);
  byId('canvas').addEventListener('wheel', (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    zoom(event.deltaY < 0 ? 1.1 : 1 / 1.1);
  }, { passive: false });
  const search = byId('search');
  search.addEventListener('input', () => { lists.find = search.value; openTab('layers'); fillRows(); });
  search.addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && lists.shown.length) select(lists.shown[0].item);
    if (event.key === 'Escape') { search.value = ''; lists.find = ''; fillRows(); }
  });
  document.addEventListener('keydown', (event) => {
    if (event.key === '/' && document.activeElement !== search) { search.focus(); event.preventDefault(); }
  });
  openSome();
  draw();
  fit();
  showDetails(null);
  document.documentElement.setAttribute('data-ready', '');
}

start();
