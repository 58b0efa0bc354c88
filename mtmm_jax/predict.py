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

from mtmm_jax.command import console, guarded, prepare_jax, trust_option


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m mtmm_jax.predict",
        description="Predictions of a trained model for one sample, or for each row of a manifest.",
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
        "next to it, as OUT.ask.jsonl, the rows most worth a person's look",
    )
    p.add_argument("--least", type=float, help="of --label: how sure, a probability (0.9)")
    p.add_argument("--ask", type=int, help="of --label: how many rows to ask about (50)")
    p.add_argument("--by", help="of --label: uncertainty by entropy (default) or margin")
    trust_option(p)
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    arguments, rest = parser().parse_known_args(argv)
    prepare_jax()

    from mtmm_jax.inference.answers import document
    from mtmm_jax.inference.finished import open_run
    from mtmm_jax.inference.sample import read_inputs
    from mtmm_jax.runs.fused import one_of, open_ensemble, remarks
    from mtmm_jax.store.files import finite
    from mtmm_jax.store.workdir import Workdir

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
        ensemble = open_ensemble(
            arguments.workdirs.split(","), arguments.rule, bool(arguments.trust_paths)
        )
        answers = ask_together(ensemble, rest)
        notes = remarks(ensemble.rule, ensemble.used, {})
    else:
        inputs = read_inputs(rest, Workdir.at(arguments.workdir))
        run = open_run(arguments.workdir)
        if arguments.explain is not None:
            return explain(run, inputs, arguments)
        answers = ask(run, inputs)
    if arguments.json:
        print(json.dumps(finite(document(answers)), indent=1))
    else:
        show(answers)
        for note in notes:
            console().print(note, highlight=False, soft_wrap=True)
    return 0


def ask_together(ensemble: Any, rest: Sequence[str]) -> dict[str, Any]:
    """`{task: what a person reads}` of fused runs; each sees what it has an encoder for."""
    from mtmm_jax.inference.sample import given_inputs, modalities_read, read_values
    from mtmm_jax.runs.ensembles import answers, predict

    own = [modalities_read(run.workdir) for run in ensemble.runs]
    given = given_inputs(rest, list(dict.fromkeys(name for names in own for name in names)))
    inputs = [
        read_values({name: value for name, value in given.items() if name in names}, run.workdir)
        for run, names in zip(ensemble.runs, own, strict=True)
    ]
    (prediction,) = predict(ensemble, inputs)
    return answers(ensemble, prediction)


def ask(run: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """`{task: prediction}` for a reader; a task that cannot be predicted names what it needs."""
    from mtmm_jax.inference import prediction

    return prediction.ask(run, inputs)


def _check_explain(arguments: argparse.Namespace, together: bool) -> None:
    from mtmm_jax.registry import ConfigError

    if arguments.explain is None:
        if arguments.task is not None:
            raise ConfigError("--task: belongs to --explain")
        return
    if together or arguments.manifest or arguments.exported:
        raise ConfigError("--explain: explains one sample of one run: --workdir, and its inputs")


def explain(run: Any, inputs: Mapping[str, Any], arguments: argparse.Namespace) -> int:
    """Prints the explanation of a run's predictions for one sample, and writes the page."""
    from mtmm_jax.analysis import explanation, explanation_page

    out = console()
    with out.status("explaining"):
        explanations = explanation.explain(run, inputs, arguments.task)
    if arguments.json:
        print(json.dumps(explanation.as_json(explanations), indent=1))
    else:
        for one in explanations:
            lines = explanation_page.sentences(run, one)
            out.print("\n  ".join(lines), highlight=False)
    folder = Path(arguments.explain or run.workdir.path / "explained")
    for path in explanation_page.save(run, explanations, inputs, folder):
        if not arguments.json:
            out.print(path, soft_wrap=True, highlight=False)
    return 0


def _alone(arguments: argparse.Namespace) -> None:
    from mtmm_jax.registry import ConfigError

    for option in ("workdir", "workdirs", "rule"):
        if getattr(arguments, option) is not None:
            raise ConfigError(f"--{option}: not with --exported, which stands for a run")
    if arguments.manifest is None:
        raise ConfigError("--exported: predicts the rows of a --manifest only")


def show(answers: Mapping[str, Any]) -> None:
    """A line or a few for each task."""
    from rich.text import Text

    out = console()
    for task, answer in answers.items():
        out.print(task, style="bold", highlight=False)
        if "needs" in answer:
            out.print(f"  not without {', '.join(answer['needs'])}")
        elif "left out" in answer:
            out.print(f"  not fused: {answer['left out']}", highlight=False)
        elif "best" in answer:
            for name, probability in answer["best"].items():
                bar = Text("█" * round(30 * probability), style="blue")
                out.print(f"  {probability:6.1%}  {name} ", bar, highlight=False)
        elif "file" in answer:
            out.print(f"  {answer['seconds']:.1f} s in {answer['file']}", highlight=False)
        elif isinstance(answer.get("prediction"), float):
            out.print(f"  {answer['prediction']:.1f}", highlight=False)
        elif "prediction" in answer:
            out.print(f"  {answer['prediction']}", highlight=False)
        for pair, value in answer.get("similarity", {}).items():
            out.print(f"  {pair} similarity {value:.2f}", highlight=False)
        for pair, found in answer.get("nearest", {}).items():
            names = ", ".join(f"{name} ({score:.2f})" for name, score in found.items())
            out.print(f"  {pair}: {names}", highlight=False)


def about_many(arguments: argparse.Namespace, rest: Sequence[str]) -> bool:
    """Whether a manifest is given; its options checked before a run is opened."""
    from mtmm_jax.data.sources.manifest.bad import ON_BAD
    from mtmm_jax.ranges import Count
    from mtmm_jax.registry import ConfigError, check, choose

    if arguments.manifest is None:
        for option in ("out", "on_bad", "batch"):
            if getattr(arguments, option) is not None:
                raise ConfigError(f"--{option}: belongs to --manifest FILE")
        return False
    if rest:
        raise ConfigError(f"{rest[0]}: not with --manifest, whose columns say what there is")
    if not arguments.out:
        raise ConfigError("--out: is missing; name the file to write, such as predictions.jsonl")
    out = Path(arguments.out)
    if out.is_dir() or not out.parent.is_dir():
        raise ConfigError(f"--out: {out} is a folder, or its folder does not exist")
    if arguments.batch is not None:
        check(arguments.batch, Count, "--batch")
    choose(arguments.on_bad or "skip", ON_BAD, "--on_bad")
    return True


def about_labels(arguments: argparse.Namespace, rest: Sequence[str]) -> bool:
    """Whether a manifest is to be labelled; its options checked before a run is opened."""
    from mtmm_jax.registry import ConfigError

    if arguments.label is None:
        for option in ("least", "ask", "by"):
            if getattr(arguments, option) is not None:
                raise ConfigError(f"--{option}: belongs to --label MANIFEST")
        return False
    for option in ("manifest", "exported", "workdirs", "rule", "on_bad", "json"):
        if getattr(arguments, option):
            raise ConfigError(f"--{option}: not with --label, which asks one run, --workdir")
    for option in ("workdir", "out"):
        if not getattr(arguments, option):
            raise ConfigError(f"--{option}: is missing")
    if rest:
        raise ConfigError(f"{rest[0]}: not with --label, whose columns say what there is")
    if not Path(arguments.out).parent.is_dir():
        raise ConfigError(f"--out: there is no folder {Path(arguments.out).parent}")
    return True


def label_rows(arguments: argparse.Namespace) -> int:
    """Writes a manifest with labels, and prints the most uncertain rows."""
    from mtmm_jax.inference.finished import open_run
    from mtmm_jax.inference.labelling import ask_file, label_manifest

    run, out, path = open_run(arguments.workdir), console(), Path(arguments.out)
    given = {"least": arguments.least, "ask": arguments.ask, "by": arguments.by}
    given |= {"size": arguments.batch}
    options = {key: value for key, value in given.items() if value is not None}
    found = label_manifest(run, Path(arguments.label), path, **options)
    counts = ", ".join(f"{name} in {count}" for name, count in found.counts.items())
    out.print(f"{len(found.rows)} rows, labelled: {counts}, in {path}", highlight=False)
    if found.without:
        out.print(f"not labelled, as their kind has no labels: {', '.join(found.without)}")
    if found.left_out:
        out.print(f"{found.left_out} lines are no rows and were left out", highlight=False)
    for row in found.queue[:10]:
        likely = {name: next(iter(best)) for name, best in row["likely"].items()}
        shown = ", ".join(f"{name}: {best}?" for name, best in likely.items())
        out.print(f"  line {row['row']}: {row['uncertainty']:.2f}  {shown}", highlight=False)
    if found.queue:
        out.print(f"{len(found.queue)} rows to ask about in {ask_file(path)}", highlight=False)
    return 0


def ask_many(arguments: argparse.Namespace) -> int:
    """Writes a line for each row of a manifest: its line, its id, and its answers or its error."""
    from mtmm_jax.inference.finished import open_run
    from mtmm_jax.inference.manifest_batches import open_all, open_manifest
    from mtmm_jax.inference.predict_rows import write_predictions
    from mtmm_jax.inference.prediction import ask_file_rows, ask_rows, opened
    from mtmm_jax.runs import ensembles
    from mtmm_jax.runs.fused import open_ensemble

    given, size = (arguments.manifest, arguments.on_bad or "skip"), arguments.batch or 64
    path, out = Path(arguments.out), console()
    if arguments.exported:
        with opened(arguments.exported) as (model, workdir):
            manifest = open_manifest(given[0], workdir, given[1])
            found = ask_file_rows(model, workdir, manifest, size, path)
            write_predictions([manifest], found, path, out)
        return 0
    if arguments.workdirs:
        ensemble = open_ensemble(
            arguments.workdirs.split(","), arguments.rule, bool(arguments.trust_paths)
        )
        several = open_all(given[0], [run.workdir for run in ensemble.runs], given[1])
        write_predictions(several, ensembles.ask_rows(ensemble, several, size), path, out)
        return 0
    run = open_run(arguments.workdir)
    manifest = open_manifest(given[0], run.workdir, given[1])
    write_predictions([manifest], ask_rows(run, manifest, size, path), path, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
