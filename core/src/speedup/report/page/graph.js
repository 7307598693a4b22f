// The graph: boxes and lines, opened and closed by module, walked with the keyboard.

const view = { scale: 1, selected: null, marked: new Set(), edges: null, focus: null };

function draw() {
  layout(root, view.edges);
  const canvas = byId('canvas');
  const svg = drawn('svg', {
    width: root.width * view.scale, height: root.height * view.scale, viewBox: `0 0 ${root.width} ${root.height}`,
    role: 'group', 'aria-label': 'Calls of the model in the order of the data. Arrow keys walk, Enter opens and closes.',
  });
  const boxes = drawn('g');
  const lines = drawn('g');
  paint(root, 0, 0, boxes, lines);
  svg.append(boxes, lines);
  const { scrollTop, scrollLeft } = canvas;
  canvas.replaceChildren(svg);
  canvas.scrollTop = scrollTop;
  canvas.scrollLeft = scrollLeft;
  restyle();
}

function paint(item, x, y, boxes, lines) {
  item.at = [x, y];
  if (item !== root) boxes.append(box(item, x, y));
  if (!item.open) return;
  for (const child of item.children) paint(child, x + child.x, y + child.y, boxes, lines);
  for (const line of item.lines) {
    lines.append(wire(line, x, y));
    for (const [px, py] of line.ports) lines.append(drawn('circle', { class: 'port-dot', cx: px + x, cy: py + y, r: 2.5 }));
  }
}

function box(item, x, y) {
  const left = leftOf(item);
  const found = flags(item);
  const kind = item.port ? 'port' : item.call !== undefined ? 'call' : item.open ? 'open' : 'closed';
  const barrier = found.barrier && !item.open ? ' barrier' : '';
  const made = drawn('g', {
    class: `item ${kind}${barrier}`, transform: `translate(${x} ${y})`, id: `item-${item.id}`, tabindex: -1,
    role: 'button', 'aria-label': spoken(item, left, found), 'aria-expanded': item.children ? String(item.open) : null,
    onclick: (event) => { event.stopPropagation(); item.children ? toggle(item) : select(item); },
    onkeydown: (event) => walk(event, item),
    onfocus: () => { view.focus = item.id; },
  });
  if (kind === 'closed') made.append(drawn('rect', { class: 'shadow', x: 4, y: 4, width: item.width, height: item.height, rx: 7 }));
  made.append(drawn('rect', { class: 'box', width: item.width, height: item.height, rx: kind === 'port' ? 17 : 7 }));
  if (kind === 'open') {
    made.append(label(`▾ ${clipped(item.name)}`, 10, 19), label(clipped(item.sub || ''), 26 + pen12(`▾ ${clipped(item.name)}`), 19, 'sub'));
    return made;
  }
  const middle = item.width / 2;
  const name = `${item.children ? '▸ ' : ''}${clipped(item.name)}`;
  made.append(label(name, middle, item.port ? 15 : 17, 'middle'), label(clipped(item.sub || ''), middle, item.port ? 27 : 31, 'middle sub'));
  if (!item.port) {
    const width = item.width - 20;
    made.append(drawn('rect', { class: 'track', x: 10, y: 36, width, height: 3.5, rx: 1.7 }));
    made.append(drawn('rect', { class: 'fill', x: 10, y: 36, width: Math.max(0, Math.min(1, left)) * width, height: 3.5, rx: 1.7 }));
    if (found.repaired) made.append(drawn('circle', { class: 'badge-repair', cx: item.width - 9, cy: 9, r: 4 }));
    if (found.held) made.append(drawn('circle', { class: 'badge-held', cx: 9, cy: 9, r: 4 }));
  }
  made.append(drawn('title', {}, spoken(item, left, found)));
  return made;
}

function spoken(item, left, found) {
  const parts = [`${item.name}${item.sub ? `, ${item.sub}` : ''}`];
  if (item.port) return parts[0];
  if (item.children) parts.push(`${item.count} calls`);
  parts.push(`${(100 * left).toFixed(0)}% left`);
  if (found.barrier) parts.push(item.children ? `${found.barrier} barriers` : 'barrier: no rule');
  if (found.repaired) parts.push('repaired');
  if (found.held) parts.push('holds masked indices');
  return parts.join('; ');
}

function label(text, x, y, kind = '') {
  return drawn('text', { x, y, class: kind.includes('sub') ? 'sub' : null, 'text-anchor': kind.includes('middle') ? 'middle' : null }, text);
}

function pen12(text) {
  pen.font = '12px system-ui, sans-serif';
  return pen.measureText(text).width;
}

function wire({ points, values }, x, y) {
  const left = share(values.map((value) => data.values[value]));
  const at = points.map(([px, py]) => [px + x, py + y]);
  const texts = values.slice(0, 6).map((value) => change(shape(data.values[value].before), shape(data.values[value].after)));
  const tip = Math.round(100 * (1 - left));
  return drawn('path', {
    class: 'edge', d: curve(at), style: `stroke: color-mix(in oklab, var(--gone) ${Math.round(Math.min(100, 130 * (1 - left)))}%, var(--stay))`,
  }, drawn('title', {}, `${texts.join('\n')}\n${tip}% went`));
}

// Straight between the first and last points, smooth in between.
function curve(points) {
  if (points.length < 3) return `M${points.join('L')}`;
  let path = `M${points[0]}`;
  for (let i = 1; i < points.length - 1; i += 1) {
    const last = i === points.length - 2;
    const end = last ? points[i + 1] : [(points[i][0] + points[i + 1][0]) / 2, (points[i][1] + points[i + 1][1]) / 2];
    path += `Q${points[i]} ${end}`;
  }
  return path;
}

// -- what is open, selected, seen --

function toggle(item) {
  item.open = !item.open;
  draw();
  select(item, false);
  focusOn(item);
}

function select(item, reveal = true) {
  view.selected = item;
  if (reveal) show(item);
  restyle();
  showDetails(item);
  markRow(item);
}

function show(item) {
  const closed = ancestors(item).filter((box) => !box.open);
  if (closed.length) {
    for (const box of closed) box.open = true;
    draw();
  }
  focusOn(item, false);
}

function focusOn(item, really = true) {
  const at = byId(`item-${item.id}`);
  if (!at) return;
  if (really) at.focus({ preventScroll: true });
  const canvas = byId('canvas');
  const [x, y] = item.at;
  const [px, py] = [x * view.scale, y * view.scale];
  if (py < canvas.scrollTop + 20 || py + 60 > canvas.scrollTop + canvas.clientHeight) canvas.scrollTop = py - canvas.clientHeight / 3;
  if (px < canvas.scrollLeft || px + item.width * view.scale > canvas.scrollLeft + canvas.clientWidth) {
    canvas.scrollLeft = px - (canvas.clientWidth - item.width * view.scale) / 2;
  }
}

function restyle() {
  const seen = visible();
  for (const item of seen) {
    const at = byId(`item-${item.id}`);
    at.classList.toggle('on', item === view.selected);
    at.classList.toggle('mark', holdsMarked(item));
    at.setAttribute('tabindex', -1);
  }
  const first = seen.find((item) => item.id === view.focus) || seen[0];
  if (first) byId(`item-${first.id}`).setAttribute('tabindex', 0);
}

function holdsMarked(item) {
  if (!view.marked.size) return false;
  if (!item.children) return view.marked.has(item);
  if (item.open) return false;
  return [...view.marked].some((leaf) => ancestors(leaf).includes(item));
}

function visible(item = root, found = []) {
  for (const child of item.open ? item.children : []) {
    found.push(child);
    visible(child, found);
  }
  return found;
}

function walk(event, item) {
  const seen = visible();
  const at = seen.indexOf(item);
  const go = (other) => { if (other) { focusOn(other); event.preventDefault(); } };
  if (event.key === 'ArrowDown') go(seen[at + 1]);
  else if (event.key === 'ArrowUp') go(seen[at - 1]);
  else if (event.key === 'Home') go(seen[0]);
  else if (event.key === 'End') go(seen[seen.length - 1]);
  else if (event.key === 'ArrowRight' && item.children) { item.open ? go(item.children[0]) : toggle(item); event.preventDefault(); }
  else if (event.key === 'ArrowLeft') { item.children && item.open ? toggle(item) : item.parent !== root && go(item.parent); event.preventDefault(); }
  else if (event.key === 'Enter' || event.key === ' ') { item.children ? toggle(item) : select(item); event.preventDefault(); focusOn(item); }
}

// Open boxes level by level, as long as a person can overlook what is seen.
function openSome(most = 45) {
  let seen = root.children.length;
  let level = root.children.filter((child) => child.children);
  while (level.length) {
    const more = level.reduce((sum, box) => sum + box.children.length, 0);
    if (seen + more > most) return;
    seen += more;
    for (const box of level) box.open = true;
    level = level.flatMap((box) => box.children.filter((child) => child.children));
  }
}

function setAll(open) {
  for (const item of items.values()) if (item.children) item.open = open;
  draw();
}

function zoom(factor) {
  const canvas = byId('canvas');
  const before = view.scale;
  view.scale = Math.max(0.08, Math.min(2.5, view.scale * factor));
  const svg = canvas.firstChild;
  svg.setAttribute('width', root.width * view.scale);
  svg.setAttribute('height', root.height * view.scale);
  canvas.scrollTop = (canvas.scrollTop + canvas.clientHeight / 2) * (view.scale / before) - canvas.clientHeight / 2;
  canvas.scrollLeft = (canvas.scrollLeft + canvas.clientWidth / 2) * (view.scale / before) - canvas.clientWidth / 2;
}

function fit() {
  zoom(Math.min(1, (byId('canvas').clientWidth - 24) / root.width) / view.scale);
}
