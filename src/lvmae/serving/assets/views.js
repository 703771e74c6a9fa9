// The library's videos, the tags and chapters of the one that is open, and playing it. Before serve.js, which opens moments.
(() => {
  const { byId, make, clock } = lvmae;
  const VIEWS = ["search", "library", "map"];
  let opened = null;
  let first = 0;
  let latest = 0;

  // ---- views -----------------------------------------------------------------------------------------------------------

  lvmae.shown = "search";
  lvmae.view = (name) => {
    if (!VIEWS.includes(name)) return;
    lvmae.shown = name;
    for (const view of VIEWS) {
      byId(`view-${view}`).hidden = view !== name;
      byId(`tab-${view}`).setAttribute("aria-selected", String(view === name));
      byId(`tab-${view}`).tabIndex = view === name ? 0 : -1;
    }
    if (name === "library" && !first) more();
    if (name === "map") lvmae.map.show();
  };
  VIEWS.forEach((name, at) => {
    byId(`tab-${name}`).addEventListener("click", () => {
      lvmae.view(name);
      lvmae.remember();
    });
    byId(`tab-${name}`).addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const next = VIEWS[(at + step + VIEWS.length) % VIEWS.length];
      lvmae.view(next);
      byId(`tab-${next}`).focus();
    });
  });

  // ---- the library -----------------------------------------------------------------------------------------------------

  function row(video) {
    return make(
      "li", {},
      make(
        "button", { type: "button", class: "video", onclick: () => lvmae.open(video.index, 0) },
        lvmae.frame(video.index, Math.floor(video.segments / 2), 0),
        make("b", {}, video.video),
        make("span", {}, `${clock(video.duration)}, ${video.segments} segments`),
        make("span", { class: "tags" }, ...video.tags.map((tag) => make("i", {}, tag))),
      ),
    );
  }

  async function more() {
    const mine = ++latest;
    try {
      const found = await lvmae.get(`/api/videos/${first}?q=${encodeURIComponent(byId("name-like").value.trim())}`);
      if (mine !== latest) return;
      if (!first) byId("videos").replaceChildren();
      byId("videos").append(...found.videos.map(row));
      first += found.videos.length;
      byId("videos-said").textContent = `${first} of ${found.total} videos`;
      byId("more").hidden = first >= found.total;
    } catch (error) {
      lvmae.tell(error);
    }
  }

  let waiting = 0;
  byId("name-like").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      first = 0;
      more();
    }, 150);
  });
  byId("more").addEventListener("click", more);

  // ---- the video that is open ------------------------------------------------------------------------------------------

  function chip(tag) {
    return make("li", {}, tag, make("button", { type: "button", "aria-label": `Remove the tag ${tag}`, onclick: () => change(tag, true) }, "×"));
  }

  async function change(label, remove) {
    const { index, video } = opened;
    try {
      const body = JSON.stringify({ video, label, remove });
      const found = await lvmae.get("/api/tags", { method: "POST", headers: { "Content-Type": "application/json" }, body });
      if (opened?.index === index) byId("tags").replaceChildren(...found.tags.map(chip));
      if (![...byId("label").options].some((option) => option.value === label)) byId("label").append(make("option", { value: label }, label));
      first = 0;
      if (lvmae.shown === "library") more();
      lvmae.map.forget();
    } catch (error) {
      lvmae.tell(error);
    }
  }

  byId("tag-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const label = byId("tag").value.trim();
    byId("tag").value = "";
    if (label && opened) change(label, false);
  });

  lvmae.current = () => opened?.index;

  /** Told by serve.js whenever a moment is opened, or closed (null). */
  lvmae.opened = async (found) => {
    const other = found?.index !== opened?.index;
    if (found && !other) found.chapters = opened.chapters;
    opened = found;
    if (!found || other) {
      byId("player").hidden = true;
      byId("player").pause();
      byId("player").removeAttribute("src");
    }
    if (!found) return;
    byId("play").hidden = !found.playable;
    byId("tags").replaceChildren(...found.tags.map(chip));
    if (!other) return;
    try {
      const { chapters } = await lvmae.get(`/api/chapters/${found.index}`);
      if (opened?.index !== found.index) return;
      opened.chapters = chapters;
      found.chapters = chapters;
      lvmae.redraw();
    } catch (error) {
      lvmae.tell(error);
    }
  };

  function play() {
    if (!opened?.playable) return;
    const player = byId("player");
    const at = lvmae.segment();
    if (!player.getAttribute("src")) player.src = `/video/${opened.index}`;
    player.hidden = false;
    player.currentTime = opened.starts[at];
    player.play().catch(() => {}); // a browser may refuse to start by itself; its own button is there
  }
  byId("play").addEventListener("click", play);
  document.addEventListener("keydown", (event) => {
    const typing = /^(INPUT|SELECT|TEXTAREA|BUTTON|VIDEO)$/.test(document.activeElement.tagName);
    if (event.key === "p" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) play();
  });
})();
