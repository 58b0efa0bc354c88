"""The config that `check --write` makes of a table, against what a person tries first.

    python -m mtmm_jax.benchmarks.studies.own_data things.csv --label kind price --json own.json

For each of several random splits (70/10/20, stratified as the config has it) the config is trained
as written, and scikit-learn fits ridge and logistic regression (C chosen on validation) on TF-IDF
of words and letters from the texts as they stand, the package's gradients of pictures and
statistics of sounds, standardised numbers and one-hot categories. Reported: both on the same test
rows, the paired difference with a 95 % interval (t, variance corrected for overlapping training
sets: Nadeau and Bengio 2003), the linear models inside the model, each input alone, and seconds.

With `--weights FOLDER`, a pretrained encoder of the texts, scikit-learn's logistic and ridge
regression are fitted on its frozen vectors as well, standardised: on them alone ("frozen").

scikit-learn comes with the extra `test`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtmm_jax.benchmarks.tables.result_table import Board, arguments, seeds_of, spread
from mtmm_jax.command import console, guarded, prepare_jax
from mtmm_jax.registry import ConfigError, entry_of

SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)


def parser() -> argparse.ArgumentParser:
    about = "The config that check writes, against linear models of scikit-learn."
    p = arguments("studies.own_data", about, seeds="0,1,2,3,4", config_flags=True)
    p.add_argument("table", help="as of mtmm_jax.data.inspect.check")
    p.add_argument("--label", nargs="+", required=True, help="columns to predict")
    p.add_argument("--name", help="of the rows (default: the table's)")
    p.add_argument("--weights", metavar="FOLDER", help="a pretrained encoder of texts")
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    options, overrides = parser().parse_known_args(argv)
    prepare_jax()
    board = Board(options.json)
    name = options.name or Path(options.table).stem

    def rows(seeds: list[int]) -> Any:
        for seed in seeds:
            yield run(options.table, options.label, seed, overrides, options.weights)

    board.fill(f"{name}: {options.seeds}", {"set": name}, seeds_of(options.seeds), rows)
    console().print(table(board.find(set=name), name))
    return 0


def run(
    path: str,
    labels: Sequence[str],
    seed: int,
    overrides: Sequence[str],
    weights: str | None = None,
) -> dict[str, Any]:
    """One split: the model's and the baseline's headlines on its test rows."""
    from mtmm_jax import training
    from mtmm_jax.data.inspect import check
    from mtmm_jax.train import fit

    with tempfile.TemporaryDirectory() as scratch:
        own = Path(scratch) / "own.py"
        words = [path, *(word for label in labels for word in ("--label", label))]
        words += ["--weights", weights] if weights else []
        if check.main([*words, "--write", str(own), "--show", "0"]) == 2:
            raise ConfigError(f"{path}: cannot be checked")
        config = training.load(str(own))
        split = config.data.to_dict().get("split", {})
        if isinstance(split, str):
            raise ConfigError(f"{path}: has a split of its own; leave the column out")
        with config.unlocked():
            config.data.split = {**split, **SHARES, "seed": seed}
            config.seed = seed
        config = training.apply_overrides(config, overrides)
        experiment = training.assemble(config)
        began = time.perf_counter()
        results = fit(experiment, Path(scratch) / "run")
        seconds = time.perf_counter() - began
        frozen = frozen_headlines(experiment) if weights else {}  # reads the folder from there
    began = time.perf_counter()
    baseline = sklearn_headlines(experiment)
    return {
        "seed": seed,
        "rows": len(experiment.source.rows["train"]),
        "test": len(experiment.source.rows["test"]),
        "seconds": round(seconds, 1),
        "baseline_seconds": round(time.perf_counter() - began, 1),
        "tasks": {
            task: {
                "metric": (metric := experiment.model.tasks[task].headline),
                "model": results["test"][task][metric],
                "baseline": baseline[task],
                **({"frozen": frozen[task]} if frozen else {}),
                "linear": {
                    expert: found[metric]
                    for expert, found in results["linear"]["results"]["test"][task].items()
                },
                "only": {
                    title.removeprefix("only "): found["test"][task][metric]
                    for title, found in results["baselines"].items()
                    if title.startswith("only ")
                },
            }
            for task in baseline
        },
    }


def sklearn_headlines(experiment: Any) -> dict[str, float]:
    """Task -> accuracy or R2 on test, of scikit-learn's linear models."""
    from scipy import sparse

    source = experiment.source
    blocks: list[Any] = []
    for name, modality in source.spec.modalities.items():
        if modality.is_a("text"):
            spec = experiment.config["data"]["modalities"][name]
            blocks.append(_tfidf(source, entry_of(spec).get("column", name)))
        else:
            blocks.append(_vectors(experiment, name))
    return _headlines(
        experiment,
        {
            split: sparse.hstack([sparse.csr_matrix(block[split]) for block in blocks]).tocsr()
            for split in SHARES
        },
    )


def frozen_headlines(experiment: Any) -> dict[str, float]:
    """The same of the frozen vectors of pretrained encoders, standardised."""
    from mtmm_jax.evaluation.linear import entries_of

    model, source = experiment.model, experiment.source
    entries, names = entries_of(model, experiment.init().variables), model.linear.backbones
    features = {}
    for split in SHARES:
        found = map(entries, source.batches(split, 128))
        parts = [np.concatenate([one[name]["x"] for name in names], 1) for one in found]
        features[split] = np.concatenate(parts)[: len(source.rows[split])]
    mean, std = features["train"].mean(0), features["train"].std(0)
    features = {split: (x - mean) / np.maximum(std, 1e-6) for split, x in features.items()}
    return _headlines(experiment, features)


def _headlines(experiment: Any, features: Mapping[str, Any]) -> dict[str, float]:
    """Task -> accuracy or R2 on test, of linear models of a split's features."""
    source, model = experiment.source, experiment.model
    found = {}
    for name, task in model.tasks.items():
        if task.linear is None:
            continue
        y, there = {}, {}
        for split in SHARES:
            batches = list(source.batches(split, 128))
            y[split] = np.concatenate([b["targets"][task.target]["y"] for b in batches])
            known = [b["targets"][task.target]["present"] & (b["weight"] > 0) for b in batches]
            rows = len(source.rows[split])
            y[split], there[split] = y[split][:rows], np.concatenate(known)[:rows]
        parts = {s: (features[s][there[s]], y[s][there[s]]) for s in SHARES}
        found[name] = _best(parts, task.traits.class_logits)
    return found


def _best(parts: Mapping[str, tuple[Any, np.ndarray]], classes: bool) -> float:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, Ridge

    scores = []
    for strength in STRENGTHS:
        model = (
            LogisticRegression(C=strength, max_iter=300, tol=1e-3)
            if classes
            else Ridge(alpha=1 / strength)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(*parts["train"])
        scores.append((model.score(*parts["validation"]), model.score(*parts["test"])))
    return float(max(scores, key=lambda pair: pair[0])[1])


def _tfidf(source: Any, column: str) -> dict[str, Any]:
    """Of words and of letters, from the texts that stand in a column."""
    from scipy import sparse
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = {
        split: ["" if row.get(column) is None else str(row[column]) for row in source.raw(rows)]
        for split, rows in source.rows.items()
    }
    makers = [
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True),
    ]
    for maker in makers:
        maker.fit(texts["train"])
    return {
        split: sparse.hstack([maker.transform(own) for maker in makers]) / np.sqrt(2)
        for split, own in texts.items()
    }


def _vectors(experiment: Any, name: str) -> dict[str, np.ndarray]:
    """The package's formulas of anything but texts, with their statistics."""
    from mtmm_jax import registry
    from mtmm_jax.encoders import ENCODERS
    from mtmm_jax.evaluation.linear import encode_split, fit_statistics
    from mtmm_jax.modalities import kind_of

    source = experiment.source
    modality = source.spec.modalities[name]
    encoder = registry.build(
        ENCODERS,
        entry_of(kind_of(modality).fixed),
        where="studies.own_data",
        width=1,
        modality=name,
        rate=modality.rate,
        shape=modality.shape,
    )
    stats = fit_statistics({name: (name, encoder)}, source, 128)[name]
    return {split: encode_split(encoder, name, stats, source, split, 128) for split in SHARES}


def interval(differences: Sequence[float], train: int, test: int) -> tuple[float, float]:
    """The mean, and half of its 95 % interval."""
    from scipy import stats

    count = len(differences)
    mean = float(np.mean(differences))
    if count < 2:
        return mean, float("nan")
    variance = np.var(differences, ddof=1) * (1 / count + test / train)
    return mean, float(stats.t.ppf(0.975, count - 1) * np.sqrt(variance))


def table(rows: Sequence[Mapping[str, Any]], name: str) -> Any:
    from rich.table import Table

    out = Table(title=f"{name}: {len(rows)} splits, test")
    frozen = bool(rows) and any("frozen" in one for one in rows[0]["tasks"].values())
    added = ["frozen", "difference"] if frozen else []
    columns = ("model", "scikit-learn", "difference", *added, "linear", "best only")
    for column in ("task", "metric", *columns):
        out.add_column(column, justify="left" if column in ("task", "metric") else "right")
    for task in rows[0]["tasks"] if rows else ():
        own = [row["tasks"][task] for row in rows]

        def against(key: str, own: Any = own) -> list[str]:
            pairs = [one["model"] - one[key] for one in own]
            mean, half = interval(pairs, rows[0]["rows"], rows[0]["test"])
            return [spread([one[key] for one in own]), f"{mean:+.3f} ± {half:.3f}"]

        lasts = [[*one["linear"].values()][-1] for one in own]
        only = {k: np.mean([one["only"][k] for one in own]) for k in own[0]["only"]}
        best = max(only, key=lambda k: only[k])
        out.add_row(
            task,
            own[0]["metric"],
            spread([one["model"] for one in own]),
            *against("baseline"),
            *(against("frozen") if frozen else []),
            spread(lasts),
            f"{best} {only[best]:.3f}",
        )
    if rows:
        out.caption = (
            f"{np.mean([row['seconds'] for row in rows]):.0f} s a run, "
            f"{np.mean([row['baseline_seconds'] for row in rows]):.0f} s scikit-learn; "
            f"{rows[0]['rows']} train rows, {rows[0]['test']} test"
        )
    return out


if __name__ == "__main__":
    sys.exit(main())
