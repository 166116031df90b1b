"""Words of the embedded world: synonym groups, and kinds of parameters with the phrases that mention them.

Documents use the first word of a synonym group, questions the others. Which words mean the same is general knowledge,
so the base model learns it (without any tool); a pretrained model would bring it along.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue

from tirkit.embedded.values import Split, draw_integer, draw_number, say_hour, spell_integer


def _groups(text: str) -> dict[str, tuple[str, ...]]:
    return {words[0]: tuple(words[1:]) for words in map(str.split, text.strip().splitlines())}


THINGS = _groups("""
boat vessel ship craft
car automobile motor sedan
house home dwelling residence
shop store boutique outlet
road street lane highway
doctor physician medic healer
teacher tutor instructor coach
child kid youngster toddler
dog hound puppy canine
horse mare pony stallion
bird sparrow finch robin
forest woods grove jungle
river stream creek brook
mountain peak summit hill
lake pond lagoon reservoir
city town metropolis borough
farm ranch plantation estate
garden park orchard lawn
letter mail note memo
book novel volume paperback
song tune melody track
film movie picture flick
game match contest bout
meal dinner lunch supper
cake pastry tart pie
drink beverage juice soda
shirt blouse top tunic
shoe boot sandal sneaker
ring jewel bracelet necklace
chair stool bench armchair
bed bunk mattress cot
lamp lantern torch bulb
phone mobile handset cell
computer laptop desktop machine
camera webcam lens recorder
clock watch timer alarm
school college academy university
hospital clinic ward infirmary
hotel inn hostel lodge
bank lender treasury vault
factory plant mill foundry
office bureau agency studio
ticket pass voucher permit
parcel package shipment crate
contract deal agreement lease
storm tempest gale hurricane
medicine drug pill remedy
soldier trooper warrior fighter
king monarch ruler emperor
friend pal buddy mate
""")
NUMBER_ASPECTS = _groups("""
price cost charge fee
weight mass heaviness tonnage
height tallness elevation altitude
age oldness maturity seniority
speed pace velocity quickness
length extent longness stretch
width breadth broadness span
depth deepness profundity draught
heat temperature warmth hotness
score rating marks points
risk danger hazard peril
profit gain earnings income
debt liability arrears dues
delay lateness wait holdup
noise loudness din racket
strength power force might
demand need popularity appetite
capacity room space holding
distance farness remoteness gap
stock supply inventory reserve
""")
NAME_ASPECTS = _groups("""
owner holder possessor proprietor
maker creator builder producer
boss manager head chief
rival opponent competitor enemy
guard keeper watchman protector
helper assistant aide supporter
successor heir follower inheritor
founder originator starter initiator
buyer purchaser customer client
seller vendor dealer merchant
origin source birthplace root
nickname alias moniker pseudonym
partner companion associate ally
sponsor backer patron funder
inspector examiner auditor checker
""")
ASPECTS = NUMBER_ASPECTS | NAME_ASPECTS
SYNONYMS = THINGS | ASPECTS

DESCRIPTIONS = (
    *("Gives the {aspect} of a {thing}.", "Looks up the {aspect} of a {thing}."),
    *("Returns a {thing}'s {aspect}.", "{aspect} of a {thing}."),
)
SUBJECT_KEYS = ("name", "id", "label", "item", "ref", "title", "subject", "target")

Phrases = Sequence[str] | Sequence[tuple[str, str]]


@dataclass(frozen=True)
class ParameterKind:
    """A parameter other than the subject: the keys a schema may use, its values, and how sentences mention one.

    `phrases` are templates with {v}; a boolean has pairs (true, false) of whole phrases.
    """

    keys: tuple[str, ...]
    type: Literal["integer", "number", "boolean", "enum"]
    phrases: Phrases
    range: tuple[int, int] = (1, 99)
    options: tuple[str, ...] = ()
    clock: bool = False

    def schema(self) -> dict[str, JsonValue]:
        """The JSON Schema of one value."""
        return {"type": "string", "enum": list(self.options)} if self.type == "enum" else {"type": self.type}

    def draw(self, rng: random.Random, split: Split) -> JsonValue:
        """A value of this kind that belongs to the split."""
        if self.type == "integer":
            return rng.randint(*self.range) if self.clock else draw_integer(rng, *self.range, split)
        if self.type == "number":
            return draw_number(rng, split)
        return rng.choice(self.options) if self.type == "enum" else rng.random() < 0.5

    def say(self, rng: random.Random, value: JsonValue) -> str:
        """A phrase that mentions the value: an integer in digits or in words, an hour by the twelve-hour clock."""
        phrase = rng.choice(self.phrases)
        if not isinstance(phrase, str):
            return phrase[0 if value else 1]
        if isinstance(value, int) and self.clock:
            return phrase.format(v=say_hour(value))
        in_words = isinstance(value, int) and value <= 99 and rng.random() < 0.25
        return phrase.format(v=spell_integer(value) if in_words and isinstance(value, int) else value)


def _kind(keys: str, values: tuple[int, int] | str, said: str) -> ParameterKind:
    """`values`: the range of an integer, "hour", "number", or the options of an enum; `said`: phrases, cut at |."""
    phrases = tuple(said.split(" | "))
    names = tuple(keys.split())
    if values == "hour":
        return ParameterKind(names, "integer", phrases, range=(0, 23), clock=True)
    if isinstance(values, tuple):
        return ParameterKind(names, "integer", phrases, range=values)
    if values == "number":
        return ParameterKind(names, "number", phrases)
    return ParameterKind(names, "enum", phrases, options=tuple(values.split()))


def _flag(keys: str, thing: str) -> ParameterKind:
    pairs = ((f"with {thing}", f"without {thing}"), (f"including {thing}", f"excluding {thing}"))
    return ParameterKind(tuple(keys.split()), "boolean", pairs)


KINDS = (
    _kind("days num_days", (1, 99), "over {v} days | for {v} days | across {v} days | during {v} days"),
    _kind("floor floor_no", (1, 60), "on floor {v} | for floor {v} | at floor {v} | seen from floor {v}"),
    _kind("year in_year", (1900, 2099), "in the year {v} | for the year {v} | during year {v} | in year {v}"),
    _kind("people party", (1, 99), "for {v} people | with {v} people | given {v} people | shared by {v} people"),
    _kind("hour at_hour", "hour", "at {v} | from {v} | around {v} | by {v}"),
    _kind("km radius_km", "number", "within {v} km | up to {v} km | inside {v} km | in a range of {v} km"),
    _kind("kg load_kg", "number", "with {v} kg | at {v} kg | for {v} kg | loaded with {v} kg"),
    _kind("rate percent", "number", "at {v} percent | with {v} percent | for {v} percent | given {v} percent"),
    _kind("budget max_euro", "number", "for {v} euro | under {v} euro | within {v} euro | at most {v} euro"),
    _kind("season", "spring summer autumn winter", "in {v} | for {v} | during {v} | when it is {v}"),
    _kind("colour tint", "red green blue white", "in {v} | painted {v} | coloured {v} | made in {v}"),
    _kind("grade", "gold silver bronze", "at {v} grade | of {v} grade | in {v} grade | for {v} grade"),
    _kind("weekday day", "monday friday sunday", "on {v} | for {v} | next {v} | this {v}"),
    _flag("tax with_tax", "tax"),
    _flag("insured cover", "cover"),
    _flag("tips add_tips", "tips"),
    _flag("bonus has_bonus", "bonus"),
)
