// Smoothing and means of curves: plain functions of arrays, in which null marks a gap.

// The distance along x that each point stands for: half of that between its neighbors. Equal ones share theirs.
function spacings(x) {
  const least = 1e-9 * (x.at(-1) - x[0]) || 1;
  return x.map((value, k) => ((x[k + 1] ?? value) - (x[k - 1] ?? value)) / 2 + least);
}

// Weighted means of the values around, or before, each point:
//   exponential: weights spacing * exp(-(x_k - x_j) / width) of j <= k; their sum divides, so that there is no bias to 0;
//   gaussian: weights spacing * exp(-(x_k - x_j)^2 / (2 width^2)) of all j.
function smoothed(x, y, kind, width) {
  const known = y.map((_, k) => k).filter((k) => y[k] !== null).sort((a, b) => x[a] - x[b]);
  const places = known.map((k) => x[k]);
  const weights = spacings(places);
  const made = y.map(() => null);
  let [sum, total] = [0, 0];
  known.forEach((k, at) => {
    if (kind === "exponential") {
      const kept = at ? Math.exp((places[at - 1] - places[at]) / width) : 0;
      sum = kept * sum + weights[at] * y[k];
      total = kept * total + weights[at];
    } else {
      [sum, total] = [0, 0];
      for (const step of [-1, 1])
        for (let j = step < 0 ? at : at + 1; j >= 0 && j < places.length && Math.abs(places[j] - places[at]) <= 5 * width; j += step) {
          const weight = weights[j] * Math.exp(-(((places[j] - places[at]) / width) ** 2) / 2);
          sum += weight * y[known[j]];
          total += weight;
        }
    }
    made[k] = sum / total;
  });
  return made;
}

// The value of a curve at each of some places, by linear interpolation; null outside of the curve.
function interpolated(x, y, places) {
  const known = y.map((_, k) => k).filter((k) => y[k] !== null && x[k] !== null).sort((a, b) => x[a] - x[b]);
  let at = 0;
  return places.map((place) => {
    while (at + 1 < known.length && x[known[at + 1]] <= place) at += 1;
    const [one, other] = [known[at], known[at + 1]];
    if (one === undefined || place < x[one]) return null;
    if (place === x[one]) return y[one];
    return other === undefined ? null : y[one] + ((y[other] - y[one]) * (place - x[one])) / (x[other] - x[one]);
  });
}

// The mean of curves [x, y] and its band at common places: a 95 % t-interval of the mean, or the smallest and the largest.
function meanOf(curves, band, most = 200) {
  const all = [...new Set(curves.flatMap(([x, y]) => x.filter((place, k) => place !== null && y[k] !== null)))].sort((a, b) => a - b);
  const places = all.filter((_, k) => all.length <= most || Math.floor((k * most) / all.length) !== Math.floor(((k - 1) * most) / all.length) || k === all.length - 1);
  const values = curves.map(([x, y]) => interpolated(x, y, places));
  const made = { x: places, y: [], low: [], high: [], n: [] };
  places.forEach((_, k) => {
    const found = values.map((each) => each[k]).filter((value) => value !== null);
    const mean = found.reduce((sum, value) => sum + value, 0) / found.length;
    const variance = found.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (found.length - 1);
    const half = found.length > 1 ? quantile(found.length - 1) * Math.sqrt(variance / found.length) : null;
    made.y.push(mean);
    made.n.push(found.length);
    made.low.push(band === "range" ? Math.min(...found) : half === null ? null : mean - half);
    made.high.push(band === "range" ? Math.max(...found) : half === null ? null : mean + half);
  });
  return made;
}

// The quantile of 97.5 % of Student's t distribution.
const quantile = (freedom) => state.data.student[Math.min(freedom, state.data.student.length) - 1];
