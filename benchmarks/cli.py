# SPDX-License-Identifier: MIT
"""The command line: what to measure, how long, and where the results go."""

from __future__ import annotations

import argparse
import functools
import json
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import asgi, charts, deploys, load, machine, report, resident, startup, supervision, web
from benchmarks.peers import OURS, PEERS, ROOT, Environments, default_cache, title
from benchmarks.results import Report, Row

DOCS = ROOT / "docs"
RESULTS = DOCS / "benchmarks.json"
# How many runs and how many seconds each, in a hurry and by default.
QUICK, USUAL = (3, 1.0), (5, 1.0)

Job = tuple[str, str, Callable[[], list[Row]]]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure this server beside its peers, run by run in turn, and judge the ratios.",
        epilog="Peers are installed with pip, each in an environment of its own. The server has a core to "
        "itself where there is more than one.",
    )
    parser.add_argument(
        "groups", nargs="*", metavar="GROUP", help="http, asgi, companions, memory, startup or all"
    )
    parser.add_argument(
        "--runs", type=_positive(int), metavar="N", help="runs of each contestant (default: 5)"
    )
    parser.add_argument("--seconds", type=_positive(float), metavar="S", help="length of a run (default: 1)")
    parser.add_argument("--quick", action="store_true", help="3 runs")
    parser.add_argument("--peers", type=_peers, metavar="A,B", help="only these: " + ", ".join(PEERS))
    parser.add_argument(
        "--cases", type=_words, default=[], metavar="A,B", help="only these; * stands for any"
    )
    parser.add_argument("--list", action="store_true", help="list the cases and end")
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help=f"environments of the peers ({default_cache()})"
    )
    parser.add_argument(
        "--tree",
        type=Path,
        default=ROOT,
        metavar="DIR",
        help="the checkout that is measured (default: this one)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write a chart here, a file for each group")
    parser.add_argument(
        "--docs", action="store_true", help="put the results into the documentation: JSON, table and charts"
    )
    parser.add_argument(
        "--render", action="store_true", help="measure nothing; write the documentation from its JSON again"
    )
    return parser


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = kind(0)
        if not 0 < value < 1e6:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number above zero")
        return value

    return convert


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _peers(text: str) -> frozenset[str]:
    wanted = _words(text)
    unknown = [word for word in wanted if word not in PEERS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(PEERS)}")
    return frozenset({OURS, *wanted})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 when everything that was asked for has been measured."""
    parser = build_parser()
    options = parser.parse_args(argv)
    groups = options.groups or ["all"]
    for group in groups:
        if group not in (*GROUPS, "all"):
            parser.error(f"no group {group!r}: it is one of {', '.join(GROUPS)}, all")
    if options.render:
        write_docs(read_report(RESULTS))
        return 0
    usual = QUICK if options.quick else USUAL
    runs, seconds = options.runs or usual[0], options.seconds or usual[1]
    environments = Environments(
        options.cache or default_cache(), options.tree, options.peers or frozenset(PEERS)
    )
    jobs = [
        job
        for group in (GROUPS if "all" in groups else dict.fromkeys(groups))
        for job in GROUPS[group](environments, options.cases, int(runs), float(seconds))
    ]
    if options.list:
        print("\n".join(f"{group:<12}{name}" for group, name, _ in jobs))
        return 0
    # A service manager or timeout(1) that ends this command must not leave servers behind.
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    machine.raise_file_limit()
    found = measure(jobs, environments)
    print(report.text_table(found))
    save(found, options)
    return 1 if any(row.error for row in found.rows) else 0


def http_jobs(environments: Environments, patterns: list[str], runs: int, seconds: float) -> Iterable[Job]:
    for case in web.chosen(patterns):
        yield (
            web.GROUP,
            case.name,
            functools.partial(one_row, web.run_case, case, environments, runs, seconds),
        )


def companion_jobs(
    environments: Environments, patterns: list[str], runs: int, seconds: float
) -> Iterable[Job]:
    names = supervision.chosen(patterns)
    group = supervision.GROUP
    if supervision.RESTART in names:
        yield group, supervision.RESTART, lambda: [supervision.run_restart(environments, runs)]
    if supervision.START in names:
        yield group, supervision.START, lambda: [supervision.run_start(environments, runs)]
    fleet = [name for name in names if name in supervision.FLEET_CASES]
    if fleet:
        yield group, ", ".join(fleet), lambda: supervision.run_fleet(environments, fleet, runs)


def memory_jobs(environments: Environments, patterns: list[str], runs: int, seconds: float) -> Iterable[Job]:
    for name in resident.chosen(patterns):
        yield resident.GROUP, name, functools.partial(one_row, resident.run, name, environments, runs)


def asgi_jobs(environments: Environments, patterns: list[str], runs: int, seconds: float) -> Iterable[Job]:
    for name in asgi.chosen(patterns):
        yield asgi.GROUP, name, functools.partial(one_row, asgi.run, name, environments, runs)


def startup_jobs(environments: Environments, patterns: list[str], runs: int, seconds: float) -> Iterable[Job]:
    for name in startup.chosen(patterns):
        yield startup.GROUP, name, functools.partial(one_row, startup.run, name, environments, runs)
    names = deploys.chosen(patterns)
    for name in (deploys.APPLICATION, deploys.EACH):
        if name in names:
            run = functools.partial(one_row, deploys.run_application, name, environments, runs)
            yield startup.GROUP, name, run
    together = [name for name in names if name in deploys.TOGETHER]
    if together:
        yield (
            startup.GROUP,
            ", ".join(together),
            lambda: deploys.run_together(environments, together, runs),
        )


def one_row(run: Callable[..., Row], *arguments: Any) -> list[Row]:
    return [run(*arguments)]


GROUPS: dict[str, Callable[[Environments, list[str], int, float], Iterable[Job]]] = {
    "http": http_jobs,
    "asgi": asgi_jobs,
    "companions": companion_jobs,
    "memory": memory_jobs,
    "startup": startup_jobs,
}


def measure(jobs: Sequence[Job], environments: Environments) -> Report:
    """Each job's rows. One that fails twice is a row that says so, and the next begins."""
    rows: list[Row] = []
    begun = time.monotonic()
    for count, (group, name, job) in enumerate(jobs, 1):
        print(f"[{count}/{len(jobs)}] {name} ({time.monotonic() - begun:.0f} s)", file=sys.stderr, flush=True)
        try:
            rows += attempt(group, name, job)
        except KeyboardInterrupt:
            print("interrupted: what was measured so far follows", file=sys.stderr)
            break
    return Report(tuple(rows), {group: conditions(environments) for group in {row.group for row in rows}})


def attempt(group: str, name: str, job: Callable[[], list[Row]]) -> list[Row]:
    """A port that was taken meanwhile, or a machine that stood still, deserve a second try."""
    for _ in range(2):
        try:
            with machine.on_load_cores():
                rows = job()
        except Exception as exc:
            rows = [Row(group, name, name, "", error=f"{type(exc).__name__}: {exc}")]
        failed = [row.error for row in rows if row.error]
        if not failed:
            break
        print(f"  failed: {'; '.join(failed)}", file=sys.stderr, flush=True)
    return rows


def conditions(environments: Environments) -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": machine.describe(),
        "versions": {title(label): version for label, version in environments.versions.items()},
        "left_out": {title(label): why for label, why in environments.failures.items()},
        "load": "wrk" if load.has_wrk() else "a generator in Python, which bounds the figures",
    }


def read_report(path: Path) -> Report:
    return Report.from_json(json.loads(path.read_text()))


def write_report(found: Report, path: Path) -> None:
    path.write_text(json.dumps(found.to_json(), indent=1, ensure_ascii=False) + "\n")


def save(found: Report, options: argparse.Namespace) -> None:
    if options.json is not None:
        write_report(found, options.json)
    if options.svg is not None:
        for group, picture in charts.draw(found).items():
            options.svg.with_name(f"{options.svg.stem}-{group}.svg").write_text(picture)
    if options.docs:
        if RESULTS.exists():
            found = read_report(RESULTS).merged(found)
        write_docs(found)


def write_docs(found: Report) -> None:
    """JSON, table and charts of the documentation, all from the same figures."""
    write_report(found, RESULTS)
    for name, text in rendered(found).items():
        (DOCS / name).write_text(text)


def rendered(found: Report) -> dict[str, str]:
    """The generated files of the documentation by name."""
    pictures = charts.draw(found)
    files = {f"benchmarks-{group}.svg": picture for group, picture in pictures.items()}
    return {"benchmarks.inc": report.rst(found, pictures), **files}
