// Parse prompts of the pocket world: fsalign_lib/pocket/captions.py, with its words from constants.json.

const article = (word) => ("aeiou".includes(word[0]) ? "an" : "a");

/** Return a map from each caption that the grammar can say to its fact, as `all_facts` and `caption` make them. */
export function captions({ animals, colors, counts, places }) {
  const found = new Map(), names = Object.keys(animals);
  for (const animal of names) {
    const single = `${article(animal)} ${animal}`;
    found.set(animal, { animal }).set(single, { animal });
    for (const color of colors) found.set(`${article(color)} ${color} colored ${animal}`, { animal, color });
    for (const second of names) {
      if (second !== animal) found.set(`${single} and ${article(second)} ${second}`, { animal, second });
    }
    for (const [place, where] of Object.entries(places)) found.set(`${single} ${where}`, { animal, place });
    for (const [count, word] of Object.entries(counts)) {
      const several = `${word} ${animals[animal]}`;
      found.set(several, { animal, count: Number(count) });
      for (const [place, where] of Object.entries(places)) {
        found.set(`${several} ${where}`, { animal, count: Number(count), place });
      }
    }
  }
  return found;
}

// What Python's str.split() splits at.
const SPACE = /[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/;

/** Bring a prompt to the form in which `captions` has it. */
export const plain = (prompt) => prompt.toLowerCase().split(SPACE).filter(Boolean).join(" ");

/** Write a text as Python's repr does, for texts without control characters. */
function quoted(text) {
  const mark = text.includes("'") && !text.includes('"') ? '"' : "'";
  return mark + text.replaceAll("\\", "\\\\").replaceAll(mark, `\\${mark}`) + mark;
}

/** Return the fact of a prompt, or throw an Error with the grammar's own message. */
export function parse(known, message, prompt) {
  const fact = known.get(plain(prompt));
  if (!fact) throw new Error(message.replace("{prompt}", () => quoted(prompt)));
  return fact;
}

/** Return the tokens of a prompt of the grammar: begin, a token a word, end, and the padding, which is `end` too. */
export function tokens(tokenizer, prompt) {
  const words = plain(prompt).split(" ").map((word) => tokenizer.words[word]);
  const padding = Array(tokenizer.length - words.length - 1).fill(tokenizer.end);
  return [tokenizer.begin, ...words, ...padding];
}
