"""`python -m mtmm_jax.predict --workdir runs/emoji --image a.png --text apple --audio a.wav`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mtmm_jax.command import console, guarded, prepare_jax


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m mtmm_jax.predict",
        description="What a trained model says of one sample.",
        epilog="Each modality of the run is an option, for emoji: --image FILE --text WORDS "
        "--audio FILE. Any may be left out.",
        allow_abbrev=False,
    )
    p.add_argument("--workdir", help="the run's folder")
    p.add_argument(
        "--workdirs", help="several runs fused: folders parted by commas, or that of an ensemble"
    )
    p.add_argument("--rule", help="of --workdirs: mean (default), product or max")
    p.add_argument("--json", action="store_true", help="print JSON instead of text")
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    arguments, rest = parser().parse_known_args(argv)
    prepare_jax()

    from mtmm_jax.runs.fused import one_of, open_ensemble
    from mtmm_jax.training.finished import open_run
    from mtmm_jax.training.workdir import Workdir

    if one_of(arguments.workdir, arguments.workdirs, arguments.rule):
        answers = ask_together(open_ensemble(arguments.workdirs.split(","), arguments.rule), rest)
    else:
        inputs = read_inputs(rest, Workdir.at(arguments.workdir))
        answers = ask(open_run(arguments.workdir), inputs)
    if arguments.json:
        print(json.dumps(answers, indent=1))
    else:
        show(answers)
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
    from mtmm_jax.registry import choose

    spec, inputs = workdir.spec(), {}
    for name, value in given.items():
        modality = spec.modalities[name]
        choose(modality.kind, READERS, f"--{name}", "kind of file")
        extra = (workdir.tokenizer(name),) if modality.kind == "text" else ()
        inputs[name] = READERS[modality.kind](value, modality, *extra)
    return inputs


def ask_together(ensemble: Any, rest: Sequence[str]) -> dict[str, Any]:
    """`{task: what a person reads}` of fused runs; each sees what it has an encoder for."""
    from mtmm_jax.runs.ensembles import predict

    own = [_modalities(run.workdir) for run in ensemble.runs]
    given = _given(rest, list(dict.fromkeys(name for names in own for name in names)))
    inputs = [
        _read({name: value for name, value in given.items() if name in names}, run.workdir)
        for run, names in zip(ensemble.runs, own, strict=True)
    ]
    tasks = ensemble.model.tasks
    answers: dict[str, Any] = {
        name: tasks[name].decode(one) if one is not None else {"needs": list(tasks[name].reads)}
        for name, one in predict(ensemble, inputs).items()
    }
    return answers | {name: {"left out": why} for name, why in ensemble.left_out.items()}


def ask(run: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """`{task: what a person reads}`; a task that cannot be done says what it needs."""
    import jax
    import numpy as np

    from mtmm_jax.evaluation import gallery as galleries
    from mtmm_jax.tasks.synthesis import write_wave
    from mtmm_jax.tasks.task import modalities_of

    model = run.experiment.model
    batch = model.spec.example(1)
    absent = {
        name: {**batch["inputs"][name], "present": np.zeros(1, bool)} for name in model.encoders
    }
    predictions, _ = jax.jit(model)(run.variables, {**absent, **inputs})
    predictions = jax.device_get(predictions)
    gallery = dict(np.load(run.workdir.gallery)) if run.workdir.gallery.exists() else {}
    answers: dict[str, Any] = {}
    for name, task in model.tasks.items():
        one = jax.tree.map(lambda x: x[0] if np.ndim(x) else x, predictions[name])
        here = [r for r in task.reads if set(modalities_of(r, model.encoders)) & set(inputs)]
        answers[name] = task.decode(one) if len(here) == len(task.reads) else {}
        if "wave" in answers[name]:
            heard = run.workdir.path / f"{name}.wav"  # not beside the user's own recordings
            write_wave(heard, answers[name].pop("wave"), answers[name].pop("rate"))
            answers[name]["file"] = str(heard)
        if task.kind == "retrieval" and gallery:
            answers[name]["nearest"] = {
                f"{read} -> {other}": galleries.nearest(one["vectors"][read], gallery, name, other)
                for read in here
                for other in task.reads
                if other != read and f"{name}/{other}" in gallery
            }
        if len(here) < len(task.reads) and not answers[name].get("nearest"):
            answers[name] = {"needs": [r for r in task.reads if r not in here]}
    return answers


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
