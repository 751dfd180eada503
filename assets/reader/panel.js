// Draws one blinded volume (or two), takes the rating by keyboard or mouse, and hands it to Python once, on saving.
// What is not saved yet is kept in localStorage under the token of the position, so that a reload loses nothing.
const PLANES = [[1, 2, 0, "sagittal"], [0, 2, 1, "coronal"], [0, 1, 2, "axial"]]; // across, up, fixed
const SCALES = [["realism", "Realism", "not a brain", "could be a scan"],
  ["consistency", "Slice consistency", "slices do not fit", "slices fit"],
  ["anatomy", "Anatomy", "grossly wrong", "normal"]];
const MARK = "#E69F00";

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

class Panel {
  constructor(root, data, send) {
    Object.assign(this, { root, data, send, sent: false });
    this.forced = data.mode === "forced choice";
    this.volumes = data.volumes.map((v) => ({ ...v, voxels: bytes(v.data) }));
    this.state = draft(data);
    this.build();
    this.show();
  }

  build() {
    this.canvases = [];
    const area = element("div", { className: "volumes" });
    this.boxes = this.volumes.map((volume, v) => {
      const planes = element("div", { className: "planes" });
      PLANES.forEach((plane, p) => planes.append(this.canvas(volume, v, plane, p)));
      const box = element("div", { className: "volume" }, planes);
      if (this.forced) box.prepend(element("div", { className: "side", textContent: ["Left", "Right"][v] }));
      area.append(box);
      return box;
    });
    this.rows = element("div", { className: "rows" });
    this.note = element("textarea", { rows: 1, maxLength: 2000, placeholder: "Note (N to write, Esc to leave)", value: this.state.note });
    this.note.setAttribute("aria-label", "Note");
    this.note.oninput = () => this.change({ note: this.note.value });
    this.save = element("button", { className: "save", textContent: "Save and next (Enter)", onclick: () => this.finish() });
    const skip = element("button", { textContent: "Cannot judge (0)", onclick: () => this.skip() });
    this.count = element("span", { className: "ends", role: "status" });
    const keys = this.forced
      ? "<kbd>←</kbd> <kbd>→</kbd> the real one"
      : "<kbd>R</kbd> real, <kbd>S</kbd> synthetic, <kbd>1</kbd>–<kbd>5</kbd> the bold scale, <kbd>Backspace</kbd> rate again";
    const help = element("div", { className: "help", innerHTML: `<kbd>↑</kbd> <kbd>↓</kbd> or wheel: slice, <kbd>V</kbd> next plane, click: crosshair, ${keys}, `
      + `<kbd>M</kbd> or a double click marks what gave it away${this.forced ? " in the other one" : ""}, <kbd>U</kbd> takes the last mark back, <kbd>N</kbd> note, <kbd>Enter</kbd> save` });
    this.root.replaceChildren(area, this.rows, this.note, element("div", { style: "margin-top:8px" }, this.save, skip, this.count), help);
    this.root.focus({ preventScroll: true });
  }

  canvas(volume, v, [across, up], p) {
    const scale = this.data.height / Math.max(...volume.shape.map((n) => n * volume.spacing));
    const canvas = element("canvas", {
      width: Math.round(volume.shape[across] * volume.spacing * scale),
      height: Math.round(volume.shape[up] * volume.spacing * scale),
    });
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", PLANES[p][3] + " plane");
    canvas.onclick = (event) => {
      const at = [...this.state.at];
      at[across] = Math.min(volume.shape[across] - 1, Math.floor(event.offsetX / canvas.clientWidth * volume.shape[across]));
      at[up] = Math.min(volume.shape[up] - 1, Math.floor((1 - event.offsetY / canvas.clientHeight) * volume.shape[up]));
      this.change({ at, plane: p });
    };
    canvas.ondblclick = () => this.mark(v); // its clicks have moved the crosshair there
    canvas.onwheel = (event) => { event.preventDefault(); this.change({ plane: p }); this.step(event.deltaY < 0 ? 1 : -1); };
    this.canvases.push({ canvas, v, p });
    return canvas;
  }

  paint({ canvas, v, p }) {
    const [across, up, fixed, name] = PLANES[p], { shape, voxels } = this.volumes[v], at = this.state.at;
    const [w, h] = [shape[across], shape[up]], image = new ImageData(w, h), strides = [shape[1] * shape[2], shape[2], 1];
    for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) {
      const value = voxels[at[fixed] * strides[fixed] + x * strides[across] + (h - 1 - y) * strides[up]], i = 4 * (y * w + x);
      image.data[i] = image.data[i + 1] = image.data[i + 2] = value;
      image.data[i + 3] = 255;
    }
    const small = element("canvas", { width: w, height: h }), pen = canvas.getContext("2d");
    small.getContext("2d").putImageData(image, 0, 0);
    pen.imageSmoothingQuality = "high";
    pen.drawImage(small, 0, 0, canvas.width, canvas.height);
    const px = (i) => (i + 0.5) / w * canvas.width, py = (j) => (1 - (j + 0.5) / h) * canvas.height;
    pen.strokeStyle = "rgba(230,159,0,0.35)";
    pen.beginPath();
    pen.moveTo(px(at[across]), 0); pen.lineTo(px(at[across]), canvas.height);
    pen.moveTo(0, py(at[up])); pen.lineTo(canvas.width, py(at[up]));
    pen.stroke();
    pen.strokeStyle = MARK; pen.lineWidth = 2;
    for (const mark of this.state.marks) if (mark.v === v && Math.abs(mark.at[fixed] - at[fixed]) <= 2) {
      pen.beginPath(); pen.arc(px(mark.at[across]), py(mark.at[up]), 8, 0, 7); pen.stroke();
    }
    pen.lineWidth = 1;
    pen.fillStyle = "#E69F00"; pen.font = "12px sans-serif";
    pen.fillText(name, 6, 14);
    const ends = p === 0 ? ["P", "A"] : ["L", "R"];
    pen.fillText(ends[0], 4, canvas.height / 2); pen.fillText(ends[1], canvas.width - 13, canvas.height / 2);
    canvas.classList.toggle("active", p === this.state.plane);
  }

  change(part) {
    Object.assign(this.state, part);
    try { localStorage.setItem("reading-" + this.data.token, JSON.stringify(this.state)); } catch { /* private window */ }
    this.show();
  }

  show() {
    this.canvases.forEach((c) => this.paint(c));
    const { answer, scale, marks } = this.state;
    if (this.forced) this.boxes.forEach((box, v) => box.classList.toggle("chosen", answer === ["left", "right"][v]));
    const options = this.forced ? [["left", "Left (←)"], ["right", "Right (→)"]] : [["real", "Real (R)"], ["synthetic", "Synthetic (S)"]];
    const rows = [this.row(this.forced ? "Which one is real?" : "This brain is", false, options, answer, (a) => this.change({ answer: a }))];
    if (!this.forced) SCALES.forEach(([key, label, low, high], s) => rows.push(
      this.row(label, s === scale, [1, 2, 3, 4, 5].map((n) => [n, String(n)]), this.state[key], (n) => this.rate(s, n), low, high)));
    this.rows.replaceChildren(...rows.flat());
    this.save.disabled = this.sent || !this.ready();
    this.say(marks.length ? `${marks.length} mark${marks.length > 1 ? "s" : ""}` : "");
  }

  say(text) { this.count.textContent = text; }

  row(label, active, options, chosen, pick, low = "", high = "") {
    const buttons = options.map(([value, text]) => {
      const button = element("button", { textContent: text, className: value === chosen ? "chosen" : "", onclick: () => pick(value) });
      button.setAttribute("aria-pressed", value === chosen);
      return button;
    });
    const line = element("div", {}, ...buttons);
    if (low) line.append(element("span", { className: "ends", textContent: `1 ${low} … 5 ${high}` }));
    return [element("div", { className: "row-name" + (active ? " active" : ""), textContent: label }), line];
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
    if (target.closest?.("input, textarea, select, [role=combobox], [role=slider], [role=dialog]") || !this.root.isConnected) return;
    if (event.key === "Enter" && target.tagName === "BUTTON") return; // the focused button itself
    const act = {
      ArrowUp: () => this.step(1), ArrowDown: () => this.step(-1), v: () => this.change({ plane: (this.state.plane + 1) % 3 }),
      m: () => this.markByKey(),
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

export default function (component) {
  const { parentElement, data, setTriggerValue } = component;
  const root = parentElement.querySelector(".reader");
  if (!root.panel || root.panel.data.token !== data.token || root.panel.data.attempt !== data.attempt) {
    root.panel = new Panel(root, data, (rating) => setTriggerValue("rating", rating));
    root.dataset.token = data.token; // keys now rate this position
  }
  if (!root.listener) {
    root.listener = (event) => root.panel.key(event);
    document.addEventListener("keydown", root.listener, true);
  }
  return () => { document.removeEventListener("keydown", root.listener, true); root.listener = null; };
}
