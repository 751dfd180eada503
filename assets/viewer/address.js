// Keeps what the page shows in its address, without a step of the browser's history: a reload, or a copy of the
// address, shows it again. Python sends the `link`; the panes add their view, which changes without Python.

const kept = (globalThis.synthscopeAddress ??= { link: null, path: "", timer: 0 });

kept.href = () => {
  const address = new URL(location.href);
  const view = globalThis.synthscopeViewer?.words(kept.link.study);
  address.search = new URLSearchParams(view ? { ...kept.link, view } : kept.link);
  return address.href;
};

// Browsers allow few changes of the address in a row.
kept.write = () => {
  clearTimeout(kept.timer);
  kept.timer = setTimeout(() => {
    if (kept.link && kept.path === location.pathname && kept.href() !== location.href) history.replaceState(history.state, "", kept.href());
  }, 200);
};

// The server, which is not told of the view, would make a step of its own of the shorter address of another page.
kept.leave ??= document.addEventListener("click", (event) => {
  const away = event.target.closest?.("[data-testid=stSidebarNavLink]") && !(event.ctrlKey || event.metaKey || event.shiftKey);
  if (!away || !kept.link) return;
  clearTimeout(kept.timer);
  history.replaceState(history.state, "", `?${new URLSearchParams({ study: kept.link.study })}`);
}, true) ?? true;

export default function ({ data }) {
  Object.assign(kept, { link: data.link, path: location.pathname });
  kept.write();
  return () => { clearTimeout(kept.timer); kept.link = null; };
}
