// The report's data: typed arrays out of base64, flows by origin and by destination, distances.

const EARTH_RADIUS_KM = 6371.009; // mean radius, IUGG
const RADIANS = Math.PI / 180;

function unpacked(text, ArrayType) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i += 1) bytes[i] = binary.charCodeAt(i);
  return new ArrayType(bytes.buffer);
}

function readReport() {
  const content = JSON.parse(document.getElementById("report-data").textContent);
  const units = readUnits(content.units);
  const flows = readFlows(content.flows, units);
  const columns = content.columns.map((column) => ({ ...column, values: unpacked(column.values, Float32Array) }));
  return { units, flows, columns, modes: readModes(content.flows) };
}

function readUnits(packed) {
  const kinds = { longitude: Float64Array, latitude: Float64Array, x: Float32Array, y: Float32Array, vertices: Uint16Array, ring_start: Uint32Array, unit_start: Uint32Array };
  const arrays = Object.fromEntries(Object.entries(kinds).map(([name, kind]) => [name, unpacked(packed[name], kind)]));
  const units = { ...packed, ...arrays, count: packed.ids.length };
  units.paths = Array.from({ length: units.count }, (_, unit) => outlineOf(units, unit));
  units.boxes = Array.from({ length: units.count }, (_, unit) => boxOf(units, unit));
  return units;
}

function outlineOf(units, unit) {
  const path = new Path2D();
  const { vertices } = units;
  for (let ring = units.unit_start[unit]; ring < units.unit_start[unit + 1]; ring += 1) {
    for (let i = units.ring_start[ring]; i < units.ring_start[ring + 1]; i += 1) {
      if (i === units.ring_start[ring]) path.moveTo(vertices[2 * i], vertices[2 * i + 1]);
      else path.lineTo(vertices[2 * i], vertices[2 * i + 1]);
    }
    path.closePath();
  }
  return path;
}

function boxOf(units, unit) {
  const box = [Infinity, Infinity, -Infinity, -Infinity];
  for (let i = units.ring_start[units.unit_start[unit]]; i < units.ring_start[units.unit_start[unit + 1]]; i += 1) {
    for (const axis of [0, 1]) {
      const value = units.vertices[2 * i + axis];
      box[axis] = Math.min(box[axis], value);
      box[axis + 2] = Math.max(box[axis + 2], value);
    }
  }
  return box;
}

// Whether a point lies in a unit: how often a ray to the right crosses its rings.
function contains(units, unit, x, y) {
  const [left, top, right, bottom] = units.boxes[unit];
  if (x < left || x > right || y < top || y > bottom) return false;
  let inside = false;
  for (let ring = units.unit_start[unit]; ring < units.unit_start[unit + 1]; ring += 1) {
    const first = units.ring_start[ring];
    const last = units.ring_start[ring + 1] - 1;
    for (let i = first, j = last; i <= last; j = i, i += 1) {
      const [xi, yi, xj, yj] = [units.vertices[2 * i], units.vertices[2 * i + 1], units.vertices[2 * j], units.vertices[2 * j + 1]];
      if (yi > y !== yj > y && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) inside = !inside;
    }
  }
  return inside;
}

// Pairs are sorted by origin; `byDestination` lists them sorted by destination (counting sort).
function readFlows(packed, units) {
  const start = unpacked(packed.start, Uint32Array);
  const destination = unpacked(packed.destination, Uint32Array);
  const count = destination.length;
  const origin = new Uint32Array(count);
  for (let unit = 0; unit < units.count; unit += 1) origin.fill(unit, start[unit], start[unit + 1]);
  const startTo = new Uint32Array(units.count + 1);
  for (const unit of destination) startTo[unit + 1] += 1;
  for (let unit = 0; unit < units.count; unit += 1) startTo[unit + 1] += startTo[unit];
  const next = startTo.slice();
  const byDestination = new Uint32Array(count);
  for (let pair = 0; pair < count; pair += 1) byDestination[next[destination[pair]]++] = pair;
  return { count, start, origin, destination, startTo, byDestination, distanceKm: distances(origin, destination, units) };
}

function distances(origin, destination, units) {
  const cosine = Float64Array.from(units.latitude, (latitude) => Math.cos(latitude * RADIANS));
  const { longitude, latitude } = units;
  return Float32Array.from(origin, (from, pair) => {
    const to = destination[pair];
    const north = Math.sin(((latitude[to] - latitude[from]) * RADIANS) / 2) ** 2;
    const east = Math.sin(((longitude[to] - longitude[from]) * RADIANS) / 2) ** 2;
    return 2 * EARTH_RADIUS_KM * Math.asin(Math.min(1, Math.sqrt(north + cosine[from] * cosine[to] * east)));
  });
}

// What lines can show: observed flows, each decoder's, and what it predicts too many.
function readModes(packed) {
  const observed = packed.observed === null ? null : unpacked(packed.observed, Float32Array);
  const predicted = packed.predicted.map(({ name, values }) => ({ name, values: unpacked(values, Float32Array), diverging: false }));
  const differences = predicted.map(({ name, values }) => ({
    name: `${name} minus observed`,
    values: observed && values.map((value, pair) => value - observed[pair]),
    diverging: true,
  }));
  const modes = observed ? [{ name: "observed", values: observed, diverging: false }, ...predicted, ...differences] : predicted;
  for (const mode of modes) {
    const breaks = lineBreaks(mode.diverging ? packed.top_difference : packed.top_flow, mode.diverging ? DIFFERENCE_WIDTHS.length - 1 : LINE_WIDTHS.length - 1);
    // The same breaks in modes that compare.
    mode.breaks = mode.diverging ? [...breaks.map((value) => -value).reverse(), ...breaks] : breaks;
    const below = DIFFERENCE_WIDTHS.slice(1).reverse();
    mode.widths = mode.diverging ? [...below, ...DIFFERENCE_WIDTHS] : LINE_WIDTHS;
  }
  return modes;
}
