// Effect sizes as a table of coloured cells. Sends "cell" with region and cohort of the one that was clicked, or on
// which Enter or Space was pressed; arrows move between cells. The same numbers stay where they are.

const shared = (globalThis.synthscopeHeatmaps ??= new WeakMap());
const [REGION, NUMBER] = [205, 54]; // pixels: width of a region's name, and the least of a number's column
const least = (data) => REGION + NUMBER * data.columns.length;
const ARROWS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

const make = (tag, more, ...children) => {
  const element = Object.assign(document.createElement(tag), more);
  element.append(...children);
  return element;
};

function cell([text, colour, ink], row, column, data) {
  const found = make("td", { textContent: text, tabIndex: -1, className: data.gated[column] ? "gated" : "" });
  Object.assign(found.style, { backgroundColor: colour, color: ink });
  Object.assign(found.dataset, { row, column });
  return found;
}

function table(data) {
  const head = make("tr", {}, make("th", { scope: "col", textContent: "Region" }), ...data.heads.map((name) => make("th", { scope: "col", textContent: name })));
  const rows = data.rows.map((name, row) => make(
    "tr", { className: data.rule && row === data.rule ? "rule" : "" }, make("th", { scope: "row", textContent: data.words[row], title: name }),
    ...data.cells[row].map((item, column) => cell(item, row, column, data)),
  ));
  const found = make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows));
  found.style.minWidth = `${least(data)}px`;
  found.setAttribute("role", "grid");
  found.setAttribute("aria-label", data.title);
  (found.querySelector("td") ?? found).tabIndex = 0;
  return found;
}

function legend(data) {
  const bar = make("span", { className: "bar" });
  bar.style.background = `linear-gradient(to right, ${data.colours.join(", ")})`;
  const scale = make("span", { className: "scale" }, make("span", { textContent: `−${data.most}` }), bar, make("span", { textContent: `+${data.most}` }));
  return make("div", { className: "legend" }, make("span", { textContent: data.ends[0] }), scale, make("span", { textContent: data.ends[1] }));
}

function say(map, found) {
  map.hint.hidden = !found;
  if (!found) return;
  const { row, column } = found.dataset;
  const data = map.data;
  const also = data.words[row] === data.rows[row] ? "" : ` (${data.rows[row]})`;
  map.hint.replaceChildren(make("b", { textContent: data.words[row] + also }), `, ${data.columns[column]}\n${data.cells[row][column][3]}`);
  const [box, size] = [found.getBoundingClientRect(), map.hint.getBoundingClientRect()];
  map.hint.style.left = `${Math.max(4, Math.min(box.right + 6, innerWidth - size.width - 4))}px`;
  map.hint.style.top = `${box.bottom + 4 + size.height > innerHeight ? box.top - size.height - 4 : box.bottom + 4}px`;
}

function start(parentElement) {
  const map = { frame: make("div", { className: "frame" }), hint: make("div", { className: "hint", hidden: true }), looks: "" };
  map.hint.setAttribute("role", "status");
  map.fit = () => map.frame.classList.toggle("wide", !!map.data && map.frame.clientWidth < least(map.data)); // it scrolls sideways
  new ResizeObserver(map.fit).observe(map.frame);
  parentElement.append(make("div", { className: "heatmap" }, map.frame, map.hint));
  const cellOf = (event) => event.target.closest?.("td");
  const choose = (found) => map.data.clickable && map.send("cell", { region: map.data.rows[found.dataset.row], cohort: map.data.columns[found.dataset.column] });
  map.frame.onclick = (event) => cellOf(event) && choose(cellOf(event));
  map.frame.onmouseover = (event) => {
    const at = `${event.screenX} ${event.screenY}`;
    if (map.at !== at) say(map, cellOf(event)); // else the page moved under the mouse, as when keys move the focus
    map.at = at;
  };
  map.frame.onmouseleave = () => say(map, null);
  map.frame.addEventListener("focusin", (event) => say(map, cellOf(event)));
  map.frame.addEventListener("focusout", () => say(map, null));
  map.frame.onkeydown = (event) => {
    const found = cellOf(event);
    if (!found) return;
    if (event.key === "Enter" || event.key === " ") choose(found);
    else if (event.key === "Escape") say(map, null);
    else if (ARROWS[event.key]) {
      const [down, right] = ARROWS[event.key];
      const next = map.frame.querySelector(`td[data-row="${Number(found.dataset.row) + down}"][data-column="${Number(found.dataset.column) + right}"]`);
      if (next) {
        [found.tabIndex, next.tabIndex] = [-1, 0];
        next.focus();
      }
    } else return;
    event.preventDefault();
  };
  return map;
}

export default function ({ data, parentElement, setTriggerValue }) {
  let map = shared.get(parentElement);
  if (!map) shared.set(parentElement, (map = start(parentElement)));
  map.send = setTriggerValue;
  const looks = JSON.stringify(data);
  if (map.looks === looks) return;
  Object.assign(map, { looks, data });
  map.fit();
  map.frame.classList.toggle("clickable", data.clickable);
  map.frame.replaceChildren(table(data), legend(data));
  say(map, null);
}
