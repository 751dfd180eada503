// A contact sheet: a button for each brain, cut out of one picture. Sends "open" with the brain clicked,
// "mark" with one clicked to select it (Ctrl, Cmd or Shift). The same brains in the same order stay where they are.

const shared = (globalThis.synthscopeSheets ??= new WeakMap());

function cell(item, data) {
  const button = Object.assign(document.createElement("button"), { title: `Open ${item.case} (${item.label})` });
  const picture = document.createElement("span");
  const whole = data.picture;
  const scale = 92 / whole.width;
  const [column, row] = [item.place % whole.columns, Math.floor(item.place / whole.columns)];
  Object.assign(picture.style, {
    width: "92px", height: `${Math.round(whole.height * scale)}px`, backgroundImage: `url("${whole.url}")`,
    backgroundSize: `${whole.columns * 92}px auto`, backgroundPosition: `${-column * 92}px ${-row * whole.height * scale}px`,
    transform: data.mirrored ? "scaleX(-1)" : "none",
  });
  picture.className = "picture";
  const letters = [...data.letters].map((letter, index) => Object.assign(document.createElement("i"), { textContent: letter, className: index ? "right" : "left" }));
  const words = Object.assign(document.createElement("span"), { className: "words" });
  const name = item.case.length > 13 ? `${item.case.slice(0, 5)}…${item.case.slice(-7)}` : item.case; // ends differ
  words.append(Object.assign(document.createElement("b"), { textContent: name }), item.caption);
  if (item.verdict.startsWith("fails")) {
    button.classList.add("fails");
    button.title += `. QC ${item.verdict}`;
    words.append(Object.assign(document.createElement("em"), { textContent: item.verdict }));
  }
  button.append(picture, ...letters, words);
  button.dataset.cohort = item.cohort;
  button.dataset.case = item.case;
  button.setAttribute("aria-pressed", item.selected);
  return button;
}

export default function ({ data, parentElement, setTriggerValue }) {
  let sheet = shared.get(parentElement);
  if (!sheet) {
    sheet = Object.assign(document.createElement("div"), { className: "sheet" });
    parentElement.append(sheet);
    shared.set(parentElement, sheet);
  }
  sheet.onclick = (event) => {
    const button = event.target.closest("button");
    const selecting = event.ctrlKey || event.metaKey || event.shiftKey;
    if (button) setTriggerValue(selecting ? "mark" : "open", { cohort: button.dataset.cohort, case: button.dataset.case });
  };
  const looks = JSON.stringify([data.picture, data.letters, data.mirrored, data.cells.map((item) => [item.cohort, item.case, item.caption, item.verdict])]);
  if (sheet.looks === looks) {
    [...sheet.children].forEach((button, index) => button.setAttribute("aria-pressed", data.cells[index].selected));
    return;
  }
  sheet.looks = looks;
  sheet.replaceChildren(...data.cells.map((item) => cell(item, data)));
  sheet.scrollTop = 0;
}
