// Searching, and the moment that is open. Like the page's other scripts it asks nothing of any server but its own.
(() => {
  const { byId, make, draw, clock, ticks, moves } = lvmae;
  const AROUND = 30; // segments shown to each side of the one that is open
  let asked = ""; // the text whose moments are shown
  let moments = [];
  let opened = null; // the video that is open, as the server tells it
  let segment = 0;
  let latest = 0; // answers may come out of order: only the latest request's counts
  let latestMoment = 0;

  async function get(address, options) {
    const answer = await fetch(address, options);
    if (!answer.ok) throw new Error(`the server said: ${await answer.text()}`);
    return answer.json();
  }

  function tell(error) {
    byId("said").textContent = error instanceof TypeError ? "The server does not answer. Is `lvmae serve` still running?" : `That went wrong: ${error.message}`;
  }

  // ---- pictures and tiles ----------------------------------------------------------------------------------------------

  /** A segment's picture; where the video is not at hand, its time. */
  function frame(index, at, time) {
    const image = make("img", { class: "frame", alt: "", loading: "lazy", src: `/thumbnail/${index}/${at}` });
    image.addEventListener("error", () => {
      const none = make("div", { class: "frame none" }, clock(time));
      image.replaceWith(none);
      why(index, at).then((reason) => {
        if (!reason) return;
        none.title = reason;
        none.append(make("small", {}, reason));
      });
    });
    return image;
  }

  // Why a video has no pictures: asked once a video, because all of its pictures are missing for one reason.
  const reasons = new Map();
  function why(index, at) {
    if (!reasons.has(index)) reasons.set(index, get(`/api/missing/${index}/${at}`).then((found) => found.why, () => ""));
    return reasons.get(index);
  }

  function tile(moment) {
    const time = `${clock(moment.start)} – ${clock(moment.end)}`;
    return make(
      "button",
      { type: "button", class: "tile", "data-index": moment.index, "data-segment": moment.segment, onclick: () => open(moment.index, moment.segment, true) },
      frame(moment.index, moment.segment, moment.start),
      make("b", {}, moment.video),
      make("span", {}, time, moment.score === undefined ? null : make("data", { value: moment.score }, moment.score.toFixed(2))),
    );
  }

  function mark() {
    for (const node of document.querySelectorAll("#hits .tile")) {
      const here = opened && Number(node.dataset.index) === opened.index && Number(node.dataset.segment) === segment;
      if (here) node.setAttribute("aria-current", "true");
      else node.removeAttribute("aria-current");
    }
  }

  // ---- search ----------------------------------------------------------------------------------------------------------

  const FILTERS = ["minus", "folder", "source", "min_seconds", "max_seconds", "label", "after", "before"];

  /** What is asked, as the parameters of an address. */
  function parameters(text) {
    const asks = new URLSearchParams({ q: text });
    for (const name of FILTERS) if (byId(name).value.trim()) asks.set(name, byId(name).value.trim());
    if (byId("group").checked) asks.set("group", "video");
    return asks;
  }

  function list(found, what) {
    moments = found.moments;
    const videos = new Set(moments.map((moment) => moment.index)).size;
    byId("said").textContent = moments.length
      ? `The ${moments.length} best moments ${what}, in ${videos} of ${library.videos} videos, found in ${Math.max(1, Math.round(found.seconds * 1000))} ms.`
      : "Nothing matches. Take a filter off, or ask for something else.";
    byId("hits").replaceChildren(...moments.map(tile));
    if (opened) open(opened.index, segment, false);
  }

  async function search(text) {
    const mine = ++latest;
    asked = text;
    byId("files").hidden = !text;
    if (!text) {
      moments = [];
      byId("said").textContent = "Until you type, a look into the library.";
      byId("hits").replaceChildren(...library.glimpses.map(tile));
      if (opened) open(opened.index, segment, false);
      return;
    }
    const asks = parameters(text);
    for (const link of document.querySelectorAll("#files a")) link.href = `/search?${asks}&format=${link.dataset.format}`;
    try {
      const found = await get(`/api/search?${asks}`);
      if (mine === latest) list(found, "for this text");
    } catch (error) {
      if (mine === latest) tell(error);
    }
  }

  async function searchPicture(file) {
    const mine = ++latest;
    try {
      const asks = parameters("");
      asks.delete("q");
      const found = await get(`/search?${asks}`, { method: "POST", body: file });
      if (mine === latest) list(found, "like this picture");
    } catch (error) {
      if (mine === latest) tell(error);
    }
  }

  // ---- one moment ------------------------------------------------------------------------------------------------------

  async function open(index, at, go) {
    const mine = ++latestMoment;
    try {
      const found = await get(`/api/moment/${index}/${at}?q=${encodeURIComponent(asked)}`);
      if (mine !== latestMoment) return;
      opened = found;
      segment = at;
      byId("moment").hidden = false;
      byId("k-score").hidden = found.scores === null;
      byId("alike").replaceChildren(...found.alike.map(tile));
      lvmae.opened(found);
      byId("alike-title").hidden = !found.alike.length;
      strip();
      overview();
      show();
      if (go) {
        byId("moment").scrollIntoView();
        byId("strip").focus({ preventScroll: true });
      }
    } catch (error) {
      if (mine === latestMoment) tell(error);
    }
  }

  function close() {
    const was = opened && document.querySelector(`#hits .tile[data-index="${opened.index}"][aria-current]`);
    latestMoment += 1;
    opened = null;
    lvmae.opened(null);
    byId("moment").hidden = true;
    mark();
    remember();
    (was || byId("query")).focus();
  }

  /** The moment that a segment of the open video is part of. */
  const around = (at) => moments.find((moment) => moment.index === opened.index && moment.first <= at && at <= moment.last);

  function strip() {
    const cells = [];
    const moment = around(segment);
    for (let at = Math.max(0, segment - AROUND); at <= Math.min(opened.starts.length - 1, segment + AROUND); at += 1) {
      cells.push(make(
        "div",
        { class: moment && around(at) === moment ? "cell matches" : "cell", role: "option", id: `segment-${at}`, "aria-selected": "false", "aria-label": clock(opened.starts[at]), onclick: () => move(at) },
        frame(opened.index, at, opened.starts[at]),
        make("p", {}, clock(opened.starts[at]), opened.scores ? make("b", {}, opened.scores[at].toFixed(2)) : null),
      ));
    }
    byId("strip").replaceChildren(...cells);
  }

  /** The strip holds the segments around the one that was opened; moving past its ends opens it again there. */
  function move(at) {
    at = Math.max(0, Math.min(opened.starts.length - 1, at));
    if (!byId(`segment-${at}`)) {
      segment = at;
      strip();
    }
    segment = at;
    show();
    const mine = ++latestMoment;
    const { index } = opened;
    setTimeout(() => mine === latestMoment && opened && open(index, at, false), 250); // what is alike, once at rest
  }

  function show() {
    byId("title").textContent = `${opened.video}, ${clock(opened.starts[segment])} – ${clock(opened.ends[segment])}`;
    const box = byId("strip");
    box.querySelector("[aria-selected=true]")?.setAttribute("aria-selected", "false");
    const cell = byId(`segment-${segment}`);
    cell.setAttribute("aria-selected", "true");
    box.setAttribute("aria-activedescendant", cell.id);
    box.scrollLeft = cell.offsetLeft - (box.clientWidth - cell.offsetWidth) / 2;
    cursor();
    mark();
    remember();
  }

  const HIGH = { from: 12, to: 62 };
  const LOW = { from: 72, to: 106 };
  const BOTTOM = 124;
  const begin = () => opened.starts[0]; // of a clip, not 0
  const span = () => opened.ends[opened.ends.length - 1] - begin() || 1;
  const across = (time) => ((time - begin()) / span()) * byId("overview").clientWidth;

  function overview() {
    if (!opened) return;
    const svg = byId("overview");
    const width = Math.max(1, svg.clientWidth);
    const parts = [];
    for (const moment of moments.filter((one) => one.index === opened.index)) {
      parts.push(draw("rect", { class: "o-span", x: across(moment.start), width: Math.max(2, across(moment.end) - across(moment.start)), y: HIGH.from - 6, height: LOW.to - HIGH.from + 6 }));
    }
    const line = (values, band, name) => {
      const low = Math.min(0, ...values);
      const high = Math.max(0.1, ...values);
      const points = values.map((value, i) => `${across((opened.starts[i] + opened.ends[i]) / 2).toFixed(1)} ${(band.to - ((value - low) / (high - low)) * (band.to - band.from)).toFixed(1)}`);
      parts.push(draw("path", { class: name, d: `M${points.join("L")}` }));
      parts.push(draw("text", { x: width, y: band.from - 2, "text-anchor": "end" }, high.toFixed(2)));
    };
    if (opened.scores) line(opened.scores, HIGH, "o-rebuilt");
    line(opened.novelty, LOW, "o-novelty-line");
    (opened.chapters ?? []).forEach((chapter, number) => {
      if (number) parts.push(draw("line", { class: "o-chapter", x1: across(chapter.start), x2: across(chapter.start), y1: HIGH.from - 6, y2: LOW.to }));
      const room = across(chapter.end) - across(chapter.start);
      if (room > 60) parts.push(draw("text", { class: "o-title", x: across(chapter.start) + 4, y: HIGH.from + 4 }, chapter.title.slice(0, Math.floor(room / 7))));
    });
    for (const time of ticks(begin(), span(), width)) parts.push(draw("text", { x: across(time), y: BOTTOM }, clock(time)));
    parts.push(draw("rect", { class: "o-cursor", id: "cursor", y: HIGH.from - 6, height: LOW.to - HIGH.from + 6 }));
    svg.setAttribute("viewBox", `0 0 ${width} 128`);
    svg.replaceChildren(...parts);
    cursor();
  }

  function cursor() {
    const bar = byId("cursor");
    if (!bar) return;
    bar.setAttribute("x", across(opened.starts[segment]));
    bar.setAttribute("width", Math.max(2, across(opened.ends[segment]) - across(opened.starts[segment])));
  }

  // ---- start -----------------------------------------------------------------------------------------------------------

  let library = null;
  Object.assign(lvmae, { get, tell, frame, open: (index, at) => open(index, at, true), segment: () => segment, redraw: overview, remember: () => remember() });

  function remember() {
    const place = opened ? `&v=${opened.index}&s=${segment}` : "";
    const view = lvmae.shown === "search" ? "" : `&view=${lvmae.shown}`;
    history.replaceState(null, "", asked || place || view ? `#q=${encodeURIComponent(asked)}${place}${view}` : location.pathname);
  }

  let waiting = 0;
  byId("query").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      search(byId("query").value.trim());
      remember();
    }, 150);
  });
  for (const name of [...FILTERS, "group"]) byId(name).addEventListener("change", () => search(byId("query").value.trim()));
  byId("picture").addEventListener("change", () => byId("picture").files.length && searchPicture(byId("picture").files[0]));
  byId("close").addEventListener("click", close);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName);
    if (event.key === "/" && !typing) {
      lvmae.view("search");
      event.preventDefault();
      byId("query").focus();
      byId("query").select();
    } else if (event.key === "Enter" && document.activeElement === byId("query")) {
      event.preventDefault();
      byId("hits").querySelector(".tile")?.focus(); // past the filters, to what was found
    } else if (event.key === "Escape" && opened && !typing) {
      close();
    } else if (event.key in moves && opened && event.target === byId("strip")) {
      event.preventDefault();
      move(segment + moves[event.key]);
    }
  });
  byId("overview").addEventListener("pointerdown", (event) => {
    const box = byId("overview").getBoundingClientRect();
    const time = begin() + ((event.clientX - box.left) / box.width) * span();
    const after = opened.starts.findIndex((start) => start > time);
    move((after < 0 ? opened.starts.length : after) - 1);
  });
  new ResizeObserver(overview).observe(byId("overview"));

  get("/api/library").then(async (found) => {
    library = found;
    lvmae.library = found;
    byId("label").append(...found.tags.map((tag) => make("option", { value: tag }, tag)));
    document.title = `${library.name} · LV-MAE search`;
    byId("name").textContent = library.name;
    const facts = [["videos", library.videos.toLocaleString("en")], ["hours", (library.seconds / 3600).toFixed(1)], ["segments", library.segments.toLocaleString("en")], ["encoder", library.encoder]];
    byId("facts").replaceChildren(...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
    const state = new URLSearchParams(location.hash.slice(1));
    byId("query").value = state.get("q") ?? "";
    if (state.get("view")) lvmae.view(state.get("view"));
    await search(byId("query").value.trim());
    if (/^\d+$/.test(state.get("v") ?? "") && /^\d+$/.test(state.get("s") ?? "")) await open(Number(state.get("v")), Number(state.get("s")), false);
    else byId("query").focus({ preventScroll: true });
  }).catch(tell);
})();
