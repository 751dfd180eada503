// A contact sheet: a button for each brain, cut out of one picture. Sends "open" with the brain clicked,
// "mark" with those clicked to select them (Ctrl, Cmd or Shift). The same brains in the same order stay where they are.

const shared = (globalThis.synthscopeSheets ??= new WeakMap());

const reversed = (text) => [...text].reverse().join("");

function alike(one, other) {
  let count = 0;
  while (count < Math.min(one.length, other.length) && one[count] === other[count]) count++;
  return count;
}

// How cases are called where their names are too long: by the letters that tell those of a cohort apart, and as many
// beside them as there is room for.
function shortNames({ cells, size }, font) {
  const ends = new Map(); // by cohort: a name, and how many letters all names begin and end with
  for (const { cohort, case: name } of cells) {
    const [other, begin, end] = ends.get(cohort) ?? [name, Infinity, Infinity];
    ends.set(cohort, [other, Math.min(begin, alike(name, other)), Math.min(end, alike(reversed(name), reversed(other)))]);
  }
  const ruler = document.createElement("canvas").getContext("2d");
  ruler.font = font;
  return ({ cohort, case: name }) => {
    let room = name.length, short = name;
    while (room > 3 && ruler.measureText(short).width > size) short = part(name, ends.get(cohort), --room);
    return short;
  };
}

function part(name, [, begin, end], room) {
  let [from, to] = [begin, name.length - end];
  if (from >= to) [from, to] = [name.length - room, name.length]; // nothing differs
  if (to - from > room) { // still too long
    const half = Math.ceil(room / 2);
    return `${from ? "…" : ""}${name.slice(from, from + half)}…${name.slice(to - room + half, to)}${to < name.length ? "…" : ""}`;
  }
  from = Math.max(0, to - room);
  to = Math.min(name.length, from + room);
  return `${from ? "…" : ""}${name.slice(from, to)}${to < name.length ? "…" : ""}`;
}

function cell(item, data, name) {
  const button = Object.assign(document.createElement("button"), { title: `Open ${item.case} (${item.label})` });
  const picture = document.createElement("span");
  const whole = data.picture;
  const scale = data.size / whole.width;
  const [column, row] = [item.place % whole.columns, Math.floor(item.place / whole.columns)];
  Object.assign(picture.style, {
    width: `${data.size}px`, height: `${Math.round(whole.height * scale)}px`, backgroundImage: `url("${whole.url}")`,
    backgroundSize: `${whole.columns * data.size}px auto`, backgroundPosition: `${-column * data.size}px ${-row * whole.height * scale}px`,
    transform: data.mirrored ? "scaleX(-1)" : "none",
  });
  picture.className = "picture";
  const letters = [...data.letters].map((letter, index) => Object.assign(document.createElement("i"), { textContent: letter, className: index ? "right" : "left" }));
  const words = Object.assign(document.createElement("span"), { className: "words" });
  words.append(Object.assign(document.createElement("b"), { textContent: name }), item.caption);
  if (item.verdict.startsWith("fails")) {
    button.classList.add("fails");
    button.title += `. QC ${item.verdict}`;
    words.append(Object.assign(document.createElement("em"), { textContent: item.verdict }));
  }
  button.append(picture, ...letters, words);
  button.dataset.cohort = item.cohort;
  button.dataset.case = item.case;
  return button;
}

export default function ({ data, parentElement, setTriggerValue }) {
  let sheet = shared.get(parentElement);
  if (!sheet) {
    sheet = Object.assign(document.createElement("div"), { className: "sheet", clicks: [] });
    parentElement.append(sheet);
    shared.set(parentElement, sheet);
  }
  sheet.clicks = sheet.clicks.filter((click) => click.number > data.seen);
  sheet.onclick = (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const brain = { cohort: button.dataset.cohort, case: button.dataset.case };
    if (!(event.ctrlKey || event.metaKey || event.shiftKey)) return setTriggerValue("open", brain);
    const selected = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", selected);
    // The server may see the last of several clicks alone, so each tells of all that were not answered.
    sheet.clicks.push({ ...brain, selected, number: Math.max(Date.now(), (sheet.clicks.at(-1)?.number ?? 0) + 1) });
    setTriggerValue("mark", sheet.clicks);
  };
  const looks = JSON.stringify({ ...data, seen: null, cells: data.cells.map((item) => ({ ...item, selected: null })) });
  if (sheet.looks !== looks) {
    sheet.looks = looks;
    sheet.style.setProperty("--size", `${data.size}px`);
    sheet.classList.toggle("grouped", data.groups.length > 0);
    const short = shortNames(data, `600 12px ${getComputedStyle(sheet).fontFamily}`);
    sheet.replaceChildren(...data.cells.flatMap((item, index) => {
      const heading = item.group !== data.cells[index - 1]?.group && data.groups[item.group];
      return [...(heading ? [Object.assign(document.createElement("h4"), { textContent: heading })] : []), cell(item, data, short(item))];
    }));
    sheet.scrollTop = 0;
  }
  sheet.querySelectorAll("button").forEach((button, index) => {
    const { cohort, case: name, selected } = data.cells[index];
    button.setAttribute("aria-pressed", sheet.clicks.findLast((click) => click.cohort === cohort && click.case === name)?.selected ?? selected);
  });
}
