// The search: a combobox whose list shows a window of the matches around the active one.

const OPTIONS_SHOWN = 8;
const search = { matches: [], active: -1 };

function findMatches() {
  const text = element("search").value.trim().toLowerCase();
  const begins = [];
  const holds = [];
  for (let unit = 0; unit < units.count; unit += 1) {
    const place = units.ids[unit].toLowerCase().indexOf(text);
    if (place === 0) begins.push(unit);
    else if (place > 0) holds.push(unit);
  }
  Object.assign(search, { matches: [...begins, ...holds], active: -1 });
  sayMatches(text === "" ? "" : `${numberText(search.matches.length)} units match`);
}

// Who sees the page sees the list; only that nothing matches must be shown.
function sayMatches(text) {
  element("matches").textContent = text;
  element("matches").classList.toggle("unseen", search.matches.length > 0);
}

function showOptions(open) {
  const first = Math.min(Math.max(search.active - OPTIONS_SHOWN + 1, 0), Math.max(search.matches.length - OPTIONS_SHOWN, 0));
  const options = search.matches.slice(first, first + OPTIONS_SHOWN).map((unit, i) => {
    const place = { "aria-posinset": first + i + 1, "aria-setsize": search.matches.length, "aria-selected": first + i === search.active };
    const option = make("li", units.ids[unit], { id: `option-${first + i}`, role: "option", ...place });
    option.addEventListener("pointerdown", (event) => {
      event.preventDefault(); // the field keeps the focus
      takeOption(unit, event.timeStamp);
    });
    return option;
  });
  element("options").replaceChildren(...options);
  const isOpen = open && options.length > 0;
  element("options").hidden = !isOpen;
  element("search").setAttribute("aria-expanded", String(isOpen));
  if (isOpen && search.active >= 0) element("search").setAttribute("aria-activedescendant", `option-${search.active}`);
  else element("search").removeAttribute("aria-activedescendant");
}

function takeOption(unit, started) {
  element("search").value = units.ids[unit];
  sayMatches("");
  showOptions(false);
  choose(unit, started);
}

function searchKey(event) {
  const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: OPTIONS_SHOWN, PageUp: -OPTIONS_SHOWN };
  if (event.key in steps) {
    event.preventDefault();
    if (element("options").hidden) findMatches();
    search.active = Math.min(Math.max(search.active + steps[event.key], 0), search.matches.length - 1);
    showOptions(true);
  } else if (event.key === "Enter") {
    if (element("options").hidden) findMatches();
    const exact = units.ids.indexOf(element("search").value.trim());
    const unit = search.active >= 0 ? search.matches[search.active] : exact >= 0 || search.matches.length !== 1 ? exact : search.matches[0];
    if (unit >= 0) takeOption(unit, event.timeStamp);
  } else if (event.key === "Escape") {
    if (element("options").hidden) element("search").value = "";
    showOptions(false);
  }
}

function listenToSearch() {
  element("search").addEventListener("input", () => {
    findMatches();
    showOptions(true);
  });
  element("search").addEventListener("keydown", searchKey);
  element("search").addEventListener("blur", () => showOptions(false));
}
