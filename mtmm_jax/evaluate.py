"""`python -m mtmm_jax.evaluate --workdir runs/emoji`: a finished run's metrics on a split."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from mtmm_jax.command import console, guarded, prepare_jax, trust_option


def parser() -> argparse.ArgumentParser:
    from mtmm_jax.devices.processes import options

    p = argparse.ArgumentParser(
        prog="python -m mtmm_jax.evaluate",
        description="Evaluates the best checkpoint of a run.",
        epilog="Values of the data may be changed, for example --config.data.text=name.",
    )
    p.add_argument("--workdir", help="the run's folder")
    p.add_argument(
        "--workdirs", help="several runs fused: folders parted by commas, or that of an ensemble"
    )
    p.add_argument("--rule", help="of --workdirs: mean (default), product or max")
    p.add_argument("--split", default="test", help="train, validation or test (default)")
    p.add_argument("--only", help="modalities to keep, such as image,text; the others are absent")
    p.add_argument(
        "--zero_shot",
        metavar="LABEL",
        help="tell the classes of this label by their names and by a few examples, through a "
        "retrieval task; also written to the run's zero_shot.json",
    )
    p.add_argument("--json", action="store_true", help="print JSON instead of a table")
    trust_option(p)
    options(p)
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    arguments, overrides = parser().parse_known_args(argv)
    prepare_jax()

    from mtmm_jax.batch import choose_all
    from mtmm_jax.devices import parallel, processes
    from mtmm_jax.evaluation import Evaluator, certainty
    from mtmm_jax.evaluation.split import compute
    from mtmm_jax.inference.finished import open_run
    from mtmm_jax.registry import choose
    from mtmm_jax.runs.fused import one_of
    from mtmm_jax.store.config import mutable
    from mtmm_jax.store.files import finite
    from mtmm_jax.store.workdir import Workdir
    from mtmm_jax.training import apply_overrides
    from mtmm_jax.training.logs import results_table
    from mtmm_jax.training.loop import evaluation_batches
    from mtmm_jax.training.results import FORMAT

    parallel.initialize(arguments.coordinator, arguments.processes, arguments.process)
    choose(arguments.split, ("train", "validation", "test"), "--split", "split")
    together = one_of(arguments.workdir, arguments.workdirs, arguments.rule)
    _check_zero_shot(arguments, together)
    if together:
        _together(arguments, overrides)
        return 0
    stored = Workdir.at(arguments.workdir).config()
    config = apply_overrides(mutable(stored), overrides)
    run = open_run(arguments.workdir, config.to_dict(), trust_paths=bool(arguments.trust_paths))
    experiment = run.experiment
    if arguments.zero_shot:
        _zero_shot(run, arguments)
        return 0
    only = arguments.only.split(",") if arguments.only else None
    choose_all(only or (), experiment.model.encoders, "--only", "modality")
    evaluator = Evaluator(experiment.model, experiment.devices)
    variables = parallel.replicate(run.variables, experiment.devices)
    batches = evaluation_batches(experiment, arguments.split)
    states = evaluator.states(variables, batches, only)
    if not processes.is_primary():
        return 0
    results, sure = compute(experiment.model, states), certainty(experiment.model, states)
    if arguments.json:
        about = {"split": arguments.split, "step": run.step, "only": only}
        document = {"format": FORMAT, **about, "results": results, "intervals": sure}
        print(json.dumps(finite(document), indent=1))
    else:
        title = f"{arguments.workdir}, step {run.step}, {arguments.split}"
        console().print(results_table(title, {", ".join(only) if only else "all": results}, sure))
    return 0


def _check_zero_shot(arguments: argparse.Namespace, together: bool) -> None:
    from mtmm_jax.registry import ConfigError

    if arguments.zero_shot is None:
        return
    if together:
        raise ConfigError("--zero_shot: evaluates one run: --workdir, not --workdirs")
    if arguments.only or arguments.split != "test":
        raise ConfigError("--zero_shot: has splits and modalities of its own, no --only or --split")


def _zero_shot(run: Any, arguments: argparse.Namespace) -> None:
    """Names and examples as classes; on one device."""
    from mtmm_jax.devices import processes
    from mtmm_jax.evaluation import zero_shot
    from mtmm_jax.store.files import finite

    experiment, label = run.experiment, arguments.zero_shot
    size = experiment.config["evaluation"]["batch_size"]
    found = zero_shot.measure(experiment.model, run.variables, experiment.source, label, size)
    if not processes.is_primary():
        return
    run.workdir.write("zero_shot.json", finite(found))
    if arguments.json:
        print(json.dumps(finite(found), indent=1))
        return
    out = console()
    out.print(zero_shot.table(found, f"{arguments.workdir}, step {run.step}: {label}"))
    names = ", ".join(found["unseen_classes"]) or "none was held out of training"
    out.print(f"unseen: {names}", highlight=False)


def _together(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Several runs and their fused predictions, on one device."""
    from mtmm_jax.registry import ConfigError
    from mtmm_jax.runs import fused
    from mtmm_jax.store.config import mutable
    from mtmm_jax.store.files import finite
    from mtmm_jax.training import apply_overrides
    from mtmm_jax.training.logs import results_table

    if arguments.processes or arguments.coordinator or arguments.process is not None:
        raise ConfigError("--workdirs: is evaluated by one process, without --processes")
    for override in overrides:
        if not override.startswith("--config.data."):
            raise ConfigError(f"{override}: of several runs only values of the data may be changed")
    ensemble = fused.open_ensemble(
        arguments.workdirs.split(","), arguments.rule, bool(arguments.trust_paths)
    )
    found = fused.sources(
        ensemble,
        lambda stored: apply_overrides(mutable(stored), overrides).to_dict(),
        bool(arguments.trust_paths),
    )
    only = arguments.only.split(",") if arguments.only else None
    votes = fused.votes(ensemble, found, arguments.split, only)
    results = fused.results(ensemble, votes)
    if arguments.json:
        print(json.dumps(finite(results), indent=1))
    else:
        out = console()
        out.print(results_table(f"{arguments.split}, {', '.join(only or ['all'])}", results))
        for remark in fused.remarks(ensemble.rule, ensemble.used, ensemble.left_out):
            out.print(remark, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
