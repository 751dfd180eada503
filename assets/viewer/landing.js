// Brings what a link of another page is about into view, and holds it there until the page is drawn: what stands above
// it comes bit by bit. A wheel, a key or a click of the user ends it.

const landing = (globalThis.synthscopeLanding ??= { number: 0, end: () => {} });
const BELOW_TOP = 64; // pixels: the page's own bar
const QUIET = 1500; // ms without a change, after the page has run to its end
const PATIENCE = 120000; // ms at most
const ENDS = ["wheel", "pointerdown", "keydown", "touchstart"];

function hold(spot) {
  const start = performance.now();
  let changed = start, height = 0, frame = 0;
  const end = () => {
    cancelAnimationFrame(frame);
    for (const kind of ENDS) removeEventListener(kind, end, true);
  };
  const look = () => {
    const now = performance.now();
    const main = document.querySelector("[data-testid=stMain]");
    const found = main && (document.getElementById(spot) ?? main.querySelector(`.st-key-${spot}`));
    if (found) {
      const before = main.scrollTop;
      main.scrollTop += found.getBoundingClientRect().top - main.getBoundingClientRect().top - BELOW_TOP;
      if (main.scrollTop !== before || main.scrollHeight !== height) changed = now;
      height = main.scrollHeight;
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

export default function ({ data }) {
  if (data.number === landing.number) return; // the page was run again
  landing.number = data.number;
  landing.end();
  landing.end = data.spot ? hold(data.spot) : () => {};
}
