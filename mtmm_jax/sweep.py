"""`python -m mtmm_jax.sweep --config emoji --workdir runs/sweep --set model.fusion.kind=concat,...`

Many runs, and what comes of several: values of a config compared, task weights cross-validated
(`--cv`), weights averaged (`--average`), predictions fused (`--ensemble`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtmm_jax.command import console, guarded, prepare_jax, trust_option

FILE, PICTURE = "sweep.json", "pareto.png"
MODES = {
    "sweep": ("config", "set", "log", "uniform", "random", "seed", "parallel", "by"),
    "cv": ("config", "cv", "weights", "grid", "seed", "by"),
    "average": ("average", "trust_paths"),
    "ensemble": ("ensemble", "rule", "trust_paths"),
}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m mtmm_jax.sweep",
        description="Trains a config with several values and compares the runs on validation; "
        "running again resumes where it stopped. Or: cross-validates task weights, averages the "
        "weights of finished runs, fuses their predictions.",
        epilog="Any value of the config is fixed for all runs by --config.section.key=value.",
        allow_abbrev=False,
    )
    p.add_argument("--workdir", required=True, help="the folder of all runs, or of the result")
    p.add_argument("--config", help="a config file, or a name such as emoji")
    p.add_argument("--seed", type=int, help="of --random and of the folds; 0 by default")
    p.add_argument("--by", help="the task whose metric decides; mean (default): all of them")
    values = p.add_argument_group("values (the default is every combination of --set)")
    values.add_argument("--set", action="append", metavar="KEY=A,B", help="repeated for more keys")
    values.add_argument("--random", type=int, metavar="N", help="N combinations at random")
    values.add_argument("--log", action="append", metavar="KEY=LOW:HIGH", help="drawn by logarithm")
    values.add_argument("--uniform", action="append", metavar="KEY=LOW:HIGH", help="drawn evenly")
    values.add_argument(
        "--parallel", type=int, metavar="N", help="processes at a time; a GPU or CPU share for each"
    )
    weights = p.add_argument_group("static task weights by cross-validation")
    weights.add_argument("--cv", type=int, metavar="K", help="folds of train and validation")
    weights.add_argument("--weights", action="append", metavar="1,1,2", help="one candidate")
    weights.add_argument(
        "--grid", metavar="0.5,1,2", help="of all tasks but the first, which has 1"
    )
    several = p.add_argument_group("finished runs, folders parted by commas")
    several.add_argument(
        "--average", metavar="A,B", help="their weights: one model of the same form"
    )
    several.add_argument("--ensemble", metavar="A,B", help="their predictions: any models")
    several.add_argument(
        "--rule", help="of --ensemble: mean (default), weighted, product, max, learned"
    )
    trust_option(several)
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    arguments, overrides = parser().parse_known_args(argv)
    mode = _mode(arguments, overrides)
    if mode == "sweep" and arguments.parallel is not None:
        from mtmm_jax.devices import parallel

        parallel.set_cpu_flags()  # handed on; this process computes nothing and holds no device
    else:
        prepare_jax()
    MAINS[mode](arguments, overrides)
    return 0


def _mode(arguments: argparse.Namespace, overrides: Sequence[str]) -> str:
    """The mode of the command; options of another mode are refused."""
    from mtmm_jax.registry import ConfigError

    given = {key for key, value in vars(arguments).items() if value is not None} - {"workdir"}
    mode = next((key for key in ("cv", "average", "ensemble") if key in given), "sweep")
    for key in sorted(given - set(MODES[mode])):
        owners = " or ".join(
            f"--{m}" if m != "sweep" else "a sweep" for m in MODES if key in MODES[m]
        )
        what = "a sweep" if mode == "sweep" else f"--{mode}"
        raise ConfigError(f"--{key}: belongs to {owners}, not to {what}")
    if "config" in MODES[mode] and not arguments.config:
        raise ConfigError("--config: is missing; a config file, or a name such as emoji")
    if "config" not in MODES[mode] and overrides:
        raise ConfigError(f"{overrides[0]}: --{mode} takes the configs of the finished runs")
    return mode


def _base(arguments: argparse.Namespace, overrides: Sequence[str]) -> Any:
    """The config with what is fixed, and `--by` checked against its tasks."""
    from mtmm_jax import training
    from mtmm_jax.registry import choose

    config = training.apply_overrides(training.load(arguments.config), overrides)
    training.check_config(config)
    tasks = [name for name, task in config.tasks.items() if task is not None]
    choose(arguments.by or "mean", ("mean", *tasks), "--by", "task")
    return config


def _trials(arguments: argparse.Namespace) -> list[Any]:
    from mtmm_jax.registry import ConfigError
    from mtmm_jax.runs import plans

    choices = [plans.read_choices("--set", text) for text in arguments.set or ()]
    ranges = [
        plans.read_range(f"--{option}", text, option == "log")
        for option in ("log", "uniform")
        for text in getattr(arguments, option) or ()
    ]
    keys = [key for key, _ in (*choices, *ranges)]
    if not keys:
        raise ConfigError("--set: name a value to vary, such as optimizer.learning_rate=1e-3,3e-3")
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ConfigError(f"--set: {twice!r} is varied twice")
    if arguments.random is None:
        for option in ("log", "uniform", "seed"):
            if getattr(arguments, option) is not None:
                raise ConfigError(f"--{option}: needs --random N, a number of draws")
        return plans.named(plans.grid(dict(choices)))
    drawn = plans.drawn(dict(choices), dict(ranges), arguments.random, arguments.seed or 0)
    return plans.named(drawn)


def sweep(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Runs what is left of the plan, and compares; one process at a time in a folder."""
    from mtmm_jax.ranges import Count, Natural
    from mtmm_jax.registry import check
    from mtmm_jax.runs import plans

    out, folder = console(), Path(arguments.workdir)
    check(arguments.parallel, Count | None, "--parallel")
    check(arguments.seed, Natural | None, "--seed")
    base, planned = _base(arguments, overrides), _trials(arguments)
    with plans.held(folder, FILE) as stale:
        _say(stale, out)
        _sweep(arguments, folder, base, planned, out)


def _say(line: str, out: Any) -> None:
    if line:
        out.print(line, highlight=False, markup=False)


def _sweep(
    arguments: argparse.Namespace, folder: Path, base: Any, planned: Sequence[Any], out: Any
) -> None:
    """`sweep` in a folder that is held."""
    from mtmm_jax.runs import plans, trials
    from mtmm_jax.store.workdir import Workdir
    from mtmm_jax.train import fit

    plan = plans.plan_of(base, planned)
    record = {**plans.claim(folder, FILE, plan), "failed": {}}
    left = [trial for trial in planned if not trials.finished(folder, trial)]
    done = len(planned) - len(left)
    out.print(f"{len(planned)} trials in {folder}" + (f", {done} of them done" if done else ""))

    def ended(trial: Any, reason: str | None) -> None:
        if reason:
            record["failed"][trial.name] = reason
        Workdir(folder).write(FILE, record)
        outcome = f"failed: {reason}" if reason else "done"
        out.print(f"{trial.name}  {outcome}", highlight=False, markup=False, soft_wrap=True)

    config = record["plan"]["config"]
    if arguments.parallel is None:
        trials.run_in_turn(folder, config, left, fit, ended)
    elif left:
        trials.run_side_by_side(folder, config, left, arguments.parallel, ended)
    _compare(folder, planned, record, arguments.by or "mean", out)


def _compare(
    folder: Path, planned: Sequence[Any], record: dict[str, Any], by: str, out: Any
) -> None:
    """The table, the picture, and the test split of the chosen run alone."""
    from mtmm_jax.registry import ConfigError
    from mtmm_jax.runs import fronts, trials
    from mtmm_jax.store.files import finite, write
    from mtmm_jax.store.workdir import Workdir
    from mtmm_jax.training.logs import results_table
    from mtmm_jax.training.results import comparison

    done = [trial for trial in planned if trials.finished(folder, trial)]
    outcomes = {trial.name: fronts.outcome_of(Workdir(folder / trial.name)) for trial in done}
    if not outcomes:
        raise ConfigError(f"--workdir: no trial of {folder} was finished; see the reasons above")
    tasks = fronts.shared_tasks(list(outcomes.values()))
    scores = {name: fronts.score(outcome, tasks, by) for name, outcome in outcomes.items()}
    front = fronts.front_of(list(outcomes.values()), tasks)
    changes = {trial.name: trial.changes for trial in planned}
    out.print(fronts.table(outcomes, changes, by, record["failed"]))
    best = fronts.ranked(scores)[0]
    record |= {
        "by": by,
        "best": best,
        "validation": {
            name: {"score": scores[name], "metrics": dict(outcome.metrics), "on_front": bool(on)}
            for (name, outcome), on in zip(outcomes.items(), front, strict=True)
        },
    }
    Workdir(folder).write(FILE, finite(record))
    write(folder / PICTURE, fronts.picture(outcomes))
    results = Workdir(folder / best).read("results.json")
    title = f"test, run {fronts.label(best)}, the best on validation"
    certainty = results.get("intervals", {}).get("test")
    out.print(results_table(title, comparison(results, "test"), certainty))
    for what, path in (("best", best), ("plan", FILE), ("picture", PICTURE)):
        out.print(f"{what:12} {folder / path}", soft_wrap=True)


def cross_validation(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Compares task weights over folds, and trains with the best."""
    from mtmm_jax.model import build
    from mtmm_jax.runs import folds, plans
    from mtmm_jax.store.config import as_dict
    from mtmm_jax.training.experiment import build_source

    out, folder = console(), Path(arguments.workdir)
    plain = as_dict(_base(arguments, overrides))
    source = build_source(plain)
    tasks = tuple(build(plain["model"], plain["tasks"], source.spec).tasks)
    found = folds.candidates(arguments.weights or (), arguments.grid, tasks)
    count = f"{len(found)} candidates x {arguments.cv} folds = {len(found) * arguments.cv} runs"
    out.print(f"{count}; weights of {', '.join(tasks)}", highlight=False, soft_wrap=True)
    with plans.held(folder, folds.FILE) as stale:
        _say(stale, out)
        _cross_validate(arguments, folder, plain, source, found, out)


def _cross_validate(
    arguments: argparse.Namespace, folder: Path, plain: Any, source: Any, found: Any, out: Any
) -> None:
    """`cross_validation` in a folder that is held."""
    from mtmm_jax.runs import folds
    from mtmm_jax.train import fit

    by = arguments.by or "mean"
    record = folds.cross_validate(
        plain, source, folder, arguments.cv, found, arguments.seed or 0, out
    )
    best = folds.winner(record, by)
    out.print(folds.table(record, by))
    for name, reason in record["failed"].items():
        out.print(f"{name} failed: {reason}", highlight=False, markup=False, soft_wrap=True)
    out.print(f"weights {best} are the best: training with them on the whole train split")
    folds.retrain(record, best, by, folder, fit)
    out.print(f"table        {folder / folds.FILE}", soft_wrap=True)


def average(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    """One model of the mean weights."""
    from mtmm_jax.runs.soups import soup

    del overrides  # refused above
    results = soup(
        _folders(arguments.average), Path(arguments.workdir), bool(arguments.trust_paths)
    )
    _show(results, "mean weights; averages of BatchNorm are averaged too")
    console().print(f"run          {arguments.workdir}", soft_wrap=True)


def ensemble(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    """One rule over the predictions."""
    from mtmm_jax.runs import fused

    del overrides  # refused above
    out, rule = console(), arguments.rule or "mean"
    folder, trusted = Path(arguments.workdir), bool(arguments.trust_paths)
    record = fused.fuse_runs(_folders(arguments.ensemble), rule, folder, trusted)
    results = record["results"]
    trained = rule in fused.TRAINED
    _show(
        results, f"{rule}; trained on validation, whose fused metrics flatter" if trained else rule
    )
    for remark in fused.remarks(rule, record["rules"], record["left_out"]):
        out.print(remark, highlight=False, soft_wrap=True)
    out.print(f"ensemble     {arguments.workdir}", soft_wrap=True)


def _folders(text: str) -> list[str]:
    return [path.strip() for path in text.split(",")]


def _show(results: dict[str, Any], how: str) -> None:
    from mtmm_jax.training.logs import results_table

    for split, columns in results.items():
        console().print(results_table(f"{split}, {how}", columns))


MAINS = {
    "sweep": sweep,
    "cv": cross_validation,
    "average": average,
    "ensemble": ensemble,
}


if __name__ == "__main__":
    sys.exit(main())
