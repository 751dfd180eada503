// Brings into view what a link of another page is about or, by the browser's Back, the place where that page was left.
// Holds it there until the page is drawn: what stands above it comes bit by bit. A wheel, a key or a click of the user
// ends it.

const landing = (globalThis.synthscopeLanding ??= { number: 0, end: () => {}, left: {}, shown: "" });
const BELOW_TOP = 64; // pixels: the page's own bar
const QUIET = 1500; // ms without a change, after the page has run to its end
const PATIENCE = 120000; // ms at most
const ENDS = ["wheel", "pointerdown", "keydown", "touchstart"];

const main = () => document.querySelector("[data-testid=stMain]");

function hold(place) {
  const start = performance.now();
  let changed = start, height = 0, frame = 0;
  const end = () => {
    cancelAnimationFrame(frame);
    for (const kind of ENDS) removeEventListener(kind, end, true);
  };
  const look = () => {
    const now = performance.now(), page = main(), top = page && place(page);
    if (page && top !== null) {
      const before = page.scrollTop;
      page.scrollTop = top;
      if (page.scrollTop !== before || page.scrollHeight !== height) changed = now;
      height = page.scrollHeight;
    }
    const running = document.querySelector("[data-testid=stApp]")?.dataset.testScriptState === "running";
    if (running) changed = now;
    if (now - changed > QUIET || now - start > PATIENCE) end();
    else frame = requestAnimationFrame(look);
  };
  for (const kind of ENDS) addEventListener(kind, end, { capture: true, passive: true });
  look();
  return end;
}

function placeOf(spot) {
  return (page) => {
    const found = document.getElementById(spot) ?? page.querySelector(`.st-key-${spot}`);
    if (!found) return null;
    return page.scrollTop + found.getBoundingClientRect().top - page.getBoundingClientRect().top - BELOW_TOP;
  };
}

function hear() { // once for all pages
  const note = () => { landing.left[location.pathname] = main()?.scrollTop ?? 0; }; // a page is left by a click or a key
  for (const kind of ["pointerdown", "keydown"]) addEventListener(kind, note, { capture: true, passive: true });
  addEventListener("popstate", () => {
    const top = landing.left[location.pathname];
    if (location.pathname === landing.shown) return; // another choice on the same page
    landing.end();
    landing.end = top ? hold(() => top) : () => {};
  });
}

export default function ({ data }) {
  if (!landing.shown) hear();
  landing.shown = location.pathname; // another page is other data, so this runs again
  if (data.number === landing.number) return; // the page was run again
  landing.number = data.number;
  landing.end();
  landing.end = data.spot ? hold(placeOf(data.spot)) : () => {};
}
