// Controls, legend, search and table of the report. Data reach the page as text only (textContent), never as markup.

const OVERVIEW_LINES = 150; // drawn while no unit is chosen
const ROWS_AT_FIRST = 50;

const element = (id) => document.getElementById(id);
const report = readReport();
const { units, flows, columns, modes } = report;
const state = { mode: modes[0], column: columns[0], direction: "both", chosen: -1, sort: null, rows: [], rowsShown: ROWS_AT_FIRST };
const map = new FlowMap(element("map"), units, choose, hover);

function make(tag, text = "", attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// ---- which flows are shown

function limit(id, otherwise) {
  const { value } = element(id);
  return value === "" || Number.isNaN(Number(value)) ? otherwise : Number(value);
}

function readFilter() {
  return {
    low: limit("volume-low", 0),
    high: limit("volume-high", Infinity),
    near: limit("distance-low", 0),
    far: limit("distance-high", Infinity),
  };
}

function passes(pair, filter) {
  const volume = Math.abs(state.mode.values[pair]); // NaN, unknown, never passes
  const distance = flows.distanceKm[pair];
  return volume >= filter.low && volume <= filter.high && distance >= filter.near && distance <= filter.far;
}

// Pairs of the chosen unit that pass the filter, with their direction; the flow within the unit counts once.
function chosenPairs(filter) {
  const found = [];
  const unit = state.chosen;
  if (state.direction !== "in") {
    for (let pair = flows.start[unit]; pair < flows.start[unit + 1]; pair += 1) if (passes(pair, filter)) found.push({ pair, direction: "out" });
  }
  if (state.direction !== "out") {
    for (let i = flows.startTo[unit]; i < flows.startTo[unit + 1]; i += 1) {
      const pair = flows.byDestination[i];
      const again = flows.origin[pair] === unit && state.direction === "both";
      if (!again && passes(pair, filter)) found.push({ pair, direction: "in" });
    }
  }
  for (const row of found) {
    row.partner = row.direction === "out" ? flows.destination[row.pair] : flows.origin[row.pair];
    if (row.partner === unit) row.direction = "within";
  }
  return found;
}

// The largest flows between different units that pass the filter, found in one pass: a full buffer is cut to its largest.
function overviewPairs(filter) {
  const { values } = state.mode;
  const largest = (pairs) => pairs.sort((one, other) => Math.abs(values[other]) - Math.abs(values[one]) || one - other).slice(0, OVERVIEW_LINES);
  let [passing, least, buffer] = [0, -1, []];
  for (let pair = 0; pair < flows.count; pair += 1) {
    if (flows.origin[pair] === flows.destination[pair] || !passes(pair, filter)) continue;
    passing += 1;
    if (Math.abs(values[pair]) > least) buffer.push(pair);
    if (buffer.length < 20 * OVERVIEW_LINES) continue;
    buffer = largest(buffer);
    least = Math.abs(values[buffer[buffer.length - 1]]);
  }
  return { passing, rows: largest(buffer).map((pair) => ({ pair, direction: "out" })) };
}

function lineColours() {
  return classColours(state.mode.breaks.length + 1, state.mode.diverging, isDark() ? MAGMA_DARK : MAGMA);
}

// Lines by class and direction; the largest are drawn last, above the others.
function lineClasses(rows) {
  const { breaks, widths, values } = state.mode;
  // Thinner on a small map, and where lines of the whole region cross.
  const share = Math.min(1, Math.max(0.5, map.width / 900)) * (state.chosen < 0 ? 0.5 : 1);
  const classes = lineColours().flatMap((colour, i) => [false, true].map((dashed) => ({ colour, width: widths[i] * share, dashed, ends: [] })));
  for (const { pair, direction } of rows) {
    if (direction === "within") continue;
    const dashed = state.chosen >= 0 && state.direction === "both" && direction === "in";
    classes[2 * classOf(values[pair], breaks) + Number(dashed)].ends.push(flows.origin[pair], flows.destination[pair]);
  }
  return classes.filter(({ ends }) => ends.length > 0).sort((one, other) => one.width - other.width);
}

function showFlows() {
  const filter = readFilter();
  const overview = state.chosen < 0 ? overviewPairs(filter) : null;
  state.rows = overview ? overview.rows : chosenPairs(filter);
  map.chosen = state.chosen;
  map.frame.classList.toggle("muted", state.chosen >= 0);
  map.lines = lineClasses(state.rows);
  map.drawLines();
  element("details").hidden = state.chosen < 0;
  if (overview) announce(overviewText(overview));
  else showDetails();
}

function overviewText({ passing, rows }) {
  const which = passing > rows.length ? `the ${numberText(rows.length)} largest of ${numberText(passing)}` : `all ${numberText(passing)}`;
  return `No unit is chosen: lines are ${which} flows between different units that pass the filter (${state.mode.name}).`;
}

function announce(text) {
  element("status").textContent = text;
}

// ---- the chosen unit

// When the browser has painted what was drawn, notes how long it took since `started` (ms, as performance.now).
function measure(name, started) {
  requestAnimationFrame(() => setTimeout(() => performance.measure(name, { start: started, end: performance.now() })));
}

function choose(unit, started = performance.now()) {
  Object.assign(state, { chosen: unit, rowsShown: ROWS_AT_FIRST });
  if (unit >= 0) map.reveal(unit);
  showFlows();
  if (unit >= 0) measure("report:click-to-lines", started);
}

function hover(unit) {
  const value = unit < 0 ? "" : `: ${state.column.name} ${numberText(state.column.values[unit], "no value")}`;
  element("readout").textContent = unit < 0 ? "" : units.ids[unit] + value;
}

function showDetails() {
  const id = units.ids[state.chosen];
  const counts = { out: 0, in: 0, within: 0 };
  for (const { direction } of state.rows) counts[direction] += 1;
  element("chosen").textContent = `Unit ${id}`;
  const facts = [
    ...units.texts.map(({ name, values }) => [name, values[state.chosen]]),
    ...columns.filter((column) => column.group === "Flows" || column === state.column).map(({ name, values }) => [name, numberText(values[state.chosen], "no value")]),
  ];
  element("facts").replaceChildren(
    ...facts.map(([name, value]) => {
      const fact = make("div");
      fact.append(make("dt", name), make("dd", value));
      return fact;
    }),
  );
  sortRows();
  showTable();
  const within = counts.within ? ", and the flow within it" : "";
  announce(`Unit ${id} is chosen: ${numberText(counts.out)} flows out of it, ${numberText(counts.in)} into it${within} (${state.mode.name}).`);
}

// ---- the table of flows

function tableColumns() {
  return [
    { name: "Direction", text: (row) => row.direction, value: (row) => row.direction },
    { name: "Other unit", partner: true, text: (row) => units.ids[row.partner], value: (row) => units.ids[row.partner] },
    { name: "Distance (km)", number: true, value: (row) => flows.distanceKm[row.pair] },
    ...modes.map((mode) => ({ name: mode.name, number: true, whole: mode.name === "observed", value: (row) => mode.values[row.pair] })),
  ];
}

// By the column that was asked for, else by the size of what the lines show; unknown values come last.
function sortRows() {
  const sort = state.sort ?? { name: state.mode.name, descending: true };
  const { value, number } = tableColumns().find(({ name }) => name === sort.name);
  const sign = sort.descending ? -1 : 1;
  const key = (row) => (state.sort === null ? Math.abs(value(row)) : value(row));
  state.rows.sort((one, other) => {
    const [a, b] = [key(one), key(other)];
    if (!number) return sign * (a < b ? -1 : Number(a > b));
    return Number.isNaN(a) - Number.isNaN(b) || sign * (a - b) || one.pair - other.pair;
  });
}

function showTable() {
  const shown = state.rows.slice(0, state.rowsShown);
  const shape = tableColumns();
  const head = make("tr");
  for (const column of shape) head.append(headCell(column));
  element("flows").tHead.replaceChildren(head);
  element("flows").tBodies[0].replaceChildren(...shown.map((row) => tableRow(row, shape)));
  const many = `${numberText(shown.length)} of ${numberText(state.rows.length)} flows`;
  element("flows-caption").textContent = `Flows of unit ${units.ids[state.chosen]} that pass the filter, in commuters (${many})`;
  element("more").hidden = shown.length === state.rows.length;
}

function headCell(column) {
  const sorted = state.sort?.name === column.name;
  const cell = make("th", "", { scope: "col", class: column.number ? "number" : "" });
  if (sorted) cell.setAttribute("aria-sort", state.sort.descending ? "descending" : "ascending");
  const button = make("button", column.name + (sorted ? (state.sort.descending ? " \u25be" : " \u25b4") : ""), { type: "button" });
  button.addEventListener("click", () => {
    state.sort = { name: column.name, descending: sorted ? !state.sort.descending : Boolean(column.number) };
    sortRows();
    showTable();
    const again = [...element("flows").tHead.querySelectorAll("button")][tableColumns().findIndex(({ name }) => name === column.name)];
    again.focus();
  });
  cell.append(button);
  return cell;
}

function tableRow(row, shape) {
  const line = make("tr");
  for (const column of shape) {
    const cell = make("td", "", { class: column.number ? "number" : "" });
    if (column.partner && row.direction !== "within") {
      const button = make("button", column.text(row), { type: "button", "aria-label": `Choose unit ${column.text(row)}` });
      button.addEventListener("click", (event) => {
        choose(row.partner, event.timeStamp);
        element("chosen").focus(); // the table is a new one, and the button gone
      });
      cell.append(button);
    } else cell.textContent = column.number ? cellText(column.value(row), column.whole) : column.text(row);
    line.append(cell);
  }
  return line;
}

// ---- legend and colours

function colourUnits() {
  const { values, diverging } = state.column;
  const breaks = unitBreaks(values, diverging);
  const colours = classColours(breaks.length + 1, diverging, CIVIDIS);
  const missing = map.colour("--missing");
  map.colours = Array.from(values, (value) => (Number.isNaN(value) ? missing : colours[classOf(value, breaks)]));
  const entries = classTexts(breaks).map((text, i) => [text, colours[i]]);
  if (values.some(Number.isNaN)) entries.push(["no value", missing]);
  element("unit-title").textContent = `Units: ${state.column.name}`;
  element("unit-classes").replaceChildren(
    ...entries.map(([text, colour]) => {
      const swatch = make("span", "", { class: "swatch" });
      swatch.style.background = colour;
      const entry = make("li");
      entry.append(swatch, make("span", text));
      return entry;
    }),
  );
  const classes = diverging ? "" : "Classes hold about equally many units. ";
  element("unit-hint").textContent = `${classes}While a unit is chosen, colours are paler.`;
}

function lineLegend() {
  const { name, breaks, widths, diverging } = state.mode;
  const colours = lineColours();
  element("line-title").textContent = `Lines: ${name} (commuters of a pair)`;
  element("line-classes").replaceChildren(
    ...classTexts(breaks).map((text, i) => {
      const stroke = make("span", "", { class: "stroke" });
      stroke.style.borderTop = `${Math.max(widths[i], 1)}px solid ${colours[i]}`;
      const entry = make("li");
      entry.append(stroke, make("span", text));
      return entry;
    }),
  );
  const dashes = "Solid: out of the chosen unit; dashed: into it. Lines bend to the right of the commuters' way. ";
  element("line-hint").textContent = dashes + (diverging ? "Blue: too few are predicted; orange: too many." : "");
  element("volume-legend").textContent = diverging ? "Difference of a pair, whatever its sign" : "Commuters of a pair";
}

function recolour() {
  colourUnits();
  lineLegend();
  map.lines = lineClasses(state.rows);
  map.schedule();
}

// ---- beginning

function fillSelect(select, items, chosen) {
  const groups = new Map();
  for (const [index, { name, group }] of items.entries()) {
    if (group && !groups.has(group)) groups.set(group, select.appendChild(Object.assign(document.createElement("optgroup"), { label: group })));
    (groups.get(group) ?? select).append(make("option", name, { value: String(index) }));
  }
  select.addEventListener("change", () => chosen(items[Number(select.value)]));
}

function begin() {
  fillSelect(element("mode"), modes, (mode) => {
    Object.assign(state, { mode, sort: null });
    lineLegend();
    showFlows();
  });
  fillSelect(element("column"), columns, (column) => {
    state.column = column;
    recolour();
    if (state.chosen >= 0) showDetails();
  });
  for (const radio of document.querySelectorAll("input[name=direction]")) {
    radio.addEventListener("change", () => {
      state.direction = radio.value;
      showFlows();
    });
  }
  const limits = document.querySelectorAll("input[type=number]");
  for (const field of limits) field.addEventListener("input", showFlows);
  element("reset").addEventListener("click", () => {
    for (const field of limits) field.value = "";
    showFlows();
  });
  listenToSearch();
  element("zoom-in").addEventListener("click", () => map.zoom(1.6));
  element("zoom-out").addEventListener("click", () => map.zoom(1 / 1.6));
  element("zoom-all").addEventListener("click", () => map.showAll());
  element("clear").addEventListener("click", () => {
    choose(-1);
    element("search").focus();
  });
  element("more").addEventListener("click", () => {
    state.rowsShown += 4 * ROWS_AT_FIRST;
    showTable();
  });
  element("filters").open = !matchMedia("(max-width: 48rem)").matches;
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
  recolour();
  showFlows();
  measure("report:first-map", 0);
}

begin();
