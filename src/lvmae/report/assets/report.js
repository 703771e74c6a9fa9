// The report's own script, after page.js. It reads the JSON blocks of the page, and asks nothing of any network.
(() => {
  const { byId, make, draw, clock, number, moves } = lvmae;
  const json = (id) => JSON.parse(byId(id).textContent);
  const store = json("store");
  const opened = new Map(); // video -> {segments, pictures}, parsed when first needed
  let video = -1;
  let segment = 0;


  function open(index) {
    if (!opened.has(index)) opened.set(index, { ...json(`video-${index}`), pictures: json(`pictures-${index}`) });
    return opened.get(index);
  }

  /** The picture nearest to a segment's middle, as a data URI; null where the video has none. */
  function picture(index, at) {
    const { pictures, starts, ends } = open(index);
    if (!pictures.length) return null;
    const middle = (starts[at] + ends[at]) / 2;
    let low = 0;
    let high = pictures.length - 1;
    while (low < high) {
      const half = (low + high) >> 1;
      if (pictures[half][0] < middle) low = half + 1;
      else high = half;
    }
    if (low > 0 && middle - pictures[low - 1][0] < pictures[low][0] - middle) low -= 1;
    return `data:image/jpeg;base64,${pictures[low][1]}`;
  }

  /** What a segment is called where there is room for one line: its caption, or the text nearest to it. */
  function words(index, at) {
    const { captions, original } = open(index);
    if (captions[at]?.length) return store.texts[captions[at][0]];
    return original[at]?.length ? store.texts[original[at][0][0]] : "";
  }

  const painter = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      painter.unobserve(target);
      target.src = picture(Number(target.dataset.video), Number(target.dataset.segment));
    }
  }, { rootMargin: "200px" });

  /** A segment's picture, or its words if there is none; a `lazy` one is painted when it comes into view. */
  function frame(index, at, lazy = false) {
    if (!open(index).pictures.length) return make("span", { class: "frame words" }, words(index, at));
    if (!lazy) return make("img", { class: "frame", alt: "", src: picture(index, at) });
    const image = make("img", { class: "frame", alt: "", "data-video": index, "data-segment": at });
    painter.observe(image);
    return image;
  }

  // ---- one video -------------------------------------------------------------------------------------------------------

  function showVideo(index, at = 0) {
    const data = open(index);
    video = index;
    byId("pick").value = index;
    byId("previous").disabled = index === 0;
    byId("next").disabled = index === store.videos.length - 1;
    byId("strip").replaceChildren(...data.starts.map((start, i) => {
      const masked = data.masked[i] === "1";
      return make(
        "div",
        {
          class: masked ? "cell masked" : "cell", role: "option", id: `segment-${i}`, "aria-selected": "false",
          "aria-label": `${clock(start)}${masked ? ", hidden" : ""}, ${words(index, i) || "no text"}`,
          onclick: () => showSegment(i),
        },
        frame(index, i, true),
        make("p", {}, clock(start), make("b", {}, number(data.reconstruction[i]))),
      );
    }));
    byId("strip").scrollLeft = 0;
    const order = data.reconstruction.map((value, i) => [value, i]).filter(([value]) => value !== null).sort((a, b) => a[0] - b[0]);
    data.surprising = order.slice(0, 5).map(([, i]) => i);
    byId("surprises").replaceChildren(...data.surprising.map((i) => moment(index, i, data.reconstruction[i])));
    byId("near").hidden = !data.neighbours.length;
    byId("neighbours").replaceChildren(...data.neighbours.map(([name, score]) => neighbour(name, score)));
    segment = -1;
    overview();
    showSegment(Math.min(at, data.starts.length - 1));
  }

  function moment(index, at, score) {
    const text = words(index, at);
    return make("li", {}, make(
      "button", { type: "button", onclick: () => go(index, at) },
      frame(index, at),
      make("span", { class: "name" }, clock(open(index).starts[at]), text ? make("i", {}, ` ${text}`) : null),
      make("span", { class: "score" }, number(score)),
    ));
  }

  function neighbour(name, score) {
    const index = store.videos.findIndex((other) => other.id === name);
    if (index < 0) return make("li", {}, make("p", {}, name, make("span", { class: "score" }, number(score))));
    return make("li", {}, make(
      "button", { type: "button", onclick: () => go(index, 0) },
      frame(index, Math.floor(store.videos[index].segments / 2)),
      make("span", { class: "name" }, name),
      make("span", { class: "score" }, number(score)),
    ));
  }

  function go(index, at) {
    if (index !== video) showVideo(index, at);
    else showSegment(at);
    byId("explorer").scrollIntoView();
    byId("strip").focus({ preventScroll: true });
  }

  // ---- one segment -----------------------------------------------------------------------------------------------------

  function showSegment(at) {
    const data = open(video);
    at = Math.max(0, Math.min(data.starts.length - 1, at));
    byId(`segment-${segment}`)?.setAttribute("aria-selected", "false");
    segment = at;
    const cell = byId(`segment-${at}`);
    const strip = byId("strip");
    cell.setAttribute("aria-selected", "true");
    strip.setAttribute("aria-activedescendant", cell.id);
    const left = cell.offsetLeft - strip.offsetLeft;
    if (left < strip.scrollLeft || left + cell.offsetWidth > strip.scrollLeft + strip.clientWidth) {
      strip.scrollLeft = left - (strip.clientWidth - cell.offsetWidth) / 2;
    }
    const own = data.captions[at] ?? [];
    const masked = data.masked[at] === "1";
    const lists = [
      ["original", "Read from the original", data.original[at]],
      ["rebuilt", "Read from the reconstruction", data.reconstructed[at]],
    ].filter(([, , found]) => found?.length);
    byId("segment").className = data.pictures.length ? "segment" : "segment bare";
    byId("segment").replaceChildren(
      ...(data.pictures.length ? [frame(video, at)] : []),
      make(
        "div", {},
        make("h3", {}, `${clock(data.starts[at])} – ${clock(data.ends[at])}`),
        make("p", { class: "where" }, `Segment ${at + 1} of ${data.starts.length}, ${masked ? "hidden in the scored mask" : "hidden in another pass"}`),
        ...own.map((text) => make("blockquote", {}, store.texts[text])),
        make(
          "dl", { class: "measures" },
          measure("reconstruction", data.reconstruction[at], "rebuilt"),
          measure("interpolation", data.floor[at], ""),
          measure("novelty", data.novelty[at], ""),
        ),
      ),
      make("div", { class: "readings" }, ...lists.map(([name, title, found]) => reading(name, title, found, own))),
    );
    moveCursor();
    history.replaceState(null, "", `#v=${video}&s=${at}`);
  }

  const measure = (name, value, kind) => make("div", { class: kind }, make("dt", {}, name), make("dd", {}, number(value, 3)));

  function reading(name, title, found, own) {
    return make("section", { class: name }, make("h4", {}, title), make("ol", {}, ...found.map(([text, score]) => {
      const bar = draw("svg", { viewBox: "0 0 100 3", preserveAspectRatio: "none", "aria-hidden": "true" });
      bar.append(draw("rect", { width: Math.max(0, Math.min(1, score)) * 100, height: 3 }));
      return make("li", { class: own.includes(text) ? "own" : null }, make("span", {}, store.texts[text]), make("data", { value: score }, number(score)), bar);
    })));
  }

  // ---- the curves ------------------------------------------------------------------------------------------------------

  const TOP = { from: 14, to: 88 };
  const TICKS = { from: 95, to: 100 };
  const LOW = { from: 116, to: 162 };
  const HEIGHT = 182;
  const begin = () => open(video).starts[0]; // of a clip, not 0
  const across = (time) => ((time - begin()) / span()) * byId("overview").clientWidth;
  const span = () => open(video).ends[open(video).ends.length - 1] - begin() || 1;

  /** A stepped path: each segment at its own height. Gaps where the value is null. */
  function steps(values, height) {
    const { starts, ends } = open(video);
    let path = "";
    values.forEach((value, i) => {
      if (value === null) return;
      const joined = i > 0 && values[i - 1] !== null;
      path += `${joined ? "L" : "M"}${across(starts[i]).toFixed(1)} ${height(value).toFixed(1)}H${across(ends[i]).toFixed(1)}`;
    });
    return path;
  }

  /** The running mean over `half` values to each side; null where all of them are. */
  function smooth(values, half) {
    return values.map((_, i) => {
      const near = values.slice(Math.max(0, i - half), i + half + 1).filter((value) => value !== null);
      return near.length ? near.reduce((sum, value) => sum + value, 0) / near.length : null;
    });
  }

  function scale(values, band, fixed = {}) {
    const known = values.filter((value) => value !== null);
    const low = fixed.low ?? Math.floor(Math.min(...known, 0.9) * 10) / 10;
    const high = fixed.high ?? Math.max(0.1, Math.ceil(Math.max(...known, 0) * 10) / 10);
    return { low, high, at: (value) => band.to - ((value - low) / (high - low || 1)) * (band.to - band.from) };
  }

  function overview() {
    const svg = byId("overview");
    const width = svg.clientWidth;
    const { starts, ends, masked, reconstruction, floor, novelty, surprising } = open(video);
    const top = scale([...reconstruction, ...floor], TOP, { high: 1 });
    const low = scale(novelty, LOW, { low: 0 });
    const parts = [];
    for (const [axis, values] of [[top, [top.low, 1]], [low, [0, low.high]]]) {
      for (const value of values) {
        const y = axis.at(value);
        parts.push(draw("line", { class: "o-grid", x1: 0, x2: width, y1: y, y2: y }));
        if (value !== 0) parts.push(draw("text", { x: width, y: y - 3, "text-anchor": "end" }, value.toFixed(1)));
      }
    }
    const dense = width / starts.length < 3; // a long film: faint values, and their running mean over six pixels
    const half = Math.ceil((3 * starts.length) / Math.max(width, 1));
    if (dense) parts.push(draw("path", { class: "o-rebuilt faint", d: steps(reconstruction, top.at) }));
    parts.push(draw("path", { class: "o-floor", d: steps(dense ? smooth(floor, half) : floor, top.at) }));
    parts.push(draw("path", { class: "o-rebuilt", d: steps(dense ? smooth(reconstruction, half) : reconstruction, top.at) }));
    const boxes = starts.map((start, i) => (masked[i] === "1" ? `M${across(start)} ${TICKS.from}H${across(ends[i])}V${TICKS.to}H${across(start)}Z` : ""));
    parts.push(draw("path", { class: "o-masked", d: boxes.join("") }));
    const middles = novelty.map((value, i) => (value === null ? null : `${across((starts[i] + ends[i]) / 2).toFixed(1)} ${low.at(value).toFixed(1)}`)).filter((point) => point !== null);
    if (middles.length > 1) {
      const last = middles[middles.length - 1].split(" ")[0];
      parts.push(draw("path", { class: "o-novelty", d: `M${middles[0].split(" ")[0]} ${LOW.to}L${middles.join("L")}L${last} ${LOW.to}Z` }));
      parts.push(draw("path", { class: dense ? "o-novelty-line faint" : "o-novelty-line", d: `M${middles.join("L")}` }));
    }
    for (const i of surprising) {
      parts.push(draw("circle", { class: "o-surprise", r: 3.5, cx: across((starts[i] + ends[i]) / 2), cy: top.at(reconstruction[i]) }));
    }
    for (const time of lvmae.ticks(begin(), span(), width)) parts.push(draw("text", { x: across(time), y: HEIGHT - 3 }, clock(time)));
    parts.push(draw("rect", { class: "o-cursor", id: "cursor", y: TOP.from - 4, height: LOW.to - TOP.from + 4 }));
    svg.setAttribute("viewBox", `0 0 ${Math.max(width, 1)} ${HEIGHT}`);
    svg.replaceChildren(...parts);
    moveCursor();
  }

  function moveCursor() {
    const cursor = byId("cursor");
    if (!cursor || segment < 0) return;
    const { starts, ends } = open(video);
    cursor.setAttribute("x", across(starts[segment]));
    cursor.setAttribute("width", Math.max(2, across(ends[segment]) - across(starts[segment])));
  }

  function segmentAt(clientX) {
    const box = byId("overview").getBoundingClientRect();
    const time = begin() + ((clientX - box.left) / box.width) * span();
    const { starts } = open(video);
    let at = starts.findIndex((start) => start > time) - 1;
    if (at === -2) at = starts.length - 1;
    return Math.max(0, at);
  }

  // ---- search ----------------------------------------------------------------------------------------------------------

  const plain = (text) => text.normalize("NFKD").replace(/[\p{M}\u00ad]/gu, "").toLowerCase();
  const folded = store.texts.map(plain);

  function tile(index, at, detail) {
    return make(
      "button", { type: "button", class: "tile", onclick: () => go(index, at) },
      frame(index, at), make("b", {}, store.videos[index].id), make("span", {}, `${clock(open(index).starts[at])}, ${detail}`),
    );
  }

  /** Where a text is the caption of a segment, over the videos of the page. */
  function captioned(text, most) {
    const found = [];
    for (let index = 0; index < store.videos.length && found.length < most; index += 1) {
      open(index).captions.forEach((own, at) => {
        if (found.length < most && own.includes(text)) found.push([index, at]);
      });
    }
    return found;
  }

  function search(query) {
    const wanted = plain(query).split(/\s+/).filter(Boolean);
    const help = byId("search-help");
    if (!wanted.length) {
      help.textContent = `Type a word of any of the ${store.texts.length} ${store.textsAre} of this page. Until then, the most surprising moments of all videos:`;
      byId("hits").replaceChildren(make("div", { class: "tiles" }, ...store.surprises.map(([index, at, score]) => tile(index, at, `cosine ${number(score)}`))));
      return;
    }
    const starts = (text) => wanted.every((word) => ` ${text}`.replace(/[^\p{L}\p{N}]+/gu, " ").includes(` ${word}`));
    const hits = folded.map((text, i) => [i, starts(text) ? 0 : wanted.every((word) => text.includes(word)) ? 1 : 2, text.length])
      .filter(([, rank]) => rank < 2).sort((a, b) => a[1] - b[1] || a[2] - b[2]);
    help.textContent = hits.length
      ? `${hits.length} of ${store.texts.length} ${store.textsAre} match${hits.length > 5 ? "; the first 5 are shown" : ""}.`
      : `None of the ${store.texts.length} ${store.textsAre} of this page contains “${query.trim()}”.`;
    byId("hits").replaceChildren(...hits.slice(0, 5).map(([text]) => {
      const own = captioned(text, 6);
      const seen = new Set(own.map(([index, at]) => `${index}:${at}`));
      const near = (store.moments[text] ?? []).filter(([index, at]) => !seen.has(`${index}:${at}`)).slice(0, Math.max(0, 6 - own.length));
      return make(
        "section", { class: "hit" },
        make("h3", {}, store.texts[text]),
        make("div", { class: "tiles" }, ...own.map(([index, at]) => tile(index, at, "its caption")), ...near.map(([index, at, score]) => tile(index, at, number(score)))),
      );
    }));
  }

  // ---- start -----------------------------------------------------------------------------------------------------------

  if (!store.videos.length) return;
  byId("explorer").hidden = false;
  byId("search").hidden = false;
  byId("query").disabled = !store.texts.length;
  byId("query").placeholder = store.texts.length ? "a word or two" : "no texts to search by";
  const pick = byId("pick");
  pick.replaceChildren(...store.videos.map(({ id, duration }, i) => make("option", { value: i }, `${id} (${clock(duration)})`)));
  pick.addEventListener("change", () => showVideo(Number(pick.value)));
  byId("previous").addEventListener("click", () => showVideo(video - 1));
  byId("next").addEventListener("click", () => showVideo(video + 1));

  document.addEventListener("keydown", (event) => {
    const listed = event.target === byId("strip");
    const free = event.target === document.body || event.target === byId("explorer");
    const arrow = event.key === "ArrowLeft" || event.key === "ArrowRight";
    if (!(event.key in moves) || event.ctrlKey || event.altKey || event.metaKey || !(listed || (free && arrow))) return;
    event.preventDefault();
    showSegment(Math.max(0, Math.min(open(video).starts.length - 1, segment + moves[event.key])));
  });

  let held = false;
  const curves = byId("overview");
  curves.addEventListener("pointerdown", (event) => {
    held = true;
    curves.setPointerCapture(event.pointerId);
    showSegment(segmentAt(event.clientX));
  });
  curves.addEventListener("pointermove", (event) => held && showSegment(segmentAt(event.clientX)));
  for (const name of ["pointerup", "pointercancel"]) curves.addEventListener(name, () => { held = false; });

  const asked = /^#v=(\d+)&s=(\d+)$/.exec(location.hash);
  const first = asked && Number(asked[1]) < store.videos.length ? Number(asked[1]) : 0;
  showVideo(first, asked ? Number(asked[2]) : 0);
  new ResizeObserver(overview).observe(byId("overview"));
  let waiting = 0;
  byId("query").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => search(byId("query").value), 80);
  });
  search("");
})();
