// Draws one blinded volume (or two), takes the rating by keyboard or mouse, and hands it to Python once, on saving.
// What is not saved yet is kept in localStorage under the token of the position, so that a reload loses nothing; window
// and side under the session, so that every case of it is seen alike.
const reader = (globalThis.synthscopeReader ??= { root: null, views: new Map() });
const PLANES = [[1, 2, 0, "sagittal"], [0, 2, 1, "coronal"], [0, 1, 2, "axial"]]; // across, up, fixed
const SCALES = [["realism", "Realism", "not a brain", "could be a scan"],
  ["consistency", "Slice consistency", "slices do not fit", "slices fit"],
  ["anatomy", "Anatomy", "grossly wrong", "normal"]];
const ARRANGED = [[[0, 1, 2]], [[0, 1], [2]], [[0], [1], [2]]]; // planes in rows
const AROUND = 10; // pixels between two planes, their frames included
const MARK = "#E69F00";
const MATCHED = { level: 127.5, width: 255 }; // Python matched the brains: each from its background to its brightest tissue
const UNSEEN = 4; // greys below look black in the matched window
const LEVELS = [32, 224], WIDTHS = [64, 512];
const TYPING = "textarea, select, input:not([type=checkbox], [type=button]), [contenteditable=true], [role=combobox], [role=textbox], "
  + "[role=slider], [role=dialog]";

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

function element(name, options = {}, ...children) {
  const made = document.createElement(name);
  Object.assign(made, options);
  made.append(...children);
  return made;
}

function draft(data) {
  const centre = data.volumes[0].shape.map((n) => Math.floor(n / 2));
  const fresh = { at: centre, plane: 2, answer: "", scale: 0, marks: [], note: "", started: Date.now() };
  try {
    return { ...fresh, ...JSON.parse(localStorage.getItem("reading-" + data.token) || "{}") };
  } catch { return fresh; }
}

function view(session, radiological) {
  let kept = {};
  try { kept = JSON.parse(localStorage.getItem("reading-view-" + session) || "{}"); } catch { /* private window */ }
  const known = reader.views.get(session) ?? { ...MATCHED, radiological, ...kept };
  reader.views.set(session, known);
  return known;
}

class Panel {
  constructor(root, data, send) {
    Object.assign(this, { root, data, send, sent: false });
    this.session = data.token.slice(0, data.token.lastIndexOf("-"));
    this.view = view(this.session, data.radiological);
    this.forced = data.mode === "forced choice";
    this.volumes = data.volumes.map((v) => ({ ...v, voxels: bytes(v.data) }));
    this.state = draft(data);
    this.build();
    this.show();
  }

  build() {
    this.canvases = [];
    this.area = element("div", { className: "volumes" });
    this.boxes = this.volumes.map((volume, v) => {
      const planes = element("div", { className: "planes" });
      PLANES.forEach((plane, p) => planes.append(this.canvas(volume, v, plane, p)));
      const box = element("div", { className: "volume" }, planes);
      if (this.forced) box.prepend(element("div", { className: "side", textContent: ["Left", "Right"][v] }));
      this.area.append(box);
      return box;
    });
    this.rows = element("div", { className: "rows" });
    this.note = element("textarea", { rows: 1, maxLength: 2000, placeholder: "Note (N to write, Esc to leave)", value: this.state.note });
    this.note.setAttribute("aria-label", "Note");
    this.note.oninput = () => this.change({ note: this.note.value });
    this.save = this.button("Save and next (Enter)", () => this.finish(), "save");
    this.count = element("div", { className: "ends", role: "status" });
    this.reset = this.button("Reset window (W)", () => this.look(MATCHED));
    this.turn = this.button("Radiological (X)", () => this.turnSides());
    this.seen = element("div", { className: "ends seen" });
    const ending = element("div", { className: "ending" }, this.note, element("div", {}, this.save, this.button("Cannot judge (0)", () => this.skip())),
      this.count, element("div", {}, this.reset, this.turn), this.seen);
    this.root.replaceChildren(this.area, element("div", { className: this.forced ? "forced answers" : "answers" }, this.rows, ending), this.help());
    this.root.focus({ preventScroll: true });
  }

  help() {
    const keys = this.forced
      ? "Say: <kbd>←</kbd> <kbd>→</kbd> the real one"
      : "Say: <kbd>R</kbd> real, <kbd>S</kbd> synthetic, <kbd>1</kbd>–<kbd>5</kbd> the bold scale, <kbd>Backspace</kbd> rate again";
    return element("div", { className: "help", innerHTML: `${keys}, <kbd>M</kbd> or a double click marks what gave it away${this.forced ? " in the other one" : ""}, `
      + "<kbd>U</kbd> takes the last mark back, <kbd>N</kbd> note, <kbd>0</kbd> cannot judge, <kbd>Enter</kbd> save. Look: <kbd>↑</kbd> <kbd>↓</kbd> or wheel slice, "
      + "<kbd>V</kbd> next plane, click crosshair, drag, or <kbd>Shift</kbd>+<kbd>↑</kbd><kbd>↓</kbd> brightness and <kbd>Shift</kbd>+<kbd>→</kbd><kbd>←</kbd> contrast, "
      + "<kbd>W</kbd> matched window, <kbd>X</kbd> left and right; all cases are seen alike." });
  }

  button(textContent, onclick, className = "") {
    const button = element("button", { textContent, onclick, className });
    button.onmousedown = (event) => event.preventDefault(); // the focus stays: Enter goes on to save
    return button;
  }

  canvas(volume, v, [across, up], p) {
    const canvas = element("canvas");
    canvas.setAttribute("role", "img");
    canvas.onclick = (event) => {
      if (this.drag?.moved) return;
      const at = [...this.state.at], share = event.offsetX / canvas.clientWidth;
      at[across] = clamp(Math.floor((this.mirrored(p) ? 1 - share : share) * volume.shape[across]), 0, volume.shape[across] - 1);
      at[up] = clamp(Math.floor((1 - event.offsetY / canvas.clientHeight) * volume.shape[up]), 0, volume.shape[up] - 1);
      this.change({ at, plane: p });
    };
    canvas.ondblclick = () => this.mark(v); // its clicks have moved the crosshair there
    canvas.onwheel = (event) => { event.preventDefault(); this.change({ plane: p }); this.step(event.deltaY < 0 ? 1 : -1); };
    canvas.oncontextmenu = (event) => event.preventDefault(); // either button drags
    canvas.onpointerdown = ({ clientX: x, clientY: y, pointerId }) => { this.drag = { x, y }; canvas.setPointerCapture(pointerId); };
    canvas.onpointermove = (event) => this.dragged(event);
    this.canvases.push({ canvas, v, p });
    return canvas;
  }

  // -- window and side: of the session, not of the case ----------------------------------------------------------------

  look(part) {
    Object.assign(this.view, part);
    try { localStorage.setItem("reading-view-" + this.session, JSON.stringify(this.view)); } catch { /* private window */ }
    this.show();
  }

  turnSides() { this.look({ radiological: !this.view.radiological }); }

  mirrored(p) { return p > 0 && this.view.radiological; }

  dragged({ buttons, clientX, clientY }) {
    if (!buttons || !this.drag) return;
    const across = clientX - this.drag.x, down = clientY - this.drag.y;
    if (!this.drag.moved && Math.hypot(across, down) < 4) return; // a click
    this.drag = { x: clientX, y: clientY, moved: true };
    this.adjust(-down / 2, across / 200);
  }

  adjust(brighter, contrast) {
    this.look({ level: clamp(this.view.level - brighter, ...LEVELS), width: clamp(this.view.width * Math.exp(-contrast), ...WIDTHS) });
  }

  // The grey shown for each value. What is black in the matched window is so in every other: a generator's faint noise
  // around the head would tell it from a scan, whose surroundings are empty.
  greys() {
    const { level, width } = this.view, low = Math.max(0, level - width / 2), high = level + width / 2;
    return Uint8ClampedArray.from({ length: 256 }, (_, value) => (value < UNSEEN ? 0 : (value - low) / (high - low) * 255));
  }

  // As large as the planes fit: with all that finishes a case, the panel fills the window.
  fit() {
    const { shape, spacing } = this.volumes[0], mm = shape.map((n) => n * spacing);
    let above = this.root.getBoundingClientRect().top;
    for (let box = this.root; box; box = box.parentElement) above += box.scrollTop;
    const planes = this.boxes[0].querySelector(".planes");
    const high = Math.max(140, innerHeight - above - (this.root.offsetHeight - planes.offsetHeight) - 8);
    const scales = ARRANGED.map((rows) => {
      const wide = rows.map((row) => (planes.clientWidth - AROUND * row.length) / row.reduce((sum, p) => sum + mm[PLANES[p][0]], 0));
      return Math.min(...wide, (high - AROUND * rows.length) / rows.reduce((sum, row) => sum + Math.max(...row.map((p) => mm[PLANES[p][1]])), 0));
    });
    const scale = Math.max(...scales);
    if (Math.abs(scale - this.scale) < 0.005) return;
    this.scale = scale;
    for (const { canvas, p } of this.canvases) Object.assign(canvas, { width: Math.floor(mm[PLANES[p][0]] * scale), height: Math.floor(mm[PLANES[p][1]] * scale) });
    this.canvases.forEach((c) => this.paint(c));
  }

  paint({ canvas, v, p }) {
    const [across, up, fixed, name] = PLANES[p], { shape, voxels } = this.volumes[v], { at } = this.state, greys = this.greys();
    const [w, h] = [shape[across], shape[up]], image = new ImageData(w, h), strides = [shape[1] * shape[2], shape[2], 1];
    for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) {
      const from = this.mirrored(p) ? w - 1 - x : x, i = 4 * (y * w + x);
      const value = greys[voxels[at[fixed] * strides[fixed] + from * strides[across] + (h - 1 - y) * strides[up]]];
      image.data[i] = image.data[i + 1] = image.data[i + 2] = value;
      image.data[i + 3] = 255;
    }
    const small = element("canvas", { width: w, height: h }), pen = canvas.getContext("2d");
    small.getContext("2d").putImageData(image, 0, 0);
    pen.imageSmoothingQuality = "high";
    pen.drawImage(small, 0, 0, canvas.width, canvas.height);
    const px = (i) => ((this.mirrored(p) ? w - 1 - i : i) + 0.5) / w * canvas.width, py = (j) => (1 - (j + 0.5) / h) * canvas.height;
    pen.strokeStyle = "rgba(230,159,0,0.35)";
    pen.beginPath();
    pen.moveTo(px(at[across]), 0); pen.lineTo(px(at[across]), canvas.height);
    pen.moveTo(0, py(at[up])); pen.lineTo(canvas.width, py(at[up]));
    pen.stroke();
    pen.strokeStyle = MARK; pen.lineWidth = 2;
    for (const mark of this.state.marks) if (mark.v === v && Math.abs(mark.at[fixed] - at[fixed]) <= 2) {
      pen.beginPath(); pen.arc(px(mark.at[across]), py(mark.at[up]), 8, 0, 7); pen.stroke();
    }
    pen.font = "bold 13px sans-serif"; pen.fillStyle = MARK; pen.strokeStyle = "#000"; pen.lineWidth = 3;
    const ends = p === 0 ? "PA" : this.mirrored(p) ? "RL" : "LR", middle = canvas.height / 2 - 4;
    for (const [text, x, y] of [[p === 0 ? this.sideOf(v) : name, 5, canvas.height - 6], [ends[0], 3, middle], [ends[1], canvas.width - 13, middle]]) {
      pen.strokeText(text, x, y); pen.fillText(text, x, y); // dark around, to be read on white matter too
    }
    canvas.setAttribute("aria-label", p === 0 ? `${name} plane, ${this.sideOf(v)}` : `${name} plane, ${ends[0]} on the left, ${ends[1]} on the right`);
    canvas.classList.toggle("active", p === this.state.plane);
  }

  // Where the sagittal plane lies, in words.
  sideOf(v) {
    const { origin, spacing } = this.volumes[v], mm = origin[0] + this.state.at[0] * spacing;
    return Math.abs(mm) < spacing ? "midline" : `${mm < 0 ? "left" : "right"} ${Math.abs(Math.round(mm))} mm`;
  }

  change(part) {
    Object.assign(this.state, part);
    try { localStorage.setItem("reading-" + this.data.token, JSON.stringify(this.state)); } catch { /* private window */ }
    this.show();
  }

  show() {
    this.canvases.forEach((c) => this.paint(c));
    const { answer, marks } = this.state, { level, width, radiological } = this.view, matched = level === MATCHED.level && width === MATCHED.width;
    if (this.forced) this.boxes.forEach((box, v) => box.classList.toggle("chosen", answer === ["left", "right"][v]));
    this.choices ??= this.ask();
    for (const { button, key, value } of this.choices) {
      button.classList.toggle("chosen", this.state[key] === value);
      button.setAttribute("aria-pressed", this.state[key] === value);
    }
    this.rows.querySelectorAll(".scale").forEach((name, s) => name.classList.toggle("active", s === this.state.scale));
    this.save.disabled = this.sent || !this.ready();
    this.reset.disabled = matched;
    this.turn.classList.toggle("chosen", radiological);
    this.turn.setAttribute("aria-pressed", radiological);
    const percent = (value) => `${Math.round(value / 2.55)} %`;
    this.seen.textContent = `${matched ? "matched window" : `width ${percent(width)}, level ${percent(level)}`}; left is on the ${radiological ? "right" : "left"}`;
    this.say(marks.length ? `${marks.length} mark${marks.length > 1 ? "s" : ""}` : "");
  }

  say(text) { this.count.textContent = text; }

  // Build the rows of buttons; return which button says what.
  ask() {
    const options = this.forced ? [["left", "Left (←)"], ["right", "Right (→)"]] : [["real", "Real (R)"], ["synthetic", "Synthetic (S)"]];
    const first = this.row(this.forced ? "Which one is real?" : "This brain is", "answer", options, (answer) => this.change({ answer }));
    if (this.forced) return first;
    return [...first, ...SCALES.flatMap(([key, label, low, high], s) =>
      this.row(label, key, [1, 2, 3, 4, 5].map((n) => [n, String(n)]), (n) => this.rate(s, n), `1 ${low} … 5 ${high}`))];
  }

  row(label, key, options, pick, ends = "") {
    const choices = options.map(([value, text]) => ({ key, value, button: this.button(text, () => pick(value)) }));
    const line = element("div", { role: "group", ariaLabel: label }, ...choices.map(({ button }) => button));
    if (ends) line.append(element("span", { className: "ends", textContent: ends }));
    this.rows.append(element("div", { className: ends ? "row-name scale" : "row-name", textContent: label }), line);
    return choices;
  }

  rate(scale, value) { this.change({ [SCALES[scale][0]]: value, scale: Math.min(scale + 1, SCALES.length) }); }

  step(by) {
    const fixed = PLANES[this.state.plane][2], at = [...this.state.at];
    at[fixed] = Math.min(this.volumes[0].shape[fixed] - 1, Math.max(0, at[fixed] + by));
    this.change({ at });
  }

  markByKey() {
    if (this.forced && this.state.answer !== "left" && this.state.answer !== "right") return this.say("First say which one is real; the mark goes on the other.");
    this.mark(this.forced && this.state.answer === "left" ? 1 : 0);
  }

  mark(v) { this.change({ marks: [...this.state.marks, { v, at: [...this.state.at] }] }); }

  missing() {
    const scales = this.forced ? [] : SCALES.filter(([key]) => !this.state[key]).map(([, label]) => label.toLowerCase());
    return [...(this.state.answer ? [] : [this.forced ? "which one is real" : "real or synthetic"]), ...scales];
  }

  ready() { return !this.missing().length; }

  skip() { this.change({ answer: "skipped" }); this.finish(true); }

  finish(skipped = false) {
    if (this.sent) return;
    if (!skipped && !this.ready()) return this.say(`Still to say: ${this.missing().join(", ")}.`);
    this.sent = true;
    const { origin, spacing } = this.data.volumes[0], { answer, note, realism, consistency, anatomy, started } = this.state;
    const marks = this.state.marks.map(({ v, at }) => [...(this.forced ? [["left", "right"][v]] : []), ...at.map((i, a) => origin[a] + i * spacing)]);
    const rated = skipped ? {} : { realism, consistency, anatomy };
    this.send({ token: this.data.token, answer, note, marks, seconds: (Date.now() - started) / 1000, ...rated });
    this.show();
    this.say("Saving …");
  }

  key(event) {
    if (this.sent || event.ctrlKey || event.metaKey || event.altKey) return;
    const target = event.composedPath()[0];
    if (target === this.note) {
      if (event.key === "Escape") this.root.focus({ preventScroll: true });
      return;
    }
    if (target.closest?.(TYPING)) return;
    if (event.key === "Enter" && target.closest?.("button, a, summary")) return; // what has the focus itself
    const turned = event.shiftKey && { ArrowUp: [8, 0], ArrowDown: [-8, 0], ArrowRight: [0, 0.1], ArrowLeft: [0, -0.1] }[event.key];
    const act = turned ? () => this.adjust(...turned) : {
      ArrowUp: () => this.step(1), ArrowDown: () => this.step(-1), v: () => this.change({ plane: (this.state.plane + 1) % 3 }),
      m: () => this.markByKey(), w: () => this.look(MATCHED), x: () => this.turnSides(),
      u: () => this.change({ marks: this.state.marks.slice(0, -1) }), n: () => this.note.focus(), Enter: () => this.finish(), 0: () => this.skip(),
      ...(this.forced ? { ArrowLeft: () => this.change({ answer: "left" }), ArrowRight: () => this.change({ answer: "right" }) } : {
        r: () => this.change({ answer: "real" }), s: () => this.change({ answer: "synthetic" }),
        Backspace: () => this.change({ scale: 0, realism: undefined, consistency: undefined, anatomy: undefined }),
      }),
    }[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (act) act();
    else if (!this.forced && /^[1-5]$/.test(event.key) && this.state.scale < SCALES.length) this.rate(this.state.scale, Number(event.key));
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}

// One listener for good: one that came and went with the component was missing while the page was drawn again.
document.removeEventListener("keydown", reader.listener, true);
reader.listener = (event) => reader.root?.isConnected && reader.root.panel.key(event);
document.addEventListener("keydown", reader.listener, true);
reader.fit ??= () => reader.root?.isConnected && reader.root.panel.fit();
reader.observer ??= new ResizeObserver(reader.fit);
addEventListener("resize", reader.fit);

export default function ({ parentElement, data, setTriggerValue }) {
  const root = parentElement.querySelector(".reader");
  if (!root.panel || root.panel.data.token !== data.token || root.panel.data.attempt !== data.attempt) {
    root.panel = new Panel(root, data, (rating) => setTriggerValue("rating", rating));
    root.dataset.token = data.token; // keys now rate this position
  }
  if (reader.root !== root) reader.observer.disconnect();
  reader.root = root;
  reader.observer.observe(root);
  root.panel.fit();
}
