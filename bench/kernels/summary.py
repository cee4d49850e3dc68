"""What the records of several runs say together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from bench.kernels.measure import BASELINES, CACHES

Json = dict[str, Any]
_CASE_FIELDS = ("op", "direction", "shape", "dtype", "layout")


def summarize(runs: list[Json]) -> Json:
    """Speed-ups of every run, scaling over threads, and the tuned kernel against untuned PyTorch.

    A run is {"allocator", "threads", "environment", "records"}. The last two lists are empty where the runs do not
    have the pair of settings that they compare.
    """
    return {
        "ratios": [entry for run in runs for entry in _ratios(run)],
        "scaling": [entry for base, other in _thread_pairs(runs) for entry in _scaling(base, other)],
        "against_default": [entry for default, tuned in _allocator_pairs(runs) for entry in _across(default, tuned)],
    }


def geometric_mean(values: Iterable[float]) -> float:
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))


def _ratios(run: Json) -> list[Json]:
    """Fastdiff against the better of the baselines under the same settings."""

    def ratio(record: Json, cache: str, statistic: str) -> float:
        return _best_baseline(record, cache, statistic) / _time(record, cache, "fastdiff", statistic)

    return _grouped(run, ratio)


def _across(default: Json, tuned: Json) -> list[Json]:
    """Fastdiff under the tuned allocator against the better baseline under the default one: what a user gains."""
    before = {_key(record): record for record in default["records"]}

    def ratio(record: Json, cache: str, statistic: str) -> float:
        return _best_baseline(before[_key(record)], cache, statistic) / _time(record, cache, "fastdiff", statistic)

    return _grouped(tuned, ratio)


def _scaling(base: Json, other: Json) -> list[Json]:
    """Times of one run over those of a run with more threads, for the kernel and, as what memory allows, the copy."""
    entries = []
    after = {_key(record): record for record in other["records"]}
    for record in base["records"]:
        for cache in CACHES:
            entry = {"allocator": base["allocator"], "threads": [base["threads"], other["threads"]], "cache": cache}
            entry |= {field: record[field] for field in _CASE_FIELDS}
            for statistic, label in (("median_ms", "speedup"), ("min_ms", "speedup_of_minima")):
                entry[label] = {
                    name: _time(record, cache, name, statistic) / _time(after[_key(record)], cache, name, statistic)
                    for name in record["caches"][cache]["contenders"]
                }
            entries.append(entry)
    return entries


def _grouped(run: Json, ratio: Callable[[Json, str, str], float]) -> list[Json]:
    """Geometric mean and least ratio by op, direction and cache: for each dtype, and for all of them.

    They are ratios of medians; the mean is also given for ratios of minima, which a busy machine disturbs less.
    """
    records, entries = run["records"], []
    groups = list(dict.fromkeys((record["op"], record["direction"]) for record in records))
    for op, direction in groups:
        of_group = [record for record in records if (record["op"], record["direction"]) == (op, direction)]
        dtypes = list(dict.fromkeys(record["dtype"] for record in of_group))
        for dtype in [*dtypes, "all"]:
            chosen = [record for record in of_group if dtype in (record["dtype"], "all")]
            for cache in CACHES:
                values = [(record["shape_class"], ratio(record, cache, "median_ms")) for record in chosen]
                entries.append(
                    {
                        "allocator": run["allocator"],
                        "threads": run["threads"],
                        "op": op,
                        "direction": direction,
                        "dtype": dtype,
                        "cache": cache,
                        "geometric_mean": geometric_mean(v for _, v in values),
                        "geometric_mean_of_minima": geometric_mean(ratio(r, cache, "min_ms") for r in chosen),
                        "minimum": {name: min(v for n, v in values if n == name) for name in dict(values)},
                    }
                )
    return entries


def _thread_pairs(runs: list[Json]) -> list[tuple[Json, Json]]:
    """Each run with the run of the fewest threads under the same allocator."""
    pairs = []
    for run in runs:
        base = min((r for r in runs if r["allocator"] == run["allocator"]), key=lambda r: r["threads"])
        if base is not run:
            pairs.append((base, run))
    return pairs


def _allocator_pairs(runs: list[Json]) -> list[tuple[Json, Json]]:
    default = {run["threads"]: run for run in runs if run["allocator"] == "default"}
    tuned = [run for run in runs if run["allocator"] == "tuned"]
    return [(default[run["threads"]], run) for run in tuned if run["threads"] in default]


def _key(record: Json) -> tuple[object, ...]:
    return tuple(tuple(value) if isinstance(value := record[field], list) else value for field in _CASE_FIELDS)


def _time(record: Json, cache: str, contender: str, statistic: str) -> float:
    return record["caches"][cache]["contenders"][contender][statistic]


def _best_baseline(record: Json, cache: str, statistic: str) -> float:
    names = [name for name in BASELINES if name in record["caches"][cache]["contenders"]]
    return min(_time(record, cache, name, statistic) for name in names)
