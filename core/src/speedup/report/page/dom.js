// Elements and numbers. Text from the model only ever becomes text: there is no innerHTML on this page.

const SVG = 'http://www.w3.org/2000/svg';

function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

function drawn(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(made, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith('on')) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value === true ? '' : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const byId = (id) => document.getElementById(id);
const exactly = new Intl.NumberFormat('en');

function short(number) {
  if (number < 10000) return exactly.format(number);
  const unit = Math.min(Math.floor(Math.log10(number) / 3), 4);
  const scaled = number / 1000 ** unit;
  return `${scaled >= 100 ? scaled.toFixed(0) : scaled >= 10 ? scaled.toFixed(1) : scaled.toFixed(2)}${'_kMGT'[unit]}`;
}

const percent = (after, before) => (before ? `${((100 * after) / before).toFixed(1)}%` : '100.0%');
const shape = (sizes) => sizes.join('×') || 'scalar';
const change = (before, after) => (before === after ? before : `${before} → ${after}`);

// A dotted name that may break at its dots.
const dotted = (name) => name.split(/(?<=\.)/).flatMap((part, at) => (at ? [element('wbr'), part] : [part]));

// Indices as people write them: 0-3, 7
function ranges(indices, most = 24) {
  const found = [];
  for (const index of indices) {
    const last = found[found.length - 1];
    if (last && last[1] === index - 1) last[1] = index;
    else found.push([index, index]);
  }
  const texts = found.slice(0, most).map(([first, last]) => (first === last ? `${first}` : `${first}-${last}`));
  return texts.join(', ') + (found.length > most ? ` … (${exactly.format(indices.length)} indices)` : '');
}

// Where code stands, without what every place has in common.
const place = (where) => where.replace(/^.*[/\\](site-packages|dist-packages)[/\\]/, '');
