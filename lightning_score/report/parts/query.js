// Queries that read like Python: `config.model.sampler.steps < 50 and fid < 2 and "ncsn" in name and tag == "good"`.
// As in query.py: a value that a run lacks is undefined; so is what is computed from it, and the run does not match.
const TOKEN = /[ \t\r\n]*((?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?![\w.])|"[^"\\\n]*"|'[^'\\\n]*'|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*|[<>=!]=|[<>()[\],-])/y;
const FIELDS = { name: "name", state: "state", note: "note", notes: "notes", archived: "archived", tag: "tags" };
const CONSTANTS = { True: true, False: false, None: null };
const isNumber = (value) => typeof value === "number" || typeof value === "boolean";
const isEqual = (a, b) => (isNumber(a) && isNumber(b) ? Number(a) === Number(b)
  : Array.isArray(a) && Array.isArray(b) ? a.length === b.length && a.every((each, i) => isEqual(each, b[i])) : a === b);
const isIn = (a, b) => (Array.isArray(b) ? b.some((each) => isEqual(a, each)) : typeof a === typeof b && typeof b === "string" ? b.includes(a) : undefined);
const ordered = (holds) => (a, b) => (isNumber(a) && isNumber(b) ? holds(Number(a), Number(b)) : typeof a === "string" && typeof b === "string" ? holds(a, b) : undefined);
const OPERATORS = { "==": isEqual, in: isIn, "<": ordered((a, b) => a < b), "<=": ordered((a, b) => a <= b), ">": ordered((a, b) => a > b), ">=": ordered((a, b) => a >= b) };
const NEGATED = { "!=": "==", "not in": "in" };
const truth = (value) => (value === undefined ? undefined : value !== null && typeof value === "object" ? Object.keys(value.tags ?? value).length > 0 : Boolean(value));
const opposite = (value) => (truth(value) === undefined ? undefined : !truth(value));
const joined = (values, decides) => (values.some((each) => each === decides) ? decides : values.includes(undefined) ? undefined : !decides);

// A comparison; one of a tag holds if it holds for one of the tags of the run.
function compared(sign, a, b) {
  if (NEGATED[sign]) return opposite(compared(NEGATED[sign], a, b));
  if (a === undefined || b === undefined) return undefined;
  for (const [side, pair] of [[a, (tag) => [tag, b]], [b, (tag) => [a, tag]]])
    if (side?.tags) return side.tags.some((tag) => compared(sign, ...pair(tag)));
  return OPERATORS[sign](a, b);
}

// What a query may name: how it is read from a run, by name.
function namesOf(runs) {
  const names = new Map(Object.entries(FIELDS).map(([name, key]) => [name, (run) => (key === "tags" ? { tags: run.tags } : run[key])]));
  for (const { settings, values } of runs) {
    for (const key in values) if (!names.has(key)) names.set(key, (run) => run.values[key]);
    for (const key in settings) names.set(`config.${key.replace(/[^\w.]/g, "_")}`, (run) => run.settings[key]);
  }
  return names;
}

// A function that tells the truth of a query for a run, or an error with what is wrong.
function parsedQuery(text, names) {
  const tokens = [];
  for (TOKEN.lastIndex = 0; text.slice(TOKEN.lastIndex).trim(); ) {
    const rest = text.slice(TOKEN.lastIndex).trim();
    const found = TOKEN.exec(text);
    if (!found) throw new Error(`cannot be read from ${rest.slice(0, 30)}`);
    tokens.push(found[1]);
  }
  const next = (...signs) => (signs.includes(tokens[0]) ? tokens.shift() : null);
  const expect = (sign) => next(sign) ?? fail(`${sign} is missing`);
  const fail = (why) => { throw new Error(`${why} ${tokens.length ? `before ${tokens[0]}` : "at the end"}`); };
  const series = (word, part, decides) => {
    const parts = [part()];
    while (next(word)) parts.push(part());
    return parts.length === 1 ? parts[0] : (run) => joined(parts.map((each) => truth(each(run))), decides);
  };
  const either = () => series("or", both, true);
  const both = () => series("and", negation, false);
  const negation = () => (next("not") ? ((part) => (run) => opposite(part(run)))(negation()) : comparison());
  const comparison = () => {
    const parts = [operand()];
    const signs = [];
    for (let sign; (sign = next("<", "<=", ">", ">=", "==", "!=", "in") ?? (tokens[1] === "in" && next("not") && `not ${next("in")}`)); ) {
      signs.push(sign);
      parts.push(operand());
    }
    return signs.length ? (run) => ((values) => joined(signs.map((sign, i) => compared(sign, values[i], values[i + 1])), false))(parts.map((each) => each(run))) : parts[0];
  };
  const list = (end) => {
    const items = [];
    let comma = true;
    for (; comma && tokens[0] !== end; comma = next(",")) items.push(either());
    expect(end);
    return [items, comma];
  };
  const operand = () => {
    const token = tokens[0] ?? fail("a value is missing");
    if (["not", "and", "or", "in", ")", "]", ","].includes(token) || (token in OPERATORS || token in NEGATED)) fail("a value is missing");
    tokens.shift();
    if (token === "-") return ((part) => (run) => (isNumber(part(run)) ? -part(run) : undefined))(operand());
    if (token === "(" || token === "[") {
      const [items, comma] = list(token === "(" ? ")" : "]");
      return token === "(" && items.length === 1 && !comma ? items[0] : (run) => items.map((each) => each(run));
    }
    if (/^["']/.test(token)) return () => token.slice(1, -1);
    if (/^[.\d]/.test(token)) return () => Number(token);
    if (Object.hasOwn(CONSTANTS, token)) return () => CONSTANTS[token];
    return names.get(token) ?? unknownName(token, names);
  };
  const query = either();
  if (tokens.length) fail("and, or or a comparison is missing");
  return (run) => truth(query(run)) === true;
}

function unknownName(name, names) {
  const pairs = (text) => new Set([...` ${text.toLowerCase()}`].map((sign, i, all) => sign + (all[i + 1] ?? " ")));
  const own = pairs(name);
  const alike = (other) => [...pairs(other)].filter((pair) => own.has(pair)).length / (own.size + pairs(other).size);
  const near = [...names.keys()].map((each) => [alike(each), each]).filter(([share]) => share > 0.15).sort(([a], [b]) => b - a);
  throw new Error(`no run has ${name}${near.length ? `; near: ${near.slice(0, 3).map(([, each]) => each).join(", ")}` : ""}`);
}
