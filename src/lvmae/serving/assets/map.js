// All segments on a plane. Drawn on a canvas: libraries for WebGL build their shaders by eval, which the page's policy forbids.
(() => {
  const { byId, clock, make } = lvmae;
  const canvas = byId("map");
  const context = canvas.getContext("2d");
  const GROUPS = 12; // colours: groups beyond them share one
  let points = null; // x, y of each segment, -1 to 1
  let firsts = null; // the first segment of each video
  let videos = null;
  let colours = null; // group of each segment; -1 is faint
  let view = { x: 0, y: 0, zoom: 1 };
  let near = -1;
  let waiting = false;

  const colour = (group) => (group < 0 ? getComputedStyle(canvas).getPropertyValue("--line") : `hsl(${(group * 360) / GROUPS + 15} 62% ${matchMedia("(prefers-color-scheme: dark)").matches ? 66 : 44}%)`);

  lvmae.map = {
    async show() {
      if (points) return draw();
      try {
        const [places, found] = await Promise.all([fetch("/api/map"), lvmae.get("/api/map/videos")]);
        if (!places.ok) throw new Error(await places.text());
        points = Float32Array.from(new Int16Array(await places.arrayBuffer()), (value) => value / 32767);
        videos = found;
        firsts = [0];
        for (const count of found.segments) firsts.push(firsts[firsts.length - 1] + count);
        paint();
      } catch (error) {
        lvmae.tell(error);
      }
      return undefined;
    },
    /** Tags have changed. */
    forget() {
      if (!points) return;
      lvmae.get("/api/map/videos").then((found) => {
        videos = found;
        paint();
      }, lvmae.tell);
    },
  };

  function videoOf(point) {
    let low = 0;
    let high = firsts.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (firsts[middle] <= point) low = middle;
      else high = middle;
    }
    return low;
  }

  async function paint() {
    const by = byId("colour").value;
    colours = new Int16Array(firsts[firsts.length - 1]);
    let said = `${colours.length.toLocaleString("en")} segments`;
    if (by === "video") videos.ids.forEach((_, video) => colours.fill(video % GROUPS, firsts[video], firsts[video + 1]));
    else if (by === "tag") {
      const known = [...new Set(videos.tags.flat())].sort();
      videos.tags.forEach((tags, video) => colours.fill(tags.length ? known.indexOf(tags[0]) % GROUPS : -1, firsts[video], firsts[video + 1]));
      said += known.length ? `, by tag: ${known.slice(0, GROUPS).join(", ")}` : "; no video has a tag yet";
    } else {
      colours.fill(-1);
      const video = lvmae.current?.() ?? 0;
      const { chapters } = await lvmae.get(`/api/chapters/${video}`);
      const { starts } = await lvmae.get(`/api/moment/${video}/0`);
      starts.forEach((start, at) => {
        const chapter = chapters.findIndex((one) => start < one.end - 1e-6);
        colours[firsts[video] + at] = Math.max(0, chapter) % GROUPS;
      });
      said += `, the chapters of ${videos.ids[video]}`;
    }
    byId("map-said").textContent = said;
    draw();
  }

  function scale() {
    return (Math.min(canvas.clientWidth, canvas.clientHeight) / 2 - 12) * view.zoom;
  }
  const across = (x) => canvas.clientWidth / 2 + (x - view.x) * scale();
  const down = (y) => canvas.clientHeight / 2 - (y - view.y) * scale();

  /** Draws once a frame, however often it is asked to. */
  function draw() {
    if (waiting || !points || !colours) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      const ratio = devicePixelRatio || 1;
      const [width, height] = [canvas.clientWidth, canvas.clientHeight];
      if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
        canvas.width = Math.round(width * ratio);
        canvas.height = Math.round(height * ratio);
      }
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      context.clearRect(0, 0, width, height);
      const [middle, centre, size] = [width / 2 - view.x * scale(), height / 2 + view.y * scale(), scale()];
      const side = Math.max(1.5, Math.min(7, 1.2 * Math.sqrt(view.zoom) * Math.max(1, 60 / Math.sqrt(colours.length))));
      for (let group = -1; group < GROUPS; group += 1) {
        context.fillStyle = colour(group);
        for (let point = 0; point < colours.length; point += 1) {
          if (colours[point] !== group) continue;
          const x = middle + points[2 * point] * size;
          const y = centre - points[2 * point + 1] * size;
          if (x > -8 && y > -8 && x < width + 8 && y < height + 8) context.fillRect(x - side / 2, y - side / 2, side, side);
        }
      }
      if (near >= 0) {
        context.strokeStyle = getComputedStyle(canvas).color;
        context.lineWidth = 2;
        context.strokeRect(across(points[2 * near]) - side / 2 - 3, down(points[2 * near + 1]) - side / 2 - 3, side + 6, side + 6);
      }
      canvas.dataset.drawn = String(Number(canvas.dataset.drawn ?? 0) + 1);
    });
  }

  /** The point nearest to a place on the canvas, within some pixels. */
  function nearest(x, y, within = 18) {
    let best = -1;
    let least = within * within;
    for (let point = 0; point < colours.length; point += 1) {
      const far = (across(points[2 * point]) - x) ** 2 + (down(points[2 * point + 1]) - y) ** 2;
      if (far < least) {
        least = far;
        best = point;
      }
    }
    return best;
  }

  let shown = 0;
  function look(point) {
    if (point === near) return;
    near = point;
    draw();
    const card = byId("map-card");
    card.hidden = point < 0;
    if (point < 0) return;
    const video = videoOf(point);
    const mine = ++shown;
    card.replaceChildren(make("b", {}, videos.ids[video]), make("span", {}, `segment ${point - firsts[video] + 1}`));
    setTimeout(() => mine === shown && card.prepend(lvmae.frame(video, point - firsts[video], 0)), 120); // once at rest
  }

  function zoom(factor, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
    const [was, old] = [scale(), { ...view }];
    view.zoom = Math.max(0.5, Math.min(400, view.zoom * factor));
    const now = scale();
    view.x = old.x + (x - canvas.clientWidth / 2) * (1 / was - 1 / now);
    view.y = old.y - (y - canvas.clientHeight / 2) * (1 / was - 1 / now);
    draw();
  }

  const held = new Map(); // pointers that are down
  let moved = 0;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    held.set(event.pointerId, [event.offsetX, event.offsetY]);
    moved = 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    const was = held.get(event.pointerId);
    if (!was) {
      if (points && colours) look(nearest(event.offsetX, event.offsetY));
      return;
    }
    const [dx, dy] = [event.offsetX - was[0], event.offsetY - was[1]];
    moved += Math.abs(dx) + Math.abs(dy);
    if (held.size === 2) {
      const [other] = [...held].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
      const apart = (place) => Math.hypot(place[0] - other[0], place[1] - other[1]) || 1;
      zoom(apart([event.offsetX, event.offsetY]) / apart(was), other[0], other[1]);
    } else {
      view.x -= dx / scale();
      view.y += dy / scale();
      draw();
    }
    held.set(event.pointerId, [event.offsetX, event.offsetY]);
  });
  for (const name of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(name, (event) => {
      held.delete(event.pointerId);
      if (name === "pointerup" && moved < 5 && points && colours) {
        const point = nearest(event.offsetX, event.offsetY);
        if (point >= 0) go(point);
      }
    });
  }
  function go(point) {
    look(point);
    const video = videoOf(point);
    lvmae.open(video, point - firsts[video]);
  }
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(2 ** (-event.deltaY / 300), event.offsetX, event.offsetY);
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const step = 0.15 / view.zoom;
    const keys = {
      ArrowLeft: () => { view.x -= step; }, ArrowRight: () => { view.x += step; },
      ArrowUp: () => { view.y += step; }, ArrowDown: () => { view.y -= step; },
      "+": () => zoom(1.4), "=": () => zoom(1.4), "-": () => zoom(1 / 1.4),
      0: () => { view = { x: 0, y: 0, zoom: 1 }; },
      Enter: () => near >= 0 && go(near),
    };
    if (!(event.key in keys) || !points || !colours) return;
    event.preventDefault();
    keys[event.key]();
    if (event.key !== "Enter") look(nearest(canvas.clientWidth / 2, canvas.clientHeight / 2, 60));
    draw();
  });
  byId("colour").addEventListener("change", () => points && paint());
  byId("map-whole").addEventListener("click", () => {
    view = { x: 0, y: 0, zoom: 1 };
    draw();
  });
  new ResizeObserver(draw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
