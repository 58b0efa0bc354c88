"""The JSON documents in which `predict` answers, whatever it is given: one schema, versioned.

One sample, `predict --json`, of a run (`--workdir`) or of several fused (`--workdirs`):

    {"format": 1, "answers": {TASK: ANSWER, ...}}

Each row of a manifest, a line of `--out`, of a run, of several, or of an exported file
(`--exported`), which gives the same documents as the run that it is of:

    {"format": 1, "line": 3, "id": "a7", "answers": {TASK: ANSWER, ...}}
    {"format": 1, "line": 4, "id": 4, "error": "things.jsonl, line 4: is not JSON"}

`line` is that of the manifest, `id` its own column or else the line. An ANSWER has the keys of
`ANSWER` that its kind of task gives, and others only of kinds that the package does not have:

    {"prediction": "pear", "probability": 0.8, "best": {"pear": 0.8, "apple": 0.2}}
    {"prediction": 12.5, "std": 1.2}
    {"boxes": [{"class": "cup", "score": 0.9, "box": [0.1, 0.2, 0.4, 0.5]}], "best": {...}}
    {"needs": ["text"]}                                  none of what the task reads is there

Labels (`--label`) stay a manifest to train on: each row as it was, and for each label a column
LABEL, the `prediction` of the task's answer, and LABEL_confidence, its `probability`; of a number
the confidence is null. In `OUT.ask.jsonl` a row also has `row`, its line, `uncertainty`, from 0 to
1, and `likely`, for each label some `best`.

Two keys depend on where an answer is given. `nearest` needs the gallery in a run's folder, which an
exported file does not carry. `outputs`, the arrays of a prediction, stand in for a whole answer
where an exported file is of a kind of task that cannot be decoded without its model
(`Task.answer`); no kind of the package is.

FORMAT grows when a key changes its meaning or goes; new keys may come without that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtmm_jax.ranges import Count, Natural, NonNegative, Real, Share
from mtmm_jax.registry import ConfigError, check, choose, short
from mtmm_jax.tasks.synthesis import write_wave
from mtmm_jax.tasks.task import Task, modalities_of
from mtmm_jax.text import piece_of

FORMAT = 1
Box = Mapping[str, Any]
ANSWER: dict[str, Any] = {
    "prediction": str | Real | Sequence[str] | Sequence[Real],
    "probability": Share,
    "best": Mapping[str, Share],
    "std": NonNegative,
    "boxes": Sequence[Box],
    "mask": Sequence[Sequence[Natural]],
    "path": Sequence[Sequence[Real]],
    "values": Sequence[Any],
    "similarity": Mapping[str, Real],
    "nearest": Mapping[str, Mapping[str, Real]],
    "file": str,
    "seconds": NonNegative,
    "needs": Sequence[str],
    "left out": str,
    "outputs": Mapping[str, Any],
}
"""Key of an answer -> its type: class, number or text, or several classes; its probability; the
likeliest alternatives; a number's standard deviation; what is where, as y0, x0, y1, x1 in shares of
the picture; a class for each pixel; points; values of an input; cosines; rows of the gallery; a
sound, as a file, and how long it is; what is missing; why runs are not fused; plain arrays."""
DOCUMENT: dict[str, Any] = {
    "format": Count,
    "line": Count,
    "id": str | Real,
    "answers": Mapping[str, Mapping[str, Any]],
    "error": str,
}


def document(answers: Mapping[str, Any] | None = None, **about: Any) -> dict[str, Any]:
    """The JSON document of one sample's answers.

    Args:
        answers: `{task: answer}`; None where there are none.
        **about: `line` and `id` of a row, and its `error`.
    """
    return {"format": FORMAT, **about, **({} if answers is None else {"answers": answers})}


def check_document(found: Mapping[str, Any], where: str = "document") -> None:
    """Raises a `ConfigError` that names the first part which is not of the schema.

    Keys of answers that the schema does not have may be those of made-up kinds, and pass.
    """
    for key, value in found.items():
        choose(key, DOCUMENT, where, "key")
        check(value, DOCUMENT[key], f"{where}.{key}")
    if found.get("format") != FORMAT:
        raise ConfigError(f"{where}.format: {short(found.get('format'))} is not {FORMAT}")
    if len({"answers", "error"} & found.keys()) != 1:
        raise ConfigError(f"{where}: needs either answers or an error; has: {', '.join(found)}")
    for task, answer in found.get("answers", {}).items():
        for key in answer.keys() & ANSWER.keys():
            check(answer[key], ANSWER[key], f"{where}.answers.{task}.{key}")


def answers(
    tasks: Mapping[str, Task],
    encoders: Iterable[str],
    present: set[str],
    decode: Callable[[str], dict[str, Any]],
    *,
    heard: Callable[[str], Path],
    tokenizers: Mapping[str, Any],
    nearest: Callable[[str, list[str]], dict[str, Any]] = lambda task, here: {},
) -> dict[str, Any]:
    """`{task: answer}` of one sample.

    Args:
        tasks: those that answer.
        encoders: the modalities that the model reads.
        present: the modalities that the sample has.
        decode: task -> what its kind decodes from the prediction.
        heard: task -> the file for its wave.
        tokenizers: task -> what writes its words, of those whose `best` are ids of tokens.
        nearest: `(task, those of its reads that are there) -> {pair: {name: cosine}}`.
    """
    found: dict[str, Any] = {}
    for name, task in tasks.items():
        here = [r for r in task.reads if set(modalities_of(r, encoders)) & present]
        whole = len(here) == len(task.reads)
        one = decode(name) if whole else {}
        if name in tokenizers and "best" in one:
            one["best"] = named(tokenizers[name], one["best"])
        if "wave" in one:
            file = heard(name)
            write_wave(file, one.pop("wave"), one.pop("rate"))
            one["file"] = str(file)
        if close := nearest(name, here):
            one["nearest"] = close
        found[name] = one if one or whole else {"needs": [r for r in task.reads if r not in here]}
    return found


def named(tokenizer: Any, best: Mapping[str, float]) -> dict[str, float]:
    """Pieces of words for their ids, without the marks of where a word begins or continues."""

    found: dict[str, float] = {}
    for i, p in best.items():
        piece = piece_of(tokenizer, int(i)).removeprefix("##").replace("\u2581", "")
        found[piece] = found.get(piece, 0.0) + p
    return found
