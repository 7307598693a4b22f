// The lists beside the graph: reasons, and layers that can be sorted and searched.

const lists = { order: 'order', down: false, find: '' };

function showReasons() {
  const panel = byId('reasons');
  if (!data.reasons.length) {
    panel.append(element('p', { class: 'none' }, 'Everything that is masked in whole output indices goes.'));
  }
  const list = element('ol', {});
  data.reasons.forEach((reason, rank) => list.append(reasonItem(reason, rank)));
  panel.append(list);
  if (data.conditioning) panel.append(element('p', { class: 'none' }, data.conditioning));
  if (data.not_called) panel.append(element('p', { class: 'none' }, data.not_called));
  if (data.repaired.length) panel.append(element('p', { class: 'none' }, `${data.repaired.length} sizes in the code of the model were repaired (violet dots).`));
  for (const call of data.dropped) {
    panel.append(element('p', { class: 'none' }, `${exactly.format(call.indices)} constant inputs of ${call.name} were dropped, not folded: changes output ${call.outputs.join(', ') || 'none'} (${place(call.where)})`));
  }
  if (data.gained.length) panel.append(element('p', { class: 'none' }, `New parameters: ${data.gained.join(', ')}`));
}

function reasonItem(reason, rank) {
  const some = (names, most) => names.slice(0, most).join(', ') + (names.length > most ? ` and ${names.length - most} more` : '');
  const made = element('li', { class: 'reason' });
  made.append(
    element('button', { type: 'button', 'aria-pressed': 'false', onclick: () => mark(reason, made) },
      element('div', { class: 'cost' }, element('span', {}, `${rank + 1}. ${exactly.format(reason.indices)} ${reason.indices === 1 ? 'index' : 'indices'}`), element('span', { class: 'number' }, `${short(reason.parameters)} parameters`)),
      element('div', { class: 'why' }, reason.why)),
    element('p', { class: 'soft' }, [some(reason.calls, 1), place(reason.where)].filter(Boolean).join(', ')),
    element('p', { class: 'soft' }, `of ${some(reason.layers, 3)}`),
    element('p', { class: 'advice' }, reason.advice),
  );
  return made;
}

// The layers and the calls of a reason, in the graph.
function mark(reason, made) {
  const on = !made.classList.contains('on');
  for (const other of document.querySelectorAll('.reason')) {
    other.classList.toggle('on', other === made && on);
    other.querySelector('button').setAttribute('aria-pressed', String(other === made && on));
  }
  view.marked.clear();
  if (on) {
    const names = new Set(reason.layers);
    const labels = new Set(reason.calls);
    for (const item of leaves) {
      if (item.call === undefined) continue;
      const call = data.calls[item.call];
      const label = call.path !== null ? `${call.path || 'the model'} (${call.op})` : `${call.op} in ${call.scope || 'the model'}`;
      const holds = call.held.some((value) => (data.values[value].names || []).some((name) => names.has(name)));
      if (holds || (labels.has(label) && call.where === reason.where)) view.marked.add(item);
    }
    const [first] = view.marked;
    if (first) show(first);
  }
  restyle();
}

// -- layers --

const COLUMNS = [
  ['layer', 'order', false], ['kept', 'left', true], ['parameters', 'p0', true], ['MACs', 'm0', true],
];

function layerRows() {
  const rows = [];
  const seen = new Set();
  for (const item of leaves) {
    if (item.call === undefined) continue;
    const call = data.calls[item.call];
    const held = call.held.map((value) => data.values[value]);
    if (!item.path && !held.length) continue;
    const name = item.path !== null ? item.path || root.name : weighed(call, held);
    if (item.path !== null && seen.has(item.path)) continue;
    seen.add(item.path);
    const [p0, p1, m0, m1] = item.totals;
    if (!p0 && !p1 && !m0) continue;
    rows.push({ item, name, type: item.path !== null ? item.sub : call.op.split('.').pop(), left: leftOf(item), p0, p1, m0, m1, order: item.order });
  }
  return rows;
}

// A function that reads a parameter goes by the module that the parameter is of, or by the parameter.
function weighed(call, held) {
  const [first] = held.filter((value) => value.names).map((value) => value.names[0]);
  if (!first) return `${call.op.split('.').pop()} in ${call.scope || 'the model'}`;
  return parentOf(first) === call.scope ? first : parentOf(first);
}

function showLayers() {
  const head = element('tr', {});
  for (const [title, key, numeric] of COLUMNS) {
    head.append(element('th', { scope: 'col', class: numeric ? 'n' : null, 'data-key': key, 'aria-sort': 'none' },
      element('button', { type: 'button', onclick: () => sortBy(key) }, title)));
  }
  const body = element('tbody', {});
  byId('layers').append(element('table', {}, element('caption', { class: 'hidden' }, 'Layers with parameters or operations; the buttons sort'), element('thead', {}, head), body));
  for (const row of lists.rows) {
    row.made = element('tr', { onclick: () => select(row.item) },
      element('th', { scope: 'row' }, element('button', { type: 'button' }, ...dotted(row.name)), element('span', { class: 'type' }, row.type)),
      element('td', { class: 'n' }, percent(row.left, 1), element('span', { class: 'mini', 'aria-hidden': 'true' }, element('i', { style: `width:${Math.min(100, 100 * row.left)}%` }))),
      element('td', { class: 'n' }, row.p0 || row.p1 ? change(short(row.p0), short(row.p1)) : ''),
      element('td', { class: 'n' }, row.m0 ? change(short(row.m0), short(row.m1)) : ''));
  }
  fillRows();
}

function sortBy(key) {
  lists.down = lists.order === key ? !lists.down : key !== 'order' && key !== 'left';
  lists.order = key;
  fillRows();
}

function fillRows() {
  const wanted = lists.find.toLowerCase();
  const rows = lists.rows.filter((row) => `${row.name} ${row.type}`.toLowerCase().includes(wanted));
  rows.sort((a, b) => (lists.down ? -1 : 1) * (a[lists.order] - b[lists.order]) || a.order - b.order);
  const panel = byId('layers');
  panel.querySelector('tbody').replaceChildren(...rows.map((row) => row.made));
  for (const head of panel.querySelectorAll('thead th')) {
    head.setAttribute('aria-sort', head.getAttribute('data-key') !== lists.order ? 'none' : lists.down ? 'descending' : 'ascending');
  }
  lists.shown = rows;
}

function markRow(item) {
  for (const row of lists.rows) row.made.classList.toggle('on', row.item === item);
}

// -- tabs --

function openTab(name, focus = false) {
  for (const each of ['reasons', 'layers']) {
    const tab = byId(`tab-${each}`);
    tab.setAttribute('aria-selected', String(each === name));
    tab.setAttribute('tabindex', each === name ? 0 : -1);
    byId(each).hidden = each !== name;
  }
  if (focus) byId(`tab-${name}`).focus();
}
