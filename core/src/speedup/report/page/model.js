// The data of the page as a tree: calls inside of modules, long modules in parts that can be opened one by one.

const data = JSON.parse(byId('data').textContent);
const MOST = 40; // children of one box: more become boxes of their own, or nobody sees them, and layout takes long

// Everything in the tree has: id, name, sub (a second line), parent, order, and either call (a number) or children.
const items = new Map();
const types = new Map();
const sizes = new Map();
const root = { id: '', name: '', path: '', children: [], parent: null, order: 0, open: true };
const leaves = [];

function buildTree() {
  for (const [path, type, p0, p1, m0, m1] of data.modules) {
    types.set(path, type);
    sizes.set(path, [p0, p1, m0, m1]);
  }
  const groups = new Map([['', root]]);
  const called = new Set(data.calls.map((call) => call.scope));
  for (const value of data.inputs) leaf(root, { port: 'input', value, name: 'input', sub: shape(data.values[value].before) });
  data.calls.forEach((call, number) => {
    const inside = call.path !== null && !called.has(call.path);
    const parent = inside ? holder(groups, parentOf(call.path)) : holder(groups, call.scope);
    const name = inside ? lastOf(call.path) || types.get('') : call.op.split('.').pop();
    const sub = inside ? types.get(call.path) || call.op : 'function';
    leaf(parent, { call: number, name, sub, path: inside ? call.path : null });
  });
  for (const value of data.outputs) leaf(root, { port: 'output', value, name: 'output', sub: shape(data.values[value].before) });
  root.name = types.get('') || 'model';
  shorten(root);
  number(root, 0);
}

const parentOf = (path) => (path.includes('.') ? path.slice(0, path.lastIndexOf('.')) : '');
const lastOf = (path) => path.slice(path.lastIndexOf('.') + 1);

function leaf(parent, fields) {
  const made = { id: `n${leaves.length}`, parent, ...fields };
  items.set(made.id, made);
  leaves.push(made);
  parent.children.push(made);
}

function holder(groups, path) {
  if (!groups.has(path)) {
    const parent = holder(groups, parentOf(path));
    const made = { id: `g${groups.size}`, name: lastOf(path), sub: types.get(path) || '', path, parent, children: [], open: false };
    groups.set(path, made);
    items.set(made.id, made);
    parent.children.push(made);
  }
  return groups.get(path);
}

// Boxes with too many children get boxes in between: runs of neighbours, about the square root of the number in each.
function shorten(group) {
  for (const child of group.children) if (child.children) shorten(child);
  while (group.children.length > MOST) {
    const all = group.children;
    const length = Math.min(MOST, Math.max(Math.ceil(Math.sqrt(all.length)), 8));
    group.children = [];
    for (let at = 0; at < all.length; at += length) {
      const part = all.slice(at, at + length);
      if (part.length === 1) {
        group.children.push(part[0]);
        continue;
      }
      const names = part.map((child) => child.name);
      const made = {
        id: `p${items.size}`, name: `${names[0]} … ${names[names.length - 1]}`, sub: `${part.length} parts`, path: null,
        parent: group, children: part, open: false,
      };
      items.set(made.id, made);
      for (const child of part) child.parent = made;
      group.children.push(made);
    }
  }
}

function number(item, next) {
  item.order = next++;
  item.totals = [0, 0, 0, 0];
  item.count = item.children ? 0 : 1;
  if (item.children) {
    for (const child of item.children) next = number(child, next);
    for (const child of item.children) item.count += child.count;
  }
  return next;
}

// Parameters and operations of what a box stands for: the modules at and below its path, its parts, or one call.
function totalsOf(item) {
  const sum = [0, 0, 0, 0];
  const add = (more) => more.forEach((each, at) => { sum[at] += each; });
  if (item.path !== null && item.path !== undefined) {
    for (const [path, own] of sizes) {
      if (path === item.path || item.path === '' || path.startsWith(`${item.path}.`)) add(own);
    }
  } else if (item.children) {
    for (const child of item.children) add(totalsOf(child));
  } else if (item.call !== undefined) {
    const call = data.calls[item.call];
    for (const value of call.held.map((number) => data.values[number])) {
      const size = value.before.reduce((a, b) => a * b, 1);
      if (value.parameter) add([size, Math.round(size * (value.left ?? 1)), 0, 0]);
    }
    add([0, 0, ...call.macs]);
  }
  return sum;
}

// How much of a call's tensors is left: of what it holds, else of what it gives.
function leftOf(item) {
  if (item.port) return 1;
  const [p0, p1] = item.totals;
  if (p0) return p1 / p0;
  if (item.children) return item.totals[2] ? item.totals[3] / item.totals[2] : 1;
  const call = data.calls[item.call];
  const values = [...call.held, ...call.out].map((value) => data.values[value]);
  return values.length ? share(values) : 1;
}

function share(values) {
  let before = 0, after = 0;
  for (const value of values) {
    const size = value.before.reduce((a, b) => a * b, 1);
    before += size;
    after += size * (value.left ?? 1);
  }
  return before ? after / before : 1;
}

function below(item, visit) {
  if (!item.children) visit(item);
  else for (const child of item.children) below(child, visit);
}

function ancestors(item) {
  const found = [];
  for (let at = item.parent; at; at = at.parent) found.push(at);
  return found;
}

// What is true of any call inside: a barrier, a repair, an index that is held.
function flags(item) {
  if (!item.flags) {
    const found = { barrier: 0, repaired: 0, held: 0 };
    below(item, (inner) => {
      if (inner.call === undefined) return;
      const call = data.calls[inner.call];
      if (call.barrier) found.barrier += 1;
      if (call.repaired) found.repaired += 1;
      if (call.held.some((value) => (data.values[value].strips || []).some(([axis, , held]) => axis === 0 && held.length))) found.held += 1;
    });
    item.flags = found;
  }
  return item.flags;
}

// Every tensor as an edge between leaves.
function wires() {
  const from = new Map();
  for (const item of leaves) {
    if (item.port === 'input') from.set(item.value, item);
    if (item.call !== undefined) for (const value of data.calls[item.call].out) from.set(value, item);
  }
  const found = [];
  for (const item of leaves) {
    const read = item.port === 'output' ? [item.value] : item.call !== undefined ? data.calls[item.call].in : [];
    for (const value of read) {
      const source = from.get(value);
      if (source && source !== item) found.push([source, item, value]);
    }
  }
  return found;
}
