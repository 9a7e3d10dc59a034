// The planes of a scan's page: three linked views of one volume that two pictures of the page hold (planes.py).
"use strict";
(() => {
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => { d.open = true; }));
  const holder = document.getElementById("data");
  if (!holder) return;
  const data = JSON.parse(holder.textContent);
  const [nx, ny, nz] = data.size;
  const ZOOM = 3; // pixels of the canvas for a voxel: outlines are finer than voxels
  const byId = (id) => document.getElementById(id);
  const colour = Object.fromEntries(data.tissues.map((t) => [t.index, t.colour]));
  const nameOf = Object.fromEntries(data.tissues.map((t) => [t.index, t.name]));

  // The volume runs to the patient's left (x), back (y) and up (z). Columns and rows of the screen by plane:
  const planes = {
    axial: { along: 2, across: 0, down: 1, flipped: false },
    coronal: { along: 1, across: 0, down: 2, flipped: true }, // row 0 is the top
    sagittal: { along: 0, across: 1, down: 2, flipped: true },
  };
  const WORDS = [["L", "R"], ["P", "A"], ["S", "I"]]; // of a positive and a negative position, LPS
  const at = data.start.slice();
  const hidden = new Set();

  async function pixels(source) {
    const image = new Image();
    image.src = source;
    await image.decode();
    const canvas = document.createElement("canvas");
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    return context.getImageData(0, 0, canvas.width, canvas.height);
  }

  function volumeOf(picture, value) {
    const out = new Uint8Array(nx * ny * nz);
    for (let z = 0; z < nz; z++) {
      const top = Math.floor(z / data.columns) * data.tile[1];
      const left = (z % data.columns) * data.tile[0];
      for (let y = 0; y < ny; y++) {
        let from = 4 * ((top + y) * picture.width + left);
        const to = nx * (y + ny * z);
        for (let x = 0; x < nx; x++, from += 4) out[to + x] = value(picture.data[from]);
      }
    }
    return out;
  }

  function start(grey, labels) {
    const steps = [1, nx, nx * ny];
    const cut = (volume, plane) => { // one plane as rows of the screen
      const width = data.size[plane.across], height = data.size[plane.down];
      const out = new Uint8Array(width * height);
      for (let row = 0, k = 0; row < height; row++) {
        const deep = plane.flipped ? height - 1 - row : row;
        let from = at[plane.along] * steps[plane.along] + deep * steps[plane.down];
        for (let column = 0; column < width; column++, from += steps[plane.across]) out[k++] = volume[from];
      }
      return out;
    };

    function draw(plane) {
      const { canvas, buffer } = plane;
      const width = buffer.width, height = buffer.height;
      const contrast = 2 ** (byId("contrast").value / 50), brightness = 1.275 * byId("brightness").value;
      const values = cut(grey, plane), classes = cut(labels, plane);
      const image = new ImageData(width, height);
      for (let k = 0; k < values.length; k++) {
        const value = (values[k] - 127.5) * contrast + 127.5 + brightness;
        image.data.set([value, value, value, 255], 4 * k);
      }
      const paint = buffer.getContext("2d");
      paint.putImageData(image, 0, 0);
      const context = canvas.getContext("2d");
      context.imageSmoothingEnabled = true;
      context.imageSmoothingQuality = "high";
      context.drawImage(buffer, 0, 0, canvas.width, canvas.height);
      if (byId("overlay").checked) {
        context.globalAlpha = byId("opacity").value / 100;
        if (byId("outlines").checked) outline(context, classes, width, height);
        else fill(context, paint, buffer, classes, canvas);
        context.globalAlpha = 1;
      }
      if (byId("cross").checked) cross(context, plane, canvas);
      tell(plane);
    }

    function fill(context, paint, buffer, classes, canvas) {
      const image = new ImageData(buffer.width, buffer.height);
      for (let k = 0; k < classes.length; k++) {
        if (nameOf[classes[k]] && !hidden.has(classes[k])) image.data.set([...colour[classes[k]], 255], 4 * k);
      }
      paint.putImageData(image, 0, 0);
      context.imageSmoothingEnabled = false;
      context.drawImage(buffer, 0, 0, canvas.width, canvas.height);
    }

    function outline(context, classes, width, height) {
      const shown = (k) => (nameOf[classes[k]] && !hidden.has(classes[k]) ? classes[k] : 0);
      context.lineWidth = 1.4;
      for (const tissue of data.tissues) {
        context.beginPath();
        for (let row = 0; row < height; row++) {
          for (let column = 0; column < width; column++) {
            const k = row * width + column;
            if (shown(k) !== tissue.index) continue;
            const [x, y] = [column * ZOOM, row * ZOOM];
            const edge = (other, x0, y0, x1, y1) => {
              if (other !== tissue.index) { context.moveTo(x + x0, y + y0); context.lineTo(x + x1, y + y1); }
            };
            edge(column ? shown(k - 1) : 0, 0.7, 0, 0.7, ZOOM); // inside the tissue, so that two do not cover each other
            edge(column < width - 1 ? shown(k + 1) : 0, ZOOM - 0.7, 0, ZOOM - 0.7, ZOOM);
            edge(row ? shown(k - width) : 0, 0, 0.7, ZOOM, 0.7);
            edge(row < height - 1 ? shown(k + width) : 0, 0, ZOOM - 0.7, ZOOM, ZOOM - 0.7);
          }
        }
        context.strokeStyle = `rgb(${tissue.colour})`;
        context.stroke();
      }
    }

    function cross(context, plane, canvas) {
      const column = (at[plane.across] + 0.5) * ZOOM;
      const deep = plane.flipped ? data.size[plane.down] - 1 - at[plane.down] : at[plane.down];
      const row = (deep + 0.5) * ZOOM;
      context.strokeStyle = "rgba(255, 255, 255, 0.75)";
      context.lineWidth = 1;
      context.beginPath();
      for (const [x0, y0, x1, y1] of [
        [0, row, column - 12, row], [column + 12, row, canvas.width, row],
        [column, 0, column, row - 12], [column, row + 12, column, canvas.height],
      ]) { context.moveTo(x0, y0); context.lineTo(x1, y1); }
      context.stroke();
    }

    const place = (axis) => {
      const mm = data.first_mm[axis] + at[axis] * data.spacing_mm;
      return `${WORDS[axis][mm < 0 ? 1 : 0]} ${Math.abs(mm).toFixed(1)}`;
    };

    function tell(plane) {
      const slices = data.size[plane.along];
      plane.output.textContent = `${plane.title} ${at[plane.along] + 1} of ${slices}, ${place(plane.along)} mm`;
      plane.slider.value = at[plane.along];
      plane.slider.setAttribute("aria-valuetext", plane.output.textContent);
    }

    function drawAll() {
      Object.values(planes).forEach(draw);
      const label = labels[at[0] + nx * (at[1] + ny * at[2])];
      byId("under").textContent =
        `At the crosshair: ${nameOf[label] || "no tissue"} (${place(0)}, ${place(1)}, ${place(2)} mm)`;
    }
    let waiting = false;
    const soon = () => { // several events, one drawing
      if (!waiting) requestAnimationFrame(() => { waiting = false; drawAll(); });
      waiting = true;
    };
    const move = (axis, to) => { at[axis] = Math.min(Math.max(to, 0), data.size[axis] - 1); soon(); };

    function connect(key, plane) {
      const figure = document.querySelector(`[data-plane="${key}"]`);
      const width = data.size[plane.across], height = data.size[plane.down];
      plane.title = key[0].toUpperCase() + key.slice(1);
      plane.canvas = figure.querySelector("canvas");
      plane.output = figure.querySelector("output");
      plane.slider = figure.querySelector("input");
      plane.buffer = Object.assign(document.createElement("canvas"), { width, height });
      Object.assign(plane.canvas, { width: width * ZOOM, height: height * ZOOM });
      figure.style.flex = `${width} 1 0`; // one scale for all three
      plane.slider.max = data.size[plane.along] - 1;
      plane.slider.addEventListener("input", () => move(plane.along, Number(plane.slider.value)));
      plane.canvas.addEventListener("wheel", (event) => {
        event.preventDefault();
        move(plane.along, at[plane.along] - Math.sign(event.deltaY));
      }, { passive: false });
      const go = (event) => {
        const box = plane.canvas.getBoundingClientRect();
        const column = Math.floor(((event.clientX - box.left) / box.width) * width);
        const row = Math.floor(((event.clientY - box.top) / box.height) * height);
        move(plane.across, column);
        move(plane.down, plane.flipped ? height - 1 - row : row);
      };
      plane.canvas.addEventListener("pointerdown", (event) => { if (event.button === 0) go(event); });
      plane.canvas.addEventListener("pointermove", (event) => { if (event.buttons === 1) go(event); });
    }

    function reset() {
      data.start.forEach((value, axis) => { at[axis] = value; });
      for (const [id, value] of [["opacity", 100 * data.opacity], ["brightness", 0], ["contrast", 0]]) byId(id).value = value;
      for (const [id, on] of [["overlay", true], ["outlines", false], ["cross", true]]) byId(id).checked = on;
      soon();
    }

    Object.entries(planes).forEach(([key, plane]) => connect(key, plane));
    for (const id of ["overlay", "outlines", "opacity", "cross", "brightness", "contrast"]) byId(id).addEventListener("input", soon);
    byId("outlines").addEventListener("input", () => { byId("opacity").value = byId("outlines").checked ? 100 : 100 * data.opacity; });
    byId("reset").addEventListener("click", reset);
    for (const tick of document.querySelectorAll(".tick")) {
      tick.hidden = false;
      tick.addEventListener("input", () => { hidden[tick.checked ? "delete" : "add"](Number(tick.value)); soon(); });
    }
    const keys = { t: "overlay", o: "outlines", x: "cross" };
    addEventListener("keydown", (event) => {
      const id = keys[event.key.toLowerCase()];
      if (id && !event.ctrlKey && !event.metaKey && !event.altKey) byId(id).click();
    });
    byId("still").hidden = true;
    byId("live").hidden = false;
    reset();
    drawAll();
    byId("viewer").dataset.ready = "yes";
  }

  Promise.all([pixels(data.grey), pixels(data.labels)]).then(([grey, labels]) => {
    const whole = volumeOf(labels, (value) => Math.round(value / data.label_step));
    // Browsers that guard against being recognised give back noise: the still picture stays then.
    const noisy = volumeOf(labels, (value) => Math.abs(value - data.label_step * Math.round(value / data.label_step)) > 3);
    if (noisy.some((value) => value)) throw new Error("the pictures cannot be read back");
    start(volumeOf(grey, (value) => value), whole);
  }).catch((error) => {
    const note = document.createElement("p");
    note.textContent = `This browser shows the still picture only: ${error.message}.`;
    byId("viewer").append(note);
  });
})();
