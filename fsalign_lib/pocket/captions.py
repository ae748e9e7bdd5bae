"""Say and parse what the pocket world can show: animals, colours, counts, places; list the prompt sets.

The 45 animals are the training prompts of SDPO (App. A.1); the axes of unseen prompts (colour, count, composition,
location) are those of SDPO Sec. 4.2. A `Fact` says what a prompt asks for; `caption` says it in words. One in seven
combinations is held out of every training set, by a rule on the fact alone, so no list has to be kept.
"""

import random
import zlib
from dataclasses import dataclass

# name -> OpenMoji code point
ANIMAL_CODES = {
    "cat": "1F408",
    "dog": "1F436",
    "horse": "1F40E",
    "monkey": "1F412",
    "rabbit": "1F407",
    "zebra": "1F993",
    "spider": "1F577",
    "bird": "1F426",
    "sheep": "1F411",
    "deer": "1F98C",
    "cow": "1F404",
    "goat": "1F410",
    "lion": "1F981",
    "tiger": "1F405",
    "bear": "1F43B",
    "raccoon": "1F99D",
    "fox": "1F98A",
    "wolf": "1F43A",
    "lizard": "1F98E",
    "beetle": "1FAB2",
    "ant": "1F41C",
    "butterfly": "1F98B",
    "fish": "1F41F",
    "shark": "1F988",
    "whale": "1F433",
    "dolphin": "1F42C",
    "squirrel": "1F43F",
    "mouse": "1F42D",
    "rat": "1F400",
    "snake": "1F40D",
    "turtle": "1F422",
    "frog": "1F438",
    "chicken": "1F414",
    "duck": "1F986",
    "goose": "1FABF",
    "bee": "1F41D",
    "pig": "1F416",
    "turkey": "1F983",
    "fly": "1FAB0",
    "llama": "1F999",
    "camel": "1F42B",
    "bat": "1F987",
    "gorilla": "1F98D",
    "hedgehog": "1F994",
    "kangaroo": "1F998",
}
ANIMALS = tuple(ANIMAL_CODES)
IRREGULAR_PLURALS = {
    "wolf": "wolves",
    "mouse": "mice",
    "goose": "geese",
    "sheep": "sheep",
    "deer": "deer",
    "fish": "fish",
    "fox": "foxes",
    "fly": "flies",
    "butterfly": "butterflies",
}
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
COUNTS = {2: "two", 3: "three", 4: "four"}
PLACES = {
    "moon": "on the moon",
    "beach": "on the beach",
    "snow": "in the snow",
    "forest": "in the forest",
    "desert": "in the desert",
    "park": "in the park",
    "ocean": "in the ocean",
    "night": "at night",
}
KINDS = ("animal", "color", "count", "composition", "place", "count+place")
KIND_WEIGHTS = (0.40, 0.14, 0.14, 0.12, 0.14, 0.06)
HELD_OUT_ONE_IN = 7


@dataclass(frozen=True)
class Fact:
    """Hold what a prompt asks for and a scene shows. `second` is the other animal of a composition."""

    animal: str
    second: str | None = None
    color: str | None = None
    count: int = 1
    place: str | None = None

    @property
    def kind(self) -> str:
        """Return which part of the grammar the fact belongs to."""
        if self.second:
            return "composition"
        if self.color:
            return "color"
        if self.count > 1:
            return "count+place" if self.place else "count"
        return "place" if self.place else "animal"

    @property
    def held_out(self) -> bool:
        """Tell whether this combination is kept out of training. Single animals never are."""
        if self.kind == "animal":
            return False
        key = "|".join(str(v) for v in (self.animal, self.second, self.color, self.count, self.place))
        return zlib.crc32(key.encode()) % HELD_OUT_ONE_IN == 0


def article(word: str) -> str:
    """Return "a" or "an", as the word wants."""
    return "an" if word[0] in "aeiou" else "a"


def caption(fact: Fact, bare: bool = False) -> str:
    """Put the fact into words. `bare` drops the article of a single animal: "cat" in place of "a cat"."""
    if fact.kind == "animal" and bare:
        return fact.animal
    if fact.second:
        return f"{article(fact.animal)} {fact.animal} and {article(fact.second)} {fact.second}"
    if fact.count > 1:
        words = f"{COUNTS[fact.count]} {IRREGULAR_PLURALS.get(fact.animal, fact.animal + 's')}"
    elif fact.color:
        words = f"{article(fact.color)} {fact.color} colored {fact.animal}"
    else:
        words = f"{article(fact.animal)} {fact.animal}"
    return f"{words} {PLACES[fact.place]}" if fact.place else words


def random_fact(rng: random.Random, held_out: bool = False, kinds=KINDS, weights=KIND_WEIGHTS) -> Fact:
    """Draw a fact from the grammar: a held-out combination if `held_out`, otherwise one of the others."""
    while True:
        kind = rng.choices(kinds, weights)[0]
        animal = rng.choice(ANIMALS)
        fact = Fact(
            animal=animal,
            second=rng.choice([a for a in ANIMALS if a != animal]) if kind == "composition" else None,
            color=rng.choice(COLORS) if kind == "color" else None,
            count=rng.choice(tuple(COUNTS)) if kind.startswith("count") else 1,
            place=rng.choice(tuple(PLACES)) if kind.endswith("place") else None,
        )
        if fact.held_out == held_out:
            return fact


def parse(prompt: str) -> Fact:
    """Parse a caption to its fact, the inverse of `caption`.

    Raises:
        ValueError: the prompt is not in the grammar of the pocket world.
    """
    fact = _PARSED.get(" ".join(prompt.lower().split()))
    if fact is None:
        raise ValueError(
            f"prompt {prompt!r} is not in the pocket world's grammar; write it like 'a cat', 'a green colored rabbit', "
            f"'four wolves', 'a cat and a dog' or 'a dog on the moon' with one of the 45 animals"
        )
    return fact


def all_facts() -> list[Fact]:
    """Yield every fact that the grammar can say, held out or not."""
    facts = [Fact(a) for a in ANIMALS]
    facts += [Fact(a, color=c) for a in ANIMALS for c in COLORS]
    facts += [Fact(a, count=n) for a in ANIMALS for n in COUNTS]
    facts += [Fact(a, place=p) for a in ANIMALS for p in PLACES]
    facts += [Fact(a, count=n, place=p) for a in ANIMALS for n in COUNTS for p in PLACES]
    facts += [Fact(a, second=b) for a in ANIMALS for b in ANIMALS if a != b]
    return facts


_PARSED = {caption(f): f for f in all_facts()} | {a: Fact(a) for a in ANIMALS}


def _distinct(seed: int, count: int, **grammar) -> list[str]:
    rng, found = random.Random(seed), {}
    while len(found) < count:
        found[caption(random_fact(rng, **grammar))] = None
    return list(found)


def prompts(name: str) -> list[str]:
    """Return a prompt set by name, always the same list.

    - "animals": the 45 animals, "a cat".
    - "train": 400 prompts that training may use (seen combinations of every kind).
    - "test-pickapic": 100 prompts from the training distribution that are not in "train" apart from single animals:
      in the place of Pick-a-Pic's test prompts, which are drawn like its training prompts.
    - "test-heldout": 100 prompts of held-out combinations that no network has seen: in Parti's place.

    Raises:
        ValueError: unknown name.
    """
    if name == "animals":
        return [caption(Fact(a)) for a in ANIMALS]
    if name == "train":
        return _distinct(1, 400)
    if name == "test-pickapic":
        seen = {p for p in prompts("train") if parse(p).kind != "animal"}
        return [p for p in _distinct(2, 300) if p not in seen][:100]
    if name == "test-heldout":
        return _distinct(3, 100, held_out=True, kinds=KINDS[1:], weights=KIND_WEIGHTS[1:])
    raise ValueError(f"unknown prompt set {name!r}; choose one of animals, train, test-pickapic, test-heldout")
