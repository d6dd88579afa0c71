// The map: units on one canvas, lines on another above it, so that a click redraws lines only.

const FINEST_ZOOM = 200; // times the scale that shows everything
const BEND = 0.1; // of a line's length, by which its control point lies beside it
const CLICK_PIXELS = 5; // a pointer that moves less has clicked

class FlowMap {
  constructor(frame, units, onChoose, onHover) {
    this.frame = frame;
    this.units = units;
    this.base = frame.querySelector("#base");
    this.overlay = frame.querySelector("#lines");
    this.colours = []; // of each unit
    this.lines = []; // classes {colour, width, dashed, ends: [from, to, from, to, ...]}, the least first
    this.chosen = -1;
    this.onChoose = onChoose;
    this.onHover = onHover;
    this.pointers = new Map();
    this.listen();
    this.resize();
    new ResizeObserver(() => this.resize()).observe(frame);
  }

  listen() {
    const { frame } = this;
    frame.addEventListener("pointerdown", (event) => this.press(event));
    frame.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) frame.addEventListener(name, (event) => this.release(event));
    frame.addEventListener("pointerleave", () => this.onHover(-1));
    frame.addEventListener("keydown", (event) => this.key(event));
    frame.addEventListener(
      "wheel",
      (event) => {
        if (document.activeElement !== frame && !event.ctrlKey) return; // the page scrolls
        event.preventDefault();
        this.zoom(Math.exp(-event.deltaY / 400), ...this.position(event));
      },
      { passive: false },
    );
  }

  // Keeps what is in the middle there; the first time shows everything.
  resize() {
    const ratio = Math.min(devicePixelRatio || 1, 2);
    const { clientWidth: width, clientHeight: height } = this.frame;
    if (width === 0 || (this.width === width && this.height === height && this.ratio === ratio)) return;
    const centre = this.view && [(this.width / 2 - this.view.x) / this.view.scale, (this.height / 2 - this.view.y) / this.view.scale];
    Object.assign(this, { width, height, ratio });
    for (const canvas of [this.base, this.overlay]) Object.assign(canvas, { width: width * ratio, height: height * ratio });
    if (centre === undefined) this.showAll();
    else this.setView(this.view.scale, width / 2 - centre[0] * this.view.scale, height / 2 - centre[1] * this.view.scale);
  }

  showAll() {
    const { units } = this;
    this.leastScale = 0.94 * Math.min(this.width / Math.max(units.width, 1), this.height / Math.max(units.height, 1));
    const scale = this.leastScale;
    this.setView(scale, (this.width - units.width * scale) / 2, (this.height - units.height * scale) / 2);
  }

  setView(scale, x, y) {
    this.view = { scale, x, y };
    this.schedule();
  }

  zoom(factor, x = this.width / 2, y = this.height / 2) {
    const { view } = this;
    const scale = Math.min(Math.max(view.scale * factor, this.leastScale * 0.5), this.leastScale * FINEST_ZOOM);
    const ratio = scale / view.scale;
    this.setView(scale, x - (x - view.x) * ratio, y - (y - view.y) * ratio);
  }

  pan(x, y) {
    this.setView(this.view.scale, this.view.x + x, this.view.y + y);
  }

  // Brings a unit into the picture if it lies outside of it.
  reveal(unit) {
    const x = this.units.x[unit] * this.view.scale + this.view.x;
    const y = this.units.y[unit] * this.view.scale + this.view.y;
    if (x < 0 || y < 0 || x > this.width || y > this.height) this.pan(this.width / 2 - x, this.height / 2 - y);
  }

  position(event) {
    const box = this.frame.getBoundingClientRect();
    return [event.clientX - box.left - this.frame.clientLeft, event.clientY - box.top - this.frame.clientTop];
  }

  unitAt(x, y) {
    const mapX = (x - this.view.x) / this.view.scale;
    const mapY = (y - this.view.y) / this.view.scale;
    for (let unit = 0; unit < this.units.count; unit += 1) if (contains(this.units, unit, mapX, mapY)) return unit;
    return -1;
  }

  press(event) {
    if (event.button !== 0) return;
    this.frame.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, this.position(event));
    this.moved = this.pointers.size > 1 ? Infinity : 0;
  }

  move(event) {
    const [x, y] = this.position(event);
    const before = this.pointers.get(event.pointerId);
    if (!before) {
      this.onHover(this.unitAt(x, y));
      return;
    }
    const other = [...this.pointers].find(([id]) => id !== event.pointerId);
    this.moved += Math.hypot(x - before[0], y - before[1]);
    if (other) {
      const [otherX, otherY] = other[1];
      const factor = Math.hypot(x - otherX, y - otherY) / Math.max(Math.hypot(before[0] - otherX, before[1] - otherY), 1);
      this.zoom(factor, otherX, otherY);
    } else if (this.moved > CLICK_PIXELS) this.pan(x - before[0], y - before[1]);
    this.pointers.set(event.pointerId, [x, y]);
  }

  release(event) {
    if (!this.pointers.delete(event.pointerId) || event.type === "pointercancel" || this.moved > CLICK_PIXELS) return;
    this.onChoose(this.unitAt(...this.position(event)), event.timeStamp);
  }

  key(event) {
    const step = 60;
    const actions = {
      ArrowLeft: () => this.pan(step, 0),
      ArrowRight: () => this.pan(-step, 0),
      ArrowUp: () => this.pan(0, step),
      ArrowDown: () => this.pan(0, -step),
      "+": () => this.zoom(1.4),
      "=": () => this.zoom(1.4),
      "-": () => this.zoom(1 / 1.4),
      0: () => this.showAll(),
      Enter: () => this.onChoose(this.unitAt(this.width / 2, this.height / 2), event.timeStamp),
      Escape: () => this.onChoose(-1, event.timeStamp),
    };
    if (!(event.key in actions) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    actions[event.key]();
  }

  schedule() {
    if (this.isScheduled) return;
    this.isScheduled = true;
    requestAnimationFrame(() => {
      this.isScheduled = false;
      this.drawUnits();
      this.drawLines();
    });
  }

  drawUnits() {
    const context = this.base.getContext("2d");
    const { scale, x, y } = this.view;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.base.width, this.base.height);
    context.setTransform(scale * this.ratio, 0, 0, scale * this.ratio, x * this.ratio, y * this.ratio);
    context.lineWidth = 0.5 / scale;
    context.strokeStyle = this.colour("--border");
    for (let unit = 0; unit < this.units.count; unit += 1) {
      const [left, top, right, bottom] = this.units.boxes[unit];
      if (right * scale + x < 0 || bottom * scale + y < 0 || left * scale + x > this.width || top * scale + y > this.height) continue;
      context.fillStyle = this.colours[unit];
      context.fill(this.units.paths[unit], "evenodd");
      context.stroke(this.units.paths[unit]);
    }
  }

  drawLines() {
    const context = this.overlay.getContext("2d");
    const { scale, x, y } = this.view;
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    for (const { colour, width, dashed, ends } of this.lines) {
      context.beginPath();
      for (let i = 0; i < ends.length; i += 2) {
        this.trace(context, ends[i], ends[i + 1]);
      }
      context.setLineDash(dashed ? [4 + width, 3 + width] : []);
      context.lineWidth = width;
      context.strokeStyle = colour;
      context.stroke();
    }
    context.setLineDash([]);
    if (this.chosen < 0) return;
    context.setTransform(scale * this.ratio, 0, 0, scale * this.ratio, x * this.ratio, y * this.ratio);
    context.lineWidth = 3 / scale;
    context.strokeStyle = this.colour("--chosen");
    context.stroke(this.units.paths[this.chosen]);
  }

  // A line that bends to the right of its way, so that the flows of a pair in both directions lie beside each other.
  trace(context, from, to) {
    const { scale, x, y } = this.view;
    const [fromX, fromY] = [this.units.x[from] * scale + x, this.units.y[from] * scale + y];
    const [toX, toY] = [this.units.x[to] * scale + x, this.units.y[to] * scale + y];
    context.moveTo(fromX, fromY);
    context.quadraticCurveTo((fromX + toX) / 2 - BEND * (toY - fromY), (fromY + toY) / 2 + BEND * (toX - fromX), toX, toY);
  }

  colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }
}
