// Boxes in boxes: each open box is laid out by itself (dagre), its open children first, so that the time depends on what
// is open and not on the size of the model. A tensor that enters or leaves a box meets a port at its border.

const GAP = { rank: 24, node: 22, pad: 14, head: 28 };

function layout(item, edges) {
  if (!item.open) return size(item, widthOf(item), item.port ? 34 : 44);
  const graph = new dagre.graphlib.Graph();
  graph.setGraph({ rankdir: 'TB', ranksep: GAP.rank, nodesep: GAP.node, edgesep: 14, ranker: 'tight-tree' });
  graph.setDefaultEdgeLabel(() => ({}));
  for (const child of item.children) {
    layout(child, edges);
    graph.setNode(child.id, { width: child.width, height: child.height });
  }
  const mine = edges.get(item.id) || new Map();
  for (const { source, target } of mine.values()) {
    for (const end of [source, target]) if (!graph.hasNode(end)) graph.setNode(end, { width: 1, height: 1 });
    graph.setEdge(source, target, { minlen: 1 });
  }
  dagre.layout(graph);
  const { width = 0, height = 0 } = graph.graph();
  const top = item === root ? GAP.pad : GAP.head;
  size(item, Math.max(width + 2 * GAP.pad, item === root ? 0 : widthOf(item)), height + top + GAP.pad);
  const left = (item.width - width) / 2;
  for (const child of item.children) {
    const at = graph.node(child.id);
    child.x = at.x - at.width / 2 + left;
    child.y = at.y - at.height / 2 + top;
  }
  item.lines = [...mine.values()].map((edge) => {
    const points = graph.edge(edge.source, edge.target).points.map(({ x, y }) => [x + left, y + top]);
    const ports = [];
    if (edge.source === 'in') ports.push(points[0]);
    if (edge.target === 'out') ports.push(points[points.length - 1]);
    return { points, ports, values: edge.values };
  });
}

function size(item, width, height) {
  item.width = width;
  item.height = height;
}

const pen = document.createElement('canvas').getContext('2d');

function widthOf(item) {
  pen.font = '12px system-ui, sans-serif';
  const name = pen.measureText(clipped(item.name)).width;
  pen.font = '10.5px system-ui, sans-serif';
  const sub = pen.measureText(clipped(item.sub || '')).width;
  return Math.max(88, Math.ceil(item.open ? name + sub + 50 : Math.max(name + (item.children ? 50 : 40), sub + 30)));
}

const clipped = (text) => (text.length > 34 ? `${text.slice(0, 32)}…` : text);

// The wires as edges between neighbours, box by box: where a wire crosses the border of an open box it ends at a port.
function edgesByBox() {
  const found = new Map();
  const add = (box, source, target, value) => {
    if (!found.has(box.id)) found.set(box.id, new Map());
    const inside = found.get(box.id);
    const key = `${source}>${target}`;
    if (!inside.has(key)) inside.set(key, { source, target, values: [] });
    const { values } = inside.get(key);
    if (!values.includes(value)) values.push(value);
  };
  for (const [source, target, value] of wires()) {
    const up = [source, ...ancestors(source)];
    const down = [target, ...ancestors(target)];
    while (up.length > 1 && down.length > 1 && up[up.length - 2] === down[down.length - 2]) {
      up.pop();
      down.pop();
    }
    const common = up[up.length - 1];
    add(common, up[up.length - 2].id, down[down.length - 2].id, value);
    for (let at = up.length - 2; at > 0; at -= 1) add(up[at], up[at - 1].id, 'out', value);
    for (let at = down.length - 2; at > 0; at -= 1) add(down[at], 'in', down[at - 1].id, value);
  }
  return found;
}
