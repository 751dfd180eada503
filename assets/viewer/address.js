// Keeps what the page shows in its address: a reload, or a copy of the address, shows it again, and Back what was shown
// before. Python sends the `link`, the number of the last `step` that is one of the browser's history, and of the last
// address it took (`arrival`); the panes add their view, which changes without Python and without a step.

const kept = (globalThis.synthscopeAddress ??= { link: null, step: Infinity, arrival: 0, written: "", path: "", mounted: null, timer: 0, moved: 0 });
const PATIENCE = 10000; // ms in which the server follows Back or Forward

kept.href = () => {
  const address = new URL(location.href);
  const viewer = globalThis.synthscopeViewer;
  const link = { ...kept.link };
  if (viewer?.applied === kept.arrival && viewer.views.has(link.study)) { // else the view of an address is still to be shown
    delete link.view;
    const view = viewer.words(link.study);
    if (view) link.view = view;
  }
  address.search = new URLSearchParams(link);
  return address.href;
};

kept.put = (change = "replaceState") => {
  clearTimeout(kept.timer);
  kept.timer = 0;
  delete history.pushState; // the page was not left
  const address = kept.href();
  if (address !== location.href) history[change](change === "pushState" ? {} : history.state, "", address);
  kept.written = location.href;
};

// Browsers allow few changes of the address in a row. One that somebody else changed, as Back does, is left alone.
kept.write = () => {
  clearTimeout(kept.timer);
  kept.timer = setTimeout(() => { if (kept.mounted) kept.flush(); }, 200);
};
kept.flush = () => { if (kept.timer && location.href === kept.written) kept.put(); };

// The server, which is not told of the view, would make a step of its own of the shorter address before that of another
// page: until that page is there, what stays on this one is no step.
kept.leave ??= document.addEventListener("click", (event) => {
  const away = event.target.closest?.("[data-testid=stSidebarNavLink]");
  if (!away || away.pathname === location.pathname || event.ctrlKey || event.metaKey || event.shiftKey) return;
  if (!kept.mounted || kept.path !== location.pathname) return;
  kept.flush();
  history.pushState = (state, title, address) => {
    if (new URL(address, location.href).pathname === kept.path) return;
    delete history.pushState; // the browser's own is there again
    history.pushState(state, title, address);
  };
}, true) ?? true;

// Whether the browser went Back or Forward on this page and the server has not followed yet.
kept.moving = () => kept.moved > 0 && performance.now() - kept.moved < PATIENCE;

kept.back ??= addEventListener("popstate", () => { if (kept.path === location.pathname) kept.moved = performance.now(); }) ?? true;

export default function ({ data }) {
  const mounted = (kept.mounted = {});
  const late = data.arrival === kept.arrival && kept.moving();
  if (!late) { // else of the address that Back or Forward left
    const steps = data.step > kept.step && location.href === kept.written;
    if (steps) kept.flush(); // what was seen before the step
    Object.assign(kept, { link: data.link, step: data.step, arrival: data.arrival, path: location.pathname, moved: 0 });
    kept.put(steps ? "pushState" : "replaceState");
  }
  return () => setTimeout(() => { if (kept.mounted === mounted) kept.mounted = null; }, 1000); // a new answer mounts it again at once
}
