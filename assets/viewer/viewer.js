// Panes of niivue that share one view: position, zoom, window, plane and overlay change without asking the server.
// Python sends `panes` (files to fetch, names, region facts); this sends back "wish" and "webgl".

const shared = (globalThis.synthscopeViewer ??= { files: new Map(), volumes: new Map(), views: new Map(), instances: new WeakMap() });
const BELOW = 72; // pixels of a pane below its picture, and a margin
const LINE = 2; // least width of the crosshair, pixels of the page
const KEPT = 40; // decoded volumes in memory
const SLICES = ["sagittal", "coronal", "axial", "planes", "render"]; // keys 1 to 5
const NIIVUE_SLICE = { axial: 0, coronal: 1, sagittal: 2, planes: 3, render: 4 };
const START = {
  mm: null, pan: [0, 0, 0, 1], azimuth: 110, elevation: 10, scale: 1, low: -1, high: 1,
  slice: "planes", overlay: false, opacity: 0.5, outline: false, hidden: [], regions: false, swipe: null,
};
const HTML = `
<div class="bar" role="toolbar" aria-label="View">
  <span class="group slices"></span>
  <span class="group">
    <button data-do="overlay" title="Segmentation (space)">Segmentation</button>
    <input type="range" data-set="opacity" min="0.05" max="1" step="0.05" aria-label="Opacity of the segmentation" title="Opacity of the segmentation">
    <button data-do="outline" title="Outlines instead of filled regions">Outline</button>
    <button data-do="regions" title="Show or hide single regions">Regions</button>
  </span>
  <span class="group" title="Intensities shown black and white. Or drag with the right button over a brain.">
    <label>Window <input type="range" data-set="low" min="-1" max="0.95" step="0.05" aria-label="Shown black"></label>
    <input type="range" data-set="high" min="-0.95" max="1" step="0.05" aria-label="Shown white">
    <output class="window"></output>
  </span>
  <span class="group">
    <button data-do="swipe" title="Lay the first two brains over each other; a slider uncovers one or the other">Swipe</button>
    <button data-do="reset" title="Position, zoom, window and planes as at the start">Reset</button>
    <button data-do="link" title="Copy an address that opens exactly this view">Copy link</button>
    <output class="said" role="status"></output>
  </span>
</div>
<div class="body">
  <div class="main">
    <input class="swipe" type="range" min="0" max="1" step="0.005" aria-label="Swipe between the first two brains">
    <div class="panes"></div>
  </div>
  <div class="regions" role="group" aria-label="Regions">
    <input type="search" placeholder="Find a region" aria-label="Find a region">
    <span><button data-do="all">Show all</button><button data-do="none">Hide all</button></span>
    <div class="list"></div>
  </div>
</div>`;

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const rounded = (value) => (typeof value === "number" ? Math.round(value * 100) / 100 : Array.isArray(value) ? value.map(rounded) : value);
const close = (a, b) => a === b || (Array.isArray(a) && Array.isArray(b) && a.every((v, i) => Math.abs(v - b[i]) < 1e-4));
const element = (tag, className, text = "") => Object.assign(document.createElement(tag), { className, textContent: text });

// What of a study's view is not as at the start, for the address; see readView.
shared.words = (study) => {
  const view = Object.entries(shared.views.get(study) ?? {}).filter(([name, value]) => JSON.stringify(value) !== JSON.stringify(START[name]));
  return view.length ? JSON.stringify(Object.fromEntries(view.map(([name, value]) => [name, rounded(value)]))) : "";
};

// Whether the browser has WebGL 2; asked once, since a context is slow to make without a graphics card and few are kept.
function possible() {
  if (shared.possible === undefined) {
    const context = document.createElement("canvas").getContext("webgl2");
    shared.possible = Boolean(context);
    context?.getExtension("WEBGL_lose_context")?.loseContext();
  }
  return shared.possible;
}

function loadLibrary(url) {
  shared.library ??= new Promise((done, fail) => {
    const script = Object.assign(document.createElement("script"), { src: url });
    script.onload = () => done(globalThis.niivue);
    script.onerror = () => { shared.library = null; fail(new Error("The viewer's library did not load. Reload the page.")); };
    document.head.append(script);
  });
  return shared.library;
}

// Bytes of a file, once: they are asked for before the library that reads them is there.
function fetchFile(url) {
  const found = shared.files.get(url) ?? fetch(url).then((answer) => {
    if (!answer.ok) throw new Error(`The volume could not be fetched (${answer.status}). Reload the page.`);
    return answer.arrayBuffer();
  });
  found.catch(() => shared.files.delete(url));
  return found;
}

// Addresses hold a hash of the content, so what was fetched once never goes out of date.
function fetchVolume(library, url, options) {
  let found = shared.volumes.get(url);
  if (found) shared.volumes.delete(url);
  found ??= fetchFile(url).then((bytes) => library.NVImage.loadFromUrl({ url: bytes, name: "case.nii.gz", ...options }));
  shared.files.delete(url);
  shared.volumes.set(url, found);
  found.catch(() => shared.volumes.delete(url));
  if (shared.volumes.size > KEPT) shared.volumes.delete(shared.volumes.keys().next().value);
  return found;
}

// A view from an address is somebody's text: take what has the right form, leave the rest.
function readView(text, regions) {
  let given = {};
  try { given = JSON.parse(text) ?? {}; } catch { return {}; }
  const view = {};
  const numbers = (value, n) => Array.isArray(value) && value.length === n && value.every(Number.isFinite);
  if (numbers(given.mm, 3)) view.mm = given.mm;
  if (numbers(given.pan, 4) && given.pan[3] > 0) view.pan = given.pan;
  for (const [name, low, high] of [["azimuth", -1e4, 1e4], ["elevation", -90, 90], ["scale", 0.1, 10], ["low", -1, 0.95], ["high", -0.95, 1], ["opacity", 0.05, 1], ["swipe", 0, 1]])
    if (Number.isFinite(given[name])) view[name] = clamp(given[name], low, high);
  for (const name of ["overlay", "outline", "regions"]) if (typeof given[name] === "boolean") view[name] = given[name];
  if (SLICES.includes(given.slice)) view.slice = given.slice;
  if (Array.isArray(given.hidden)) view.hidden = given.hidden.filter((row) => Number.isInteger(row) && row > 0 && row <= regions);
  return view;
}

// A popover lies at the end of the page: who opens it by key is led into it, Escape leads back.
shared.popover ??= document.addEventListener("click", (event) => {
  if (event.detail || !event.target.closest?.(".st-key-panes_popover button")) return;
  const start = performance.now();
  const enter = () => {
    const input = document.querySelector("[data-testid=stPopoverBody] input");
    if (input) input.focus();
    else if (performance.now() - start < 1000) requestAnimationFrame(enter);
  };
  enter();
}) ?? true;

class Viewer {
  constructor(root, data) {
    this.root = root;
    this.box = element("div", "viewer");
    this.box.innerHTML = HTML;
    root.append(this.box);
    this.panes = [];
    this.view = shared.views.get(data.study) ?? { ...START };
    shared.views.set(data.study, this.view);
    this.study = data.study;
    for (const [index, name] of SLICES.entries()) {
      const title = { planes: "All planes", render: "3D" }[name] ?? name[0].toUpperCase() + name.slice(1);
      const button = element("button", "", title);
      Object.assign(button, { title: `${title} (${index + 1})` }).dataset.slice = name;
      this.find(".slices").append(button);
    }
    this.box.addEventListener("click", (event) => this.clicked(event));
    this.box.addEventListener("input", (event) => this.moved(event));
    this.keys = (event) => this.pressed(event);
    for (const kind of ["keydown", "keyup"]) document.addEventListener(kind, this.keys, true);
    this.resized = () => this.fit();
    addEventListener("resize", this.resized);
  }

  find(selector) { return this.box.querySelector(selector); }

  close() {
    for (const kind of ["keydown", "keyup"]) document.removeEventListener(kind, this.keys, true);
    removeEventListener("resize", this.resized);
    for (const pane of this.panes) this.drop(pane);
    this.box.remove();
    shared.instances.delete(this.root);
  }

  // -- what Python sends ----------------------------------------------------------------------------------------------

  async update(data, port) {
    this.data = data;
    this.port = port;
    if (data.token && shared.applied !== data.token) Object.assign(this.view, START, readView(data.view, data.labels.length));
    shared.applied = data.token;
    this.box.hidden = !possible();
    if (this.box.hidden) return port.state("webgl", "missing"); // the page says what is missing, and draws slices
    const wanted = data.panes.flatMap((pane) => [pane.image, pane.labels]).filter((url) => url && !shared.volumes.has(url));
    for (const url of wanted) shared.files.set(url, fetchFile(url));
    try {
      this.library = await loadLibrary(data.library);
    } catch (error) {
      this.find(".panes").textContent = error.message;
      return;
    }
    await this.arrange();
    this.controls();
    this.warm();
  }

  async arrange() {
    const wanted = this.data.panes;
    for (const pane of this.panes.filter((pane) => !wanted.some((next) => next.key === pane.key))) this.drop(pane);
    this.panes = this.panes.filter((pane) => wanted.some((next) => next.key === pane.key));
    const panes = [];
    for (const item of wanted) {
      const pane = this.panes.find((known) => known.key === item.key) ?? this.build(item);
      panes.push(pane);
    }
    const boxes = this.find(".panes");
    if (panes.some((pane, index) => boxes.children[index] !== pane.box)) boxes.replaceChildren(...panes.map((pane) => pane.box));
    this.panes = panes;
    this.active ??= panes.find((pane) => pane.key === "synthetic")?.key ?? panes[0]?.key;
    boxes.style.setProperty("--columns", panes.length < 4 ? Math.max(1, panes.length) : Math.ceil(panes.length / 2));
    this.fit();
    await Promise.all(wanted.map((item) => this.show(panes.find((pane) => pane.key === item.key), item)));
  }

  // The pictures fill what is left of the window, with what is said under each; more rows are scrolled to.
  fit() {
    const [low, high] = this.data.heights;
    let above = (this.panes[0]?.stage ?? this.find(".panes")).getBoundingClientRect().top;
    for (let box = this.root.getRootNode().host ?? this.root; box; box = box.parentElement) above += box.scrollTop;
    this.box.style.setProperty("--height", `${clamp(Math.floor(innerHeight - above - BELOW), low, high)}px`);
  }

  build(item) {
    const pane = { key: item.key, box: element("section", "pane"), shown: "" };
    pane.head = element("header", "");
    pane.stage = element("div", "stage");
    pane.canvas = element("canvas", "");
    pane.note = element("p", "note");
    pane.facts = element("p", "facts");
    pane.canvas.setAttribute("aria-label", `Brain in ${item.key}`);
    pane.stage.append(pane.canvas, pane.note);
    pane.box.append(pane.head, pane.stage, pane.facts);
    pane.canvas.addEventListener("pointerdown", () => { this.active = pane.key; this.marks(); });
    pane.canvas.addEventListener("pointermove", (event) => this.hover(pane, event));
    pane.canvas.addEventListener("pointerleave", () => this.say());
    pane.canvas.addEventListener("webglcontextlost", () => { pane.note.textContent = "The graphics card dropped this picture. Reload the page; the view is kept in Copy link."; });
    return pane;
  }

  async open(pane) {
    pane.nv = new this.library.Niivue({
      backColor: [0, 0, 0, 1], crosshairColor: [0.9, 0.62, 0, 0.8], crosshairWidth: 0.5, crosshairWidthUnit: "mm", crosshairGap: 6, fontColor: [0.9, 0.62, 0, 1],
      show3Dcrosshair: true, isOrientationTextVisible: true, showAllOrientationMarkers: true, multiplanarShowRender: 1, multiplanarLayout: 2, multiplanarPadPixels: 4,
      dragMode: 9, dragAndDropEnabled: false, loadingText: "", logLevel: "error", viewModeHotKey: "", clipPlaneHotKey: "",
      cycleClipPlaneHotKey: "", isRadiologicalConvention: this.data.radiological, fontMinPx: 14,
    });
    await pane.nv.attachToCanvas(pane.canvas, false);
    // niivue works out gradients of every volume, for a kind of 3D shading that is not used here: one pixel will do.
    const blur = pane.nv.blurShader;
    const use = blur.use.bind(blur);
    blur.use = (gl) => { use(gl); gl.viewport(0, 0, 1, 1); };
    const draw = pane.nv.drawScene.bind(pane.nv);
    pane.nv.drawScene = () => {
      if (pane.held) return;
      draw();
      this.follow(pane);
    };
    // A letter has a dark ground: the crosshair in the middle runs below it.
    const write = pane.nv.drawText.bind(pane.nv);
    pane.nv.drawText = (at, text, ...rest) => {
      const { nv } = pane, { fontPx } = nv, wide = nv.textWidth(fontPx, text);
      nv.drawRect([at[0] - 0.15 * fontPx, at[1], wide + 0.3 * fontPx, fontPx], nv.opts.backColor);
      write(at, text, ...rest);
    };
    const cross = pane.nv.drawCrosshairs3D.bind(pane.nv);
    pane.nv.drawCrosshairs3D = (...given) => { this.widen(pane.nv); return cross(...given); };
    pane.nv.onIntensityChange = (volume) => this.set({ low: clamp(volume.cal_min, -1, 0.95), high: clamp(volume.cal_max, -0.95, 1) });
  }

  // The crosshair is so wide in mm that it is not lost between pixels, whatever the zoom and the size of the pane.
  widen(nv) {
    const slice = nv.screenSlices.at(-1);
    if (!(slice?.fovMM[0] > 0) || slice.axCorSag > 2) return; // in 3D as in the slices
    const width = Math.max(0.5, (LINE * nv.uiData.dpr * slice.fovMM[0]) / slice.leftTopWidthHeight[2]);
    if (Math.abs(width - nv.opts.crosshairWidth) < 0.01) return;
    nv.opts.crosshairWidth = width;
    if (nv.crosshairs3D) nv.crosshairs3D.mm = [NaN, NaN, NaN]; // has it made anew
  }

  drop(pane) {
    pane.gone = true;
    pane.nv?.cleanup();
    pane.nv?.gl?.getExtension("WEBGL_lose_context")?.loseContext(); // browsers keep few contexts
    pane.box.remove();
  }

  // Show one case in a pane; a slower answer to an earlier wish is left out.
  async show(pane, item) {
    if (pane.waiting && pane.waiting !== item.case) return;
    pane.waiting = null;
    pane.item = item;
    this.heading(pane);
    const wanted = `${item.image}|${item.labels}`;
    pane.note.textContent = item.error || "";
    pane.stage.classList.toggle("failed", Boolean(item.error));
    if (pane.ready && pane.shown === wanted && pane.nv.opts.isRadiologicalConvention !== this.data.radiological)
      this.draw(pane, () => { pane.nv.opts.isRadiologicalConvention = this.data.radiological; });
    if (item.error || pane.shown === wanted) return this.say();
    pane.shown = wanted;
    try {
      const files = Promise.all([this.fetchImage(item), this.fetchLabels(item)]);
      files.catch(() => {}); // told below
      if (!pane.nv) await (pane.opening ??= this.open(pane));
      const [image, labels] = await files;
      if (pane.shown !== wanted || pane.gone) return;
      pane.ready = false;
      pane.nv.opts.isRadiologicalConvention = this.data.radiological;
      pane.nv.volumes = labels ? [image, labels] : [image];
      Object.assign(pane, { image, labels });
      Object.assign(pane.nv, { back: image, overlays: pane.nv.volumes.slice(1) });
      this.draw(pane, () => {
        this.dress(pane);
        pane.nv.updateGLVolume();
        this.place(pane);
        pane.nv.setSliceType(NIIVUE_SLICE[this.view.slice]);
        pane.ready = true;
      });
      pane.box.dataset.case = item.case;
      this.say();
    } catch (error) {
      pane.shown = "";
      pane.note.textContent = error.message;
    }
  }

  fetchImage(item) { return fetchVolume(this.library, item.image, { colormap: "gray", cal_min: -1, cal_max: 1 }); }

  async fetchLabels(item) {
    if (!item.labels) return null;
    const labels = await fetchVolume(this.library, item.labels, { opacity: 0.5 });
    labels.rows ??= labels.img.slice(); // the label map itself; img lacks what is hidden
    return labels;
  }

  // -- one view for all panes -----------------------------------------------------------------------------------------

  set(change) {
    Object.assign(this.view, change);
    const changed = (...names) => names.some((name) => name in change);
    const image = changed("low", "high"), labels = changed("overlay", "opacity", "outline", "hidden");
    this.quiet = true;
    for (const pane of this.panes.filter((pane) => pane.ready))
      this.draw(pane, () => {
        if (image || labels) this.dress(pane);
        if (image) pane.nv.refreshLayers(pane.image, 0);
        if (labels && pane.labels) pane.nv.refreshLayers(pane.labels, 1);
        this.place(pane);
        if ("slice" in change) pane.nv.setSliceType(NIIVUE_SLICE[this.view.slice]);
      });
    this.quiet = false;
    this.controls();
    this.say();
    globalThis.synthscopeAddress?.write();
  }

  // Make changes that niivue would each draw by itself, and draw once: it takes longest without a graphics card.
  draw(pane, change) {
    pane.held = true;
    try {
      change();
    } finally {
      pane.held = false;
    }
    pane.nv.drawScene();
  }

  // Window, colours and what is hidden, as niivue takes them to the graphics card.
  dress(pane) {
    const { view } = this;
    Object.assign(pane.image, { cal_min: Math.min(view.low, view.high - 0.05), cal_max: view.high });
    if (pane.labels) {
      const key = view.hidden.join();
      if (pane.labels.without !== key) {
        const keep = new Uint8Array(256).map((_, row) => (view.hidden.includes(row) ? 0 : row));
        pane.labels.img = pane.labels.rows.map((row) => keep[row]);
        pane.labels.without = key;
      }
      const rows = Array.from({ length: 256 }, (_, row) => this.data.labels[row - 1] ?? ["none", 0, 0, 0]);
      const filled = view.outline ? 0 : 255; // an outline is drawn in the colour of a region that is not filled
      const [R, G, B] = [1, 2, 3].map((place) => rows.map((row) => row[place]));
      pane.labels.setColormapLabel({ R, G, B, A: rows.map((_, row) => (row ? filled : 0)), I: rows.map((_, row) => row), labels: rows.map((row) => row[0]) });
      pane.labels._opacity = view.overlay ? view.opacity : 0;
      pane.nv.opts.atlasOutline = view.overlay && view.outline ? view.opacity : 0;
    }
  }

  place(pane) {
    const { nv } = pane;
    this.view.mm ??= [...nv.frac2mm([0.5, 0.5, 0.5])].slice(0, 3);
    nv.scene.crosshairPos = nv.mm2frac(this.view.mm);
    nv.scene.pan2Dxyzmm = [...this.view.pan];
    Object.assign(nv.scene, { renderAzimuth: this.view.azimuth, renderElevation: this.view.elevation, volScaleMultiplier: this.view.scale });
  }

  // After any drawing: when the user moved something here, the other panes follow on the next frame.
  follow(pane) {
    if (this.quiet || !pane.ready) return;
    const { nv } = pane;
    const now = {
      mm: [...nv.frac2mm(nv.scene.crosshairPos)].slice(0, 3), pan: [...nv.scene.pan2Dxyzmm],
      azimuth: nv.scene.renderAzimuth, elevation: nv.scene.renderElevation, scale: nv.scene.volScaleMultiplier,
    };
    if (Object.keys(now).every((name) => close(now[name], this.view[name]))) return;
    Object.assign(this.view, now);
    globalThis.synthscopeAddress?.write();
    this.leader = pane;
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.quiet = true;
      for (const other of this.panes.filter((p) => p.ready && p !== this.leader)) { this.place(other); other.nv.drawScene(); }
      this.quiet = false;
      this.say();
    });
  }

  // -- words ----------------------------------------------------------------------------------------------------------

  heading(pane) {
    const { item } = pane;
    const old = pane.waiting && pane.waiting !== item.case;
    const words = [item.verdict, ...(item.known ?? [])];
    const line = Object.assign(element("span", "known", old ? "…" : ""), { title: [...words, item.meaning].join("\n").trim() });
    if (!old && item.verdict) line.append(element("span", item.fails ? "fails" : "", item.verdict), words.slice(1).map((word) => ` · ${word}`).join(""));
    pane.facts.title = item.meaning ?? "";
    pane.head.replaceChildren(element("b", "", item.title), Object.assign(element("span", "case", pane.waiting ?? item.case), { title: item.case }), line);
    if (item.cases?.length > 1)
      for (const [by, sign, words] of [[-1, "‹", "Previous case (K)"], [1, "›", "Next case (J)"]]) {
        const button = Object.assign(element("button", "", sign), { title: words });
        button.addEventListener("click", () => this.step(pane, by));
        pane.head.insertBefore(button, line);
      }
    this.marks();
    this.fit(); // the words may need another line
  }

  marks() { for (const pane of this.panes) pane.box.classList.toggle("active", pane.key === this.active && this.panes.length > 1); }

  hover(pane, event) {
    if (!pane.ready || event.buttons) return;
    const { dpr } = pane.nv.uiData;
    const box = pane.canvas.getBoundingClientRect();
    const frac = pane.nv.canvasPos2frac([(event.clientX - box.left) * dpr, (event.clientY - box.top) * dpr]);
    this.say(frac[0] >= 0 ? [...pane.nv.frac2mm(frac)].slice(0, 3) : undefined);
  }

  // Tell region, volume and percentile at a position: under the cursor, else at the crosshair; nothing of no picture.
  say(mm = this.view.mm) {
    for (const pane of this.panes) {
      if (pane.item?.error) pane.facts.textContent = "";
      else if (mm && pane.ready) pane.facts.textContent = this.words(pane, mm);
    }
  }

  words(pane, mm) {
    const { image, labels, item } = pane;
    const at = image.mm2vox(mm);
    const parts = [];
    const rest = [`${mm.map((v) => v.toFixed(0)).join(", ")} mm`];
    if (labels) {
      const row = labels.rows[at[0] + labels.hdr.dims[1] * (at[1] + labels.hdr.dims[2] * at[2])] ?? 0;
      const [volume, percentile] = item.facts[row] ?? [];
      parts.push(row ? this.data.labels[row - 1][0] : "no region");
      if (volume != null) parts.push(`${Math.round(volume).toLocaleString("en")} mm³ (${item.space})`);
      if (percentile != null) rest.push(`percentile ${percentile.toFixed(0)} (both sides)`);
    } else parts.push("not segmented");
    const value = image.getValue(...at);
    if (Number.isFinite(value)) rest.push(`intensity ${value.toFixed(2)}`);
    return `${parts.join(" · ")}\n${rest.join(" · ")}`;
  }

  announce(text) {
    this.find(".said").textContent = text;
    clearTimeout(this.silence);
    this.silence = setTimeout(() => { this.find(".said").textContent = ""; }, 4000);
  }

  // -- controls -------------------------------------------------------------------------------------------------------

  controls() {
    const { view } = this;
    for (const button of this.box.querySelectorAll("[data-slice]")) button.setAttribute("aria-pressed", button.dataset.slice === view.slice);
    for (const name of ["overlay", "outline", "regions"]) this.find(`[data-do=${name}]`).setAttribute("aria-pressed", view[name]);
    for (const name of ["opacity", "low", "high"]) this.find(`[data-set=${name}]`).value = view[name];
    this.find(".window").textContent = `${view.low.toFixed(2)} … ${view.high.toFixed(2)}`;
    const swipe = view.swipe !== null && this.panes.length > 1;
    this.find("[data-do=swipe]").setAttribute("aria-pressed", swipe);
    this.find("[data-do=swipe]").disabled = this.panes.length < 2;
    const slider = this.find("input.swipe");
    slider.hidden = !swipe;
    if (swipe) slider.value = view.swipe;
    this.box.classList.toggle("swiping", swipe);
    this.panes.forEach((pane, index) => { pane.canvas.style.clipPath = swipe && index === 1 ? `inset(0 0 0 ${100 * view.swipe}%)` : ""; });
    this.find(".regions").hidden = !view.regions;
    if (view.regions) this.listRegions();
  }

  listRegions() {
    const words = this.find("[type=search]").value.trim().toLowerCase();
    const present = new Set(this.panes.flatMap((pane) => Object.keys(pane.item?.facts ?? {}).map(Number)));
    const rows = this.data.labels.map(([name, r, g, b, other], index) => ({ name, other, colour: [r, g, b], row: index + 1 }))
      .filter(({ name, other, row }) => (!present.size || present.has(row)) && `${name} ${other}`.toLowerCase().includes(words));
    this.found = words ? rows.map(({ row }) => row) : null;
    for (const [name, verb] of [["all", "Show"], ["none", "Hide"]])
      Object.assign(this.find(`[data-do=${name}]`), { textContent: words ? `${verb} the ${rows.length} found` : `${verb} all`, disabled: !rows.length });
    const boxes = rows.map(({ name, colour, row }) => {
      const label = element("label", "");
      const box = Object.assign(element("input", ""), { type: "checkbox", checked: !this.view.hidden.includes(row) });
      box.dataset.row = row;
      const swatch = element("i", "");
      swatch.style.background = `rgb(${colour.join()})`;
      label.append(box, swatch, name);
      return label;
    });
    this.find(".list").replaceChildren(...(boxes.length ? boxes : [element("p", "", "No region of this name.")]));
  }

  clicked(event) {
    const button = event.target.closest("button");
    if (button?.dataset.slice) this.set({ slice: button.dataset.slice });
    if (!button?.dataset.do) return;
    const { view } = this;
    const meant = this.found ?? this.data.labels.map((_, index) => index + 1);
    const others = view.hidden.filter((row) => !meant.includes(row));
    ({
      overlay: () => this.set({ overlay: !view.overlay }),
      outline: () => this.set({ outline: !view.outline, overlay: true }),
      regions: () => this.set({ regions: !view.regions, overlay: view.overlay || !view.regions }),
      all: () => this.set({ hidden: others }),
      none: () => this.set({ hidden: [...others, ...meant] }),
      // Over each other lie whole pictures: only of one plane do both sides show the same place.
      swipe: () => this.set(view.swipe !== null ? { swipe: null } : view.slice === "planes" ? { swipe: 0.5, slice: "axial" } : { swipe: 0.5 }),
      reset: () => this.set({ ...START, overlay: view.overlay, regions: view.regions, hidden: [], pan: [0, 0, 0, 1] }),
      link: () => this.copyLink(),
    })[button.dataset.do]();
  }

  moved(event) {
    const { target } = event;
    if (target.dataset.set) this.set({ [target.dataset.set]: Number(target.value) });
    else if (target.classList.contains("swipe")) this.set({ swipe: Number(target.value) });
    else if (target.type === "search") this.listRegions();
    else if (target.dataset.row) {
      const row = Number(target.dataset.row);
      this.set({ hidden: target.checked ? this.view.hidden.filter((other) => other !== row) : [...this.view.hidden, row] });
    }
  }

  async copyLink() {
    const address = globalThis.synthscopeAddress.href();
    try {
      await navigator.clipboard.writeText(address);
      this.announce("Copied");
    } catch {
      prompt("Copy this link:", address); // without https the clipboard is closed
    }
  }

  // -- other cases ----------------------------------------------------------------------------------------------------

  step(pane, by) {
    const cases = pane?.item?.cases;
    if (!cases || cases.length < 2) return;
    const from = cases.indexOf(pane.waiting ?? pane.item.case);
    const target = cases[(from + by + cases.length) % cases.length];
    const ready = [pane.item.next, pane.item.previous].find((item) => item?.case === target);
    if (ready && !pane.waiting) this.show(pane, { ...ready, cases }); // at once; the page follows
    pane.waiting = target;
    this.heading(pane);
    this.wish();
    clearTimeout(pane.patience);
    pane.patience = setTimeout(() => { pane.waiting = null; this.heading(pane); }, 10000);
  }

  // The server may see the last of several wishes alone, so each holds all that was not answered. One that comes before
  // the server has followed Back would have it forget that the browser went there.
  wish() {
    clearTimeout(this.later);
    if (globalThis.synthscopeAddress?.moving?.()) {
      this.later = setTimeout(() => { if (this.mounted) this.wish(); }, 100);
      return;
    }
    const cases = Object.fromEntries(this.panes.filter((pane) => pane.waiting).map((pane) => [pane.key, pane.waiting]));
    this.port.trigger("wish", { cases, around: this.wished });
  }

  // Once the panes are on screen, ask for their neighbours, and fetch those that came.
  warm() {
    const neighbours = this.panes.flatMap((pane) => [pane.item?.next, pane.item?.previous]).filter((item) => item?.image);
    for (const item of neighbours) Promise.all([this.fetchImage(item), this.fetchLabels(item)]).catch(() => {});
    const wish = this.data.panes.filter((pane) => pane.cases?.length > 1).map((pane) => pane.case).join("\n");
    if (!neighbours.length && wish && this.wished !== wish) { this.wished = wish; this.wish(); }
  }

  pressed(event) {
    const target = event.composedPath()[0];
    const ours = event.composedPath().includes(this.box);
    const typing = target.closest?.("input, textarea, select, [contenteditable=''], [contenteditable=true], [role=combobox], [role=textbox]");
    if (typing || event.ctrlKey || event.metaKey || event.altKey || (!ours && target !== document.body)) return;
    if (event.key === " " && target.closest?.("button, a, summary")) return;
    const action = this.action(event);
    if (!action) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    if (event.type === "keydown") action();
  }

  action({ key, shiftKey }) {
    const pane = this.panes.find((pane) => pane.key === this.active);
    const number = SLICES[Number(key) - 1];
    if (number) return () => this.set({ slice: number });
    if (key === " ") return () => this.set({ overlay: !this.view.overlay });
    if (key === "j" || key === "J") return () => this.step(pane, 1);
    if (key === "k" || key === "K") return () => this.step(pane, -1);
    const arrow = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowDown: [1, -1], ArrowUp: [1, 1] }[key];
    return arrow && this.panes.some((p) => p.ready) ? () => this.nudge(arrow[0], arrow[1], shiftKey) : null;
  }

  // One voxel along the screen; with shift through the slices.
  nudge(direction, by, through) {
    const image = this.panes.find((pane) => pane.ready).image;
    const [across, up, depth] = { axial: [0, 1, 2], coronal: [0, 2, 1], sagittal: [1, 2, 0], planes: [0, 2, 1], render: [0, 2, 1] }[this.view.slice];
    const axis = through ? depth : direction ? up : across;
    const flipped = axis === 0 && !through && this.data.radiological ? -1 : 1;
    const mm = [...this.view.mm];
    const { low, high } = this.data.bounds[axis];
    mm[axis] = clamp(mm[axis] + by * flipped * image.pixDims[1], low, high);
    this.set({ mm });
  }
}

export default function ({ data, parentElement, setTriggerValue, setStateValue }) {
  let viewer = shared.instances.get(parentElement);
  if (viewer && viewer.study !== data.study) { viewer.close(); viewer = null; }
  if (!viewer) shared.instances.set(parentElement, (viewer = new Viewer(parentElement, data)));
  viewer.mounted = true;
  viewer.update(data, { trigger: setTriggerValue, state: setStateValue });
  return () => {
    viewer.mounted = false; // a new answer mounts it again at once
    setTimeout(() => { if (!viewer.mounted) viewer.close(); }, 1000);
  };
}
