// What is known of the selected box: totals of a module; code, tensors and reasons of a call.

function showDetails(item) {
  const panel = byId('details');
  panel.replaceChildren(...(item ? (item.call !== undefined ? callDetails(item) : item.port ? portDetails(item) : groupDetails(item)) : hint()));
  panel.scrollTop = 0;
}

function hint() {
  return [
    element('h2', {}, 'Details'),
    element('p', { class: 'soft' }, 'Choose a box of the graph, a layer or a reason. Arrow keys walk through the graph, Enter opens and closes a module.'),
  ];
}

function facts(pairs) {
  const list = element('dl', { class: 'facts' });
  for (const [name, ...values] of pairs) list.append(element('dt', {}, name), element('dd', {}, ...values));
  return list;
}

function sizesOf(item) {
  const [p0, p1, m0, m1] = item.totals;
  const found = [];
  if (p0 || p1) found.push(['parameters', `${change(exactly.format(p0), exactly.format(p1))} (${percent(p1, p0)})`]);
  if (m0) found.push(['MACs', `${change(exactly.format(m0), exactly.format(m1))} (${percent(m1, m0)})`]);
  return found;
}

function groupDetails(item) {
  const found = flags(item);
  return [
    element('h2', {}, ...dotted(item.path || item.name)),
    facts([['type', item.sub || '-'], ['calls', String(item.count)], ...sizesOf(item),
      ...(found.barrier ? [['barriers', String(found.barrier)]] : []), ...(found.repaired ? [['repaired', `${found.repaired} calls`]] : [])]),
    ...repairsOf(item.path),
  ];
}

function repairsOf(path) {
  if (path === null || path === undefined) return [];
  const here = data.repaired.filter((repair) => repair.module === path);
  if (!here.length) return [];
  return [element('h3', {}, 'Repaired'), ...here.map((repair) => element('p', { class: 'why' }, element('code', {}, repair.what), repair.where ? ` ${place(repair.where)}` : ''))];
}

function portDetails(item) {
  return [element('h2', {}, item.name), ...tensor(data.values[item.value], 'tensor')];
}

function callDetails(item) {
  const call = data.calls[item.call];
  const chips = [];
  if (call.barrier) chips.push(element('span', { class: 'chip barrier' }, 'barrier'));
  if (call.repaired) chips.push(element('span', { class: 'chip repair' }, 'repaired'));
  const parts = [
    element('h2', {}, ...dotted(call.path || item.name)), ...chips,
    facts([['op', element('code', {}, call.op)], ['in', call.scope || 'the model'], ['code', element('code', { title: call.where }, place(call.where))], ...sizesOf(item)]),
  ];
  if (call.barrier) parts.push(element('p', { class: 'why-line' }, `Nothing shrinks here: ${call.barrier}.`));
  for (const text of call.repaired || []) parts.push(element('p', { class: 'why' }, 'repaired: ', element('code', {}, text)));
  if (!call.repaired) parts.push(...repairsOf(call.path));
  const of = new Set(call.held.flatMap((value) => data.values[value].names || []));
  const reasons = data.reasons.filter((reason) => reason.layers.some((name) => of.has(name)));
  if (reasons.length) {
    parts.push(element('h3', {}, 'Why masked indices stay'));
    for (const reason of reasons) {
      parts.push(element('p', { class: 'why-line' }, `${reason.why} (${reason.calls[0] || ''}${reason.calls.length > 1 ? ` and ${reason.calls.length - 1} more` : ''}). ${reason.advice}`));
    }
  }
  for (const [title, values] of [['It holds', call.held], ['It gives', call.out], ['It reads', call.in]]) {
    if (values.length) parts.push(element('h3', {}, title), ...values.flatMap((value) => tensor(data.values[value], 'tensor')));
  }
  return parts;
}

function tensor(value, name) {
  const head = element('p', {}, element('b', {}, value.names ? value.names[0] : name), ' ', element('span', { class: 'number' }, change(shape(value.before), shape(value.after))));
  const strips = (value.strips || []).flatMap((each) => [
    element('p', { class: 'axis' }, `axis ${each[0]} of ${value.before.length}`), strip(value, each),
  ]);
  return [element('div', { class: 'tensor' }, head, ...strips)];
}
