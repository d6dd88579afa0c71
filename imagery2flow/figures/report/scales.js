// Colours and classes of values. Sequential scales are cividis (units) and magma (lines), the diverging one is blue to orange: readers with
// any colour vision tell their ends apart. Strong colours stand against the page, so that a dark page takes a scale from its other end.

const CIVIDIS = ["#00224e", "#1a386f", "#434e6c", "#61656f", "#7d7c78", "#9b9476", "#bcae6c", "#dec958", "#fee838"];
const MAGMA = ["#420f75", "#681c81", "#8e2a81", "#b73779", "#dc4869", "#f56b5c", "#fd9869"]; // without the ends, too pale for thin lines
const MAGMA_DARK = ["#9a3f9e", "#b73779", "#dc4869", "#f56b5c", "#fd9869", "#fec68a", "#fff0c8"];
const DIVERGING_LIGHT = ["#08519c", "#3182bd", "#9ecae1", "#d0d0d0", "#fdbe85", "#e6721e", "#993404"];
const DIVERGING_DARK = ["#9ecae1", "#4f9fd6", "#2a6496", "#55585e", "#a35a12", "#ee8a2d", "#fdd0a2"];
const UNIT_CLASSES = 7;
const LINE_WIDTHS = [0.5, 0.8, 1.2, 2, 3, 4.5]; // pixels, by class
const DIFFERENCE_WIDTHS = [0.6, 1.2, 2.4, 4.5];

function isDark() {
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

// Colours of `count` classes from the least to the largest value.
function classColours(count, diverging, scale) {
  const sequential = isDark() ? scale : [...scale].reverse(); // the end that fades into the page is the least
  const stops = diverging ? (isDark() ? DIVERGING_DARK : DIVERGING_LIGHT) : sequential;
  return Array.from({ length: count }, (_, i) => stops[Math.round((i / Math.max(count - 1, 1)) * (stops.length - 1))]);
}

// Class of a value: how many breaks it has reached.
function classOf(value, breaks) {
  let number = 0;
  while (number < breaks.length && value >= breaks[number]) number += 1;
  return number;
}

function quantile(sorted, share) {
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
}

// Breaks between classes of equally many units; around 0 where the sign matters.
function unitBreaks(values, diverging) {
  const known = Float64Array.from(values.filter((value) => !Number.isNaN(value)), (value) => (diverging ? Math.abs(value) : value)).sort();
  if (known.length === 0) return [];
  if (diverging) {
    const sides = [...new Set([0.3, 0.6, 0.85].map((share) => rounded(quantile(known, share))))].filter((value) => value > 0);
    return [...sides.map((value) => -value).reverse(), ...sides];
  }
  const shares = Array.from({ length: UNIT_CLASSES - 1 }, (_, i) => (i + 1) / UNIT_CLASSES);
  return [...new Set(shares.map((share) => rounded(quantile(known, share))))].filter((value) => value > known[0]);
}

// Three digits, so that a legend says exactly what a class holds.
function rounded(value) {
  return Number(value.toPrecision(3));
}

// The last `count` of ..., 1, 3, 10, 30, ... that lie below the largest value.
function lineBreaks(largest, count) {
  const breaks = [];
  if (largest === 0) return breaks;
  for (let power = Math.floor(Math.log10(largest)); breaks.length < count; power -= 1) {
    for (const step of [3, 1]) {
      const value = Number((step * 10 ** power).toPrecision(1));
      if (value < largest && breaks.length < count) breaks.unshift(value);
    }
  }
  return breaks;
}

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const SHORT = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

function numberText(value, missing = "unknown") {
  if (Number.isNaN(value)) return missing;
  return (Math.abs(value) >= 100 || Number.isInteger(value) ? WHOLE : SHORT).format(value).replace("-", "\u2212");
}

const TABULAR = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });

// As numberText, but with the digits of a column below each other.
function cellText(value, whole) {
  if (Number.isNaN(value)) return "unknown";
  return (whole ? WHOLE : TABULAR).format(Math.abs(value) < 0.05 ? 0 : value).replace("-", "\u2212");
}

// What each class holds, from the least to the largest.
function classTexts(breaks) {
  const texts = breaks.map((value) => numberText(value));
  if (texts.length === 0) return ["all values"];
  return [`below ${texts[0]}`, ...texts.slice(1).map((text, i) => `${texts[i]} to ${text}`), `${texts[texts.length - 1]} and more`];
}
