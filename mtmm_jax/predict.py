"""`python -m mtmm_jax.predict --workdir runs/emoji --image a.png --text apple --audio a.wav`.

Of many samples: `--manifest rows.jsonl --out predictions.jsonl`. Of several runs fused:
`--workdirs runs/a,runs/b`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtmm_jax.command import console, guarded, prepare_jax
from mtmm_jax.predict_rows import about_labels, about_many, ask_many, label_rows


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m mtmm_jax.predict",
        description="What a trained model says of one sample, or of each row of a manifest.",
        epilog="Each modality of the run is an option, for emoji: --image FILE --text WORDS "
        '--audio FILE. Any may be left out. A table is JSON: {"column": value}; a series is a .csv '
        "or .npy file.",
        allow_abbrev=False,
    )
    p.add_argument("--workdir", help="the run's folder")
    p.add_argument(
        "--workdirs", help="several runs fused: folders parted by commas, or that of an ensemble"
    )
    p.add_argument("--rule", help="of --workdirs: mean (default), product or max")
    p.add_argument(
        "--explain",
        metavar="FOLDER",
        nargs="?",
        const="",
        help="why: what each input and its parts added; a page and pictures in FOLDER "
        "(default: WORKDIR/explained)",
    )
    p.add_argument("--task", nargs="+", help="of --explain: these tasks only")
    p.add_argument("--json", action="store_true", help="print JSON instead of text")
    p.add_argument(
        "--manifest", help="a .jsonl or .csv with a column for each modality, a row a sample"
    )
    p.add_argument("--exported", help="of --manifest: a file of mtmm_jax.export, for --workdir")
    p.add_argument("--out", help="of --manifest: the .jsonl to write, a line a row, in order")
    p.add_argument("--on_bad", help="of --manifest: skip (default) bad rows, or stop at the first")
    p.add_argument("--batch", type=int, help="of --manifest: rows at a time, 64 by default")
    p.add_argument(
        "--label",
        metavar="MANIFEST",
        help="write its rows to --out with the labels that the run is sure of, to train on, and "
        "beside it, as OUT.ask.jsonl, the rows most worth a person's look",
    )
    p.add_argument("--least", type=float, help="of --label: how sure, a probability (0.9)")
    p.add_argument("--ask", type=int, help="of --label: how many rows to ask about (50)")
    p.add_argument("--by", help="of --label: uncertainty by entropy (default) or margin")
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    arguments, rest = parser().parse_known_args(argv)
    prepare_jax()

    from mtmm_jax.runs.fused import one_of, open_ensemble, remarks
    from mtmm_jax.training.finished import open_run
    from mtmm_jax.training.workdir import Workdir

    if about_labels(arguments, rest):
        return label_rows(arguments)
    if arguments.exported:
        _alone(arguments)
        together = False
    else:
        together = one_of(arguments.workdir, arguments.workdirs, arguments.rule)
    _check_explain(arguments, together)
    if about_many(arguments, rest):
        return ask_many(arguments)
    notes: list[str] = []
    if together:
        ensemble = open_ensemble(arguments.workdirs.split(","), arguments.rule)
        answers = ask_together(ensemble, rest)
        notes = remarks(ensemble.rule, ensemble.used, {})
    else:
        inputs = read_inputs(rest, Workdir.at(arguments.workdir))
        run = open_run(arguments.workdir)
        if arguments.explain is not None:
            return explain(run, inputs, arguments)
        answers = ask(run, inputs)
    if arguments.json:
        print(json.dumps(answers, indent=1))
    else:
        show(answers)
        for note in notes:
            console().print(note, highlight=False, soft_wrap=True)
    return 0


def read_inputs(rest: Sequence[str], workdir: Any) -> dict[str, Any]:
    """The files and texts on the command line as the inputs of a batch of one."""
    return _read(_given(rest, _modalities(workdir)), workdir)


def _modalities(workdir: Any) -> list[str]:
    """Those that a run reads."""
    encoders = workdir.read("config.json")["model"]["encoders"]
    return [name for name in workdir.spec().modalities if encoders.get(name) is not None]


def _given(rest: Sequence[str], modalities: Sequence[str]) -> dict[str, str]:
    """Modality -> what the command line gives of it: one or more."""
    from mtmm_jax.registry import ConfigError, choose

    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in modalities:
        options.add_argument(f"--{name}")
    try:
        given, unknown = options.parse_known_args(rest)
    except argparse.ArgumentError as error:
        raise ConfigError(str(error)) from error
    for word in unknown:
        choose(word.split("=")[0].lstrip("-"), modalities, "predict", "modality")
    found = {name: value for name, value in vars(given).items() if value is not None}
    if not found:
        raise ConfigError(
            f"predict: give one or more of: {', '.join('--' + m for m in modalities)}"
        )
    return found


def _read(given: Mapping[str, str], workdir: Any) -> dict[str, Any]:
    """Files and texts as a run's data would give them."""
    from mtmm_jax.data.readers import READERS
    from mtmm_jax.training.requests import read_one

    spec, inputs = workdir.spec(), {}
    for name, value in given.items():
        modality = spec.modalities[name]
        if modality.kind not in READERS:
            inputs[name] = read_one(name, value, workdir)
            continue
        extra = (workdir.tokenizer(name),) if modality.kind == "text" else ()
        inputs[name] = READERS[modality.kind](value, modality, *extra)
    return inputs


def ask_together(ensemble: Any, rest: Sequence[str]) -> dict[str, Any]:
    """`{task: what a person reads}` of fused runs; each sees what it has an encoder for."""
    from mtmm_jax.runs.ensembles import answers, predict

    own = [_modalities(run.workdir) for run in ensemble.runs]
    given = _given(rest, list(dict.fromkeys(name for names in own for name in names)))
    inputs = [
        _read({name: value for name, value in given.items() if name in names}, run.workdir)
        for run, names in zip(ensemble.runs, own, strict=True)
    ]
    (told,) = predict(ensemble, inputs)
    return answers(ensemble, told)


def ask(run: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """`{task: what a person reads}`; a task that cannot be done says what it needs."""
    from mtmm_jax.training import asking

    return asking.ask(run, inputs)


def _check_explain(arguments: argparse.Namespace, together: bool) -> None:
    from mtmm_jax.registry import ConfigError

    if arguments.explain is None:
        if arguments.task is not None:
            raise ConfigError("--task: belongs to --explain")
        return
    if together or arguments.manifest or arguments.exported:
        raise ConfigError("--explain: explains one sample of one run: --workdir, and its inputs")


def explain(run: Any, inputs: Mapping[str, Any], arguments: argparse.Namespace) -> int:
    """Prints why a run says what it says of one sample, and writes the page."""
    from mtmm_jax.analysis import explanation, explanation_page

    out = console()
    with out.status("explaining"):
        told = explanation.explain(run, inputs, arguments.task)
    if arguments.json:
        print(json.dumps(explanation.as_json(told), indent=1))
    else:
        for one in told:
            lines = explanation_page.sentences(run, one)
            out.print("\n  ".join(lines), highlight=False)
    folder = Path(arguments.explain or run.workdir.path / "explained")
    for path in explanation_page.save(run, told, inputs, folder):
        if not arguments.json:
            out.print(path, soft_wrap=True, highlight=False)
    return 0


def _alone(arguments: argparse.Namespace) -> None:
    from mtmm_jax.registry import ConfigError

    for option in ("workdir", "workdirs", "rule"):
        if getattr(arguments, option) is not None:
            raise ConfigError(f"--{option}: not with --exported, which stands for a run")
    if arguments.manifest is None:
        raise ConfigError("--exported: is asked about the rows of a --manifest")


def show(answers: Mapping[str, Any]) -> None:
    """A line or a few for each task."""
    out = console()
    for task, answer in answers.items():
        out.print(f"[bold]{task}[/bold]", highlight=False)
        if "needs" in answer:
            out.print(f"  not without {', '.join(answer['needs'])}")
        elif "left out" in answer:
            out.print(f"  not fused: {answer['left out']}", highlight=False)
        elif "best" in answer:
            for name, probability in answer["best"].items():
                bar = "█" * round(30 * probability)
                out.print(f"  {probability:6.1%}  {name}  [blue]{bar}[/blue]", highlight=False)
        elif "file" in answer:
            out.print(f"  {answer['seconds']:.1f} s in {answer['file']}", highlight=False)
        elif "prediction" in answer:
            out.print(f"  {answer['prediction']:.1f}", highlight=False)
        for pair, value in answer.get("similarity", {}).items():
            out.print(f"  {pair} similarity {value:.2f}", highlight=False)
        for pair, found in answer.get("nearest", {}).items():
            names = ", ".join(f"{name} ({score:.2f})" for name, score in found.items())
            out.print(f"  {pair}: {names}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
