// A strip: one cell for every index along an axis of a tensor, in rows.

const MEANING = {
  k: 'kept', h: 'could go, but is held', c: 'carries constants that were removed', m: 'masked, removed',
  r: 'removed with what it belongs to', u: 'removed: nobody reads it', z: 'removed: constant 0',
  f: 'removed: a constant (or a multiple of the carrier), folded into what reads it',
};
const FEW = 512; // up to so many, cells are large
const MOST_CELLS = 4096;

function strip(value, [axis, pattern, held]) {
  const letters = data.strips[pattern];
  const reasons = new Map();
  for (const [why, indices] of held) for (const index of indices) reasons.set(index, data.whys[why]);
  const few = letters.length <= FEW;
  const across = Math.min(few ? 32 : 64, letters.length);
  const shown = letters.slice(0, MOST_CELLS);
  const rows = Math.ceil(shown.length / across);
  const cell = few ? 10 : 5;
  const svg = drawn('svg', {
    class: 'strip', viewBox: `0 0 ${across * cell} ${rows * cell}`, width: across * cell, height: rows * cell, role: 'slider', tabindex: 0, 'aria-valuemin': 0,
    'aria-valuemax': letters.length - 1, 'aria-valuenow': 0, 'aria-label': `axis ${axis}: ${counted(letters)}`,
  });
  const said = element('p', { class: 'said' }, counted(letters));
  let at = 0;
  const say = (index) => {
    at = Math.max(0, Math.min(letters.length - 1, index));
    const why = reasons.get(at);
    const text = `index ${at}: ${MEANING[letters[at]]}${why ? `: ${why}` : ''}`;
    said.textContent = text;
    svg.setAttribute('aria-valuenow', at);
    svg.setAttribute('aria-valuetext', text);
  };
  for (let i = 0; i < shown.length; i += 1) {
    const x = (i % across) * cell, y = Math.floor(i / across) * cell;
    svg.append(drawn('rect', { class: `cell-${shown[i]}`, x, y, width: cell - 1, height: cell - 1, 'data-index': i }));
  }
  const pointed = (event) => { const index = event.target.getAttribute('data-index'); if (index !== null) say(Number(index)); };
  svg.addEventListener('pointermove', pointed);
  svg.addEventListener('click', pointed);
  svg.addEventListener('pointerleave', () => { said.textContent = counted(letters); });
  svg.addEventListener('focus', () => say(at));
  svg.addEventListener('keydown', (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across }[event.key];
    if (step) say(at + step);
    else if (event.key === 'Home') say(0);
    else if (event.key === 'End') say(letters.length - 1);
    else return;
    event.preventDefault();
  });
  const lines = held.map(([why, indices]) => element('p', { class: 'why-line' }, `${ranges(indices)}: ${data.whys[why]}`));
  return element('div', {}, svg, said, ...lines);
}

function counted(letters) {
  const counts = new Map();
  for (const letter of letters) counts.set(letter, (counts.get(letter) || 0) + 1);
  return [...counts].map(([letter, count]) => `${exactly.format(count)} ${MEANING[letter]}`).join('; ');
}
