"""What the base stage teaches: general skills, no tools.

Documents here are forms about made-up words, drawn fresh for every sample; things of the dictionary occur only in
paraphrases. So whatever a model later knows about a catalogue, it learned from the catalogue.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import JsonValue

from tirkit.embedded import phrases, templates, values
from tirkit.embedded.phrases import ParameterKind
from tirkit.embedded.values import Split
from tirkit.embedded.world import draw_addition, draw_parameters, draw_tool_name
from tirkit.text.dialects import Dialect, print_document
from tirkit.types import Message, StopReason, ToolCall, ToolSchema, Trajectory, Turn

DIALECT = Dialect(index=None)


@dataclass(frozen=True)
class Form:
    """A made-up document to be filled and a sentence's part about it."""

    schema: ToolSchema
    subject: str
    extras: dict[str, ParameterKind]


def conversation(skill: str, question: str, *turns: tuple[tuple[str, ...], str]) -> Trajectory:
    """A trajectory of one skill: each turn is what a tool hands over before it and what the assistant writes.

    The first turn's handed-over texts follow the question in the prompt.
    """
    handed = [tuple(Message(role="tool", content=text) for text in texts) for texts, _ in turns]
    replies = [*handed[1:], ()]
    return Trajectory(
        task_id=skill,
        prompt=(Message(role="user", content=question), *handed[0]),
        turns=tuple(Turn(text=text, reply=reply) for (_, text), reply in zip(turns, replies, strict=True)),
        stop=StopReason.ANSWERED,
    )


def paraphrase(rng: random.Random, split: Split) -> Trajectory:
    """Says in plain words what a word, a phrase, a question or a description is about.

    Plain words occur in the input too, and half the time nothing asks for the rewording: what is said in either way
    must come to mean the same wherever a request stands.
    """
    aspect, thing = rng.choice(list(phrases.ASPECTS)), rng.choice(list(phrases.THINGS))
    said_aspect = rng.choice((aspect, *phrases.ASPECTS[aspect]))
    said_thing = rng.choice((thing, *phrases.THINGS[thing]))
    plain = f"{aspect} of {thing}"
    style = rng.randrange(8)
    if style == 0:
        said, plain = rng.choice(((said_aspect, aspect), (said_thing, thing)))
        return conversation("paraphrase", f"Reword: {said}", ((), DIALECT.print_answer(plain)))
    if style == 1:
        text = f"{said_aspect} of {said_thing}"
    elif style <= 3:
        text = rng.choice(phrases.DESCRIPTIONS).format(aspect=said_aspect, thing=said_thing)
    else:
        _, rest = draw_rest(rng, draw_form(rng).extras, split)
        fields = {"aspect": said_aspect, "thing": said_thing, "name": values.draw_name(rng, split), "rest": rest}
        text = rng.choice(templates.SINGLE[split]).format(**fields)
    cue = rng.choice(("", "", "Reword: ", "Reword, think first: "))
    think = f"{said_aspect} of {said_thing} means {plain}" if "think" in cue else ""
    return conversation("paraphrase", cue + text, ((), DIALECT.print_answer(plain, think)))


def paraphrase_two(rng: random.Random, split: Split) -> Trajectory:
    """Says in plain words what the first or the second half of a request in two steps is about."""
    plains, thoughts, fields = [], [], {"name": values.draw_name(rng, split)}
    for part in ("", "2"):
        aspect, thing = rng.choice(list(phrases.ASPECTS)), rng.choice(list(phrases.THINGS))
        words = {"aspect": rng.choice(phrases.ASPECTS[aspect]), "thing": rng.choice(phrases.THINGS[thing])}
        _, words["rest"] = draw_rest(rng, draw_form(rng).extras, split)
        fields |= {f"{key}{part}": word for key, word in words.items()}
        plains.append(f"{aspect} of {thing}")
        thoughts.append(f"{words['aspect']} of {words['thing']} means {plains[-1]}")
    text = rng.choice(templates.TWO_STEP[split]).format(**fields)
    half = rng.randrange(2)
    cue = f"Reword the {('first', 'second')[half]}, think first: "
    return conversation("paraphrase_two", cue + text, ((), DIALECT.print_answer(plains[half], thoughts[half])))


def repeat(rng: random.Random, split: Split) -> Trajectory:
    """Repeats made-up words and numbers; dense practice in copying."""
    words = [draw_result(rng, split) for _ in range(rng.randint(1, 5))]
    return conversation("repeat", f"Repeat: {' '.join(words)}", ((), DIALECT.print_answer(" ".join(words))))


def normalise(rng: random.Random, split: Split) -> Trajectory:
    """Reads a number word or an hour of the twelve-hour clock."""
    if rng.random() < 0.3:
        value = rng.randint(0, 23)
        said = values.say_hour(value)
    else:
        value = values.draw_integer(rng, 0, 99, split)
        said = values.spell_integer(value)
    return conversation("normalise", f"As a number: {said}", ((), DIALECT.print_answer(str(value))))


def addition(rng: random.Random, split: Split) -> Trajectory:
    """Adds two numbers by columns, operands restated first."""
    kind = rng.choice(("arithmetic_easy", "arithmetic_hard", "arithmetic_hard"))
    task = draw_addition(rng, kind, split)
    target = DIALECT.print_answer(task.answer or "", task.thoughts[0])
    return conversation("addition", task.prompt[0].content, ((), target))


def remark(rng: random.Random, split: Split) -> Trajectory:
    """Replies to a remark."""
    text, reply = rng.choice(templates.REMARKS[split])
    name = values.draw_name(rng, split)
    return conversation("remark", text.format(name=name), ((), DIALECT.print_answer(reply.format(name=name))))


def draw_form(rng: random.Random) -> Form:
    """A form with a made-up name and description; its parameters are of the known kinds or made up as well."""
    kinds = [*rng.sample(phrases.KINDS, 4), made_up_kind(rng), made_up_kind(rng)]
    subject, extras, parameters = draw_parameters(rng, kinds)
    text = rng.choice(phrases.DESCRIPTIONS).format(aspect=values.draw_word(rng, 2), thing=values.draw_word(rng, 2))
    description = text[0].upper() + text[1:]
    schema = ToolSchema(name=draw_tool_name(rng, ()), description=description, parameters=parameters)
    return Form(schema, subject, extras)


def made_up_kind(rng: random.Random) -> ParameterKind:
    """A parameter whose key is a made-up word that the sentence says too."""
    key = values.draw_word(rng, rng.choice((1, 2)))
    sentences = (f"with {key} {{v}}", f"at {key} {{v}}", f"for {{v}} {key}")
    if rng.random() < 0.6:
        return ParameterKind((key,), "integer", sentences, range=rng.choice(((1, 99), (100, 2999))))
    return ParameterKind((key,), "enum", sentences, options=tuple(values.draw_word(rng, 2) for _ in range(3)))


def draw_rest(rng: random.Random, extras: dict[str, ParameterKind], split: Split) -> tuple[dict[str, JsonValue], str]:
    """Values of parameters, and the end of a sentence that mentions them."""
    drawn = {key: kind.draw(rng, split) for key, kind in extras.items()}
    said = " and ".join(kind.say(rng, drawn[key]) for key, kind in extras.items())
    return drawn, said and f" {said}"


def fill_form(rng: random.Random, split: Split, form: Form, name: str) -> tuple[dict[str, str], str]:
    """The words of a sentence about a form, and the call that fills it."""
    drawn, rest = draw_rest(rng, form.extras, split)
    words = {"aspect": values.draw_word(rng, 2), "thing": values.draw_word(rng, 2), "rest": rest}
    every = {form.subject: name, **drawn}
    call = ToolCall(name=form.schema.name, arguments={key: every[key] for key in property_keys(form)})
    return words, DIALECT.print_calls([call])


def fill(rng: random.Random, split: Split) -> Trajectory:
    """Fills one form, handed over after the question, with the question's values; then repeats the result."""
    form, name = draw_form(rng), values.draw_name(rng, split)
    words, call = fill_form(rng, split, form, name)
    question = rng.choice(templates.SINGLE[split]).format(name=name, **words)
    result = draw_result(rng, split)
    answer = DIALECT.print_answer(result)
    return conversation("fill", question, ((print_document(form.schema),), call), ((result,), answer))


def fill_two(rng: random.Random, split: Split) -> Trajectory:
    """Fills one form, then a second one with the first's result."""
    first, second = draw_form(rng), draw_form(rng)
    name, found, result = values.draw_name(rng, split), values.draw_name(rng, split), draw_result(rng, split)
    words, call = fill_form(rng, split, first, name)
    words2, call2 = fill_form(rng, split, second, found)
    words |= {f"{key}2": word for key, word in words2.items()}
    question = rng.choice(templates.TWO_STEP[split]).format(name=name, **words)
    return conversation(
        "fill_two",
        question,
        ((print_document(first.schema),), call),
        ((found, print_document(second.schema)), call2),
        ((result,), DIALECT.print_answer(result)),
    )


def property_keys(form: Form) -> list[str]:
    """The form's keys in the document's order."""
    properties = form.schema.parameters["properties"]
    assert isinstance(properties, dict)
    return list(properties)


def kind_text(kind: ParameterKind | None) -> str:
    """What a sentence says about the type of a key; None is the subject."""
    return "string" if kind is None else " ".join(kind.options) or kind.type


def draw_result(rng: random.Random, split: Split) -> str:
    """What filling a form gives: a number or a name."""
    return str(rng.randint(10, 999)) if rng.random() < 0.5 else values.draw_name(rng, split)


def describe(rng: random.Random, split: Split) -> Trajectory:
    """Writes the document of a form from its parts."""
    form = draw_form(rng)
    said = [f"{key} {kind_text(form.extras.get(key))}" for key in property_keys(form)]
    question = f"Document {form.schema.name} : {form.schema.description} {' ; '.join(said)}"
    return conversation("describe", question, ((), print_document(form.schema)))


SKILLS: dict[str, tuple[Callable[[random.Random, Split], Trajectory], float]] = {
    "repeat": (repeat, 0.05),
    "paraphrase": (paraphrase, 0.35),
    "paraphrase_two": (paraphrase_two, 0.1),
    "normalise": (normalise, 0.05),
    "addition": (addition, 0.17),
    "remark": (remark, 0.03),
    "fill": (fill, 0.14),
    "fill_two": (fill_two, 0.08),
    "describe": (describe, 0.03),
}


def draw_sample(rng: random.Random, split: Split) -> Trajectory:
    """A sample of a random skill."""
    draws, shares = zip(*SKILLS.values(), strict=True)
    return rng.choices(draws, shares)[0](rng, split)


def draw_replay(rng: random.Random) -> Trajectory:
    """A training sample to mix among tool questions: none that answers such a question with a rewording."""
    while True:
        sample = draw_sample(rng, "train")
        if sample.task_id != "paraphrase" or sample.prompt[0].content.startswith("Reword"):
            return sample
